"""The sampler's benchmark at a tiny size: counts that can be checked by hand, and the command."""

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from cogvideo.benchmarks import plots
from cogvideo.benchmarks.sampler import (
    TEXT_SLOTS,
    Settings,
    attended_positions,
    growth,
    model_config,
    render,
    run,
)
from cogvideo.cli.app import app
from cogvideo.errors import CogVideoError
from cogvideo.model import masks

TINY = Settings(width=16, layers=1, heads=2, side=4, window=2, threads=1)


def test_the_command_writes_what_it_counted(tmp_path):
    out = tmp_path / "new" / "sampler.json"
    sizes = [
        "--width",
        "16",
        "--layers",
        "1",
        "--heads",
        "2",
        "--side",
        "4",
        "--window",
        "2",
        "--threads",
        "1",
    ]
    result = CliRunner().invoke(app, ["bench", "sampler", *sizes, "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    stages = report["stages"]
    assert stages["stage 1"]["steps"] == stages["stage 1"]["tokens"] == 4 * 16
    assert stages["stage 2, wavefront"]["steps"] < stages["stage 2"]["steps"] == 2 * 16
    matrices = 2 * (16 * 48 + 48 + 16 * 16 + 16) + 2 * 4 * 16 * 16 + 4 * 16 + 16
    norms_and_gate = 5 * 2 * 16 + 16
    assert stages["stage 1"]["weight_bytes_per_step"] == 4 * (matrices + norms_and_gate - 2 * 16 + 20000 * 16)
    assert all(stages[f"{kind}, wavefront"]["same_tokens"] == 1 for kind in ("stage 1, windows", "stage 2"))
    for figures in stages.values():
        moved = figures["weight_bytes_per_step"] + figures["cache_bytes_per_step"]
        seconds = figures["seconds"] / figures["steps"]
        limit = report["bandwidth_bytes_per_second"]["read"]
        assert figures["share_of_limit"] == pytest.approx(moved / seconds / limit)
        assert figures["least_ms_per_step"] <= figures["median_ms_per_step"]
    assert len(report["costs"]["seconds_of_each_frame"]) == 4
    assert render(report) in result.output
    # By hand: the paper's bound lags a frame by 2 rows and 2 places behind the one before.
    assert (
        "the paper's bound is 46 steps" in result.output and "the paper's bound is 26 steps" in result.output
    )


def test_places_that_a_step_reads():
    """By hand: text, the frame so far; text, all frames so far, or their windows of 2 x 2 and 1 x 1."""
    config = model_config(TINY, "sequential", None)
    places = attended_positions(config, [1, 2, 3, 4], wavefront=False)
    by_hand = [
        2 * TEXT_SLOTS + (place + 1) + 16 * frame + place + 1 for frame in range(1, 5) for place in range(16)
    ]
    assert places == by_hand
    config = model_config(TINY, "interpolation", 2)
    steps = masks.decoding_steps(config, [1, 3])
    first = attended_positions(config, [1, 3], wavefront=True)
    assert len(first) == int(steps.max()) and first[0] == 2 * TEXT_SLOTS + 1 + (3 * 4 + 1 + 3 * 1 + 1) / 2
    assert first[-1] == TEXT_SLOTS + 16 + TEXT_SLOTS + (5 * 4 + 5 * 1) / 2  # only the last place


def test_fewer_steps_and_other_sizes():
    few = Settings(**{**TINY.__dict__, "most_steps": 5})
    report = run(few, progress=False)
    assert (
        report["stages"]["stage 1"]["measured_steps"] == 4
        and report["costs"]["seconds_of_each_frame"] is None
    )
    assert report["stages"]["stage 2, wavefront"]["same_tokens"] is None
    rows = growth(replace(few, device="auto"), "clips", [1, 3], progress=False)
    assert (
        [row["clips"] for row in rows] == [1, 3]
        and rows[0]["kind"] == "stage 1"
        and rows[1]["tokens"] == 3 * rows[0]["tokens"]
    )
    assert rows[1]["cache_bytes_per_step"] == pytest.approx(3 * rows[0]["cache_bytes_per_step"])


def test_the_release_s_steps():
    """20 x 20 tokens.

    The paper's bound is 610 for two frames with windows of 10; the masks allow a little less.
    """
    for window, expected in ((10, (589, 967)), (5, (484, 652))):
        settings = Settings(window=window)
        two = masks.decoding_steps(model_config(settings, "interpolation", window), [1, 3])
        four = masks.decoding_steps(model_config(settings, "sequential", window), [1, 2, 3, 4])
        assert (int(two.max()), int(four.max())) == expected


@pytest.mark.parametrize("wrong", [{"frames": 4}, {"threads": -1}, {"most_steps": -1}, {"heads": 7}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(CogVideoError, match="bench sampler takes|cannot be shared"):
        Settings(**wrong)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(CogVideoError, match="fp8"):
        run(Settings(**{**TINY.__dict__, "dtype": "fp8"}), progress=False)


def test_pictures_draw_the_schedule_and_the_figures():
    schedule = plots.plot_schedule(TINY)
    picture = schedule.axes[0].images[0].get_array()
    config = model_config(TINY, "sequential", 2)
    assert picture is not None and (picture == masks.decoding_steps(config, [1, 2, 3, 4]).numpy()).all()
    report = run(TINY, progress=False)
    lines = plots.plot_roofline(report).axes[0].get_lines()
    slowest = max(ms for _, ms in report["stages"]["stage 1"]["places_and_ms"])
    assert max(lines[0].get_ydata()) == slowest and len(lines) == len(report["stages"]) + 1
    rows = growth(
        Settings(**{**TINY.__dict__, "most_steps": 5}), "window", [2, 4], kind="stage 2", progress=False
    )
    (axis,) = plots.plot_growth({"window": rows}).axes
    assert list(axis.get_lines()[0].get_ydata()) == [row["median_ms_per_step"] for row in rows]
