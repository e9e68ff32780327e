"""The page's questions beyond the map, in a real browser: its numbers, taken as CSV, are the arrays'."""

import csv
import io
import json
from copy import copy
from dataclasses import replace
from importlib.util import find_spec
from typing import Any
from urllib.request import urlopen
from xml.etree import ElementTree

import numpy as np
import pytest
from explore.browser import opened, percent, shown, wait_for
from explore.small import CONFIGS
from explore.test_explorer import choose, demo, pipe, random_scene  # noqa: F401

from cogvideo.errors import CogVideoError
from cogvideo.explore import analysis, explorer
from cogvideo.explore.knockout import token_losses
from cogvideo.explore.silence import Silent
from cogvideo.explore.tokens import likeliest, sampled, teacher_forced

PATCH = 2 * 64 + 3 * 8 + 4


@pytest.fixture(scope="module")
def page_file(demo, tmp_path_factory):  # noqa: F811
    """The demo clip, and what another sentence makes of the same frames."""
    other = replace(demo[0], title="Other", prompt="a lion takes off a hat")
    ids = demo[0].text_ids.clone()
    ids[-1] = 5
    made = explorer.page([demo[0], replace(other, text_ids=ids)])
    return made.save(tmp_path_factory.mktemp("tools") / "attention.html")


def press(page, name: str, kind: str) -> None:
    page.locator(f"[data-panel={name}]").get_by_label(f"{kind} of {name}").click()


def downloaded(page, name: str, kind: str) -> bytes:
    with page.expect_download() as download:
        press(page, name, kind)
    return download.value.path().read_bytes()


def saved(page, name: str, kind: str) -> bytes:
    """What the browser is asked to download; it refuses many downloads from one page if it is slow."""
    page.evaluate(
        "() => { window.asked = []; "
        "HTMLAnchorElement.prototype.click = function () { window.asked.push(this.href) } }"
    )
    press(page, name, kind)
    page.wait_for_function("() => window.asked.length > 0")
    (address,) = page.evaluate("() => window.asked")
    with urlopen(address) as file:  # a data URL
        return file.read()


def table(page, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(saved(page, name, "CSV").decode())))


def column(rows: list[dict[str, str]], name: str) -> np.ndarray:
    """Numbers of a column; NaN where there is none."""
    return np.array([float(row[name] or "nan") for row in rows])


def at(page, address: str, state: str) -> None:
    """Open the page in a state, as a link to it does."""
    page.goto("about:blank")
    page.goto(f"{address}#{state}")
    page.wait_for_selector(".cv-explorer[data-shown]")


@pytest.mark.browser
def test_what_was_nearly_drawn(demo, page_file, pipe):  # noqa: F811
    scene = demo[0]
    own = likeliest(teacher_forced(scene.model, scene.text_ids, scene.frames), scene.frames)
    p = sampled(pipe, scene.model, scene.text_ids, scene.frames, scene.span)
    drawn = likeliest(p, scene.frames)
    rng = np.random.default_rng(2)
    with opened() as page:
        for patch in [PATCH, *rng.integers(64, 320, 3)]:
            time, place = divmod(int(patch), 64)
            at(page, page_file.as_uri(), f"patch={patch}&tab=tokens")
            page.wait_for_selector(".cv-token-row canvas")
            rows = table(page, "tokens")
            assert [int(row["token"]) for row in rows] == own.tokens[time, place].tolist()
            np.testing.assert_allclose(column(rows, "model"), own.probabilities[time, place], rtol=1e-5)
            expected = p[time, place, own.tokens[time, place]].numpy()
            np.testing.assert_allclose(column(rows, "sampler"), expected, rtol=1e-5)
            told = page.locator(".cv-tokens").inner_text()
            assert f"{own.entropy[time, place]:.2f} nats of entropy" in told
            assert f"the {own.rank[time, place]}" in told and f": {drawn.rank[time, place]}" in told
            first = page.locator(".cv-token-row").nth(1).inner_text()
            assert percent(first.rsplit("%", 2)[0] + "%") == pytest.approx(
                own.probabilities[time, place, 0], abs=1e-3
            )
        for layer, values in (("entropy", own.entropy), ("surprise", own.surprise)):
            at(page, page_file.as_uri(), f"patch={PATCH}&layerOf={layer}")
            found = column(table(page, "map"), layer)
            assert np.isnan(found[:64]).all()
            np.testing.assert_allclose(found[64:], values.flatten()[64:], rtol=1e-4, atol=1e-6)


@pytest.mark.browser
def test_silence_is_that_of_the_knock_outs(demo, page_file):  # noqa: F811
    recording = demo[0].record()
    own = token_losses(recording)
    with opened() as page:
        at(page, page_file.as_uri(), f"patch={PATCH}&tab=silence")
        changes: list[tuple[Any, dict[str, Any]]] = [
            ({"parts": [["temporal", 1, 3]], "words": []}, {"parts": [Silent("temporal", 1, 3)]}),
            ({"parts": [["spatial", 2, None]], "words": []}, {"parts": [Silent("spatial", 2)]}),
            ({"parts": [], "words": [3]}, {"hide": [3]}),
        ]
        for silence, changed in changes:
            text = json.dumps(silence, separators=(",", ":"))
            page.locator(f"[data-silence='{text}']").click()
            page.locator(f"[data-silence='{text}'][aria-pressed=true]").wait_for()
            found = column(table(page, "map"), "silence")
            expected = (token_losses(recording, **changed) - own).flatten()
            np.testing.assert_allclose(found[64:], expected[64:], atol=1e-5)
            lost = table(page, "silence")
            assert len({row["silent"] for row in lost}) == 1 and lost[0]["silent"] != "nothing"
            np.testing.assert_array_equal(column(lost, "nats lost"), found)


@pytest.mark.browser
def test_readers_values_rollout_and_two_side_by_side(demo, page_file):  # noqa: F811
    scene, layer = demo[0], 1
    captured = scene.record().capture()
    length, query = len(scene.text_ids), PATCH
    state = f"patch={PATCH}&layer={layer}&head=2&channel=temporal"
    with opened() as page:
        at(page, page_file.as_uri(), f"{state}&reverse=true")
        assert shown(page) == f"0/{layer}/2/temporal/readers {query}"
        read = captured.at_readers(captured.temporal[layer, 2, :, length + PATCH + 1])
        found = column(table(page, "map"), "attention").reshape(5, 8, 8)
        np.testing.assert_allclose(found, read, atol=0.006)

        at(page, page_file.as_uri(), f"{state}&weights=value")
        weighed = captured.patches(analysis.value_weighted(captured, "temporal")[layer, 2, query]).grid
        found = column(table(page, "map"), "attention").reshape(5, 8, 8)
        np.testing.assert_allclose(np.nan_to_num(found), weighed, atol=0.02)

        at(page, page_file.as_uri(), f"{state}&weights=rollout")
        rolled = captured.patches(analysis.rollout(captured)[query])
        found = column(table(page, "map"), "attention").reshape(5, 8, 8)
        np.testing.assert_allclose(np.nan_to_num(found), rolled.grid, atol=0.006)

        at(page, page_file.as_uri(), f"{state}&besideLayer=2")
        rows = table(page, "map")
        above, below = (captured.patches(captured.temporal[i, 2, query]).grid.flatten() for i in (layer, 2))
        np.testing.assert_allclose(np.nan_to_num(column(rows, "beside")), below, atol=0.006)
        np.testing.assert_allclose(np.nan_to_num(column(rows, "difference")), above - below, atol=0.012)
        page.locator("select[aria-label=Beside]").select_option("scene 1")
        page.wait_for_function("() => document.querySelectorAll('.cv-others .cv-frames').length === 3")
        assert "Other" in page.locator(".cv-others h3").first.inner_text()


@pytest.mark.browser
def test_pictures_addresses_and_heads(demo, page_file):  # noqa: F811
    with opened() as page:
        page.set_viewport_size({"width": 1366, "height": 768})
        at(page, page_file.as_uri(), f"patch={PATCH}&tab=heads&channel=spatial")
        page.wait_for_function("() => document.querySelectorAll('.cv-glance canvas').length === 16")
        page.get_by_label("layer 3, head 1").click()
        wait_for(page, f"0/3/1/spatial/place {PATCH}")
        address = page.url
        page.goto("about:blank")
        page.goto(address)
        wait_for(page, f"0/3/1/spatial/place {PATCH}")
        assert page.locator("[data-tab=heads]").get_attribute("aria-selected") == "true"
        assert downloaded(page, "frames", "PNG").startswith(b"\x89PNG")
        for name in ("frames", "map", "words", "heads"):
            drawing = ElementTree.fromstring(saved(page, name, "SVG"))
            texts = " ".join(drawing.itertext())
            assert len(list(drawing.iter())) > 20 and "PNG" not in texts
            assert saved(page, name, "PNG").startswith(b"\x89PNG")
        assert "lion" in " ".join(ElementTree.fromstring(saved(page, "words", "SVG")).itertext())
        grid = table(page, "heads")
        everywhere = demo[0].record().capture()
        assert len(grid) == 16 and (grid[13]["layer"], grid[13]["head"]) == ("3", "1")
        length = len(demo[0].words)
        expected = everywhere.spatial[:, :, PATCH, :length].sum(-1).flatten()
        np.testing.assert_allclose(column(grid, "words"), expected, atol=0.02)
        sums = sum(column(grid, f"frame {frame}") for frame in range(5)) + column(grid, "words")
        np.testing.assert_allclose(sums, 1, atol=0.02)
        slots = table(page, "words")
        captured = demo[0].record([3]).capture()
        found = column(slots, "spatial")
        np.testing.assert_allclose(found, captured.spatial[0, 1, PATCH, : len(found)], atol=0.006)


@pytest.mark.browser
def test_the_tour_and_the_keyboard_alone(page_file):
    with opened() as page:
        page.goto(f"{page_file.as_uri()}?tour")
        page.locator(".cv-card p").wait_for()
        told = []
        while page.locator(".cv-card").is_visible():
            page.wait_for_selector(".cv-card p")
            told.append(page.locator(".cv-card p").inner_text())
            page.keyboard.press("Enter")  # its next button has the focus
            page.wait_for_timeout(100)
        assert len(set(told)) >= 8 and "spatial" in " ".join(told) and "temporal" in " ".join(told)
        page.locator(".cv-frames[role]").focus()
        before = shown(page)
        for key, end in (
            ("m", "entropy"),
            ("m", "surprise"),
            ("m", "silence"),
            ("m", ""),
            ("b", ""),
            ("r", ""),
        ):
            page.keyboard.press(key)
            if end:
                page.wait_for_function(
                    "end => document.querySelector('.cv-explorer').dataset.shown.endsWith(end)", arg=end
                )
        page.wait_for_function(
            "() => document.querySelector('.cv-explorer').dataset.shown.includes('readers')"
        )
        page.keyboard.press("Escape")
        page.keyboard.press("q")  # a key that it does not know
        page.locator(".cv-explorer[data-shown*=place]").wait_for()
        assert before
        page.keyboard.press("t")  # from the panel on silence, where the map of it has led
        page.locator("[data-tab=heads][aria-selected=true]").wait_for()


@pytest.mark.browser
@pytest.mark.skipif(find_spec("axe_playwright_python") is None, reason="needs axe-playwright-python")
def test_accessibility_and_narrow_screens(page_file):
    from axe_playwright_python.sync_playwright import Axe

    with opened() as page:
        for tab, size in (("looks", (1366, 768)), ("tokens", (390, 844)), ("silence", (1920, 1080))):
            page.set_viewport_size({"width": size[0], "height": size[1]})
            at(page, page_file.as_uri(), f"patch={PATCH}&tab={tab}")
            found = Axe().run(page).response["violations"]
            serious = [
                (one["id"], one["nodes"][0]["html"])
                for one in found
                if one["impact"] in ("serious", "critical")
            ]
            assert serious == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), size
            cut = page.evaluate("""() => [...document.querySelectorAll(".cv-frames figcaption")]
                .filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.innerText)""")
            assert cut == [], size


def test_scenes_of_other_sizes_are_refused():
    scenes = [random_scene("stage 1"), random_scene("stage 1")]
    model = type(scenes[1].model)(replace(CONFIGS["stage 1"], num_layers=3)).initialize(0)
    with pytest.raises(CogVideoError, match="models of different sizes"):
        explorer.page([scenes[0], replace(scenes[1], model=model)])


def test_another_checkpoint_sees_the_same_clip(demo, pipe):  # noqa: F811
    other = explorer.seen_by(demo[0], pipe, "other")
    assert other.title == f"{demo[0].title}, seen by other" and other.model is pipe.stage1
    assert (other.frames == demo[0].frames).all()
    swapped = copy(pipe)
    swapped.stage1 = pipe.stage2
    with pytest.raises(CogVideoError, match="swapped has another geometry or other words"):
        explorer.seen_by(demo[0], swapped, "swapped")
