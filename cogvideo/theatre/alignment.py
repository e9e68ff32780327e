"""Do generated clips show what their prompts say? Scores of a demo model, read from pixels by `judge.Judge`.

`evaluate("demo")` asks two sets of questions with test seeds. Whole actions: the frame-rate text that holds all of the
action (paper section 3.1); are digit, colour and action those of the prompt, and is it one object all the time? Parts:
frame-rate texts of 4, 2, 1 and 0.5 s; is the share of the action that is shown the one that fits in that time?
Real clips, and real clips passed through the frame tokenizer, answer the same questions: the second are the ceiling.
"""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.io import commit, write_json
from cogvideo.theatre.digits import ACTION_NAMES, DURATIONS, Clips, World, is_held_out, render, sample_clips
from cogvideo.theatre.judge import Judge
from cogvideo.tokenizers.frames import FrameTokenizer

PART_TOLERANCE = 0.15
PART_SPANS = (4.0, 2.0, 1.0, 0.5)  # seconds
TARGETS = {"digit": 0.90, "color": 0.98, "action": 0.90, "same": 0.90, "part": 0.80}
LABELS = {
    "digit": "digit",
    "color": "colour",
    "action": "action and direction",
    "same": "same object in all frames",
    "part": "part shown (frame rate)",
}
SOURCES = {"model": "model", "ceiling": "ceiling (tokenizer)", "real": "real clips"}
KEYS = re.compile("first_|key_|temperature|top_k|clusters")  # settings that touch key frames
BATCH = 50  # prompts that are generated together


def score_key_frames(
    frames: np.ndarray | Tensor, clips: Clips, spans: float | np.ndarray, *, judge: Judge | None = None
) -> dict[str, np.ndarray]:
    """Score clips [n, T, H, W, 3] (uint8, or floats in 0..1) whose T frames span `spans` (a number or n) seconds.

    Returns arrays [n]: booleans "digit", "color", "action" (right kind and direction, all the way: to be asked where
    the span holds the whole action), "same" (one object with one digit and colour in every frame) and "part" (the share
    of the prompt's action that is shown lies within 0.15 of what it should be), and the shares themselves, "shown" (NaN
    where the object moves in another way) and "expected".
    Raises CogVideoError for clips of two objects or of shapes, and for frames of another form.
    """
    if clips.world.objects != 1 or clips.world.glyphs == "shapes":
        raise CogVideoError(
            "The judge reads clips of one digit: evaluate a world with objects=1 and digits as glyphs."
        )
    seen = (judge or Judge.from_pretrained()).observe(frames)
    digit, color, action, duration = (
        field[:, 0] for field in (clips.kind, clips.color, clips.action, clips.duration)
    )
    ratio = np.broadcast_to(spans, digit.shape) / duration
    expected = np.minimum(1, ratio)
    shown = seen.part(action, expected)
    part = abs(shown - expected) <= PART_TOLERANCE
    return {
        "digit": seen.digit == digit,
        "color": seen.clip_color == color,
        "action": (seen.action(ratio) == action) & part,
        "same": seen.same_object,
        "part": part,
        "shown": shown,
        "expected": expected,
    }


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
    """n clips of the test split: what to ask for, and how the model's answers are told apart."""

    clips: Clips
    spans: np.ndarray  # [n] seconds that the frames span
    languages: np.ndarray  # [n] "en" or "zh"
    seeds: np.ndarray  # [n] of the model's random numbers, so that answers are independent

    @property
    def prompts(self) -> list[str]:
        return [self.clips.caption(i, language) for i, language in enumerate(self.languages)]

    def real_frames(self, num_frames: int = 5) -> Tensor:
        """The clips themselves as the world draws them, float [n, T, 64, 64, 3] in 0..1."""
        times = np.linspace(0, self.spans, num_frames, axis=1)
        return rearrange(render(self.clips, times), "n t c h w -> n t h w c")

    def groups(self) -> dict[str, np.ndarray]:
        """Names [n] by which answers are told apart."""
        kind, color, action = self.clips.kind[:, 0], self.clips.color[:, 0], self.clips.action[:, 0]
        return {
            "language": self.languages,
            "combination": np.where(is_held_out(kind, color, action), "never told", "trained"),
            "action": np.array(ACTION_NAMES)[action],
            "digit": np.array(self.clips.world.names)[kind],
            "span": np.array([f"{span:g} s" for span in self.spans]),
            "share that fits": np.array([f"{min(1, r):.3g}" for r in self.spans / self.clips.duration[:, 0]]),
        }


def draw_questions(n: int, seed: int, *, parts: bool, world: World = World()) -> Questions:
    """n questions of the test split, balanced over actions, durations, languages and (if `parts`) spans."""
    rng = np.random.default_rng([seed, parts])
    pool = sample_clips(40 * n + 200, rng, split="test", world=world)
    wanted = rng.permutation(np.arange(n) % len(ACTION_NAMES))
    chosen = np.zeros(n, int)
    for action in range(len(ACTION_NAMES)):
        rows = wanted == action
        chosen[rows] = np.flatnonzero(pool.action[:, 0] == action)[: rows.sum()]
    durations = rng.permutation(np.array(DURATIONS)[np.arange(n) % len(DURATIONS)])[:, None]
    fields = {name: getattr(pool, name)[chosen] for name in ("kind", "color", "action", "x", "y", "scan")}
    clips = replace(pool, **fields, duration=durations)
    whole = np.array([clips.span(i) for i in range(n)])
    spans = rng.permutation(np.array(PART_SPANS)[np.arange(n) % len(PART_SPANS)]) if parts else whole
    languages = rng.permutation(np.array(["en", "zh"])[np.arange(n) % 2])
    return Questions(clips, spans, languages, rng.integers(2**31, size=n))


def compare(
    generate: Callable[[list[str], list[float], list[int]], np.ndarray | Tensor],
    tokenizer: FrameTokenizer,
    *,
    n: int = 200,
    seed: int = 0,
    world: World = World(),
    progress: bool = True,
) -> dict:
    """Score `generate(prompts, seconds, seeds) -> frames [b, T, 64, 64, 3]`, the tokenizer's ceiling and real clips.

    Returns {"model" | "ceiling" | "real": {measure: counts}, "groups": {group: {name: {measure: counts}}}}, where
    counts hold right, n, rate and the 95 % interval low..high; the groups are those of the model.
    """
    judge = Judge.from_pretrained()
    result: dict = {source: {} for source in SOURCES} | {"groups": {}}
    for parts in (False, True):
        questions = draw_questions(n, seed, parts=parts, world=world)
        made = []
        for start in range(0, n, BATCH):
            if progress:
                what = "parts of actions" if parts else "whole actions"
                print(f"\ralignment, {what}: {start} of {n} clips ", end="", file=sys.stderr, flush=True)
            rows = slice(start, start + BATCH)
            spans, seeds = questions.spans[rows].tolist(), questions.seeds[rows].tolist()
            frames = generate(questions.prompts[rows], spans, seeds)
            made.append(torch.as_tensor(frames))
        model = torch.cat(made)
        real = questions.real_frames(model.shape[1])
        measures = ["part"] if parts else [name for name in TARGETS if name != "part"]
        for source, frames in (("model", model), ("ceiling", _rebuild(real, tokenizer)), ("real", real)):
            scores = score_key_frames(frames, questions.clips, questions.spans, judge=judge)
            result[source] |= {name: _count(scores[name]) for name in measures}
            if source == "model":
                for group, names in questions.groups().items():
                    for name in np.unique(names):
                        entry = result["groups"].setdefault(group, {}).setdefault(str(name), {})
                        entry.update(
                            {measure: _count(scores[measure][names == name]) for measure in measures}
                        )
    if progress:
        print(file=sys.stderr)
    return result


def evaluate(
    weights: str | Path = "demo",
    n: int = 200,
    seed: int = 0,
    *,
    guidance: float | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    device: str = "auto",
) -> dict:
    """Ask a demo model 2 n questions, print the table of answers and return it (see `compare`) with its settings.

    weights: "demo" or a pipeline folder. guidance: scale of the key frames' guidance, by default the pipeline's own.
    out: a JSON file.
    Raises CogVideoError for unknown or damaged weights, an n below 1 and an `out` that cannot be written.
    """
    if n < 1:
        raise CogVideoError(f"n is the number of prompts of each kind and cannot be {n}: give 1 or more.")
    if out and not os.access(Path(out).resolve().parent, os.W_OK):
        raise CogVideoError(f"The result cannot be written to {out}: choose a file in a folder that exists.")
    from cogvideo.checkpoints.registry import DEMO
    from cogvideo.sampling.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(weights, device=device)
    if guidance is not None:
        pipe = pipe.with_sampling(key_guidance=guidance)
    result = compare(pipe.key_frames, pipe.frames, n=n, seed=seed, progress=progress)
    result["settings"] = {
        "weights": str(weights),
        "sha256": weights_hash(DEMO if str(weights) == "demo" else weights),
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


def table(result: dict, *, details: bool = False) -> str:
    """The result as plain text: rates in percent with 95 % intervals; `details` adds the model's rates by group."""
    settings = result.get("settings", {})
    lines = ["  ".join(f"{key} {value}" for key, value in settings.items() if key != "sampling")]
    lines.append(
        "  ".join(f"{key}={value}" for key, value in settings.get("sampling", {}).items() if KEYS.match(key))
    )
    row = "{:<28}" + "{:<24}" * len(SOURCES) + "{}"
    lines.append(row.format("right, in %", *(f"{label} (n)" for label in SOURCES.values()), "target"))
    for measure, label in LABELS.items():
        cells = [_cell(result[source][measure]) for source in SOURCES]
        lines.append(row.format(label, *cells, f">= {100 * TARGETS[measure]:.0f}"))
    for group, entries in result["groups"].items():
        if details or group in ("language", "combination"):
            lines += ["", f"model, by {group}"]
            for name, entry in entries.items():
                rates = [f"{LABELS[m].split()[0]} {_cell(entry[m])}" for m in LABELS if m in entry]
                lines.append(f"  {name:<16}" + "  ".join(rates))
    return "\n".join(line.rstrip() for line in lines).strip()


def weights_hash(folder: str | Path) -> str:
    """The first 16 digits of a SHA-256 over names and contents of all weights files below a folder."""
    digest = sha256()
    for file in sorted(Path(folder).rglob("*.safetensors")):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _rebuild(frames: Tensor, tokenizer: FrameTokenizer) -> Tensor:
    """[n, T, 64, 64, 3] -> the same after tokens and back."""
    pictures = rearrange(frames, "n t h w c -> (n t) c h w")
    device = tokenizer.codebook.device
    rebuilt = [
        tokenizer.decode(tokenizer.encode(some.to(device))).clamp(0, 1).cpu() for some in pictures.split(100)
    ]
    return rearrange(torch.cat(rebuilt), "(n t) c h w -> n t h w c", n=len(frames))


def _count(right: np.ndarray) -> dict:
    k, n = int(right.sum()), len(right)
    low, high = wilson(k, n)
    return {"right": k, "n": n, "rate": k / n, "low": low, "high": high}


def _cell(counts: dict) -> str:
    rate, low, high = (100 * counts[key] for key in ("rate", "low", "high"))
    return f"{rate:.1f} ({low:.0f}-{high:.0f}, {counts['n']})"
