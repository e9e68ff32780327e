"""Do generated clips show what their sentences say? Scores of a demo model, read from pixels by `judge.Judge`.

Two sets of questions for each group of `scenes.groups`. Whole actions: the frame-rate text that holds all of the action
(paper section 3.1), five key frames, and the interpolated clip. Parts: frame-rate texts of 4, 2, 1 and 0.5 s.
Real clips, and real clips passed through the frame tokenizer, answer the same questions: the second are the ceiling.
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.io import commit, write_json
from cogvideo.theatre.drawing import render
from cogvideo.theatre.judge import DAMAGES, Judge, damage
from cogvideo.theatre.scenes import (
    ACTION_NAMES,
    ACTOR_NAMES,
    DURATIONS,
    FPS,
    PICTURE_ONLY_ACTORS,
    PICTURE_ONLY_OBJECTS,
    Clips,
    groups,
)
from cogvideo.theatre.scores import LABELS, MEANINGS, TARGETS, WHOLE_CLIP, score_key_frames, score_whole_clips
from cogvideo.tokenizers.frames import FrameTokenizer

FRAMES = 5  # key frames
PART_SPANS = (4.0, 2.0, 1.0, 0.5)  # seconds
GROUPS = ("seen", "unseen", "picture-only")
SOURCES = {"model": "model", "ceiling": "ceiling (tokenizer)", "real": "real clips"}
SETTINGS = re.compile("first_|key_|fill_|temperature|top_k|clusters")  # sampling settings that touch these clips
BATCH, FRAMES_TOGETHER = 50, 600  # prompts, and frames of whole clips, that are generated together
DAMAGED = 100  # real clips that are damaged on purpose

KeyFrames = Callable[[list[str], list[float], list[int]], np.ndarray | Tensor]  # prompts, seconds, seeds -> [b,5,H,W,3]
WholeClips = Callable[[list[str], float, list[int]], np.ndarray | Tensor]  # the same, seconds shared -> [b,T,H,W,3]


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a rate after `right` of n trials (Wilson 1927, without continuity correction)."""
    if n == 0:
        return 0.0, 1.0
    rate, spread = right / n, z * z / n
    middle = (rate + spread / 2) / (1 + spread)
    half = (rate * (1 - rate) * spread + spread * spread / 4) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass(frozen=True)
class Questions:
    """n clips of a group: what to ask for, and how the model's answers are told apart."""

    clips: Clips
    spans: np.ndarray  # [n] seconds that the key frames span
    languages: np.ndarray  # [n] "en" or "zh"
    seeds: np.ndarray  # [n] of the model's random numbers, so that answers are independent

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, rows) -> "Questions":
        return Questions(self.clips[rows], self.spans[rows], self.languages[rows], self.seeds[rows])

    @property
    def prompts(self) -> list[str]:
        return [self.clips.caption(i, language) for i, language in enumerate(self.languages)]

    def times(self, num_frames: int = FRAMES) -> np.ndarray:
        """Seconds [n, T] of the frames."""
        return np.linspace(0, self.spans, num_frames, axis=1)

    def real_frames(self, num_frames: int = FRAMES) -> Tensor:
        """The clips themselves as the theatre draws them, float [n, T, 64, 64, 3] in 0..1."""
        return rearrange(render(self.clips, self.times(num_frames)), "n t c h w -> n t h w c")

    @cached_property
    def kinds(self) -> dict[str, np.ndarray]:
        """Names [n] by which answers are told apart."""
        names = [self.clips.names(i) for i in range(len(self))]
        pictured = [(actor in PICTURE_ONLY_ACTORS, thing in PICTURE_ONLY_OBJECTS) for actor, _, thing in names]
        which = {(0, 0): "neither", (1, 0): "actor", (0, 1): "object", (1, 1): "both"}
        return {
            "action": np.array([action for _, action, _ in names]),
            "actor": np.array([actor for actor, _, _ in names]),
            "object": np.array([thing for _, _, thing in names]),
            "duration": np.array([f"{d:g} s" for d in self.clips.duration]),
            "language": self.languages,
            "only in pictures": np.array([which[pair] for pair in pictured]),
            "part that fits": np.array([f"{min(1, r):.3g}" for r in self.spans / self.clips.duration]),
        }


def draw_questions(n: int, seed: int, *, parts: bool, group: str = "seen") -> Questions:
    """n questions of a group, balanced over actions, durations, languages and (if `parts`) spans."""
    rng = np.random.default_rng([seed, parts, GROUPS.index(group)])
    combinations = np.argwhere(groups() == group)
    actions = Clips(*combinations.T, *np.zeros((2, len(combinations)), int)).action
    wanted = rng.permutation(np.resize(rng.permutation(len(ACTION_NAMES)), n))
    chosen = np.zeros(n, int)
    for action in range(len(ACTION_NAMES)):
        rows, known = np.flatnonzero(wanted == action), rng.permutation(np.flatnonzero(actions == action))
        chosen[rows] = np.resize(known, len(rows))  # every combination as often as every other
    actor, pair = combinations[chosen].T
    background, duration, languages, spans = (
        rng.permutation(np.resize(values, n)) for values in (range(4), DURATIONS, ["en", "zh"], PART_SPANS)
    )
    clips = Clips(actor, pair, background, duration)
    whole = np.array([clips.span(i) for i in range(n)])
    return Questions(clips, spans if parts else whole, languages, rng.integers(2**31, size=n))


def compare(
    generate: KeyFrames,
    tokenizer: FrameTokenizer,
    *,
    whole: WholeClips | None = None,
    n: int = 200,
    seed: int = 0,
    ask: Sequence[str] = GROUPS,
    progress: bool = True,
) -> dict:
    """Score a model, the frame tokenizer's ceiling and real clips on n questions of each kind for the groups `ask`.

    generate makes key frames; whole makes interpolated clips, of which the first and every so many are the key frames of
    whole actions (without it, whole clips are not scored).

    Returns {group: {"model" | "ceiling" | "real": {score: counts}, "by": {kind: {name: {score: counts}}}}, "damages":
    {damage: {score: counts}}}; counts hold right, n, rate and the 95 % interval low..high; "by" is about the model.
    """
    judge, result = Judge(), {}
    for group in ask:
        result[group] = found = {source: {} for source in SOURCES} | {"by": {}}
        for parts in (False, True):
            asked = draw_questions(n, seed, parts=parts, group=group)
            done = 0
            for some in _batches(asked, whole=whole is not None and not parts):
                if progress:
                    what = "parts of actions" if parts else "whole actions"
                    print(f"\ralignment, {group}, {what}: {done} of {n} clips   ", end="", file=sys.stderr, flush=True)
                done += len(some)
                for source, frames in _answers(some, generate, None if parts else whole, tokenizer):
                    scores = _scores(frames, some, judge, parts)
                    _add(found[source], scores)
                    if source == "model":
                        for kind, names in some.kinds.items():
                            for name in np.unique(names):
                                entry = found["by"].setdefault(kind, {}).setdefault(str(name), {})
                                _add(entry, {score: right[names == name] for score, right in scores.items()})
    result["damages"] = score_damages(min(n, DAMAGED), seed, judge)
    if progress:
        print(file=sys.stderr)
    return _with_rates(result)


def _batches(asked: Questions, whole: bool) -> Iterator[Questions]:
    """Questions in batches; whole clips in one batch are of one length."""
    if not whole:
        yield from (asked[slice(start, start + BATCH)] for start in range(0, len(asked), BATCH))
        return
    for span in np.unique(asked.spans):
        rows = np.flatnonzero(asked.spans == span)
        size = max(1, min(BATCH, FRAMES_TOGETHER // round(FPS * span)))
        yield from (asked[rows[start : start + size]] for start in range(0, len(rows), size))


def _answers(
    asked: Questions, generate: KeyFrames, whole: WholeClips | None, tokenizer: FrameTokenizer
) -> Iterator[tuple[str, Tensor]]:
    """The clips of every source; what a "real" clip is depends on the number of frames of the model's."""
    prompts, seeds = asked.prompts, asked.seeds.tolist()
    made = whole(prompts, float(asked.spans[0]), seeds) if whole else generate(prompts, asked.spans.tolist(), seeds)
    model = torch.as_tensor(made)
    yield "model", model
    real = asked.real_frames(model.shape[1])
    yield "ceiling", _rebuild(real, tokenizer)
    yield "real", real


def _scores(frames: Tensor, asked: Questions, judge: Judge, parts: bool) -> dict[str, np.ndarray]:
    """Booleans [n] of the scores that this kind of question asks for."""
    keys = frames[:, :: (frames.shape[1] - 1) // (FRAMES - 1)]
    scores = score_key_frames(keys, asked.clips, asked.spans, judge=judge)
    if parts:
        return {"part": scores["part"]}
    scores = {name: scores[name] for name in ("actor", "object", "background", "same", "order")}
    if frames.shape[1] > FRAMES:
        scores |= score_whole_clips(frames, asked.clips, float(asked.spans[0]), judge=judge)
    return scores


def score_damages(n: int, seed: int, judge: Judge) -> dict[str, dict]:
    """{damage: {score: [right, n]}} of real clips that are damaged on purpose: what the judge feels."""
    result: dict[str, dict] = {}
    for kind in ("none", *DAMAGES):
        asked = draw_questions(n, seed, parts=False)
        result[kind] = {}
        for some in _batches(asked, whole=True):
            frames = damage(some.clips, some.times(round(FPS * some.spans[0]) + 1), kind)
            _add(result[kind], _scores(frames, some, judge, parts=False))
    return result
