"""The evaluation report of one set of weights of the theatre, as a page.

Clips, speed, alignment by group, drift, FVD and what it reacts to, and what the two channels count.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cogvideo.checkpoints.registry import DEMO, weights_hash
from cogvideo.data.video import Video
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.fvd_score import card
from cogvideo.evaluation.protocols import evaluate
from cogvideo.evaluation.sensitivity import plot_sensitivity, sensitivity
from cogvideo.evaluation.sensitivity import table as sensitivity_table
from cogvideo.evaluation.settings import Settings
from cogvideo.io import check_place, commit
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.reports import html
from cogvideo.runtime.machine import describe
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre import alignment
from cogvideo.theatre.drawing import FRAME_SIZE
from cogvideo.theatre.drift import PARTS, WAYS, drift, plot_drift
from cogvideo.theatre.questions import GROUPS, draw_questions
from cogvideo.theatre.scores import LABELS, MEANINGS, TARGETS

SAMPLES = 2  # clips that are shown of each group
DRIFTS = 24  # most clips whose drift is measured
SECONDS = 4.0  # how long each lasts
PRESET, REAL = "paper", "theatre:seen"
FELT = ("background", "same", "order", "whole clip")  # scores that damaged real clips are put to


def report_weights(
    weights: str | Path,
    out: str | Path,
    *,
    n: int = 24,
    fvd_clips: int = 12,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Evaluate weights ("demo" or a pipeline folder) and write the report to one HTML page.

    n: prompts of each kind and group for alignment. fvd_clips: clips a side for FVD and its sensitivity; 0:
    neither. FVD costs most: seven sides for the sensitivity, each through I3D.
    """
    if n < 1 or fvd_clips < 0 or fvd_clips == 1:
        raise CogVideoError(f"n must be at least 1 and FVD's clips 0 or at least 2, not {n} and {fvd_clips}.")
    check_place(out)
    pipe = Pipeline.from_pretrained(weights, device=device)
    frame = torch.zeros(1, 1, pipe.stage1.config.frame_tokens, dtype=torch.long, device=pipe.device)
    height, width = pipe.pixels(frame).shape[2:4]
    if (height, width) != (FRAME_SIZE, FRAME_SIZE):
        raise CogVideoError(
            f"These weights draw {width} x {height} pixels: this report asks about the theatre's "
            f"{FRAME_SIZE} x {FRAME_SIZE}. Score others with `cogvideo evaluate fvd`."
        )
    demo = str(weights) == "demo"
    name, folder = ("demo", DEMO) if demo else (Path(weights).name, Path(weights))
    millions = sum(p.numel() for p in pipe.stage1.parameters()) / 1e6
    facts = f"{name}, SHA-256 {weights_hash(folder)}, {millions:.2f} M weights in stage 1"
    command = f"cogvideo report --weights {name} -n {n} --fvd-clips {fvd_clips} --seed {seed} -o report.html"
    parts = [
        html.paragraph(f"{facts}. Seed {seed}. Commit {commit()}.", "quiet"),
        *_samples(pipe, seed),
        *_alignment(pipe, n, seed),
        *_drift(pipe, n, seed),
        *(_fvd(weights, fvd_clips, seed, device) if fvd_clips else []),
        *_channels(pipe),
        html.heading("How to repeat it"),
        html.preformatted(command),
    ]
    return html.write(out, f"Weights {name}", parts)


def _samples(pipe: Pipeline, seed: int) -> list[str]:
    asked = [draw_questions(SAMPLES, seed, parts=False, group=group) for group in GROUPS]
    prompts = [prompt for some in asked for prompt in some.prompts]
    seeds = [int(number) for some in asked for number in some.seeds]
    began = time.perf_counter()
    videos: Any = pipe(prompts, seconds=SECONDS, seed=seeds, enlarge=False)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    pipe(prompts[0], seconds=SECONDS, seed=seeds[0])
    alone = time.perf_counter() - began
    frames, count = len(videos[0]), len(videos)
    machine = {k: v for k, v in describe(pipe.device).items() if isinstance(v, (str, int, float))}
    rows = [
        ["one clip, enlarged", 1, frames, alone, frames / alone],
        [f"{count} clips together, small", count, frames, seconds, count * frames / seconds],
    ]
    said = (
        f"The first {SAMPLES} test prompts of each group, {SECONDS:g} s each, none chosen by hand. Videos of "
        "training show the combinations called seen; unseen ones are of an actor and an object that videos "
        "show apart; what is picture-only, the image model alone has seen."
    )
    groups = [group for group in GROUPS for _ in range(SAMPLES)]
    shown = {
        f"{video.settings['prompt']} ({group})": [video] for video, group in zip(videos, groups, strict=True)
    }
    return [
        html.heading("Clips"),
        html.paragraph(said),
        html.clips(shown, ["small, as it was made"]),
        html.heading("Speed"),
        html.table("speed", ["what", "clips", "frames each", "seconds", "frames a second"], rows),
        html.paragraph(", ".join(f"{key} {value}" for key, value in machine.items())),
    ]


def _alignment(pipe: Pipeline, n: int, seed: int) -> list[str]:
    whole = alignment.whole_clips(pipe)
    found = alignment.compare(pipe.key_frames, pipe.frames, whole=whole, n=n, seed=seed)
    rows = []
    for group in GROUPS:
        for measure in (measure for measure in LABELS if measure in found[group]["model"]):
            goal = TARGETS[group].get(measure)
            for source, title in alignment.SOURCES.items():
                c = found[group][source][measure]
                values = [100 * c["rate"], 100 * c["low"], 100 * c["high"], c["right"], c["n"]]
                target = 100 * goal if goal and source == "model" else None
                rows.append([group, LABELS[measure], title, *values, target])
    felt = [
        [kind, *(100 * scores[name]["rate"] for name in FELT)] for kind, scores in found["damages"].items()
    ]
    said = (
        f"{n} test prompts a group for whole actions and {n} for parts of them; a judge reads pixels. The "
        "ceiling is real clips through the frame tokenizer. Intervals are Wilson's, 95 %."
    )
    header = ["group", "measure", "of", "right, %", "low", "high", "right", "asked", "target, %"]
    return [
        html.heading("Does it obey its prompts?"),
        html.paragraph(said),
        html.table("alignment", header, rows, text=(0, 1, 2)),
        html.listing([f"{LABELS[measure]}: {meaning}" for measure, meaning in MEANINGS.items()]),
        html.paragraph("What the judge feels: real clips, damaged on purpose, right in %."),
        html.table("judge", ["damage", *(LABELS[name] for name in FELT)], felt),
    ]


def _drift(pipe: Pipeline, n: int, seed: int) -> list[str]:
    asked = draw_questions(min(n, DRIFTS), seed, parts=False)
    found, fps, shown = drift(pipe, asked), pipe.sampling.fps, range(min(n, SAMPLES))
    clips = {
        asked.prompts[i]: [Video(some[i], fps, {}) for some in (found.truth, *found.clips.values())]
        for i in shown
    }
    curves = [*found.right.values(), *found.agreement.values()]
    rows = [[f"{part + 1} of {PARTS}", *(100 * curve[part] for curve in curves)] for part in range(PARTS)]
    ways = list(WAYS.values())
    header = ["part of the action", *(f"right, %: {name}" for name in ("real clip", *ways))]
    header += [f"tokens as in the real clip, %: {name}" for name in ways]
    said = (
        f"{len(asked)} seen test prompts, whole actions, from the real first frame. After true frames: every "
        "frame is drawn after (and where frames between others are drawn, beside) the real ones. After its "
        "own: after what the model drew itself. Real clips are shown through the frame tokenizer. A frame is "
        "right if the judge sees the action within one of its 16 steps."
    )
    return [
        html.heading("How far does it drift?"),
        html.paragraph(said),
        html.clips(clips, ["real clip", *ways]),
        html.figure(plot_drift(found), "Means over clips, as the action goes on."),
        html.table("drift", header, rows),
    ]


def _fvd(weights: str | Path, clips: int, seed: int, device: str) -> list[str]:
    settings = Settings(clips, seed, device)
    result = evaluate(REAL, str(weights), settings, preset=PRESET)
    felt = sensitivity(REAL, str(weights), settings, presets=[PRESET])
    # No path of this machine on the page.
    scores, damages = (
        text.replace(str(weights), Path(weights).name) for text in (card(result), sensitivity_table(felt))
    )
    return [
        html.heading("FVD and its protocol"),
        html.preformatted(scores),
        html.paragraph(
            f"With {clips} clips a side the score is high for any model: compare it with the floor (real "
            "against real), never with published ones."
        ),
        html.heading("What the score feels"),
        html.preformatted(damages),
        html.figure(plot_sensitivity(felt)),
    ]


def _channels(pipe: Pipeline) -> list[str]:
    rows = [
        [stage, layer, weight.mean(), weight.min(), weight.max()]
        for stage, model in (("stage 1", pipe.stage1), ("stage 2", pipe.stage2))
        for layer, weight in enumerate(temporal_shares(model))
    ]
    said = (
        "Every block mixes attention within a frame, which is the image model's, with attention over frames, "
        "dimension by dimension. The temporal channel began at a half."
    )
    header = ["model", "layer", "temporal gate weight, mean", "least", "most"]
    table = html.table("channels", header, rows)
    return [html.heading("What the two channels count"), html.paragraph(said), table]


def temporal_shares(model: CogVideoTransformer) -> list[np.ndarray]:
    """[layers] of [D]: the gate weight (0..1) of the temporal channel in a block's attention output."""
    blocks: list[Any] = list(model.blocks)
    return [1 - torch.sigmoid(block.gate.detach().float()).cpu().numpy() for block in blocks]
