"""The evaluation report of one set of weights of the demo world: clips, alignment, FVD, what FVD feels, channels, speed."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cogvideo.checkpoints.registry import DEMO
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.fvd_score import card
from cogvideo.evaluation.protocols import evaluate
from cogvideo.evaluation.sensitivity import plot_sensitivity, sensitivity
from cogvideo.evaluation.sensitivity import table as sensitivity_table
from cogvideo.evaluation.settings import Settings, check_place
from cogvideo.io import commit
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.reports import html
from cogvideo.runtime.machine import describe
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre import alignment

SAMPLES = 4  # clips that are shown
SECONDS = 2.0  # how long each lasts
PRESET = "paper"
SIDE = 64  # pixels of the demo world's small frames


def report_weights(
    weights: str | Path,
    out: str | Path,
    *,
    n: int = 24,
    fvd_clips: int = 12,
    seed: int = 0,
    device: str = "auto",
) -> Path:
    """Evaluate weights ("demo" or a pipeline folder) and write the report to one HTML page; shows how far it is.

    n: prompts of each kind for alignment. fvd_clips: clips a side for FVD and its sensitivity; 0 leaves both out. Cost on one
    core with the demo weights: 0.3 s a prompt of each kind, 10 s a clip of FVD (seven sides for the sensitivity, I3D).
    Raises CogVideoError for weights that are not there or not of the demo world, counts that cannot be, and a place that cannot
    be written.
    """
    if n < 1 or fvd_clips < 0 or fvd_clips == 1:
        raise CogVideoError(f"n must be at least 1 and FVD's clips 0 or at least 2, not {n} and {fvd_clips}.")
    check_place(out)
    pipe = Pipeline.from_pretrained(weights, device=device)
    _check_world(pipe)
    name = "demo" if str(weights) == "demo" else Path(weights).name
    folder = DEMO if str(weights) == "demo" else Path(weights)
    parts = [
        f'<p class="quiet">{html.escape(_facts(pipe, name, folder, seed))}</p>',
        *_samples(pipe, seed),
        *_alignment(pipe, n, seed),
        *(_fvd(weights, fvd_clips, seed, device) if fvd_clips else []),
        *_channels(pipe),
        *_repeat(name, n, fvd_clips, seed),
    ]
    return html.write(out, f"Weights {name}", parts)


def _check_world(pipe: Pipeline) -> None:
    one = pipe.pixels(
        torch.zeros(1, 1, pipe.stage1.config.frame_tokens, dtype=torch.long, device=pipe.device)
    )
    if one.shape[2:4] != (SIDE, SIDE):
        raise CogVideoError(
            f"These weights draw {one.shape[3]} x {one.shape[2]} pixels: this report asks about the demo world's {SIDE} x {SIDE}. "
            "Score others with `cogvideo evaluate fvd`."
        )


def _facts(pipe: Pipeline, name: str, folder: Path, seed: int) -> str:
    numbers = sum(p.numel() for p in pipe.stage1.parameters()) / 1e6
    return (
        f"{name}, SHA-256 {alignment.weights_hash(folder)}, {numbers:.2f} M weights in stage 1. Seed {seed}. "
        f"Commit {commit()}."
    )


def _samples(pipe: Pipeline, seed: int) -> list[str]:
    asked = alignment.draw_questions(SAMPLES, seed, parts=False)
    began = time.perf_counter()
    videos = pipe(asked.prompts, seconds=SECONDS, seed=asked.seeds.tolist(), enlarge=False)
    seconds = time.perf_counter() - began
    assert isinstance(videos, list)
    began = time.perf_counter()
    pipe(asked.prompts[0], seconds=SECONDS, seed=int(asked.seeds[0]))
    alone = time.perf_counter() - began
    frames = len(videos[0])
    machine = {
        key: value for key, value in describe(pipe.device).items() if isinstance(value, (str, int, float))
    }
    rows = [
        ["one clip, enlarged", 1, frames, alone, frames / alone],
        [f"{SAMPLES} clips together, small", SAMPLES, frames, seconds, SAMPLES * frames / seconds],
    ]
    return [
        html.heading("Samples"),
        html.paragraph(
            f"The first {SAMPLES} prompts of the test split, {SECONDS:g} s each, none chosen by hand."
        ),
        html.clips({video.settings["prompt"]: [video] for video in videos}, ["small, as it was made"]),
        html.heading("Speed"),
        html.table("speed", ["what", "clips", "frames each", "seconds", "frames a second"], rows),
        html.paragraph(", ".join(f"{key} {value}" for key, value in machine.items())),
    ]


def _alignment(pipe: Pipeline, n: int, seed: int) -> list[str]:
    found = alignment.compare(pipe.key_frames, pipe.frames, n=n, seed=seed)
    rows = []
    for measure, label in alignment.LABELS.items():
        for source, title in alignment.SOURCES.items():
            c = found[source][measure]
            rows.append([label, title, 100 * c["rate"], 100 * c["low"], 100 * c["high"], c["right"], c["n"]])
    return [
        html.heading("Does it obey its prompts?"),
        html.paragraph(
            f"{n} test prompts for whole actions and {n} for parts of them; a judge reads pixels. The ceiling is real clips through "
            "the frame tokenizer. Intervals are Wilson's, 95 %."
        ),
        html.table(
            "alignment", ["measure", "of", "right, %", "low", "high", "right", "asked"], rows, text=(0, 1)
        ),
    ]  # fmt: skip


def _fvd(weights: str | Path, clips: int, seed: int, device: str) -> list[str]:
    settings = Settings(clips, seed, device)
    result = evaluate("digits:test", str(weights), settings, preset=PRESET)
    felt = sensitivity("digits:test", str(weights), settings, presets=[PRESET])
    hidden = {str(weights): Path(weights).name}  # no path of this machine on the page
    scores, damages = (_replace(text, hidden) for text in (card(result), sensitivity_table(felt)))
    return [
        html.heading("FVD and its protocol"),
        html.preformatted(scores),
        html.paragraph(
            f"With {clips} clips a side the score is high for any model: compare it with the floor (real against real), never with "
            "published ones."
        ),
        html.heading("What the score feels"),
        html.preformatted(damages),
        html.figure(plot_sensitivity(felt)),
    ]


def _replace(text: str, words: dict[str, str]) -> str:
    for word, other in words.items():
        text = text.replace(word, other)
    return text


def _channels(pipe: Pipeline) -> list[str]:
    rows = []
    for stage, model in (("stage 1", pipe.stage1), ("stage 2", pipe.stage2)):
        for layer, share in enumerate(temporal_shares(model)):
            rows.append([stage, layer, share.mean(), share.min(), share.max()])
    return [
        html.heading("What the two channels count"),
        html.paragraph(
            "Every block mixes attention within a frame, which is the image model's, with attention over frames, dimension by "
            "dimension. The temporal channel began at a half."
        ),
        html.table("channels", ["model", "layer", "temporal share, mean", "least", "most"], rows),
    ]


def temporal_shares(model: CogVideoTransformer) -> list[np.ndarray]:
    """[layers] of [D]: the share (0..1) of the temporal channel in every dimension of a block's attention output."""
    gates: list[Any] = [block.gate for block in model.blocks]  # type: ignore[union-attr]
    return [1 - torch.sigmoid(gate.detach().float()).cpu().numpy() for gate in gates]


def _repeat(name: str, n: int, fvd_clips: int, seed: int) -> list[str]:
    command = f"cogvideo report --weights {name} -n {n} --fvd-clips {fvd_clips} --seed {seed} -o report.html"
    return [html.heading("How to repeat it"), html.preformatted(command)]
