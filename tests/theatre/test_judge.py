"""The judge's eyes: real pictures, both sizes, mild distortions, what is unreadable; damages; sequences."""

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.theatre.drawing import LARGE_SIZE, draw, render
from cogvideo.theatre.judge import (
    DAMAGES,
    LOOKS,
    SHOWS,
    STILL,
    Judge,
    Reading,
    _still_pictures,
    damage,
    nearest,
)
from cogvideo.theatre.motion import looks
from cogvideo.theatre.scenes import ACTION_NAMES, ACTOR_NAMES, BACKGROUNDS, DURATIONS, PAIRS, STATES, Clips
from cogvideo.theatre.scores import forward, part_shown, score_key_frames, score_whole_clips

ACTORS = [ACTOR_NAMES.index(name) for name in ("lion", "mouse", "elephant")]


@cache
def clips(duration: float = 2.0) -> Clips:
    """Every pair of action and object, by three actors before two backgrounds."""
    pair = np.arange(len(PAIRS))
    actor = np.resize(ACTORS, len(pair))
    return Clips(actor, pair, np.resize([0, 2, 2], len(pair)), np.full(len(pair), duration))


def times(some: Clips, count: int = STATES) -> np.ndarray:
    return np.linspace(0, some.duration, count, axis=1)


@cache
def real(count: int = STATES) -> Tensor:
    return rearrange(render(clips(), times(clips(), count)), "n t c h w -> n t h w c")


def read_right(seen: Reading) -> np.ndarray:
    """Bool [n, T]: actor, background, pair and state are read."""
    truth = clips()
    state = np.arange(STATES)
    right = SHOWS[seen.look, truth.pair[:, None], state] & seen.readable
    return right & (seen.actor == truth.actor[:, None]) & (seen.background == truth.background[:, None])


def test_every_picture_of_three_actors_is_read():
    seen = Judge().read(real())
    assert read_right(seen).all()
    assert seen.damage.max() < 1e-6
    as_bytes = (real() * 255).round().byte()
    assert read_right(Judge().read(as_bytes.numpy())).all()


def test_every_actor_is_told_apart_before_every_background():
    shown = [(a, b) for a in range(len(ACTOR_NAMES)) for b in range(len(BACKGROUNDS))]
    actor, background = np.array(shown).T
    for action, thing, state in (("puts on", "hat", 10), ("drinks", "tea", 8), ("throws", "ball", 8)):
        pictures = [draw(ACTOR_NAMES[a], action, thing, state, BACKGROUNDS[b])[STILL] for a, b in shown]
        where = nearest(torch.from_numpy(np.stack(pictures)).flatten(1).float() / 255, _still_pictures())
        np.testing.assert_array_equal(where, actor * len(BACKGROUNDS) + background)


def test_what_counts_as_still_is_never_covered():
    for actor in ("lion", "rabbit", "pig", "elephant"):
        pictures = np.stack(
            [draw(actor, *PAIRS[p], s, "mint") for p, s in map(_first_scene, range(len(LOOKS)))]
        )
        assert (pictures[:, STILL] == pictures[:1, STILL]).all(), actor


def _first_scene(look: int) -> tuple[int, int]:
    pair, state = np.argwhere(SHOWS[look])[0]
    return int(pair), int(state)


def test_large_frames_are_averaged_down():
    some = clips()[::5]
    large = rearrange(render(some, times(some, 3), LARGE_SIZE), "n t c h w -> n t h w c")
    seen = Judge().read(large)
    assert (seen.actor == some.actor[:, None]).all()
    assert seen.damage.max() < 0.01


@pytest.mark.parametrize("distortion", ["noise", "blur", "coarse", "dim"])
def test_mild_distortions_hardly_matter(distortion):
    frames = rearrange(real(), "n t h w c -> (n t) c h w")
    if distortion == "noise":
        frames = frames + 0.05 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    elif distortion == "blur":
        frames = F.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False)
    elif distortion == "coarse":  # as a codec keeps colours
        frames = (frames * 12).round() / 12
    else:
        frames = 0.95 * frames
    seen = Judge().read(rearrange(frames.clamp(0, 1), "(n t) c h w -> n t h w c", t=STATES))
    assert read_right(seen).mean() >= 0.97


def test_what_is_no_picture_of_the_theatre_is_unreadable():
    noise = torch.rand(2, 3, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    seen = Judge().read(torch.cat([noise, torch.zeros(1, 3, 64, 64, 3)]))
    assert not seen.readable.any()
    assert not seen.objects.any()
    assert not seen.states(np.array([0, 1, 2])).any()

    torn = real(5).clone()
    torn[:, 2, :8, 48:56] = torn[:, 2, 56:, 32:40]  # a piece of the table on the wall
    readable = Judge().read(torn).readable
    assert readable[:, [0, 1, 3, 4]].all()
    assert not readable[:, 2].any()


@pytest.mark.parametrize(
    "shape", [(2, 3, 64, 64), (2, 3, 64, 64, 1), (2, 3, 60, 60, 3), (2, 3, 64, 128, 3), (0, 3, 64, 64, 3)]
)
def test_other_forms_are_refused(shape):
    with pytest.raises(CogVideoError, match="cannot read frames of shape"):
        Judge().read(np.zeros(shape, np.uint8))


def test_looks_that_are_shared_know_all_their_scenes():
    assert SHOWS.sum() == len(PAIRS) * STATES
    pairs = {names: number for number, names in enumerate(PAIRS)}
    worn = LOOKS.index(looks("puts on", "hat")[16])
    assert SHOWS[worn, pairs["puts on", "hat"], 16]
    assert SHOWS[worn, pairs["takes off", "hat"], 0]
    eaten = LOOKS.index(looks("eats", "apple")[16])
    assert SHOWS[eaten][[pairs["eats", "apple"], pairs["eats", "cake"]], 16].all()


# Sequences


def paths(*rows: list[set[int]]) -> np.ndarray:
    """Bool [n, T, 17] from the sets of states that frames show."""
    return np.array([[[s in frame for s in range(STATES)] for frame in row] for row in rows])


def test_a_path_runs_forward_when_some_choice_of_look_alikes_does():
    rows = paths([{0}, {4, 12}, {8}, {4, 12}, {0, 16}], [{0}, {5}, {4}, {6}, {7}], [{3}, {3}, {3}, {3}, {3}])
    assert forward(rows).tolist() == [True, False, True]
    assert forward(paths([{0}, set(), {1}])).tolist() == [False]


def test_the_part_is_read_from_the_last_frame_and_look_alikes_from_those_before():
    thrown = [{0, 16}, {4, 12}, {8}, {4, 12}, {0, 16}]
    rest = [{0, 16}] * 5
    rows = paths(thrown, rest, thrown, rest, rest, [{0}, {2}, {4}, {6}, {8}], [{0}, {2}, {4}, {6}, set()])
    shown = part_shown(rows, np.array([1.0, 1.0, 1 / 16, 1 / 16, 4.0, 0.5, 0.5]))
    np.testing.assert_allclose(shown[:6], [1, 0, 1, 0, 1, 0.5])
    assert np.isnan(shown[6])


# Damages


@cache
def scores_of(kind: str) -> dict[str, float]:
    """Rates on real clips of every pair, 9 frames at 8 frames a second after the damage."""
    some = clips(1.0)
    frames = damage(some, times(some, 9), kind)
    keys = score_key_frames(frames[:, ::2], some, 1.0)
    return {name: rate.mean() for name, rate in (keys | score_whole_clips(frames, some, 1.0)).items()}


def test_real_clips_are_right_in_every_score():
    rates = scores_of("none")
    assert all(rate == 1 for name, rate in rates.items() if name not in ("shown", "expected"))


@pytest.mark.parametrize("kind", list(DAMAGES))
def test_every_damage_is_felt_by_the_scores_that_it_concerns(kind):
    rates = scores_of(kind)
    # Thrown things (3 of 22 pairs) fall as they flew, a bell's key frames are the same backwards, there
    # is but one bell.
    allowed = {"reversed": 4 / 22, "object exchanged": 1 / 22}.get(kind, 0)
    for score in DAMAGES[kind]:
        assert rates[score] <= allowed + 1e-9, score
    untouched = {
        "frozen": ("actor", "object", "same", "forward"),
        "actor exchanged": ("order", "whole clip", "object"),
    }
    untouched |= {
        "background exchanged": ("actor", "order"),
        "reversed": ("actor", "same"),
        "torn": ("forward",),
    }
    for score in untouched.get(kind, ()):
        assert rates[score] == 1, score


@pytest.mark.parametrize(("action", "backwards"), [("puts on", "takes off"), ("pushes away", "pulls near")])
def test_only_order_tells_an_action_from_its_opposite(action, backwards):
    some = clips()[clips().action == ACTION_NAMES.index(action)]
    frames = damage(some, times(some, 5), "reversed")
    wrong = score_key_frames(frames, some, some.duration)
    assert wrong["actor"].all() and wrong["object"].all() and wrong["same"].all()
    assert not wrong["order"].any()
    pair = np.array([PAIRS.index((backwards, PAIRS[p][1])) for p in some.pair])
    opposite = Clips(some.actor, pair, some.background, some.duration)
    assert score_key_frames(frames, opposite, some.duration)["order"].mean() >= 0.5  # pauses differ a little


@pytest.mark.parametrize("duration", DURATIONS)
def test_a_frame_that_jumps_back_spoils_a_whole_clip(duration):
    some = clips(duration)[:3]
    count = round(8 * duration) + 1
    frames = rearrange(render(some, times(some, count)), "n t c h w -> n t h w c")
    middle = count // 2
    frames[:, middle + 1] = frames[:, middle - count // 8 - 1]
    scores = score_whole_clips(frames, some, duration)
    assert not scores["whole clip"].any()
    assert not scores["forward"].any()
    assert scores["frames"].mean() > 0.8


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_a_part_at_another_pace_is_felt(ratio):
    spans = ratio * clips().duration
    for pace, right in ((1.0, 1.0), (2.0, 0.0), (0.0, 0.0)):
        frames = rearrange(render(clips(), pace * times(clips(), 5) * ratio), "n t c h w -> n t h w c")
        assert score_key_frames(frames, clips(), spans)["part"].mean() == right, pace
