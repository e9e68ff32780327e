"""Scores of "models" whose answers are known: the theatre itself, one that mixes sentences up, and others."""

import json
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from einops import rearrange
from scipy.stats import binomtest

from cogvideo.errors import CogVideoError
from cogvideo.theatre import alignment
from cogvideo.theatre.alignment import compare, evaluate, table, wilson
from cogvideo.theatre.drawing import render
from cogvideo.theatre.judge import DAMAGES, Judge
from cogvideo.theatre.questions import GROUPS, draw_questions
from cogvideo.theatre.scenes import ACTION_NAMES, ACTOR_NAMES, DURATIONS, PAIRS, Clips, groups
from cogvideo.theatre.scores import LABELS, MEANINGS, TARGETS, score_key_frames
from cogvideo.tokenizers.frames import FrameTokenizer

N = 16  # two sentences of each action
KEYS = ("actor", "object", "background", "same", "order", "part")


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


def every_caption() -> dict[str, tuple[int, int, float]]:
    """What each sentence of either language asks for: actor, pair, duration."""
    grid = np.indices((len(ACTOR_NAMES), len(PAIRS), len(DURATIONS))).reshape(3, -1)
    clips = Clips(grid[0], grid[1], np.zeros_like(grid[0]), np.array(DURATIONS)[grid[2]])
    fields = list(zip(clips.actor.tolist(), clips.pair.tolist(), clips.duration.tolist(), strict=True))
    return {clips.caption(i, language): fields[i] for i in range(len(clips)) for language in ("en", "zh")}


MEANING = every_caption()


def painter(prompts: list[str], seconds: list[float], seeds: list[int], count: int = 5) -> torch.Tensor:
    """A perfect model: reads the sentence and draws it before the first wall, uint8 [b, count, 64, 64, 3]."""
    actor, pair, duration = (
        np.array(field) for field in zip(*map(MEANING.__getitem__, prompts), strict=True)
    )
    clips = Clips(actor, pair, np.zeros(len(prompts), int), duration)
    frames = render(clips, np.linspace(0, np.broadcast_to(seconds, len(prompts)), count, axis=1))
    return (rearrange(frames, "n t c h w -> n t h w c") * 255).round().byte()


def whole_painter(prompts: list[str], seconds: float, seeds: list[int]) -> torch.Tensor:
    return painter(prompts, [seconds] * len(prompts), seeds, round(8 * seconds) + 1)


@pytest.fixture(autouse=True)
def one_wall(monkeypatch):
    """Ask about the first wall alone: pictures of the others would be drawn for nothing."""

    def one(*arguments, **options):
        asked = draw_questions(*arguments, **options)
        clips = asked.clips
        return replace(asked, clips=Clips(clips.actor, clips.pair, 0 * clips.background, clips.duration))

    monkeypatch.setattr(alignment, "draw_questions", one)
    monkeypatch.setattr(alignment, "score_damages", lambda n, seed, judge: {"none": {}})


def test_a_perfect_model_scores_everything_and_a_lossless_tokenizer_is_no_ceiling():
    result = compare(painter, lossless(), whole=whole_painter, n=N, seed=3, progress=False)
    frames = {group: result[group]["real"].pop("frames") for group in GROUPS}
    for group in GROUPS:
        assert frames[group]["rate"] == 1
        assert frames[group]["n"] > 20 * N
        for source in ("model", "ceiling", "real"):
            for score in LABELS:
                if score != "frames":
                    entry = result[group][source][score]
                    assert entry["right"] == entry["n"] == N, (group, source, score)
        by = result[group]["by"]
        assert set(by["action"]) == set(ACTION_NAMES)
        assert set(by["language"]) == {"en", "zh"}
        assert set(by["duration"]) == {"1 s", "2 s", "4 s", "8 s"}
        for entries in by.values():
            for score in KEYS:
                assert sum(entry[score]["n"] for entry in entries.values() if score in entry) == N
    assert json.loads(json.dumps(result)) == result


def test_the_table_names_targets_and_says_what_every_score_means(monkeypatch):
    monkeypatch.undo()
    result = compare(painter, lossless(), n=8, seed=3, ask=["seen"], progress=False)
    lines = table(result).splitlines()
    assert any(line.startswith("actor") and line.count("100.0 (68-100, 8)") == 3 for line in lines)
    assert any(line.startswith("actor") and line.endswith(">= 99") for line in lines)
    assert all(any(line == f"{LABELS[score]}: {MEANINGS[score]}" for line in lines) for score in LABELS)
    assert all(any(line.startswith(kind) for line in lines) for kind in DAMAGES)
    assert "model, by action" not in table(result)
    assert "model, by action" in table(result, details=True)
    damages = result["damages"]
    assert all(entry["rate"] == 1 for entry in damages["none"].values())
    assert all(damages[kind][score]["rate"] <= 0.2 for kind, scores in DAMAGES.items() for score in scores)


def test_only_the_questions_that_are_kept_are_asked():
    def asked(spans: list[float]) -> dict:
        found = compare(
            painter, lossless(), n=8, seed=3, ask=["seen"], progress=False,
            keep=lambda questions: np.isin(questions.spans, spans),
        )  # fmt: skip
        return {score: counts["n"] for score, counts in found["seen"]["model"].items()}

    some = asked([2, 8])  # of 1, 2, 4, 8 for whole actions, 4, 2, 1, 0.5 for parts
    assert some["order"] == 4 and some["part"] == 2
    assert asked([8])["order"] == 2 and "part" not in asked([8])


def test_a_model_that_mixes_sentences_up_scores_low():
    def mixed(prompts, seconds, seeds):
        return painter(prompts, seconds, seeds).roll(1, 0)

    found = compare(mixed, lossless(), n=3 * N, seed=3, ask=["seen"], progress=False)["seen"]
    rates = {score: found["model"][score]["rate"] for score in KEYS}
    assert max(rates["actor"], rates["object"], rates["order"]) < 0.35
    assert rates["same"] == rates["background"] == 1
    assert found["real"]["order"]["rate"] == 1


def test_a_model_that_stands_still_shows_no_order_and_only_small_parts():
    def still(prompts, seconds, seeds):
        return painter(prompts, seconds, seeds)[:, :1].expand(-1, 5, -1, -1, -1)

    found = compare(still, lossless(), n=3 * N, seed=3, ask=["unseen"], progress=False)["unseen"]
    assert found["model"]["order"]["rate"] == 0
    assert found["model"]["actor"]["rate"] == found["model"]["same"]["rate"] == 1
    parts = {
        name: entry["part"]["rate"]
        for name, entry in found["by"]["part that fits"].items()
        if "part" in entry
    }
    assert parts["0.0625"] == 1
    assert parts["0.25"] == parts["0.5"] == 0


def test_a_model_that_ignores_the_frame_rate_is_found_out():
    def always_whole(prompts, seconds, seeds):
        return painter(prompts, [MEANING[prompt][2] for prompt in prompts], seeds)

    found = compare(always_whole, lossless(), n=3 * N, seed=3, ask=["seen"], progress=False)["seen"]
    assert found["model"]["order"]["rate"] == 1
    for part in ("0.0625", "0.125", "0.25", "0.5"):
        assert found["by"]["part that fits"][part]["part"]["rate"] == 0, part


def test_a_flicker_between_key_frames_is_seen_in_whole_clips_alone():
    def flickers(prompts, seconds, seeds):
        frames = whole_painter(prompts, seconds, seeds)
        frames[:, -2] = frames[:, 1]
        return frames

    found = compare(painter, lossless(), whole=flickers, n=N, seed=3, ask=["seen"], progress=False)["seen"][
        "model"
    ]
    assert all(found[score]["rate"] == 1 for score in KEYS)
    assert found["whole clip"]["rate"] <= 0.25  # a thing that was thrown lies where it lay
    assert found["readable"]["rate"] == 1
    assert 0.9 < found["frames"]["rate"] < 1


def test_two_clips_scored_by_hand():
    lion, mouse = (ACTOR_NAMES.index(name) for name in ("lion", "mouse"))
    pairs = [PAIRS.index(pair) for pair in (("drinks", "milk"), ("puts on", "hat"))]
    clips = Clips(np.array([lion, mouse]), np.array(pairs), np.array([0, 0]), np.array([2.0, 4.0]))
    frames = rearrange(render(clips, np.linspace(0, clips.duration, 5, axis=1)), "n t c h w -> n t h w c")
    right = score_key_frames(frames, clips, clips.duration)
    assert all(right[score].all() for score in KEYS)
    swapped = score_key_frames(frames.flip(0), clips, clips.duration, judge=Judge())
    assert not any(swapped[score].any() for score in ("actor", "object", "order", "part"))
    assert swapped["same"].all()


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("parts", [False, True])
def test_questions_are_balanced_repeatable_and_of_their_group(parts, group):
    first, second, other = (draw_questions(200, seed, parts=parts, group=group) for seed in (5, 5, 6))
    assert first.prompts == second.prompts != other.prompts
    np.testing.assert_array_equal(first.spans, second.spans)
    np.testing.assert_array_equal(first.seeds, second.seeds)
    assert len(set(first.seeds)) == 200
    assert np.bincount(first.clips.action, minlength=8).tolist() == [25] * 8
    assert np.unique(first.clips.duration, return_counts=True)[1].tolist() == [50] * 4
    assert np.unique(first.clips.background, return_counts=True)[1].tolist() == [50] * 4
    assert (first.languages == "zh").sum() == 100
    assert all(
        p.isascii() == (language == "en") for p, language in zip(first.prompts, first.languages, strict=True)
    )
    assert (groups()[first.clips.actor, first.clips.pair] == group).all()
    if parts:
        assert np.unique(first.spans, return_counts=True)[1].tolist() == [50] * 4
    else:
        assert (first.spans == first.clips.duration).all()  # every duration is a trained span


def test_the_targets_are_of_scores_that_are_known():
    assert all(score in MEANINGS for goals in TARGETS.values() for score in goals)
    assert list(LABELS) == list(MEANINGS)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (1, 3), (45, 50), (181, 200), (200, 200)])
def test_wilson_equals_scipy(right, n):
    interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_wilson_without_trials_knows_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


def test_mistakes_are_reported_before_anything_is_generated(tmp_path):
    with pytest.raises(CogVideoError, match="cannot be 0"):
        evaluate(n=0)
    with pytest.raises(CogVideoError, match="'all' is unknown: choose of seen"):
        evaluate(groups=["all"])
    with pytest.raises(CogVideoError, match="choose en or zh"):
        evaluate(language="de")
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
