"""Figures show the numbers they are given; the report holds them and needs nothing from outside."""

import base64
import re

import matplotlib
import numpy as np
import pytest

from cogvideo.evaluation.fvd_plots import liveliest, plot_bootstrap, plot_clips, plot_curves
from cogvideo.evaluation.fvd_score import fvd, study_gaussians
from cogvideo.evaluation.sensitivity import Row, Sensitivity, plot_sensitivity
from cogvideo.reports import html


@pytest.fixture(autouse=True)
def _no_display():
    import matplotlib.pyplot as plt

    before = matplotlib.get_backend()
    matplotlib.use("Agg")
    yield
    plt.close("all")
    matplotlib.use(before)


def test_clips_are_shown_from_first_to_last_frame():
    clip = np.arange(16, dtype=np.uint8)[:, None, None, None].repeat(32, 1).repeat(32, 2).repeat(3, 3) * 10
    axes = plot_clips({"real": clip, "frozen": clip * 0}, shown=4).axes
    strip = axes[0].get_images()[0].get_array()
    assert strip[0, ::33, 0].tolist() == [0, 50, 100, 150] and strip[0, 32, 0] == 255
    assert [axis.get_ylabel() for axis in axes] == ["real", "frozen"]


@pytest.mark.parametrize(
    "names", [["a", "b"], ["generated 2", "reversed"], ["a side with a long name", "real"]]
)
def test_names_of_clips_are_inside_the_picture(names):
    figure = plot_clips({name: np.zeros((16, 64, 64, 3), np.uint8) for name in names})
    figure.canvas.draw()
    labels = [axis.yaxis.label.get_window_extent() for axis in figure.axes]
    pictures = [axis.get_window_extent() for axis in figure.axes]
    assert all(0 < label.x0 < label.x1 <= picture.x0 for label, picture in zip(labels, pictures, strict=True))
    assert all(picture.width > 0.6 * figure.bbox.width for picture in pictures)


def test_the_liveliest_clips():
    still = np.full((4, 2, 2, 3), 200, np.uint8)
    flash = np.array([0, 255, 0, 255], np.uint8)[:, None, None, None] * np.ones((4, 2, 2, 3), np.uint8)
    slow = flash // 8
    assert [clip is flash for clip in liveliest(iter([still, flash, slow]), 1)] == [True]
    assert [clip.max() for clip in liveliest([slow, still, flash], 3)] == [255, 31, 200]


def test_sensitivity_has_a_dot_for_each_strength():
    rng = np.random.default_rng(0)
    real = rng.standard_normal((20, 4))

    def row(preset: str, clips: str, strength: float | None, shift: float) -> Row:
        return Row(preset, clips, strength, fvd(real, rng.standard_normal((20, 4)) + shift, recipe=preset))

    rows = []
    for preset in ("paper", "stylegan-v"):
        rows += [row(preset, "real", None, 0), row(preset, "generated", None, 1)]
        rows += [row(preset, kind, s, 2 * s) for kind in ("frozen", "noisy") for s in (0.5, 1)]
    figure = plot_sensitivity(Sensitivity(rows, {}))
    assert [axis.get_title() for axis in figure.axes] == ["paper", "paper", "stylegan-v", "stylegan-v"]
    for number, axis in enumerate(figure.axes):
        own = [r for r in rows if r.preset == axis.get_title()]
        scores = [(r, r.score.mind if number % 2 else r.score.value) for r in own]
        places = np.concatenate([dots.get_offsets() for dots in axis.collections])
        wanted = [score for r, score in scores if r.strength]
        assert places[:, 0].tolist() == pytest.approx(wanted) and places[:, 1].tolist() == [0, 0, 1, 1]
        assert axis.lines[0].get_xdata()[0] == scores[0][1]  # the floor
        assert axis.get_xlabel().startswith("MIND" if number % 2 else "FVD")


def test_curves_end_at_the_endless_value():
    axis = plot_curves({"score": [(n, 3 + 40 / n) for n in (5, 10, 80)]}, truth=3).axes[0]
    assert axis.get_legend_handles_labels()[1] == ["truth 3", "score: 3.5, endless 3"]
    end = axis.lines[-1]
    assert (end.get_xdata()[0], end.get_ydata()[0]) == pytest.approx((0, 3))


def test_bootstrap_names_its_numbers():
    study = study_gaussians(dim=4, n=16, draws=10)
    labels = plot_bootstrap(study).axes[0].get_legend_handles_labels()[1]
    assert any(f"{study.bootstrapped.mean():.2f}" in text for text in labels if "bootstrap" in text)


def test_the_report_is_one_page_with_everything_inside(tmp_path):
    figure = plot_curves({"score": [(n, 3 + 40 / n) for n in (5, 10, 80)]})
    parts = [html.markdown("Some *words*."), html.figure(figure), html.preformatted("card")]
    page = html.write(tmp_path / "r.html", "A score", parts).read_text("utf-8")
    assert "<h1" in page and "A score" in page and "<em>words</em>" in page and "card" in page
    pictures = re.findall(
        r'<img alt="distance over[^"]*" style="[^"]*" src="data:image/svg\+xml;base64,([^"]+)"', page
    )
    assert len(pictures) == 1 and b"<svg" in base64.b64decode(pictures[0])
    assert not re.search(r"<(script|img|link)[^>]+(src|href)=\"?https?:", page)
    assert [file.name for file in tmp_path.iterdir()] == ["r.html"]
