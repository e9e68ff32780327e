"""Pictures of captured attention, of the tables made of it, and of facts found with it.

Colours are told apart by colour-blind eyes, too. Functions return a matplotlib figure, whose label describes it, and show
nothing. "By layer and head" is written 2.1: head 1 of layer 2, both counted from 0.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cogvideo.explore.analysis import both_channels, gate_table, rollout, word_heat
from cogvideo.explore.capture import Captured, Patches

BLUE, ORANGE, GREEN, SKY, YELLOW, PINK, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#56B4E9",
    "#E69F00",
    "#CC79A7",
    "#999999",
)
HEAT = "cividis"
PARTS = {
    "words": YELLOW,
    "begin-of-images": GREY,
    "own frame": BLUE,
    "earlier frames": SKY,
    "later frames": GREEN,
}


def plot_attention(tables: Mapping[str, Any]) -> Any:
    """Where attention goes by layer and head, bars that add up to 1: a panel for each channel of each `attention_table`."""
    panels = [(name, channel) for name, table in tables.items() for channel in table["channel"].unique()]
    most = max(len(table.groupby(["layer", "head"])) for table in tables.values())
    figure, axes = _grid(1, len(panels), 2.9, 0.9 + 0.21 * most, sharey=True)
    for axis, (name, channel) in zip(axes[0], panels, strict=True):
        means = _by_head(tables[name], channel)
        offsets = means.filter(regex=r"^frame [-+]")
        parts = {
            "words": means["text"],
            "begin-of-images": means["begin"],
            "own frame": means["frame 0"],
            "earlier frames": offsets.filter(regex="-").sum(axis=1),
            "later frames": offsets.filter(regex=r"\+").sum(axis=1),
        }
        left = np.zeros(len(means))
        for part, widths in parts.items():
            axis.barh(range(len(means)), widths, left=left, color=PARTS[part], label=part, height=0.82)
            left += widths
        axis.set(
            yticks=range(len(means)),
            yticklabels=_names(means),
            xlim=(0, 1),
            title=f"{name}\n{channel} channel",
        )
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_ylabel("layer.head")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, ncol=len(PARTS), loc="outside lower center", frameon=False, fontsize=9)
    return _labelled(figure, "where attention goes, by layer and head")


def plot_reach(table: Any) -> Any:
    """How evenly heads look, how far in space and how far back in time: a cell for each layer and head of each channel."""
    channels = list(table["channel"].unique())
    measures = {
        "evenness": "evenness (1: all alike)",
        "distance": "distance in patches",
        "lag": "frames back",
    }
    figure, axes = _grid(len(channels), 3, 3.0, 2.2)
    for row, channel in zip(axes, channels, strict=True):
        means = _by_head(table, channel)
        for axis, (name, title) in zip(row, measures.items(), strict=True):
            if channel == "spatial" and name == "lag":
                axis.axis("off")  # its frame is its own
                continue
            limits = (0, 1) if name == "evenness" else (min(0, means[name].min()), means[name].max())
            _cells(figure, axis, means[name].unstack("head"), *limits, f"{channel}: {title}")
    return _labelled(figure, "evenness, distance and lag of every head")


def plot_frames(tables: Mapping[str, Any]) -> Any:
    """Which frames look at which in the temporal channel, mean over heads: a row of panels a table, a panel for each layer."""
    layers = list(next(iter(tables.values()))["layer"].unique())
    figure, axes = _grid(len(tables), len(layers), 2.4, 2.0)
    for row, (name, table) in zip(axes, tables.items(), strict=True):
        part = table[table["channel"] == "temporal"]
        for axis, layer in zip(row, layers, strict=True):
            means = part[part["layer"] == layer].groupby("time").mean(numeric_only=True)
            matrix = means.apply(_shares_of_frames, axis=1)
            _cells(figure, axis, matrix, 0, 1, f"{name}, layer {layer}", bar=layer == layers[-1])
            axis.set_xlabel("frame looked at", fontsize=8)
            axis.set_ylabel("frame", fontsize=8)
    return _labelled(figure, "which frames look at which, by layer")


def plot_gates(captures: Mapping[str, Captured]) -> Any:
    """The temporal channel's share by layer: its spread over hidden dimensions, and its part of the output (crosses)."""
    figure, axes = _grid(1, len(captures), 3.6, 2.8, sharey=True)
    for axis, (name, captured) in zip(axes[0], captures.items(), strict=True):
        assert captured.gate is not None
        table, places = gate_table(captured), np.arange(len(captured.layers))
        drawn = axis.violinplot(list(1 - captured.gate), places, showextrema=False, widths=0.8)
        for body in drawn["bodies"]:
            body.set(facecolor=SKY, alpha=0.8, edgecolor="none")
        axis.vlines(
            places,
            1 - table["upper"],
            1 - table["lower"],
            color=BLUE,
            lw=4,
            label="middle half of dimensions",
        )
        axis.plot(places, 1 - table["mean"], "o", color="white", mec=BLUE, ms=6, label="mean of dimensions")
        axis.plot(places, table["temporal part"], "X", color=ORANGE, ms=8, label="part of the output")
        axis.axhline(0.5, color=GREY, lw=0.8, ls=":")
        axis.set(title=name, xlabel="layer", xticks=places, xticklabels=captured.layers, ylim=(0, 1))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("temporal channel")
    axes[0, 0].legend(frameon=False, fontsize=8, loc="lower left")
    return _labelled(figure, "gates by layer")


def plot_patch(
    captured: Captured, pixels: np.ndarray, time: int, place: int, *, layer: int | None = None
) -> Any:
    """What one patch looked at: words at the left, patches of all frames at the right; pixels uint8 [T,H,W,3].

    Rows: both channels, their mixture, each the mean over heads of `layer` (None: the last captured), and the rollout through
    all captured layers. Hatched: what the mask forbids
    (rollout: from where nothing arrives). Each row has its own scale, from 0 to its largest weight on a patch.
    """
    index = len(captured.layers) - 1 if layer is None else captured.layers.index(layer)
    row, shown = captured.reader(time, place), {}
    for channel in ("spatial", "temporal") if captured.gate is not None else ("spatial",):
        weights = captured.patches(captured.maps(channel)[index, :, row].mean(0))
        shown[f"{channel}\nlayer {captured.layers[index]}"] = (
            weights,
            captured.patches(captured.visible(channel)[index, row]),
        )
    if captured.gate is not None:
        seen = captured.patches(captured.temporal_visible[index, row])  # type: ignore[index]
        shown[f"mixed\nlayer {captured.layers[index]}"] = (
            captured.patches(both_channels(captured)[index, row]),
            seen,
        )
    followed = captured.patches(rollout(captured)[row])
    shown[f"rollout\n{len(captured.layers)} layers"] = followed, followed._replace(grid=followed.grid > 0)
    figure, axes = _clip_axes(len(shown), pixels, words=True)
    real = np.flatnonzero(captured.text_mask)
    for line, (name, (weights, seen)) in zip(axes, shown.items(), strict=True):
        bars = line[0]
        bars.barh(range(len(real)), weights.words[real], color=YELLOW)
        bars.set_yticks(range(len(real)), [captured.words[slot] for slot in real], fontsize=7)
        bars.invert_yaxis()
        bars.set_xlabel(f"words {weights.words.sum():.0%}, begin {weights.begin.sum():.0%}", fontsize=7)
        bars.set_xlim(0, max(0.1, 1.05 * weights.words.max()))
        bars.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        bars.tick_params(axis="x", labelsize=6)
        bars.spines[["top", "right"]].set_visible(False)
        _frames(
            line[1:],
            pixels,
            *_all_frames(weights, seen, time, len(pixels)),
            mark=(time, place),
            config=captured.config,
        )
        line[1].set_ylabel(name, fontsize=8)
    return _labelled(figure, f"what patch {place} of frame {time} looked at")


def plot_words(
    captured: Captured, pixels: np.ndarray, *, channel: str = "spatial", reduce: str = "mean"
) -> Any:
    """Which patches look at each word, over the whole clip: rows are words, columns frames; one scale for all words.

    Hatched: the last patch of a frame that is known beforehand, which looks at nothing.
    """
    real = [int(slot) for slot in np.flatnonzero(captured.text_mask)]
    heats = [word_heat(captured, slot, channel, reduce=reduce) for slot in real]
    figure, axes = _clip_axes(len(real), pixels, words=False)
    most = max(float(np.nanmax(heat)) for heat in heats)
    for line, slot, heat in zip(axes, real, heats, strict=True):
        _frames(line, pixels, heat, np.isfinite(heat), most=most, config=captured.config)
        line[0].set_ylabel(
            f"{captured.words[slot]}\n{np.nanmax(heat):.2f}", fontsize=8, rotation=0, ha="right", va="center"
        )
    figure.suptitle(f"attention to each word, {channel} channel, {reduce} over layers and heads", fontsize=10)
    return _labelled(figure, "attention to each word over the clip")


def plot_reading(tables: Mapping[str, Any], word: str) -> Any:
    """Where a word is read: weight on it beside what hiding it costs (`facts.reading`), by layer and head; a row for each stage."""
    figure, axes = _grid(len(tables), 4, 2.5, 1.9)
    for row, (stage, table) in zip(axes, tables.items(), strict=True):
        for number, channel in enumerate(("spatial", "temporal")):
            part = table[(table["channel"] == channel) & (table["head"] >= 0)].set_index(["layer", "head"])
            pair = row[2 * number : 2 * number + 2]
            if part.empty:
                for axis in pair:
                    axis.axis("off")
                continue
            for axis, measure, title in zip(
                pair, ("weight", "rise"), (f"weight on {word}", f"nats without {word}"), strict=True
            ):
                cells = part[measure].unstack("head")
                most = table["rise"].max() if measure == "rise" else 0.5
                _cells(figure, axis, cells, 0, most, f"{stage}, {channel}:\n{title}")
    return _labelled(figure, f"where {word} is read")


def plot_following(tables: Mapping[str, Any]) -> Any:
    """Attention from a moving object to where it was, beside its controls (`facts.following`), by layer and head."""
    most = max(len(table) for table in tables.values())
    figure, axes = _grid(1, len(tables), 4.2, 0.9 + 0.2 * most, sharey=True)
    shown = {
        "follow": ("o", BLUE, "where it was"),
        "stay": ("s", YELLOW, "same place"),
        "opposite": ("X", ORANGE, "as far, other way"),
    }
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        places = np.arange(len(table))
        for measure, (mark, color, label) in shown.items():
            axis.plot(
                table[measure], places, mark, color=color, ms=7 if measure == "follow" else 5, label=label
            )
        axis.plot(table["even"], places, "|", color="black", ms=7, label="all keys alike")
        axis.set(
            title=name,
            xlabel="weight on one patch of another frame",
            yticks=places,
            yticklabels=_names(table.set_index(["layer", "head"])),
        )
        axis.grid(axis="y", lw=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].invert_yaxis()
    axes[0, 0].set_ylabel("layer.head")
    axes[0, -1].legend(frameon=False, fontsize=8)
    return _labelled(figure, "what follows the moving object")


def plot_silencing(tables: Mapping[str, Any]) -> Any:
    """What each layer's temporal channel is worth (`facts.silencing`): nats a token of the object, and of the ground, without it."""
    figure, axes = _grid(1, len(tables), 3.6, 2.6, sharey=True)
    for axis, (name, table) in zip(axes[0], tables.items(), strict=True):
        places = np.arange(len(table))
        axis.bar(places - 0.2, table["rise"], 0.4, color=BLUE, label="object's patches")
        axis.bar(places + 0.2, table["ground rise"], 0.4, color=GREY, label="ground")
        labels = ["all" if layer == -1 else str(layer) for layer in table["layer"]]
        axis.set(title=name, xlabel="layer without its temporal channel", xticks=places, xticklabels=labels)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("nats a token more")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return _labelled(figure, "what the temporal channel is worth, by layer")


def _shares_of_frames(row: Any) -> Any:
    """A row of an attention table -> shares by the number of the frame looked at."""
    found = {
        int(column.split()[1]) + int(row.name): value
        for column, value in row.items()
        if str(column).startswith("frame")
    }
    return type(row)({time: value for time, value in sorted(found.items()) if np.isfinite(value)})


def _all_frames(weights: Patches, seen: Patches, time: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Heat and what is visible for all frames; the spatial channel's row holds its own frame alone."""
    if len(weights.grid) == count:
        return weights.grid, seen.grid
    heat = np.zeros((count, *weights.grid.shape[1:]), np.float32)
    visible = np.zeros(heat.shape, bool)
    heat[time], visible[time] = weights.grid[0], seen.grid[0]
    return heat, visible


def _clip_axes(rows: int, pixels: np.ndarray, *, words: bool) -> Any:
    plt = _pyplot()
    t = len(pixels)
    ratios = [1.3] * words + [1.0] * t
    figure, axes = plt.subplots(
        rows, t + words, figsize=(1.45 * sum(ratios) + 0.6, 1.5 * rows + 0.5), squeeze=False, width_ratios=ratios,
        facecolor="white", layout="constrained",
    )  # fmt: skip
    for time in range(t):
        axes[0, time + words].set_title(f"frame {time}", fontsize=9)
    return figure, axes


def _frames(
    axes, pixels, heat, visible, *, config, most: float | None = None, mark: tuple[int, int] | None = None
) -> None:
    """One heat map a frame, the outline of what is drawn there over it, hatched where nothing may be seen."""
    plt, most = _pyplot(), most or max(float(heat.max()), 1e-9)
    for time, axis in enumerate(axes):
        h, w = pixels.shape[1:3]
        edges = (0, w, h, 0)
        axis.imshow(heat[time], cmap=HEAT, vmin=0, vmax=most, extent=edges, interpolation="nearest")
        light = pixels[time].max(-1).astype(float)
        if light.max() > 60:
            axis.contour(
                np.arange(w) + 0.5, np.arange(h) + 0.5, light, levels=[60], colors="white", linewidths=0.8
            )
        high, wide = h / config.frame_height, w / config.frame_width
        for row, column in np.argwhere(~visible[time]):
            box = (column * wide, row * high), wide, high
            axis.add_patch(plt.Rectangle(*box, fc="#dddddd", ec="#aaaaaa", hatch="////", lw=0))
        if mark and mark[0] == time:
            row, column = divmod(mark[1], config.frame_width)
            axis.add_patch(
                plt.Rectangle((column * wide, row * high), wide, high, fill=False, ec=ORANGE, lw=2)
            )
        axis.set(xticks=[], yticks=[])


def _cells(figure, axis, table: Any, low: float, high: float, title: str, *, bar: bool = True) -> None:
    """Layers x heads as coloured cells with their numbers."""
    values = table.to_numpy(float)
    image = axis.imshow(values, cmap=HEAT, vmin=low, vmax=high, aspect="auto")
    if values.size <= 64:
        for (row, column), value in np.ndenumerate(values):
            shade = (value - low) / (high - low or 1)
            axis.text(
                column,
                row,
                f"{value:.2f}".replace("-0.00", "0.00"),
                ha="center",
                va="center",
                fontsize=7,
                color="black" if shade > 0.5 else "white",
            )
    axis.set(
        xticks=range(len(table.columns)),
        xticklabels=table.columns,
        yticks=range(len(table)),
        yticklabels=table.index,
    )
    axis.set_xlabel("head", fontsize=8)
    axis.set_ylabel("layer", fontsize=8)
    axis.set_title(title, fontsize=9)
    if bar:
        figure.colorbar(image, ax=axis)


def _by_head(table: Any, channel: str) -> Any:
    """Means over frames; a frame that is not there got no attention."""
    part = table[table["channel"] == channel]
    shares = [column for column in part if column.startswith("frame")]
    return part.fillna(dict.fromkeys(shares, 0.0)).groupby(["layer", "head"]).mean(numeric_only=True)


def _names(means: Any) -> list[str]:
    return [f"{layer}.{head}" for layer, head in means.index]


def _grid(rows: int, columns: int, width: float, height: float, **shared) -> Any:
    size = (width * columns + 0.8, height * rows + 0.4)
    return _pyplot().subplots(
        rows, columns, figsize=size, squeeze=False, facecolor="white", layout="constrained", **shared
    )


def _labelled(figure: Any, label: str) -> Any:
    figure.set_label(label)
    return figure


def _pyplot() -> Any:
    import matplotlib.pyplot as plt

    return plt
