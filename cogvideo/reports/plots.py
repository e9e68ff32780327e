"""What a sweep found as pictures. Functions return a labelled matplotlib figure, and show nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cogvideo.evaluation.fvd_plots import BLUE, GREEN, GREY, ORANGE
from cogvideo.sweeps.statistics import Difference, summarize, values


def plot_values(
    rows: Sequence[Mapping[str, Any]], by: str, metrics: Sequence[str], shown: Mapping[str, str]
) -> Any:
    """A panel a metric: a dot for each seed of every variant, a bar at the mean. shown: titles of metrics."""
    variants = list(dict.fromkeys(row[by] for row in rows))
    figure, axes = _panels(len(metrics), len(variants))
    for axis, metric in zip(axes, metrics, strict=True):
        for y, variant in enumerate(variants):
            numbers = list(values(rows, by, variant, metric).values())
            axis.scatter(numbers, [y] * len(numbers), s=22, color=BLUE, alpha=0.55, linewidths=0, zorder=3)
            if numbers:
                axis.plot([np.mean(numbers)] * 2, [y - 0.3, y + 0.3], color=ORANGE, lw=2, zorder=4)
        _dress(axis, variants, shown[metric])
    figure.set_label(f"{', '.join(metrics)} of every seed and variant")
    return figure


def plot_curves(
    rows: Sequence[Mapping[str, Any]], by: str, over: str, metrics: Sequence[str], shown: Mapping[str, str]
) -> Any:
    """A panel a metric: mean and deviation over seeds against the parameter `over`, a line a variant.

    The scale of `over` is logarithmic where all its values are positive.
    """
    figure, axes = _panels(len(metrics), 5, sharey=False)
    ticks = sorted({row[over] for row in rows})
    for axis, metric in zip(axes, metrics, strict=True):
        for variant in dict.fromkeys(row[by] for row in rows):
            some = {x: [row for row in rows if row[over] == x and row[by] == variant] for x in ticks}
            known = {x: s for x, group in some.items() for s in summarize(group, by, [metric])}
            spread = [s.deviation or 0.0 for s in known.values()]
            means = [s.mean for s in known.values()]
            axis.errorbar(list(known), means, spread, marker="o", ms=4, capsize=2, label=str(variant))
        if ticks[0] > 0:
            axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{x:g}" for x in ticks], minor=False)
        axis.minorticks_off()
        axis.set_title(shown[metric], fontsize=9, loc="left")
        axis.set_xlabel(over, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    figure.set_label(f"{', '.join(metrics)} over {over}")
    return figure


def plot_differences(found: Sequence[Difference], shown: Mapping[str, str], better: Mapping[str, int]) -> Any:
    """A panel a metric: every variant less the baseline, in the order given, and a line at zero.

    Green where the baseline is better, orange where it is worse, grey where the two are not told apart.
    better: 1 for metrics that should be high, -1 for those that should be low.
    """
    metrics = list(dict.fromkeys(d.metric for d in found))
    lines = [[d for d in found if d.metric == metric] for metric in metrics]
    figure, axes = _panels(len(metrics), max(map(len, lines)), sharey=False)
    for axis, metric, some in zip(axes, metrics, lines, strict=True):
        for y, d in enumerate(some):
            color = GREY if not d.clear else GREEN if d.mean * better[metric] < 0 else ORANGE
            _interval(axis, y, d.mean, d.low, d.high, color)
        _dress(axis, [d.variant for d in some], shown[metric], zero=True)
    figure.set_label(f"differences from the baseline in {', '.join(metrics)}, with intervals")
    return figure


def plot_strengths(found: Mapping[str, Any]) -> Any:
    """Bradley-Terry strengths (with mean, low, high) and their intervals, a line for each name."""
    figure, axes = _panels(1, len(found), width=5.5)
    for y, strength in enumerate(found.values()):
        _interval(axes[0], y, strength.mean, strength.low, strength.high, BLUE)
    _dress(axes[0], list(found), "strength: log odds of being preferred", zero=True)
    figure.set_label("strengths of the variants by preference")
    return figure


def _panels(count: int, lines: int, *, width: float = 3.2, sharey: bool = True) -> Any:
    """A figure and `count` axes, three in a row."""
    import matplotlib.pyplot as plt

    columns = min(3, max(1, count))
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, rows * (0.9 + 0.3 * lines)), squeeze=False, sharey=sharey,
        facecolor="white",
    )  # fmt: skip
    figure.set_layout_engine("constrained", h_pad=0.1)  # inches: titles keep off the axis above them
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def _interval(axis: Any, y: int, mean: float, low: float, high: float, color: str) -> None:
    axis.plot([low, high], [y, y], color=color, lw=2)
    axis.scatter([mean], [y], s=28, color=color, zorder=3)


def _dress(axis: Any, names: Sequence[Any], title: str, *, zero: bool = False) -> None:
    """Name the lines of a panel. zero: draw a line there."""
    if zero:
        axis.axvline(0, color=GREY, lw=1)
    axis.set(yticks=range(len(names)), yticklabels=list(map(str, names)), ylim=(len(names) - 0.5, -0.5))
    axis.set_title(title, fontsize=9, loc="left")
    axis.tick_params(labelsize=8)
    axis.margins(x=0.1)
    axis.grid(axis="x", color="#eeeeee")
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
