"""Pictures of what a score says: clips, its growth as samples get fewer, and why not to bootstrap it.

The colours can be told apart by colour-blind readers. Functions return a matplotlib figure, whose label
describes it, and show nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cogvideo.evaluation.fvd_score import BootstrapStudy, line_in_1_over_n

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"


def plot_clips(clips: Mapping[str, np.ndarray], shown: int = 8) -> Any:
    """Strips of `shown` frames of clips uint8 [T,H,W,3], a row for each, beside its name."""
    plt = pyplot()
    size = (10, 1.2 * len(clips))
    figure, axes = plt.subplots(len(clips), 1, figsize=size, squeeze=False, facecolor="white")
    # Not by matplotlib's layout: it overlooks that pictures keep their proportions, and cuts names off.
    left = 0.02 + 0.0095 * max(map(len, clips))
    figure.subplots_adjust(left=left, right=0.995, bottom=0.01, top=0.99, hspace=0.08)
    for axis, (name, clip) in zip(axes[:, 0], clips.items(), strict=True):
        h, w = clip.shape[1:3]
        gap = max(1, w // 32)
        strip = np.full((h, shown * (w + gap) - gap, 3), 255, np.uint8)
        for column, frame in enumerate(np.linspace(0, len(clip) - 1, shown).round().astype(int)):
            strip[:, column * (w + gap) : column * (w + gap) + w] = clip[frame]
        axis.imshow(strip, interpolation="nearest")
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
        axis.set(xticks=[], yticks=[], anchor="E")
        axis.spines[:].set_visible(False)
    figure.set_label("frames of clips")
    return figure


def liveliest(clips: Iterable[np.ndarray], count: int) -> list[np.ndarray]:
    """Those clips uint8 [T,H,W,3] in which pixels change most from frame to frame, most first."""
    return sorted(clips, key=lambda clip: -np.abs(np.diff(clip.astype(np.int16), axis=0)).mean())[:count]


def plot_curves(curves: Mapping[str, Sequence[tuple[int, float]]], truth: float | None = None) -> Any:
    """Points (n, score) of each name over 1/n, with the line through them to endless samples."""
    figure, axis = _axis((6.5, 3.4))
    if truth is not None:
        axis.axhline(truth, ls=":", color=GREY, label=f"truth {truth:.3g}")
    for (name, curve), color, mark in zip(curves.items(), (BLUE, ORANGE, GREEN, GREY), "osd^", strict=False):
        sizes, values = np.array(curve).T
        end, slope = line_in_1_over_n(curve)
        axis.plot(1 / sizes, values, mark, color=color, label=f"{name}: {values[-1]:.3g}, endless {end:.3g}")
        axis.plot([0, 1 / sizes[0]], [end, end + slope / sizes[0]], color=color, lw=1)
        axis.plot([0], [end], mark, color=color, mfc="white", clip_on=False, zorder=3)
    sizes = [n for n, _ in next(iter(curves.values()))]
    axis.set_xticks([0, *(1 / n for n in sizes)], ["endless", *map(str, sizes)])
    axis.set(xlabel="clips a side (1/n)", ylabel="distance", xlim=(0, None))
    axis.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.set_label("distance over the number of clips")
    return figure


def plot_bootstrap(study: BootstrapStudy) -> Any:
    """Histograms: new samples each time, which a spread should show; and what the bootstrap shows instead."""
    figure, axis = _axis((7.5, 3.6))
    shown = {
        "new samples each time": (study.fresh, BLUE),
        "the same, extrapolated in 1/n": (study.extrapolated, GREEN),
        "bootstrap of the first samples": (study.bootstrapped, ORANGE),
    }
    everything = [*(values for values, _ in shown.values()), [study.truth]]
    bins = np.histogram_bin_edges(np.concatenate(everything), 49)
    for name, (values, color) in shown.items():
        label = f"{name}: {values.mean():.2f} ± {values.std(ddof=1):.2f}"
        axis.hist(values, bins, color=color, alpha=0.75, label=label)
    axis.axvline(study.truth, ymax=0.68, ls=":", color="black", label=f"truth {study.truth:.2f}")
    label = f"value of the first samples {study.fresh[0]:.2f}"
    axis.axvline(study.fresh[0], ymax=0.68, color=BLUE, lw=1.2, label=label)
    axis.set(xlabel=f"distance, {study.n} samples a side of {study.dim} features", ylabel="draws")
    axis.set_ylim(0, 1.6 * axis.get_ylim()[1])  # room for the legend
    axis.legend(frameon=False, fontsize=8, ncol=2, loc="upper left")
    figure.tight_layout()
    figure.set_label("distances of new samples and of a bootstrap")
    return figure


def _axis(size: tuple[float, float]) -> Any:
    figure, axis = pyplot().subplots(figsize=size, facecolor="white")
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def pyplot() -> Any:
    import matplotlib.pyplot

    return matplotlib.pyplot
