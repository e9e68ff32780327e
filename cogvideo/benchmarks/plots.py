"""Figures of the sampler's benchmark: the wavefront's schedule, time over bytes, time over sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from cogvideo.benchmarks.sampler import Settings, model_config, wavefront_bound
from cogvideo.evaluation.fvd_plots import BLUE, GREEN, GREY, ORANGE
from cogvideo.model import masks

PINK, YELLOW = "#CC79A7", "#E69F00"


def plot_schedule(settings: Settings) -> Any:
    """The step that decodes each token of windowed stage 1 and of stage 2, and the tokens of each step."""
    n = settings.side**2
    figure, axes = plt.subplots(
        2, 2, figsize=(10.5, 4.8), facecolor="white", width_ratios=(3, 2), layout="constrained"
    )
    for (left, right), order in zip(axes, ("sequential", "interpolation"), strict=True):
        times = [t for t in range(1, settings.frames) if order == "sequential" or t % 2]
        config = model_config(settings, order, settings.window)
        steps = masks.decoding_steps(config, times)
        image = left.imshow(steps.numpy(), aspect="auto", cmap="cividis", interpolation="nearest")
        figure.colorbar(image, ax=left, label="step")
        name = "stage 1 with windows" if order == "sequential" else "stage 2"
        last, bound = int(steps.max()), wavefront_bound(settings, len(times))
        left.set(
            title=f"{name}: {last} steps instead of {len(times) * n} (paper's bound {bound})",
            yticks=range(len(times)), yticklabels=[f"frame {t}" for t in times], xlabel="token position",
        )  # fmt: skip
        counts = torch.bincount(steps.flatten(), minlength=last + 1)[1:]
        right.stairs(counts.numpy(), range(1, last + 2), color=BLUE, fill=True)
        right.set(xlabel="step", ylabel="tokens at once", yticks=range(len(times) + 1))
        _open(right)
    figure.set_label("the step in which each token is decoded")
    return figure


def plot_roofline(report: Mapping[str, Any]) -> Any:
    """Milliseconds of a step over the bytes that it moves, beside the time that reading these bytes takes."""
    figure, axis = plt.subplots(figsize=(8, 4), facecolor="white", layout="constrained")
    read = report["bandwidth_bytes_per_second"]["read"]
    moved, times = [], []
    marks = zip("osD^v", (BLUE, ORANGE, GREEN, PINK, YELLOW), strict=True)
    for (name, stage), (mark, color) in zip(report["stages"].items(), marks, strict=True):
        weights, position = stage["weight_bytes_per_step"], stage["bytes_per_place"]
        sizes = [(weights + count * position) / 1e6 for count, _ in stage["places_and_ms"]]
        ms = [ms for _, ms in stage["places_and_ms"]]
        axis.plot(
            sizes, ms, mark, ms=4, color=color, label=f"{name}: {stage['share_of_limit']:.0%} of the limit"
        )
        moved, times = moved + sizes, times + ms
    limit = [0, max(moved) * 1e9 / read]
    axis.plot([0, max(moved)], limit, color=GREY, label=f"limit: reading at {read / 1e9:.1f} GB/s")
    axis.set(xlabel="weights, keys and values that a step moves (MB)", ylabel="ms a step", xlim=(0, None))
    axis.set_ylim(0, 1.3 * float(np.quantile(times, 0.98)))  # not scaled by a step that the machine disturbed
    axis.legend(frameon=False, fontsize=9)
    _open(axis)
    figure.set_label("time of a step over bytes moved")
    return figure


def plot_growth(cases: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """A panel for each varied setting: median ms a step over sizes, and its limit by bandwidth."""
    figure, axes = plt.subplots(
        1, len(cases), figsize=(3 * len(cases), 3.1), squeeze=False, facecolor="white", layout="constrained"
    )
    for axis, (name, rows) in zip(axes[0], cases.items(), strict=True):
        sizes = [row[name] for row in rows]
        axis.plot(sizes, [row["median_ms_per_step"] for row in rows], "o-", color=BLUE, label="measured")
        limits = [row["seconds"] / row["steps"] * 1e3 * row["share_of_limit"] for row in rows]
        axis.plot(sizes, limits, "s--", color=ORANGE, label="limit")
        axis.set(xlabel=name, xticks=sizes, ylim=(0, None), ylabel="ms a step")
        axis.set_title(rows[0]["kind"], fontsize=9)
        _open(axis)
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.set_label("time of a step over sizes")
    return figure


def _open(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
