"""Scores of "models" whose answers are known: the renderer itself, one that mixes prompts up, one that stands still."""

import json
from typing import cast

import numpy as np
import pytest
import torch
from einops import rearrange
from scipy.stats import binomtest

from cogvideo.errors import CogVideoError
from cogvideo.theatre import alignment
from cogvideo.theatre.alignment import compare, draw_questions, evaluate, score_key_frames, table, wilson
from cogvideo.theatre.digits import (
    ACTION_NAMES,
    COLORS,
    DURATIONS,
    Clips,
    World,
    is_held_out,
    render,
    sample_clips,
)
from cogvideo.tokenizers.frames import FrameTokenizer

N = 54  # six prompts of each action
MEASURES = ("digit", "color", "action", "same", "part")


class PatchTokenizer:
    """Frame tokens that lose nothing: a code for every 8 x 8 patch that it has ever seen."""

    def __init__(self):
        self.codebook = torch.zeros(1, 192)

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        patches = rearrange(frames, "n c (h a) (w b) -> (n h w) (c a b)", a=8, b=8)
        self.codebook, ids = patches.unique(dim=0, return_inverse=True)
        return rearrange(ids, "(n h w) -> n h w", n=len(frames), h=8)

    def decode(self, ids: torch.Tensor) -> torch.Tensor:
        return rearrange(self.codebook[ids], "n h w (c a b) -> n c (h a) (w b)", a=8, b=8)


def lossless() -> FrameTokenizer:
    return cast(FrameTokenizer, PatchTokenizer())


def every_caption() -> dict[str, tuple[int, int, int, float]]:
    """What each prompt of either language asks for: digit, colour, action, duration."""
    grid = np.indices((10, len(COLORS), len(ACTION_NAMES), len(DURATIONS))).reshape(4, -1, 1)
    kind, color, action, adverb = grid
    zero = np.zeros_like(kind)
    clips = Clips(kind, color, action, np.array(DURATIONS)[adverb], zero, zero, zero, World(), "test")
    fields = list(zip(*(f[:, 0].tolist() for f in (kind, color, action, clips.duration)), strict=True))
    return {clips.caption(i, language): fields[i] for i in range(len(clips)) for language in ("en", "zh")}


MEANING = every_caption()


def renderer(prompts, seconds, seeds) -> torch.Tensor:
    """A perfect model: reads the prompt, begins at a place of its own choice, draws uint8 [b, 5, 64, 64, 3]."""
    pool = sample_clips(2000, np.random.default_rng(seeds), split="test")
    kind, color, action, duration = (
        np.array(field)[:, None] for field in zip(*map(MEANING.get, prompts), strict=True)
    )
    rows = [np.flatnonzero(pool.action[:, 0] == one)[i] for i, one in enumerate(action[:, 0])]
    clips = Clips(kind, color, action, duration, pool.x[rows], pool.y[rows], pool.scan[rows], World(), "test")
    frames = render(clips, np.linspace(0, seconds, 5, axis=1))
    return (rearrange(frames, "n t c h w -> n t h w c") * 255).round().byte()


def test_a_perfect_model_scores_everything_and_a_lossless_tokenizer_is_no_ceiling():
    result = compare(renderer, lossless(), n=N, seed=3, progress=False)
    for source in ("model", "ceiling", "real"):
        for measure in MEASURES:
            assert result[source][measure]["right"] == result[source][measure]["n"] == N, (source, measure)
    assert json.loads(json.dumps(result)) == result
    groups = result["groups"]
    assert set(groups["language"]) == {"en", "zh"}
    assert set(groups["combination"]) == {"trained", "never told"}
    assert set(groups["action"]) == set(ACTION_NAMES)
    for entries in groups.values():
        for measure in MEASURES:
            assert sum(entry[measure]["n"] for entry in entries.values() if measure in entry) == N

    lines = table(result).splitlines()
    assert any(
        line.startswith("digit") and line.count("100.0 (93-100, 54)") == 3 and line.endswith(">= 90")
        for line in lines
    )
    assert "moves left" not in table(result)
    assert "moves left" in table(result, details=True)


def test_a_model_that_mixes_prompts_up_scores_low():
    def shuffled(prompts, seconds, seeds):
        return renderer(prompts, seconds, seeds)[np.random.default_rng(seeds).permutation(len(prompts))]

    result = compare(shuffled, lossless(), n=N, seed=3, progress=False)
    rates = {measure: result["model"][measure]["rate"] for measure in MEASURES}
    assert max(rates["digit"], rates["action"], rates["part"]) < 0.3
    assert rates["color"] < 0.4
    assert rates["same"] == 1
    assert result["real"]["digit"]["rate"] == 1


def test_a_model_that_stands_still_shows_no_action_and_only_the_smallest_parts():
    def still(prompts, seconds, seeds):
        first = renderer(prompts, seconds, seeds)[:, :1]
        return first.expand(-1, 5, -1, -1, -1)

    result = compare(still, lossless(), n=N, seed=3, progress=False)
    assert result["model"]["action"]["rate"] == 0
    assert result["model"]["digit"]["rate"] == 1
    shares = result["groups"]["share that fits"]
    assert shares["0.0625"]["part"]["rate"] == 1
    assert shares["0.5"]["part"]["rate"] == 0


def test_a_model_that_ignores_the_frame_rate_is_found_out():
    def always_whole(prompts, seconds, seeds):
        return renderer(prompts, [MEANING[prompt][3] for prompt in prompts], seeds)

    result = compare(always_whole, lossless(), n=N, seed=3, progress=False)
    assert result["model"]["action"]["rate"] == 1
    shares = result["groups"]["share that fits"]
    for share in ("0.0625", "0.125", "0.25", "0.5"):
        assert shares[share]["part"]["rate"] == 0, share


def test_two_clips_scored_by_hand():
    questions = draw_questions(2, 0, parts=False)
    frames = questions.real_frames()
    swapped = score_key_frames(frames.flip(0), questions.clips, questions.spans)
    clips = questions.clips
    assert (clips.kind[0], clips.action[0]) != (clips.kind[1], clips.action[1])
    right = score_key_frames(frames, clips, questions.spans)
    assert all(right[measure].all() for measure in MEASURES)
    assert swapped["digit"].tolist() == [clips.kind[0, 0] == clips.kind[1, 0]] * 2
    assert swapped["color"].tolist() == [clips.color[0, 0] == clips.color[1, 0]] * 2


@pytest.mark.parametrize("parts", [False, True])
def test_questions_are_balanced_repeatable_and_from_the_test_split(parts):
    first, second, other = (draw_questions(200, seed, parts=parts) for seed in (5, 5, 6))
    assert first.prompts == second.prompts != other.prompts
    np.testing.assert_array_equal(first.spans, second.spans)
    np.testing.assert_array_equal(first.seeds, second.seeds)
    assert len(set(first.seeds)) == 200
    actions = np.bincount(first.clips.action[:, 0], minlength=9)
    assert actions.max() - actions.min() <= 1
    places = np.concatenate([first.clips.kind, first.clips.color, first.clips.x, first.clips.y], 1)
    assert len(np.unique(places, axis=0)) > 150
    assert (first.languages == "zh").sum() == 100
    assert all(
        prompt.isascii() == (language == "en")
        for prompt, language in zip(first.prompts, first.languages, strict=True)
    )
    held_out = is_held_out(first.clips.kind, first.clips.color, first.clips.action).mean()
    assert 0.04 < held_out < 0.16
    if parts:
        assert np.unique(first.spans, return_counts=True)[1].tolist() == [50] * 4
    else:
        assert (first.spans == first.clips.duration[:, 0]).all()  # every duration is a trained span


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (1, 3), (45, 50), (181, 200), (200, 200)])
def test_wilson_equals_scipy(right, n):
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_wilson_without_trials_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_worlds_that_the_judge_cannot_read_are_refused():
    frames = np.zeros((3, 5, 64, 64, 3), np.uint8)
    for world in (World("shapes"), World(objects=2)):
        clips = sample_clips(3, np.random.default_rng(0), world=world)
        with pytest.raises(CogVideoError, match="one digit"):
            score_key_frames(frames, clips, 1.0)


def test_mistakes_are_told_before_anything_is_generated(tmp_path):
    with pytest.raises(CogVideoError, match="cannot be 0"):
        evaluate(n=0)
    with pytest.raises(CogVideoError, match="nowhere"):
        evaluate(out=tmp_path / "nowhere" / "result.json")


def test_the_hash_of_weights_follows_their_contents_and_names(tmp_path):
    (tmp_path / "stage1").mkdir()
    file = tmp_path / "stage1" / "model.safetensors"
    file.write_bytes(b"abc")
    before = alignment.weights_hash(tmp_path)
    (tmp_path / "README.md").write_text("not weights")
    assert alignment.weights_hash(tmp_path) == before
    file.write_bytes(b"abd")
    assert alignment.weights_hash(tmp_path) != before
