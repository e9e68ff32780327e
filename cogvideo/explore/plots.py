"""Pictures of captured attention, of the tables made of it, and of facts found with it.

Colours can be told apart by colour-blind readers. Functions return a labelled matplotlib figure.
"By layer and head" is written 2.1: head 1 of layer 2, both counted from 0.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from cogvideo.explore.analysis import both_channels, gate_table, rollout, word_heat
from cogvideo.explore.recording import CHANNELS, Captured, Patches

BLUE, ORANGE, GREEN, SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
YELLOW, PINK, GREY = "#E69F00", "#CC79A7", "#999999"
HEAT = "cividis"


def plot_attention(tables: Mapping[str, Any]) -> Any:
    """Bars by layer and head that add up to 1: a panel for each channel of each `attention_table`."""
    panels = [(name, channel) for name, table in tables.items() for channel in table["channel"].unique()]
    most = max(len(table.groupby(["layer", "head"])) for table in tables.values())
    figure, axes = _grid(1, len(panels), 2.9, 0.9 + 0.21 * most, sharey=True)
    for axis, (name, channel) in zip(axes[0], panels, strict=True):
        means = _by_head(tables[name], channel)
        parts = {
            "words": (means["text"], YELLOW),
            "begin-of-images": (means["begin"], GREY),
            "own frame": (means["frame 0"], BLUE),
            "earlier frames": (means.filter(regex="^frame -").sum(axis=1), SKY),
            "later frames": (means.filter(regex=r"^frame \+").sum(axis=1), GREEN),
        }
        left = np.zeros(len(means))
        for part, (widths, color) in parts.items():
            axis.barh(range(len(means)), widths, left=left, color=color, label=part, height=0.82)
            left += widths
        axis.set(yticks=range(len(means)), yticklabels=_names(means), xlim=(0, 1))
        _dress(axis, f"{name}\n{channel} channel")
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_ylabel("layer.head")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncol=5, loc="outside lower center", frameon=False, fontsize=9)
    return labelled(figure, "where attention goes, by layer and head")


def plot_reach(table: Any) -> Any:
    """How evenly heads look, how far in space and in time: a cell for each layer and head of each channel."""
    channels = list(table["channel"].unique())
    titles = {"evenness": "evenness (1: all alike)", "distance": "distance in patches", "lag": "frames back"}
    figure, axes = _grid(len(channels), 3, 3.0, 2.2)
    for row, channel in zip(axes, channels, strict=True):
        means = _by_head(table, channel)
        for axis, (name, title) in zip(row, titles.items(), strict=True):
            if channel == "spatial" and name == "lag":
                axis.axis("off")  # its frame is its own
                continue
            limits = (0, 1) if name == "evenness" else (min(0, means[name].min()), means[name].max())
            _cells(figure, axis, means[name].unstack("head"), limits, f"{channel}: {title}")
    return labelled(figure, "evenness, distance and lag of every head")


def plot_frames(tables: Mapping[str, Any]) -> Any:
    """Which frames look at which in the temporal channel, mean over heads: a row a table, a panel a layer."""
    layers = list(next(iter(tables.values()))["layer"].unique())
    figure, axes = _grid(len(tables), len(layers), 2.4, 2.0)
    for row, (name, table) in zip(axes, tables.items(), strict=True):
        part = table[table["channel"] == "temporal"]
        for axis, layer in zip(row, layers, strict=True):
            means = part[part["layer"] == layer].groupby("time").mean(numeric_only=True)
            frames = means.filter(regex="^frame ").rename(columns=lambda column: int(column.split()[1]))
            moved = {time: row.set_axis(row.index + time).dropna() for time, row in frames.iterrows()}
            matrix = pd.DataFrame(moved).T
            _cells(figure, axis, matrix, (0, 1), f"{name}, layer {layer}", bar=layer == layers[-1])
            axis.set_xlabel("frame looked at", fontsize=8)
            axis.set_ylabel("frame", fontsize=8)
    return labelled(figure, "which frames look at which, by layer")


def plot_gates(captures: Mapping[str, Captured]) -> Any:
    """The temporal channel by layer: its gate weights, and its part of the output (crosses)."""
    figure, axes = _grid(1, len(captures), 3.6, 2.8, sharey=True)
    for axis, (name, captured) in zip(axes[0], captures.items(), strict=True):
        table, x = gate_table(captured), np.arange(len(captured.layers))
        gates: Any = captured.gate
        drawn = axis.violinplot(list(1 - gates), x, showextrema=False, widths=0.8)
        for body in drawn["bodies"]:
            body.set(facecolor=SKY, alpha=0.8, edgecolor="none")
        half = {"color": BLUE, "lw": 4, "label": "middle half of dimensions"}
        axis.vlines(x, 1 - table["upper"], 1 - table["lower"], **half)
        axis.plot(x, 1 - table["mean"], "o", color="white", mec=BLUE, ms=6, label="mean of dimensions")
        axis.plot(x, table["temporal part"], "X", color=ORANGE, ms=8, label="part of the output")
        axis.axhline(0.5, color=GREY, lw=0.8, ls=":")
        axis.set(xlabel="layer", xticks=x, xticklabels=captured.layers, ylim=(0, 1))
        _dress(axis, name)
    axes[0, 0].set_ylabel("temporal channel")
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    return labelled(figure, "gates by layer")


def plot_patch(
    captured: Captured, pixels: np.ndarray, time: int, patch: int, *, layer: int | None = None
) -> Any:
    """What one patch looked at: words, and patches of all frames; pixels uint8 [T,H,W,3].

    Rows: both channels and their mixture, the mean over heads of `layer` (None: the last captured), and the
    rollout. Hatched: what the mask forbids. Each row's scale ends at its largest weight on a patch.
    """
    index = len(captured.layers) - 1 if layer is None else captured.layers.index(layer)
    row, number, shown = captured.reader(time, patch), captured.layers[index], {}
    for channel in CHANNELS if captured.gate is not None else CHANNELS[:1]:
        weights = captured.patches(captured.maps(channel)[index, :, row].mean(0))
        seen = captured.patches(captured.visible(channel)[index, row])
        shown[f"{channel}\nlayer {number}"] = weights, seen
    if captured.gate is not None:
        seen = captured.patches(captured.visible("temporal")[index, row])
        shown[f"mixed\nlayer {number}"] = captured.patches(both_channels(captured)[index, row]), seen
    followed = captured.patches(rollout(captured)[row])
    shown[f"rollout\n{len(captured.layers)} layers"] = followed, followed._replace(grid=followed.grid > 0)
    figure, axes = _clip_axes(len(shown), pixels, words=True)
    for line, (name, (weights, seen)) in zip(axes, shown.items(), strict=True):
        _word_bars(line[0], captured, weights)
        heat, visible = _all_frames(weights, seen, time, len(pixels))
        _frames(line[1:], pixels, heat, visible, heat.max(), mark=(time, patch))
        line[1].set_ylabel(name, fontsize=8)
    return labelled(figure, f"what patch {patch} of frame {time} looked at")


def plot_words(
    captured: Captured, pixels: np.ndarray, *, channel: str = "spatial", reduce: str = "mean"
) -> Any:
    """Which patches look at each word: rows are words, columns frames. Hatched: looks at nothing."""
    slots = map(int, np.flatnonzero(captured.text_mask))
    heats = {slot: word_heat(captured, slot, channel, reduce=reduce) for slot in slots}
    figure, axes = _clip_axes(len(heats), pixels, words=False)
    most = max(float(np.nanmax(heat)) for heat in heats.values())
    for line, (slot, heat) in zip(axes, heats.items(), strict=True):
        _frames(line, pixels, heat, np.isfinite(heat), most)
        name = f"{captured.words[slot]}\n{np.nanmax(heat):.2f}"
        line[0].set_ylabel(name, fontsize=8, rotation=0, ha="right", va="center")
    figure.suptitle(f"attention to each word, {channel} channel, {reduce} over layers and heads", fontsize=10)
    return labelled(figure, "attention to each word over the clip")


def plot_reading(tables: Mapping[str, Any], word: str) -> Any:
    """Weight on a word beside what hiding it costs (`effects.reading`); a row for each stage that does."""
    tables = {stage: table[table["word"] == word] for stage, table in tables.items()}
    tables = {stage: table for stage, table in tables.items() if len(table)}
    figure, axes = _grid(len(tables), 4, 2.5, 1.9)
    for row, (stage, table) in zip(axes, tables.items(), strict=True):
        for number, channel in enumerate(CHANNELS):
            part = table[(table["channel"] == channel) & (table["head"] >= 0)].set_index(["layer", "head"])
            titles = {"weight": f"weight on {word}", "rise": f"nats without {word}"}
            for axis, measure in zip(row[2 * number :], titles, strict=False):
                if part.empty:
                    axis.axis("off")
                    continue
                limits = (0, table["rise"].max() if measure == "rise" else 0.5)
                title = f"{stage}, {channel}:\n{titles[measure]}"
                _cells(figure, axis, part[measure].unstack("head"), limits, title)
    return labelled(figure, f"where {word} is read")


def plot_sources(tables: Mapping[str, Any]) -> Any:
    """How far back heads look from what moves, and on patches that move as well (`effects.sources`)."""
    heads = next(iter(tables.values())).query("of == 'phase'").set_index(["layer", "head"])
    panels = [(stage, measure) for stage in tables for measure in ("back", "own patches")]
    figure, axes = _grid(1, len(panels), 2.9, 0.9 + 0.2 * len(heads), sharey=True)
    labels = {"back": "frames back", "own patches": "part on patches that show it, too"}
    marks = {"actor": ("o", BLUE), "object": ("s", YELLOW), "phase": ("X", ORANGE)}
    lines = np.arange(len(heads))
    for axis, (stage, measure) in zip(axes[0], panels, strict=True):
        for of, (mark, color) in marks.items():
            part = tables[stage][tables[stage]["of"] == of]
            axis.plot(part[measure], lines, mark, color=color, ms=6, label=of)
            axis.plot(part[f"even {measure}"], lines, "|", color=color, ms=9, label=f"{of}, evenly")
        axis.set(xlabel=labels[measure], yticks=lines, yticklabels=_names(heads))
        axis.grid(axis="y", lw=0.3)
        _dress(axis, stage)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_ylabel("layer.head")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, ncol=6, loc="outside lower center", frameon=False, fontsize=8)
    return labelled(figure, "from which frames and patches the temporal channel reads")


def plot_silencing(tables: Mapping[str, Any]) -> Any:
    """What a token that changes, and any other, costs without a temporal channel (`effects.silencing`)."""
    figure, axes = _grid(1, len(tables), 3.6, 2.6, sharey=True)
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        x = np.arange(len(table))
        axis.bar(x - 0.2, table["rise"], 0.4, color=BLUE, label="patches that change")
        axis.bar(x + 0.2, table["rise elsewhere"], 0.4, color=GREY, label="all others")
        labels = ["all" if layer == -1 else str(layer) for layer in table["layer"]]
        axis.set(xlabel="layer without its temporal channel", xticks=x, xticklabels=labels)
        _dress(axis, name)
    axes[0, 0].set_ylabel("nats a token more")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return labelled(figure, "what the temporal channel is worth, by layer")


def _all_frames(weights: Patches, seen: Patches, time: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Heat and visibility in all frames; a row of the spatial channel holds its own frame alone."""
    if len(weights.grid) == count:
        return weights.grid, seen.grid
    own = (np.arange(count) == time)[:, None, None]
    return weights.grid * own, seen.grid & own


def _clip_axes(rows: int, pixels: np.ndarray, *, words: bool) -> Any:
    """A column for each frame, after one for words."""
    ratios = [1.3] * words + [1.0] * len(pixels)
    figure, axes = _grid(rows, len(ratios), 1.0, 1.5, width_ratios=ratios)
    figure.set_size_inches(1.45 * sum(ratios) + 0.6, 1.5 * rows + 0.5)
    for time, axis in enumerate(axes[0, words:]):
        axis.set_title(f"frame {time}", fontsize=9)
    return figure, axes


def _word_bars(axis: Any, captured: Captured, weights: Patches) -> None:
    real = np.flatnonzero(captured.text_mask)
    axis.barh(range(len(real)), weights.words[real], color=YELLOW)
    axis.set_yticks(range(len(real)), [captured.words[slot] for slot in real], fontsize=7)
    axis.invert_yaxis()
    axis.set_xlabel(f"words {weights.words.sum():.0%}, begin {weights.begin.sum():.0%}", fontsize=7)
    axis.set_xlim(0, max(0.1, 1.05 * weights.words.max()))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.tick_params(axis="x", labelsize=6)
    axis.spines[["top", "right"]].set_visible(False)


def _frames(axes, pixels, heat, visible, most: float, mark: tuple[int, int] | None = None) -> None:
    """One heat map a frame under the outlines of what the frame shows, hatched where nothing may be seen.

    most: the end of the scale; mark: (time, patch) to be framed.
    """
    h, w = pixels.shape[1:3]
    high, wide = h / heat.shape[1], w / heat.shape[2]
    for time, axis in enumerate(axes):
        scale = {"vmin": 0, "vmax": max(float(most), 1e-9)}
        axis.imshow(heat[time], cmap=HEAT, extent=(0, w, h, 0), interpolation="nearest", **scale)
        light = pixels[time].mean(-1)
        if light.max() > light.min():
            levels = np.linspace(light.min(), light.max(), 5)[1:-1]
            outline = {"levels": levels, "colors": "white", "linewidths": 0.6}
            axis.contour(np.arange(w) + 0.5, np.arange(h) + 0.5, light, **outline)
        hidden = {"fc": "#dddddd", "ec": "#aaaaaa", "hatch": "////", "lw": 0}
        boxes = [(row, column, hidden) for row, column in np.argwhere(~visible[time])]
        if mark and mark[0] == time:
            boxes.append((*divmod(mark[1], heat.shape[2]), {"fill": False, "ec": ORANGE, "lw": 2}))
        for row, column, look in boxes:
            axis.add_patch(Rectangle((column * wide, row * high), wide, high, **look))
        axis.set(xticks=[], yticks=[])


def _cells(figure, axis, table: Any, limits: tuple[float, float], title: str, *, bar: bool = True) -> None:
    """Layers x heads as coloured cells with their numbers."""
    values, (low, high) = table.to_numpy(float), limits
    image = axis.imshow(values, cmap=HEAT, vmin=low, vmax=high, aspect="auto")
    for (row, column), value in np.ndenumerate(values) if values.size <= 64 else ():
        color = "black" if (value - low) / (high - low or 1) > 0.5 else "white"
        text = f"{value:.2f}".replace("-0.00", "0.00")
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    axis.set_xticks(range(len(table.columns)), table.columns)
    axis.set_yticks(range(len(table)), table.index)
    axis.set_xlabel("head", fontsize=8)
    axis.set_ylabel("layer", fontsize=8)
    axis.set_title(title, fontsize=9)
    if bar:
        figure.colorbar(image, ax=axis)


def _by_head(table: Any, channel: str) -> Any:
    """Means over frames; a frame that does not exist got no attention."""
    part = table[table["channel"] == channel]
    frames = [column for column in part if column.startswith("frame")]
    return part.fillna(dict.fromkeys(frames, 0.0)).groupby(["layer", "head"]).mean(numeric_only=True)


def _names(means: Any) -> list[str]:
    return [f"{layer}.{head}" for layer, head in means.index]


def _dress(axis: Any, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _grid(rows: int, columns: int, width: float, height: float, **shared) -> Any:
    size = (width * columns + 0.8, height * rows + 0.4)
    look = {"squeeze": False, "facecolor": "white", "layout": "constrained"}
    return plt.subplots(rows, columns, figsize=size, **look, **shared)


def labelled(figure: Any, label: str) -> Any:
    figure.set_label(label)
    return figure
