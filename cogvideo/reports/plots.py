"""What a sweep found as pictures. Functions return a matplotlib figure whose label describes it, and show nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cogvideo.evaluation.fvd_plots import BLUE, GREEN, GREY, ORANGE
from cogvideo.sweeps.statistics import Difference, values


def plot_values(
    rows: Sequence[Mapping[str, Any]], by: str, metrics: Sequence[str], shown: Mapping[str, str]
) -> Any:
    """A panel for each metric: a dot for each seed of every variant, a bar at the mean. shown: titles of the metrics."""
    variants = list(dict.fromkeys(row[by] for row in rows))
    figure, axes = _panels(len(metrics), len(variants))
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for y, variant in enumerate(variants):
            numbers = list(values(rows, by, variant, metric).values())
            axis.scatter(numbers, [y] * len(numbers), s=22, color=BLUE, alpha=0.55, linewidths=0, zorder=3)
            if numbers:
                axis.plot([sum(numbers) / len(numbers)] * 2, [y - 0.3, y + 0.3], color=ORANGE, lw=2, zorder=4)
        _dress(axis, [str(variant) for variant in variants], shown[metric])
    figure.set_label(f"{', '.join(metrics)} of every seed and variant")
    return figure


def plot_curves(
    rows: Sequence[Mapping[str, Any]], by: str, over: str, metrics: Sequence[str], shown: Mapping[str, str]
) -> Any:
    """A panel for each metric: its mean over seeds, with the standard deviation, against the parameter `over` (log scale
    where that is positive), a line for each variant."""
    figure, axes = _panels(len(metrics), 5, sharey=False)
    places = sorted({row[over] for row in rows})
    for axis, metric in zip(axes.flat, metrics, strict=False):
        for variant in dict.fromkeys(row[by] for row in rows):
            found = {x: values([row for row in rows if row[over] == x], by, variant, metric) for x in places}
            known = {x: np.array(list(numbers.values())) for x, numbers in found.items() if numbers}
            spread = [numbers.std(ddof=1) if len(numbers) > 1 else 0.0 for numbers in known.values()]
            means = [numbers.mean() for numbers in known.values()]
            axis.errorbar(list(known), means, spread, marker="o", ms=4, capsize=2, label=str(variant))
        if places[0] > 0:
            axis.set_xscale("log")
        axis.set_xticks(places, [f"{x:g}" for x in places], minor=False)
        axis.minorticks_off()
        axis.set_title(shown[metric], fontsize=9, loc="left")
        axis.set_xlabel(over, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].legend(frameon=False, fontsize=8)
    figure.set_label(f"{', '.join(metrics)} over {over}")
    return figure


def plot_differences(found: Sequence[Difference], shown: Mapping[str, str], better: Mapping[str, int]) -> Any:
    """A panel for each metric: every variant less the baseline with its interval; green where the baseline is better.

    better: 1 for metrics that should be high, -1 for those that should be low.
    """
    metrics = list(dict.fromkeys(d.metric for d in found))
    variants = list(dict.fromkeys(d.variant for d in found))
    figure, axes = _panels(len(metrics), len(variants))
    for axis, metric in zip(axes.flat, metrics, strict=False):
        axis.axvline(0, color=GREY, lw=1)
        for d in (d for d in found if d.metric == metric):
            color = GREY if not d.clear else GREEN if d.mean * better[metric] < 0 else ORANGE
            y = variants.index(d.variant)
            axis.plot([d.low, d.high], [y, y], color=color, lw=2)
            axis.scatter([d.mean], [y], s=28, color=color, zorder=3)
        _dress(axis, [str(variant) for variant in variants], shown[metric])
    figure.set_label(f"differences from the baseline in {', '.join(metrics)}, with intervals")
    return figure


def plot_strengths(
    names: Sequence[str], strengths: Sequence[float], low: Sequence[float], high: Sequence[float]
) -> Any:
    """Bradley-Terry strengths with their intervals, a line for each name."""
    figure, axes = _panels(1, len(names), width=5.5)
    axis = axes.flat[0]
    axis.axvline(0, color=GREY, lw=1)
    for y, (mean, least, most) in enumerate(zip(strengths, low, high, strict=True)):
        axis.plot([least, most], [y, y], color=BLUE, lw=2)
        axis.scatter([mean], [y], s=28, color=BLUE, zorder=3)
    _dress(axis, list(names), "strength: log odds of being preferred")
    figure.set_label("strengths of the variants by preference")
    return figure


def _panels(count: int, lines: int, *, width: float = 3.4, sharey: bool = True) -> Any:
    import matplotlib.pyplot as plt

    columns = min(3, max(1, count))
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, rows * (0.9 + 0.3 * lines)), squeeze=False, sharey=sharey,
        layout="constrained", facecolor="white",
    )  # fmt: skip
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, axes


def _dress(axis: Any, names: list[str], title: str) -> None:
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    axis.margins(x=0.1)
    axis.grid(axis="x", color="#eeeeee")
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
