"""Drift: what a model draws after the true frames of a clip, and what it draws after its own.

Both begin with the true first frame and have the same prompts and random numbers. Teacher forcing puts true
frames before each frame that is drawn (and beside it, where frames between others are drawn); free running
goes on from what was drawn. What the second loses to the first, more of it later in a clip, is what errors do
to the frames after them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cogvideo.evaluation.fvd_plots import BLUE, ORANGE, pyplot
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre.judge import Judge
from cogvideo.theatre.questions import Questions
from cogvideo.theatre.scenes import FPS
from cogvideo.theatre.scores import score_whole_clips
from cogvideo.theatre.variants import Request, find_variant

PARTS = 8  # of an action, by which curves are drawn: actions, and so clips, last 1 to 8 s
WAYS = {"forced": "after true frames", "free": "after its own"}


@dataclass(frozen=True)
class Drift:
    """Clips uint8 [T,H,W,3] of every question, and curves [PARTS] as the action goes on, means over clips."""

    truth: list[np.ndarray]  # through the frame tokenizer
    clips: dict[str, list[np.ndarray]]  # by way, see WAYS
    right: dict[str, np.ndarray]  # part of frames within one state of the truth, by the judge; "truth", too
    agreement: dict[str, np.ndarray]  # part of tokens that are those of the true clip


def drift(pipe: Pipeline, asked: Questions, variant: str = "cogvideo") -> Drift:
    """Make a clip for each question by both ways, as long as its action, as a variant does (see variants.py).

    pipe: of the theatre; of a variant's models, or the demo's.
    """
    make, judge = find_variant(variant).make, Judge()
    clips = {way: [np.empty(0, np.uint8)] * len(asked) for way in ("truth", *WAYS)}
    right = {way: np.zeros((len(asked), PARTS)) for way in clips}
    agreement = {way: np.zeros((len(asked), PARTS)) for way in WAYS}
    for span in np.unique(asked.spans):
        rows = np.flatnonzero(asked.spans == span)
        some, seconds = asked[rows], float(span)
        real = (some.real_frames(round(seconds * FPS) + 1) * 255).round().byte().numpy()
        tokens = {"truth": pipe.tokens(real)}
        for way, truth in {"forced": tokens["truth"], "free": None}.items():
            first, seeds, whole = tokens["truth"][:, 0], some.seeds.tolist(), np.ones(len(rows), bool)
            asking = Request(first, some.prompts, seeds, some.spans, whole, truth)
            tokens[way] = torch.stack(make(pipe, asking))
            agreement[way][rows] = _by_time((tokens[way] == tokens["truth"]).float().mean(-1))
        for way, drawn in tokens.items():
            frames = pipe.pixels(drawn)
            scores = score_whole_clips(frames, some.clips, seconds, judge=judge)
            right[way][rows] = _by_time(torch.from_numpy(scores["frames"]).float())
            for row, clip in zip(rows, frames, strict=True):
                clips[way][row] = clip
    truth, means = clips.pop("truth"), [{way: v.mean(0) for way, v in d.items()} for d in (right, agreement)]
    return Drift(truth, clips, *means)


def _by_time(values: Tensor) -> np.ndarray:
    """[B,T] -> means [B,PARTS] over equal parts of the time; the first frame is given and left out."""
    return np.stack([part.mean(1).numpy() for part in values[:, 1:].cpu().tensor_split(PARTS, 1)], 1)


def plot_drift(found: Drift) -> Any:
    """Two panels over the action: frames that the judge finds right, and tokens that are the true clip's."""
    figure, axes = pyplot().subplots(1, 2, figsize=(9.6, 2.6), layout="constrained", facecolor="white")
    when = (np.arange(PARTS) + 0.5) / PARTS
    panels = {"frames that are right": found.right, "tokens as in the true clip": found.agreement}
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for (way, name), color, mark in zip(WAYS.items(), (BLUE, ORANGE), "os", strict=True):
            axis.plot(when, curves[way], marker=mark, color=color, label=name)
        axis.set(xlabel="part of the action", ylim=(0, 1.03))
        axis.set_title(title, fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.set_label("drift: frames that are right, after true frames and after the model's own")
    return figure
