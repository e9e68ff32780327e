"""The judge against clips whose truth is known, and against clips that are wrong in one way each."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file, save_file

from cogvideo.errors import CogVideoError
from cogvideo.theatre.digits import (
    ACTION_NAMES,
    DURATIONS,
    SPANS,
    Clips,
    World,
    object_states,
    render,
    sample_clips,
)
from cogvideo.theatre.judge import WEIGHTS, Judge, train_reader

STEPS = 5


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.from_pretrained()


def clips_of(actions, durations, *, seed: int = 1, world: World = World()) -> Clips:
    """One clip of the test split for each pair of an action's index and a duration."""
    pool = sample_clips(4000, np.random.default_rng(seed), split="test", world=world)
    rows = [np.flatnonzero(pool.action[:, 0] == action)[i] for i, action in enumerate(actions)]
    fields = {name: getattr(pool, name)[rows] for name in ("kind", "color", "action", "x", "y", "scan")}
    return replace(pool, **fields, duration=np.array(durations, float)[:, None])


def film(clips: Clips, spans, size: int = 64) -> torch.Tensor:
    """Five frames of each clip spanning `spans` seconds, float [n, 5, size, size, 3]."""
    times = np.linspace(0, np.broadcast_to(spans, len(clips)), STEPS, axis=1)
    return rearrange(render(clips, times, size), "n t c h w -> n t h w c")


def every_action_and_adverb() -> Clips:
    pairs = [(action, duration) for action in range(len(ACTION_NAMES)) for duration in DURATIONS]
    return clips_of(*zip(*pairs, strict=True))


def test_real_clips_of_every_action_and_adverb_are_read_right(judge):
    clips = every_action_and_adverb()
    seen = judge.observe(film(clips, clips.duration[:, 0]))
    np.testing.assert_array_equal(seen.digit, clips.kind[:, 0])
    np.testing.assert_array_equal(seen.clip_color, clips.color[:, 0])
    np.testing.assert_array_equal(seen.action(np.ones(len(clips))), clips.action[:, 0])
    assert seen.same_object.all()


def test_the_tracker_agrees_with_the_truth(judge):
    clips = every_action_and_adverb()
    times = np.linspace(0, clips.duration[:, 0], STEPS, axis=1)
    truth = {key: value[:, :, 0] for key, value in object_states(clips, times).items()}
    seen = judge.observe(film(clips, clips.duration[:, 0]))
    assert (
        np.abs(seen.x - truth["x"]).max() < 3
    )  # the centre of mass of a 7 or a 4 is not the centre of its box
    assert np.abs(seen.y - truth["y"]).max() < 3
    assert np.abs(seen.brightness - truth["brightness"]).max() < 0.1
    assert np.abs(seen.degrees - truth["degrees"]).max() < 15
    growth, true_growth = (np.log2(size / size[:, :1]) for size in (seen.size, truth["scale"]))
    assert np.abs(growth - true_growth).max() < 0.1


def test_pictures_of_192_px_and_whole_numbers_are_read_like_small_ones(judge):
    clips = clips_of([1, 5, 7], [1.0, 2.0, 4.0])
    large = (film(clips, clips.duration[:, 0], 192) * 255).round().byte()
    seen = judge.observe(large)
    np.testing.assert_array_equal(seen.digit, clips.kind[:, 0])
    np.testing.assert_array_equal(seen.action(np.ones(3)), clips.action[:, 0])
    assert seen.same_object.all()


def test_handwriting_of_unknown_writers_is_read(judge):
    rng = np.random.default_rng(3)
    clips = sample_clips(100, rng, split="test", world=World("handwriting"))
    seen = judge.observe(film(clips, clips.duration[:, 0]))
    assert (seen.digit == clips.kind[:, 0]).mean() >= 0.93
    assert (seen.clip_color == clips.color[:, 0]).all()
    assert (seen.action(np.ones(100)) == clips.action[:, 0]).mean() >= 0.97


@pytest.mark.parametrize("span", SPANS)
def test_parts_are_measured_at_every_span(judge, span):
    clips = every_action_and_adverb()
    expected = np.minimum(1, span / clips.duration[:, 0])
    shown = judge.observe(film(clips, span)).part(clips.action[:, 0], expected)
    assert np.abs(shown - expected).max() <= 0.1  # small parts are drawn in sixteenths
    assert np.abs(shown - expected).mean() <= 0.03


def states_of(clips, span):
    """What five frames that span `span` seconds show of every clip [n, 5, 5]."""
    states = object_states(clips, np.tile(np.linspace(0, span, 5), (len(clips), 1)))
    return np.stack([states[key][..., 0] for key in ("x", "y", "scale", "degrees", "brightness")], -1)


def test_parts_do_not_follow_the_expectation(judge):
    """A clip that shows half of an action is measured as half whatever was asked for."""
    clips = clips_of(list(range(len(ACTION_NAMES))), [4.0] * len(ACTION_NAMES))
    seen = judge.observe(film(clips, 2.0))
    # States are held until the next one is reached: these shares draw the very frames that half of the action draws.
    shares = np.arange(1, 129) / 128
    drawn = [states_of(clips, 4.0 * share) for share in shares]
    half = drawn[63]
    alike = np.array([[np.array_equal(d[i], half[i]) for d in drawn] for i in range(len(clips))])
    for expected in (0.0, 0.25, 1.0):
        shown = seen.part(clips.action[:, 0], np.full(len(clips), expected))
        assert all(
            shares[fits].min() - 0.02 <= s <= shares[fits].max() + 0.02
            for s, fits in zip(shown, alike, strict=True)
        )


def test_another_action_has_no_part(judge):
    clips = clips_of([0, 1, 5, 7, 8], [1.0] * 5)
    seen = judge.observe(film(clips, 1.0))
    others = np.array(
        [ACTION_NAMES.index(name) for name in ("moves right", "moves up", "shrinks", "moves left", "turns")]
    )
    assert np.isnan(seen.part(others, np.ones(5))).all()


def wrong_clips(how: str) -> torch.Tensor:
    """One clip of every action, the whole of it, spoiled."""
    actions = [a for a, name in enumerate(ACTION_NAMES) if not (how == "reversed" and name == "bounces")]
    clips = clips_of(actions, [1.0] * len(actions))
    frames = film(clips, 1.0)
    if how == "frozen":
        return frames[:, :1].expand_as(frames)
    if how == "reversed":  # a bounce backwards is the same bounce
        return frames.flip(1)
    if how == "shuffled":
        return frames[:, [2, 0, 3, 1, 4]]
    if how == "late":  # the last third of the action is missing
        return film(clips, 0.66)
    if how == "jump":
        return torch.cat([frames[:, :2], frames[:, 2:3].roll(14, dims=2), frames[:, 3:]], 1)
    if how == "other digit":
        later = film(replace(clips, kind=(clips.kind + 1) % 10), 1.0)
    elif how == "other colour":
        later = film(replace(clips, color=(clips.color + 1) % 6), 1.0)
    elif how == "two objects":
        later = frames.maximum(frames.roll((32, 32), dims=(2, 3)))
    else:
        later = torch.zeros_like(frames)
    return torch.cat([frames[:, :3], later[:, 3:]], 1)


@pytest.mark.parametrize("how", ["frozen", "reversed", "shuffled", "late", "jump"])
def test_wrong_actions_fail(judge, how):
    frames = wrong_clips(how)
    actions = [
        a for a, name in enumerate(ACTION_NAMES) if len(frames) == len(ACTION_NAMES) or name != "bounces"
    ]
    seen, whole = judge.observe(frames), np.ones(len(frames))
    shown = seen.part(np.array(actions), whole)
    assert not ((seen.action(whole) == actions) & (np.abs(shown - 1) <= 0.15)).any()


@pytest.mark.parametrize("how", ["other digit", "other colour", "two objects", "gone"])
def test_another_object_fails(judge, how):
    assert not judge.observe(wrong_clips(how)).same_object.any()


def test_a_patchwork_of_colours_has_no_colour(judge):
    frames = film(clips_of([4], [1.0]), 1.0)
    frames[:, :, :, ::8] = frames[:, :, :, ::8].roll(1, dims=-1)
    patches = torch.where((torch.arange(64) // 4 % 2 == 0)[:, None], frames, frames.roll(1, dims=-1))
    assert (judge.observe(patches).color == -1).all()
    assert not judge.observe(patches).same_object.any()


def test_black_clips_are_judged_without_fault(judge):
    seen = judge.observe(np.zeros((2, STEPS, 64, 64, 3), np.uint8))
    assert not seen.same_object.any()
    assert (seen.clip_color == -1).all()
    assert (seen.action(np.ones(2)) == -1).all()
    assert np.isnan(seen.part(np.zeros(2, int), np.ones(2))).all()


@pytest.mark.parametrize("shape", [(5, 64, 64, 3), (1, 5, 3, 64, 64), (1, 5, 64, 48, 3), (1, 5, 60, 60, 3)])
def test_frames_of_another_form_are_refused(judge, shape):
    with pytest.raises(CogVideoError, match=re.escape(str(list(shape)))):
        judge.observe(np.zeros(shape, np.uint8))


def test_unusable_weights_are_refused(tmp_path):
    with pytest.raises(CogVideoError, match="absent.safetensors"):
        Judge.from_pretrained(tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(WEIGHTS.read_bytes()[:-100])
    with pytest.raises(CogVideoError, match="cut.safetensors"):
        Judge.from_pretrained(tmp_path / "cut.safetensors")
    tensors = load_file(WEIGHTS)
    tensors["turn.weight"] = tensors["turn.weight"][:1].contiguous()
    save_file(tensors, tmp_path / "shape.safetensors")
    with pytest.raises(CogVideoError, match="shape.safetensors.*turn.weight"):
        Judge.from_pretrained(tmp_path / "shape.safetensors")


def test_the_weights_are_small():
    assert WEIGHTS.stat().st_size < 200_000


def test_training_repeats_itself_and_learns():
    first, second = (train_reader(frames=500, epochs=6, progress=False) for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    clips = sample_clips(200, np.random.default_rng(9), split="test", world=World("handwriting"))
    seen = Judge(first).observe(film(clips, 0.5)[:, :1])
    assert (seen.digit == clips.kind[:, 0]).mean() > 0.4  # one batch of pictures; chance is 0.1
