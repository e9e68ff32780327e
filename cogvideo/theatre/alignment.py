"""Do generated clips show what their sentences say? Scores of a demo model, read from pixels.

Two sets of questions for each group of `scenes.groups`. Whole actions: the frame-rate text that holds all
of the action (paper section 3.1), five key frames, and the interpolated clip. Parts: frame-rate texts of 4,
2, 1 and 0.5 s. Real clips, and real clips passed through the frame tokenizer, answer the same questions:
the second are the ceiling.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cogvideo.checkpoints.registry import weights_folder, weights_hash
from cogvideo.errors import CogVideoError
from cogvideo.io import check_place, commit, write_json
from cogvideo.theatre.judge import DAMAGES, Judge, damage
from cogvideo.theatre.questions import FRAMES, GROUPS, Questions, draw_questions
from cogvideo.theatre.scenes import FPS, SPANS
from cogvideo.theatre.scores import LABELS, MEANINGS, TARGETS, score_key_frames, score_whole_clips
from cogvideo.tokenizers.frames import FrameTokenizer

if TYPE_CHECKING:
    from cogvideo.sampling.pipeline import Pipeline

SOURCES = {"model": "model", "ceiling": "ceiling (tokenizer)", "real": "real clips"}
SETTINGS = re.compile(
    "first_|key_|fill_|temperature|top_k|clusters"
)  # sampling settings that touch these clips
BATCH, FRAMES_TOGETHER = 50, 600  # prompts, and frames of whole clips, that are generated together
DAMAGED = 96  # real clips that are damaged on purpose
SYMMETRIC = ("throws", "rings")  # key frames of these actions are the same backwards

KeyFrames = Callable[
    [list[str], list[float], list[int]], np.ndarray | Tensor
]  # prompts, seconds, seeds -> [b,5,H,W,3]
WholeClips = Callable[
    [list[str], float, list[int]], np.ndarray | Tensor
]  # the same, seconds shared -> [b,T,H,W,3]


def wilson(right: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a rate after `right` of n trials (Wilson 1927, without continuity correction)."""
    if n == 0:
        return 0.0, 1.0
    rate, spread = right / n, z * z / n
    middle = (rate + spread / 2) / (1 + spread)
    half = (rate * (1 - rate) * spread + spread * spread / 4) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def compare(
    generate: KeyFrames,
    tokenizer: FrameTokenizer,
    *,
    whole: WholeClips | None = None,
    n: int = 200,
    seed: int = 0,
    ask: Sequence[str] = GROUPS,
    keep: Callable[[Questions], np.ndarray] | None = None,
    progress: bool = True,
) -> dict:
    """Score a model, the tokenizer's ceiling and real clips on n questions of each kind for the groups `ask`.

    generate makes key frames; whole makes interpolated clips, of which the first and every so many are the
    key frames of whole actions (without it, whole clips are not scored). keep: which of
    some questions are asked [n], by default all.

    Returns {group: {"model" | "ceiling" | "real": {score: counts}, "by": {kind: {name: {score: counts}}}},
    "damages": {damage: {score: counts}}}; counts hold right, n, rate and the 95 % interval low..high; "by"
    is about the model.
    """
    judge, result = Judge(), {}
    for group in ask:
        result[group] = found = {source: {} for source in SOURCES} | {"by": {}}
        for part in (False, True):
            asked = draw_questions(n, seed, parts=part, group=group)
            if keep:
                asked = asked[keep(asked)]
            done = 0
            for some in _batches(asked, whole=whole is not None and not part):
                if progress:
                    what = "parts of actions" if part else "whole actions"
                    print(
                        f"\ralignment, {group}, {what}: {done} of {len(asked)} clips   ",
                        end="",
                        file=sys.stderr,
                        flush=True,
                    )
                done += len(some)
                for source, frames in _answers(some, generate, None if part else whole, tokenizer):
                    scores = _scores(frames, some, judge, part)
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
    made = (
        whole(prompts, float(asked.spans[0]), seeds)
        if whole
        else generate(prompts, asked.spans.tolist(), seeds)
    )
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
    """{damage: {score: [right, n]}} of real clips that are damaged on purpose: what each score feels.

    "reversed" leaves out actions whose key frames are the same backwards.
    """
    result: dict[str, dict] = {}
    for kind in ("none", *DAMAGES):
        asked = draw_questions(n, seed, parts=False)
        if kind == "reversed":
            asked = asked[~np.isin(asked.kinds["action"], SYMMETRIC)]
        result[kind] = {}
        for some in _batches(asked, whole=True):
            frames = damage(some.clips, some.times(round(FPS * some.spans[0]) + 1), kind)
            _add(result[kind], _scores(frames, some, judge, parts=False))
    return result


def _add(counts: dict, scores: dict[str, np.ndarray]) -> None:
    """Add to counts {score: [right, n]} what arrays of booleans say."""
    for name, right in scores.items():
        before = counts.get(name, (0, 0))
        counts[name] = [before[0] + int(right.sum()), before[1] + right.size]


def _with_rates(counts: dict) -> dict:
    """Counts [right, n], at any depth, with their rates and intervals."""
    result = {}
    for name, entry in counts.items():
        if isinstance(entry, dict):
            result[name] = _with_rates(entry)
        else:
            (right, n), (low, high) = entry, wilson(*entry)
            result[name] = {"right": right, "n": n, "rate": right / n, "low": low, "high": high}
    return result


def _rebuild(frames: Tensor, tokenizer: FrameTokenizer) -> Tensor:
    """[n, T, 64, 64, 3] -> the same after tokens and back; each distinct picture is rebuilt once."""
    flat = rearrange((frames * 255).round().byte(), "n t h w c -> (n t) (h w c)").numpy()
    _, first, again = np.unique([row.tobytes() for row in flat], return_index=True, return_inverse=True)
    pictures = rearrange(frames, "n t h w c -> (n t) c h w")[torch.from_numpy(first)]
    device = tokenizer.codebook.device
    rebuilt = [
        tokenizer.decode(tokenizer.encode(some.to(device))).clamp(0, 1).cpu() for some in pictures.split(100)
    ]
    return rearrange(torch.cat(rebuilt)[torch.from_numpy(again)], "(n t) c h w -> n t h w c", n=len(frames))


def evaluate(
    weights: str | Path = "demo",
    n: int = 200,
    seed: int = 0,
    *,
    guidance: float | None = None,
    groups: Sequence[str] = GROUPS,
    language: str | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    device: str = "auto",
) -> dict:
    """Ask a demo model 2 n questions of each group, print the scores and return them with the settings.

    The result is that of `compare`, and "settings".

    weights: "demo" or a pipeline folder. guidance: scale of the key frames' guidance, by default the
    pipeline's own.
    groups: of GROUPS. language: "en" or "zh", by default half of each. Spans that the weights were not
    trained for are left out.
    out: a JSON file.

    Raises: CogVideoError for unknown groups and languages, unknown or damaged weights, an n below 1 and an
    `out` that cannot be written.
    """
    if n < 1:
        raise CogVideoError(f"n is the number of prompts of each kind and cannot be {n}: give 1 or more.")
    if unknown := set(groups) - set(GROUPS):
        raise CogVideoError(f"Group {min(unknown)!r} is unknown: choose of {', '.join(GROUPS)}.")
    if language not in (None, "en", "zh"):
        raise CogVideoError(f"Language {language!r} is unknown: choose en or zh.")
    if out:
        check_place(out)
    from cogvideo.sampling.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(weights, device=device)
    if guidance is not None:
        pipe = pipe.with_sampling(key_guidance=guidance)
    # Weights of other recipes may lack spans that the demo's were trained with.
    spans, whole = pipe.sampling.spans, whole_clips(pipe)
    if left := sorted(set(SPANS) - set(spans)):
        print(f"Not asked: {', '.join(f'{span:g}' for span in left)} s, not trained.", file=sys.stderr)

    def keep(asked: Questions) -> np.ndarray:
        return np.isin(asked.spans, spans) & np.isin(asked.languages, language or ["en", "zh"])

    result = compare(
        pipe.key_frames, pipe.frames,
        whole=whole, n=n, seed=seed, ask=groups, keep=keep, progress=progress,
    )  # fmt: skip
    result["settings"] = {
        "weights": str(weights),
        "sha256": weights_hash(weights_folder(weights)),
        "commit": commit(),
        "n": n,
        "seed": seed,
        "device": str(pipe.device),
        "sampling": asdict(pipe.sampling),
    }
    print(table(result))
    if out:
        write_json(out, result)
    return result


def whole_clips(pipe: "Pipeline") -> WholeClips:
    """Interpolated small clips of a pipeline, as `compare` asks for them."""

    def make(prompts: list[str], seconds: float, seeds: list[int]) -> np.ndarray:
        videos = pipe(prompts, seconds=seconds, seed=seeds, enlarge=False, progress=False)
        assert isinstance(videos, list)  # one for each prompt
        return np.stack([video.frames for video in videos])

    return make


def table(result: dict, *, details: bool = False) -> str:
    """The result as plain text: percent and 95 % intervals; `details` adds the model's rates by kind."""
    settings = dict(result.get("settings", {}))
    sampling = settings.pop("sampling", {})
    lines = ["  ".join(f"{key} {value}" for key, value in settings.items())]
    lines.append("  ".join(f"{key}={value}" for key, value in sampling.items() if SETTINGS.match(key)))
    row = "{:<28}" + "{:<24}" * len(SOURCES) + "{}"
    for group in (group for group in GROUPS if group in result):
        found = result[group]
        lines += [
            "",
            row.format(f"{group}: right, in %", *(f"{label} (n)" for label in SOURCES.values()), "target"),
        ]
        for score in (score for score in LABELS if score in found["model"]):
            goal = TARGETS[group].get(score)
            target = f">= {100 * goal:.0f}" if goal else ""
            lines.append(
                row.format(LABELS[score], *(_cell(found[source][score]) for source in SOURCES), target)
            )
        for kind, entries in found["by"].items() if details else ():
            lines += ["", f"{group}: model, by {kind}"]
            for name, entry in entries.items():
                rates = [f"{LABELS[s]} {_cell(entry[s])}" for s in LABELS if s in entry]
                lines.append(f"  {name:<14}" + "  ".join(rates))
    scores = ("background", "same", "order", "whole clip")
    lines += ["", "{:<24}".format("real clips, damaged") + "".join(f"{LABELS[s]:<20}" for s in scores)]
    for kind, entry in result["damages"].items():
        lines.append(f"{kind:<24}" + "".join(f"{100 * entry[s]['rate']:<20.0f}" for s in scores))
    lines += ["", *(f"{label}: {MEANINGS[score]}" for score, label in LABELS.items())]
    return "\n".join(line.rstrip() for line in lines).strip()


def _cell(counts: dict) -> str:
    rate, low, high = (100 * counts[key] for key in ("rate", "low", "high"))
    return f"{rate:.1f} ({low:.0f}-{high:.0f}, {counts['n']})"
