"""The explorer's file in a real browser, against the captured arrays, and what is packed into it."""

import base64
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from explore.browser import assert_colors, click_patch, heat, opened, percent, shown, wait_for
from explore.small import CONFIGS, clip, small_model

import cogvideo
from cogvideo.errors import CogVideoError
from cogvideo.explore import explorer
from cogvideo.explore.explorer.payload import describe, quantise, select
from cogvideo.model import masks

STARTED = "end => document.querySelector('.cv-explorer')?.dataset.shown?.endsWith(end)"
PROMPT = 'a lion & </script><img src=x onerror="alert(1)"> "rings"'


def random_scene(name: str, title: str = "Scene") -> explorer.Scene:
    """A clip of random tokens in a small random model of that geometry."""
    model = small_model(CONFIGS[name])
    c = model.config
    pixels = np.random.default_rng(4).integers(
        0, 256, (c.num_frames, 4 * c.frame_height, 4 * c.frame_width, 3)
    )
    words = tuple((text, "a hint") for text in ("4 s", "⏎", "a<b>", "“three”"))
    return explorer.Scene(
        title=title, stage=name, prompt=PROMPT, settings="made up", model=model,
        text_ids=torch.tensor([11, 12, 13, 14]),
        words=words, frames=clip(c), pixels=pixels.astype(np.uint8), seconds=(0.0, 1.0, 2.0, 3.0, 4.0),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pipe() -> cogvideo.Pipeline:
    return cogvideo.Pipeline.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def demo(pipe) -> list[explorer.Scene]:
    """A red square that falls, as both stages of the demo see it: nothing need be generated."""
    frames = np.zeros((5, 64, 64, 3), np.uint8)
    for time in range(5):
        frames[time, 8 * time : 8 * time + 20, 20:44] = (230, 50, 40)
    scene = explorer.clip_scene(pipe, "a lion puts on a hat", frames, seconds=4.0)
    return [scene, replace(scene, title="Between", stage="stage 2", model=pipe.stage2)]


@pytest.fixture(scope="module")
def demo_page(demo, tmp_path_factory):
    """The demo clip's page on disk."""
    page = explorer.page(demo)
    assert page.left_out == () and page.megabytes < 10
    return page.save(tmp_path_factory.mktemp("page") / "attention.html")


def choose(page, *, scene: int, layer: int, head: str, channel: str) -> None:
    """As a hand would: the list, the slider, the other list, the switch."""
    page.locator("select").nth(0).select_option(str(scene))
    page.locator("input[type=range]").first.fill(str(layer))
    page.locator("select").nth(1).select_option(head)
    page.locator(f"input[value={channel}]").check(force=True)


def expected(captured, head: str, channel: str, query: int):
    """One row with heads and channels combined: words [L], begins [T], grid [T,h,w]; and what is seen."""
    t, n = captured.frames.shape
    length, time = len(captured.text_ids), query // n
    wide = np.zeros((captured.spatial.shape[1], length + t * n))
    seen = np.zeros(length + t * n, bool)
    here = np.r_[0:length, length + time * n : length + (time + 1) * n]
    wide[:, here], seen[here] = captured.spatial[0, :, query], captured.spatial_visible[0, query]
    temporal, later = captured.temporal[0, :, query], captured.temporal_visible[0, query]
    share = captured.gate[0].mean()
    rows = {"spatial": wide, "temporal": temporal, "mixed": share * wide + (1 - share) * temporal}[channel]
    seen = {"spatial": seen, "temporal": later, "mixed": seen | later}[channel]
    row = {"mean": rows.mean(0), "max": rows.max(0)}[head] if head in ("mean", "max") else rows[int(head)]
    return captured.patches(row), captured.patches(seen)


def assert_row(page, captured, head: str, channel: str, query: int) -> None:
    """Colours, hatching and all numbers on the page are those of the captured row."""
    c = captured.config
    weights, seen = expected(captured, head, channel, query)
    colors, hatched = heat(page, c.frame_height, c.frame_width)
    grid = weights.grid.reshape(colors.shape[:2])
    hidden = ~seen.grid.reshape(colors.shape[:2])
    np.testing.assert_array_equal(hatched, hidden)
    largest = max(weights.words.max(), weights.begin.max(), grid.max())
    assert_colors(colors[~hidden], np.sqrt(grid[~hidden] / largest))
    # Errors of quantised weights are at most 0.4 % of the largest and mostly cancel in sums.
    column = ["spatial", "temporal", "mixed"].index(channel)
    cells = page.locator("aside tbody tr").all_inner_texts()
    numbers = [float(cell.split("\t")[1 + column]) / 100 for cell in cells]
    parts = [weights.words, *np.concatenate([weights.begin[:, None], grid], 1)]
    if head == "max":  # sums of maxima over heads may be over 100 % and mean nothing
        told = [*(part.max() for part in parts), largest]
    else:
        told = [*(part.sum() for part in parts), sum(part.sum() for part in parts)]
    np.testing.assert_allclose(numbers, told, atol=0.01 * max(1, largest))
    captions = page.locator(".cv-frames:not([role]) figcaption").all_inner_texts()
    for caption, begin, visible in zip(captions, weights.begin, seen.begin, strict=True):
        if visible:
            assert percent(re.split("sum|most", caption)[0]) == pytest.approx(begin, abs=0.005)
        else:
            assert "cannot attend" in caption
    for number, button in enumerate(page.locator(".cv-words button").all_inner_texts()):
        for letter, one in (("S", "spatial"), ("T", "temporal")):
            told = float(re.findall(rf"{letter} ([\d.]+) %", button)[0]) / 100
            assert told == pytest.approx(expected(captured, head, one, query)[0].words[number], abs=0.005)


@pytest.mark.browser
def test_random_patches_show_the_captured_arrays(demo, demo_page):
    rng = np.random.default_rng(0)
    with opened() as page:
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(demo_page.as_uri())
        page.wait_for_function(STARTED, arg=f"mean/mixed/place {demo[0].brightest}")
        for _ in range(8):
            number, layer, head = (
                int(rng.integers(2)),
                int(rng.integers(4)),
                str(rng.choice(["mean", "max", *"0123"])),
            )
            channel, patch = str(rng.choice(["spatial", "temporal", "mixed"])), int(rng.integers(5 * 64))
            scene = demo[number]
            given = patch // 64 not in scene.made
            patch -= given and patch % 64 == 63  # no place holds the last patch of a given frame
            choose(page, scene=number, layer=layer, head=head, channel=channel)
            click_patch(page, *divmod(patch, 64), 8, 8)
            page.mouse.move(5, 5)
            query = patch + given
            wait_for(page, f"{number}/{layer}/{head}/{channel}/place {query}")
            assert_row(page, scene.record([layer]).capture(), head, channel, query)
    assert [url for url in asked if not url.startswith(("file:", "data:image/png", "blob:"))] == []


@pytest.mark.browser
def test_a_clicked_word_shows_who_reads_it(demo, demo_page):
    with opened() as page:
        page.goto(demo_page.as_uri())
        for number, layer, head, channel in ((0, 2, 3, "temporal"), (1, 2, 3, "spatial")):
            captured = demo[number].record([layer]).capture()
            maps = getattr(captured, channel)[0, head]
            word = int(maps[:, : len(captured.text_ids)].max(0).argmax())
            choose(page, scene=number, layer=layer, head=str(head), channel=channel)
            page.locator(".cv-words button").nth(word).click()
            page.mouse.move(5, 5)
            wait_for(page, f"{number}/{layer}/{head}/{channel}/word {word}")
            places = maps[:, word].reshape(5, 64)
            assert places.max() > 0.2, "too little of a heat map to tell an error"
            shares = np.sqrt(places / places.max())
            hidden = np.zeros((5, 64), bool)
            for given in set(range(5)) - set(demo[number].made):
                shares[given] = np.roll(shares[given], -1)  # its patches lie one place later
                hidden[given, -1] = True
            colors, hatched = heat(page, 8, 8)
            np.testing.assert_array_equal(hatched, hidden)
            # Bytes count in steps of their row's largest weight, at most 1, colours in those of the column's.
            assert_colors(colors[~hidden], shares[~hidden], slack=1 + places.max() ** -0.5)
            captions = page.locator(".cv-frames:not([role]) figcaption").all_inner_texts()
            np.testing.assert_allclose([percent(text) for text in captions], places.mean(1), atol=0.005)
            page.keyboard.press("Escape")


@pytest.mark.browser
def test_windows_are_hatched_in_both_parities_of_layers(tmp_path):
    """Small random models, whose masks differ between layers; text that looks like markup stays text."""
    scenes = [random_scene("windowed stage 1", "One"), random_scene("windowed stage 2", "Two")]
    path = explorer.page(scenes).save(tmp_path / "a.html")
    rng = np.random.default_rng(1)
    with opened() as page:
        page.goto(path.as_uri())
        assert page.locator("h2").inner_text() == f"“{PROMPT}”"
        assert page.locator(".cv-words b").all_inner_texts() == ["4 s", "⏎", "a<b>", "“three”"]
        assert page.locator(".cv-explorer img").count() == 0
        for number, layer, channel in (
            (0, 0, "temporal"),
            (0, 1, "mixed"),
            (1, 0, "mixed"),
            (1, 1, "temporal"),
        ):
            scene = scenes[number]
            choose(page, scene=number, layer=layer, head="1", channel=channel)
            for time in rng.choice(scene.made, 2):
                place = int(rng.integers(12))
                click_patch(page, int(time), place, 3, 4)
                page.mouse.move(5, 5)
                wait_for(page, f"{number}/{layer}/1/{channel}/place {12 * time + place}")
                assert_row(page, scene.record([layer]).capture(), "1", channel, int(12 * time + place))


@pytest.mark.browser
def test_keys_sliders_and_pointer(demo, demo_page):
    start = 2 * 64 + 3 * 8 + 4
    steps = masks.decoding_steps(demo[0].model.config, demo[0].made).numpy()
    with opened() as page:
        page.goto(demo_page.as_uri())
        page.locator("input[type=range]").first.fill("0")
        click_patch(page, 2, start % 64, 8, 8)
        page.mouse.move(5, 5)
        wait_for(page, f"0/0/mean/mixed/place {start}")

        def press(key: str, then: str) -> None:
            page.keyboard.press(key)
            wait_for(page, then)

        for key, moved in (
            ("ArrowRight", 1),
            ("ArrowDown", 8),
            ("ArrowLeft", -1),
            ("ArrowUp", -8),
            ("PageDown", 64),
            ("PageUp", -64),
        ):
            press(key, f"0/0/mean/mixed/place {start + moved}")
            click_patch(page, 2, start % 64, 8, 8)
            page.mouse.move(5, 5)
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        wait_for(page, f"0/0/mean/mixed/place {start + 64 - 4}")  # past the right edge: the next frame
        press("]", f"0/1/mean/mixed/place {start + 60}")
        press("[", f"0/0/mean/mixed/place {start + 60}")
        press("h", f"0/0/max/mixed/place {start + 60}")
        press("H", f"0/0/mean/mixed/place {start + 60}")
        press("c", f"0/0/mean/spatial/place {start + 60}")
        press("w", "0/0/mean/spatial/word 0")
        press("W", "0/0/mean/spatial/word 7")
        press("Escape", f"0/0/mean/spatial/place {start + 60}")
        press("g", f"1/0/mean/spatial/place {start + 60}")
        press("G", f"0/0/mean/spatial/place {start + 60}")
        press(".", f"0/0/mean/spatial/place {start + 61}")
        press(",", f"0/0/mean/spatial/place {start + 60}")

        slider = page.locator("input[aria-label='Step of decoding']")
        slider.fill("100")
        frame, place = np.argwhere(steps == 100)[0]
        wait_for(page, f"0/0/mean/spatial/place {64 * demo[0].made[frame] + place}")
        assert "step 100 of 253" in page.locator(".cv-step").inner_text()
        page.locator(".cv-frames[role]").focus()
        page.keyboard.press("Space")
        page.wait_for_function(
            "() => Number(document.querySelector('input[aria-label=\"Step of decoding\"]').value) > 102"
        )
        page.keyboard.press("Space")
        layer = page.locator("input[type=range]").first
        layer.focus()
        page.keyboard.press("ArrowRight")  # the slider's own key there
        page.wait_for_function(
            "() => document.querySelector('.cv-explorer').dataset.shown.startsWith('0/1/')"
        )

        box = page.locator(".cv-frames[role] canvas").nth(1).bounding_box()
        page.mouse.move(box["x"] + 2, box["y"] + 2)  # the pointer shows a patch without choosing it
        wait_for(page, "0/1/mean/spatial/place 64")
        before = shown(page)
        last = page.locator(".cv-frames:not([role]) canvas").nth(4).bounding_box()
        page.mouse.move(last["x"] + 5, last["y"] + 5)
        page.wait_for_function(
            "before => document.querySelector('.cv-explorer').dataset.shown !== before", arg=before
        )
        tip = page.locator(".cv-tip")
        assert "frame 4, row 0, column 0: cannot be attended" in tip.inner_text()
        box = page.locator(".cv-mask").bounding_box()
        page.mouse.move(box["x"] + box["width"] - 3, box["y"] + 3)
        told = r"(the start of frame 0|frame 0, row 0, column \d) cannot read frame 4, row 7, column \d"
        assert re.fullmatch(told, tip.inner_text())
        assert page.locator("footer kbd").count() > 15
        assert page.evaluate(
            "document.documentElement.scrollWidth <= innerWidth "
            "&& document.documentElement.scrollHeight <= innerHeight"
        )


def test_quantised_weights_are_as_near_as_told():
    maps = np.random.default_rng(0).dirichlet(np.full(300, 0.05), 200).astype(np.float32)
    codes, largest = quantise(maps)
    back = largest[:, None] * (codes / 255.0) ** 2
    assert (
        np.abs(back - maps) <= np.sqrt(maps * largest[:, None]) / 255 + largest[:, None] / 260100 + 1e-7
    ).all()
    assert codes.max(-1).min() == 255


def test_the_size_is_kept_or_refused(tmp_path):
    scenes = [random_scene("stage 1", "One"), random_scene("stage 2", "Two")]
    whole = explorer.page(scenes)
    limit = whole.megabytes - 1e-4
    smaller = explorer.page(scenes, max_megabytes=limit)
    assert smaller.left_out == ("Two",) and smaller.megabytes <= limit
    fewer = explorer.page(scenes, max_megabytes=limit, layers=[1], heads=[0])
    assert fewer.left_out == () and fewer.megabytes <= limit
    assert (
        explorer.page(scenes, max_megabytes=whole.megabytes + 1e-5).html == whole.html
    )  # room is counted to the byte
    with pytest.raises(
        CogVideoError, match="The maps of 2 layers and 2 heads do not fit into 0.05 MB: choose fewer"
    ):
        explorer.page(scenes, max_megabytes=0.05)
    with pytest.raises(CogVideoError, match="cannot be written"):
        whole.save(tmp_path / "missing" / "a.html")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.browser
def test_in_a_notebook_the_page_lies_in_a_frame_of_its_own(tmp_path):
    """What nbconvert writes for a cell's HTML: styles around it do not reach it, and it works."""
    html = explorer.page([random_scene("stage 1")])._repr_html_()
    outer = tmp_path / "notebook.html"
    outer.write_text(f"<!doctype html><style>* {{ color: red; display: inline }}</style>{html}", "utf-8")
    with opened() as page:
        page.goto(outer.as_uri())
        inside = page.frame_locator("iframe")
        inside.locator(".cv-explorer[data-shown*='/mean/mixed/place']").wait_for()
        assert inside.locator("h2").evaluate("node => getComputedStyle(node).color") == "rgb(34, 34, 34)"


@pytest.mark.parametrize(
    "options, words",
    [
        ({"layers": [2]}, "There is no layer 2: this model has layers 0..1."),
        ({"heads": [0, 5]}, "There is no head 5: this model has heads 0..1."),
        ({"patch": (0, 3, 0)}, "There is no patch 0,3,0: give frame 0..4, row 0..2 and column 0..3."),
        ({"patch": (0, 1)}, "There is no patch 0,1: give frame 0..4"),
    ],
)
def test_what_does_not_exist_is_refused(options, words):
    scene = random_scene("stage 1")
    for home in (explorer.page, explorer.live):
        with pytest.raises(CogVideoError, match=re.escape(words)):
            home([scene], **options)


def test_clips_of_any_size_are_scaled_and_cropped_as_in_tokenizing(pipe, demo):
    small = demo[0].pixels
    wide = np.pad(small.repeat(3, 1).repeat(3, 2), ((0, 0), (0, 0), (50, 50), (0, 0)))
    plain, scaled = (explorer.clip_scene(pipe, "a lion", clip).frames for clip in (small, wide))
    assert (plain == scaled).float().mean() > 0.9


def test_what_is_no_clip_is_refused(pipe, demo):
    for wrong in (demo[0].pixels[:4], demo[0].pixels[..., 0]):
        with pytest.raises(CogVideoError, match="look at 5 or more frames"):
            explorer.clip_scene(pipe, "a lion", wrong)
    for prompt, seconds, words in (
        ("a lion", 3.0, "not trained"),
        (" ", 4.0, "empty"),
        ("a lion drinks milk " * 20, 4.0, "text slots"),
    ):
        with pytest.raises(CogVideoError, match=words):
            explorer.clip_scene(pipe, prompt, demo[0].pixels, seconds=seconds)


def test_scenes_are_the_sequences_of_the_generation(pipe):
    made = explorer.scenes(pipe, "a lion rings a bell", seconds=1.0, seed=0)
    tokens = pipe.key_frame_tokens(["a lion rings a bell"], 1.0, 0)
    filled = pipe.interpolate_once(tokens, ["a lion rings a bell"], 1.0, 1, 0)[0]
    assert [scene.title for scene in made] == [
        "Key frames",
        "Between, round 1: 0 to 0.5 s",
        "Between, round 1: 0.5 to 1 s",
    ]
    for scene, expected in zip(made, (tokens[0], filled[:5], filled[4:]), strict=True):
        assert torch.equal(scene.frames, expected)
        np.testing.assert_array_equal(scene.pixels, pipe.pixels(expected[None])[0])
    assert (
        made[2].seconds == (0.5, 0.625, 0.75, 0.875, 1.0)
        and made[2].made == [1, 3]
        and made[0].made == [1, 2, 3, 4]
    )
    assert [text for text, _ in made[1].words] == ["0.5 s", "⏎", "a", "lion", "rings", "a", "bell"]
    assert made[1].text_ids.tolist() == pipe.text.encode_prompt("a lion rings a bell", 0.5)
    # Read back from pixels, it is the same sequence, but for codes that the decoder's mended seams change.
    again = explorer.clip_scene(pipe, "a lion rings a bell", made[0].pixels, seconds=1.0)
    assert again.words == made[0].words and again.seconds == made[0].seconds
    assert (again.frames == made[0].frames).float().mean() > 0.9


def test_masked_frames_of_a_given_model(demo):
    """The mask that the front end is given is the one that captured rows tell."""
    for scene in (demo[0], demo[1], random_scene("windowed stage 2")):
        info = describe([scene], select(scene.model.config, None, None, None))
        captured = scene.record().capture()
        length, places = len(scene.text_ids), scene.frames.numel()
        packed = info["masks"][scene.stage]

        def bits(text: str, columns: int, rows: int = places) -> np.ndarray:
            raw = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
            return np.unpackbits(raw, count=rows * columns).reshape(rows, columns).astype(bool)

        for layer in captured.layers:
            temporal = bits(packed["temporal"][layer % len(packed["temporal"])], places)
            np.testing.assert_array_equal(temporal, captured.visible("temporal")[layer][:, length:])
            spatial = bits(packed["spatial"], scene.frames.shape[1])
            np.testing.assert_array_equal(spatial, captured.visible("spatial")[layer][:, length:])
