import itertools
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

from cogvideo.errors import CogVideoError
from cogvideo.theatre import drawing, motion
from cogvideo.theatre.drawing import BACKGROUND_COLORS, draw, random_frames, render
from cogvideo.theatre.scenes import ACTIONS, ACTORS, BACKGROUNDS, OBJECTS, PAIRS, Clips, sample_clips, states

VISIBLE = 24  # levels of 255 by which a pixel differs to the eye


def path(actor: str, action: str, thing: str, background: str = "mint", size: int = 64) -> np.ndarray:
    """All 17 states: int [17, size, size, 3]."""
    return np.stack([draw(actor, action, thing, state, background, size) for state in range(17)]).astype(int)


def changed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Where two pictures differ visibly: bool [..., H, W]."""
    return np.abs(a.astype(int) - b.astype(int)).max(-1) > VISIBLE


def table_scene(thing: str) -> tuple[str, str]:
    """An action that begins with the object on the table."""
    return next(pair for pair in PAIRS if pair[1] == thing)


# Order is all that tells them apart


@pytest.mark.parametrize("size", [64, 192])
@pytest.mark.parametrize(
    ("forward", "backward", "thing"),
    [("puts on", "takes off", thing) for thing in ACTIONS["puts on"][1]]
    + [("pushes away", "pulls near", thing) for thing in ACTIONS["pushes away"][1]],
)
def test_opposite_actions_show_the_same_pictures_in_opposite_order(forward, backward, thing, size):
    there, back = (path("fox", action, thing, size=size) for action in (forward, backward))
    assert np.array_equal(there, back[::-1])
    assert changed(there[0], there[16]).any()


@pytest.mark.parametrize("thing", ["ball", "orange", "teddy"])
def test_what_flies_up_falls_down_the_same_way(thing):
    frames = path("panda", "throws", thing)
    assert np.array_equal(frames, frames[::-1])


def test_a_thrown_object_flies_straight_up_inside_the_frame():
    looks = motion.looks("throws", "ball")
    flight = [look.place for look in looks[4:13]]
    assert {x for x, _ in flight} == {48} and min(
        y for _, y in flight
    ) == 8  # its box ends at the frame's edge
    frames = path("panda", "throws", "ball")
    empty = path("panda", "eats", "apple")[16]
    rows = [np.flatnonzero(changed(frame, empty)[:, 42:].any(1)) for frame in frames[4:9]]
    assert all(later.min() < earlier.min() for earlier, later in itertools.pairwise(rows))


# First and last states


@pytest.mark.parametrize("thing", OBJECTS)
def test_in_the_first_state_only_the_object_tells_scenes_apart(thing):
    action, _ = table_scene(thing)
    reference = path("cat", "drinks", "milk")[0]
    elsewhere = np.ones((64, 64), bool)
    elsewhere[40:58, 32:] = False  # the boxes in which objects and toys stand, and their shadows
    assert np.array_equal(path("cat", action, thing)[0][elsewhere], reference[elsewhere])


def test_nothing_remains_of_what_is_eaten():
    ends = [path("bear", "eats", thing)[16] for thing in ACTIONS["eats"][1]]
    assert all(np.array_equal(end, ends[0]) for end in ends)
    edge = drawing.PANEL_EDGE
    assert (ends[0][: edge - 1, 32:] == BACKGROUND_COLORS["mint"]).all()
    assert (ends[0][edge, 32:] == drawing.PANEL_RAIL).all()
    assert (ends[0][edge + 1 : 55, 32:] == drawing.PANEL).all()


@pytest.mark.parametrize("thing", ACTIONS["eats"][1])
def test_every_bite_leaves_less(thing):
    empty = path("bear", "eats", thing)
    looks = motion.looks("eats", thing)
    drawings = list(dict.fromkeys(look.drawing for look in looks if look.drawing))
    sizes = [(255 - drawing._object(name).clear.astype(int)).sum() for name in drawings]
    assert len(sizes) == 3 and sizes[0] > 1.2 * sizes[1] > 1.2**2 * sizes[2] > 0
    assert changed(empty[12], empty[13]).sum() > 20  # the third bite takes the rest


@pytest.mark.parametrize("thing", ACTIONS["drinks"][1])
def test_the_level_falls_and_the_empty_glass_remains(thing):
    liquid = {"milk": (255, 252, 245), "tea": (158, 84, 36), "juice": (250, 148, 30)}[thing]
    shown = []
    for level in range(5):
        sprite = drawing._object(f"{thing} {level} tilted")
        shown.append((np.abs(sprite.color.astype(int) - liquid).max(-1) < 3)[sprite.clear[..., 0] == 0].sum())
    assert all(more > less + 40 for less, more in itertools.pairwise(shown))
    frames = path("owl", "drinks", thing)
    assert changed(frames[0], frames[16]).sum() > 20
    assert np.array_equal(frames[16][:40], frames[0][:40])
    assert (frames[16][46:54, 44:52] != BACKGROUND_COLORS["mint"]).any()


@pytest.mark.parametrize(("action", "thing"), [("throws", "teddy"), ("rings", "bell")])
def test_actions_that_leave_things_as_they_were_end_as_they_begin(action, thing):
    frames = path("pig", action, thing)
    assert np.array_equal(frames[0], frames[16])


def test_the_bell_swings_left_and_then_right():
    empty = path("pig", "eats", "apple")[16]

    def middle(frame):
        return np.flatnonzero(changed(frame, empty)[24:38, 32:].any(0)).mean()

    frames = path("pig", "rings", "bell")
    assert middle(frames[6]) < middle(frames[4]) - 2 and middle(frames[10]) > middle(frames[4]) + 2


# What a judge can tell apart


@pytest.mark.parametrize(("action", "thing"), PAIRS)
def test_neighbouring_states_differ_visibly(action, thing):
    for i, actor in enumerate(ACTORS):
        frames = path(actor, action, thing, BACKGROUNDS[i % 4])
        counts = changed(frames[1:], frames[:-1]).sum((1, 2))
        assert counts.min() >= 15, (
            f"{actor} {action} {thing}: states {counts.argmin()} and {counts.argmin() + 1}"
        )


@pytest.mark.parametrize(("action", "thing"), PAIRS)
def test_an_action_has_at_least_nine_pictures(action, thing):
    assert len(np.unique(path("mouse", action, thing), axis=0)) >= 9


def test_all_actors_look_different():
    pictures = {actor: draw(actor, "rings", "bell", 0, "sky") for actor in ACTORS}
    for one, other in itertools.combinations(ACTORS, 2):
        assert changed(pictures[one], pictures[other]).sum() > 300, f"{one} and {other}"


def test_all_objects_look_different():
    pictures = {thing: draw("cat", *table_scene(thing), 0, "sky") for thing in OBJECTS}
    for one, other in itertools.combinations(OBJECTS, 2):
        assert changed(pictures[one], pictures[other]).sum() > 40, f"{one} and {other}"


def test_backgrounds_are_far_from_one_another():
    colors = np.array([BACKGROUND_COLORS[name] for name in BACKGROUNDS])
    assert all(np.abs(a - b).max() >= 30 for a, b in itertools.combinations(colors, 2))


@pytest.mark.parametrize("actor", ACTORS)
def test_the_face_stays_visible_and_so_does_the_background(actor):
    y, x = np.mgrid[:64, :64] + 0.5
    face = np.hypot(x - 16, y - 24) < 12
    for action, thing in PAIRS:
        frames = path(actor, action, thing, "lilac")
        rest = path(actor, "eats", "apple", "lilac")[16]
        assert changed(frames, rest)[:, face].mean(1).max() < 0.36
        room = (frames == BACKGROUND_COLORS["lilac"]).all(-1) | (frames == drawing.PANEL).all(-1)
        assert room.mean((1, 2)).min() > 0.35


# Sizes, render, cache


@pytest.mark.parametrize(("action", "thing"), [("drinks", "tea"), ("puts on", "crown"), ("rings", "bell")])
def test_the_small_frame_is_the_mean_of_the_large_one(action, thing):
    small, large = path("elephant", action, thing), path("elephant", action, thing, size=192)
    mean = F.avg_pool2d(torch.from_numpy(large).permute(0, 3, 1, 2).double(), 3).permute(0, 2, 3, 1)
    assert (mean - torch.from_numpy(small)).abs().max() <= 0.5


@pytest.mark.parametrize("size", [64, 192])
def test_render_shows_the_state_of_every_time(size):
    clips = sample_clips(5, np.random.default_rng(1), split="pictures")
    times = np.random.default_rng(2).uniform(0, 9, (5, 4))
    frames, shown = render(clips, times, size), states(clips, times)
    assert frames.shape == (5, 4, 3, size, size) and frames.dtype == torch.float32
    for i, t in np.ndindex(5, 4):
        picture = draw(*clips.names(i), int(shown[i, t]), BACKGROUNDS[clips.background[i]], size)
        assert torch.equal((frames[i, t] * 255).round().byte(), torch.from_numpy(picture).permute(2, 0, 1))


def test_after_its_duration_the_scene_rests():
    clips = sample_clips(3, np.random.default_rng(4))
    assert torch.equal(*render(clips, np.stack([clips.duration, clips.duration + 5], 1)).unbind(1))


def test_what_was_drawn_cannot_be_changed_from_outside():
    draw("lion", "rings", "bell", 0, "sky")[:] = 0
    assert draw("lion", "rings", "bell", 0, "sky").any()


def test_random_frames_are_reproducible_by_seed():
    assert torch.equal(random_frames(1, 4), random_frames(1, 4))
    assert not torch.equal(random_frames(1, 4), random_frames(2, 4))
    assert random_frames(1, 2, 192, split="pictures").shape == (2, 3, 192, 192)


def test_a_known_frame_costs_a_fraction_of_a_new_one():
    clips = Clips(np.full(17, 3), np.full(17, 1), np.full(17, 2), np.full(17, 1.0))
    times = np.arange(17)[:, None] / 16
    render(clips, times)  # layers are drawn

    def seconds(forget: bool) -> float:
        best = float("inf")
        for _ in range(3):
            if forget:
                drawing._small.cache_clear()
                drawing._large.cache_clear()
            start = time.perf_counter()
            render(clips, times)
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(forget=False) < seconds(forget=True) / 2


def test_caches_are_bounded():
    kept = [
        (drawing._small, 64 * 64 * 3),
        (drawing._large, 192 * 192 * 3),
        (drawing._stage, 192 * 192 * 3),
        (drawing._arm, 192 * 192 * 8),  # at most: a sprite is cut to what is painted
    ]
    assert sum(cache.cache_info().maxsize * size for cache, size in kept) < 350e6


def test_tokens_repeat():
    """Few patches of 8 x 8 pixels show all that an actor does: things rest on the grid of tokens."""
    patches = set()
    for action, thing in PAIRS:
        tiles = rearrange(path("bear", action, thing), "s (h a) (w b) c -> (s h w) (a b c)", a=8, b=8)
        patches.update(patch.tobytes() for patch in tiles)
    assert len(patches) < 500


# Mistakes


@pytest.mark.parametrize(
    "scene",
    [
        ("dog", "rings", "bell", 0, "sky"),
        ("cat", "rings", "milk", 0, "sky"),
        ("cat", "rings", "bell", 0, "night"),
        ("cat", "rings", "bell", 17, "sky"),
        ("cat", "rings", "bell", -1, "sky"),
    ],
)
def test_scenes_that_do_not_exist_are_refused(scene):
    with pytest.raises(CogVideoError, match="[Cc]hoose"):
        draw(*scene)


def test_other_sizes_are_refused():
    with pytest.raises(CogVideoError, match="64 or 192"):
        draw("cat", "rings", "bell", 0, "sky", 100)
    with pytest.raises(CogVideoError, match="64 or 192"):
        random_frames(0, 1, 65)


def test_the_sheet_shows_actors_objects_and_actions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["drawing", str(tmp_path / "sheet.png")])
    drawing.main()
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (9 * 192, (3 + 8) * 192)
    monkeypatch.setattr(sys, "argv", ["drawing"])
    with pytest.raises(SystemExit, match="OUT.png"):
        drawing.main()
