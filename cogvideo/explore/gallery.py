"""How the two channels work together, drawn from masks.py itself: positions, masks, windows and the order of decoding.

    gallery.plot_stage(gallery.EXAMPLES["stage 1, windows"])

Colours are told apart by colour-blind eyes, too.
"""

from typing import Any

import numpy as np
import torch

from cogvideo.config import ModelConfig
from cogvideo.explore.capture import to_patches
from cogvideo.explore.plots import BLUE, GREEN, GREY, ORANGE, PINK, SKY, YELLOW
from cogvideo.model import masks

TEXT = 3  # text slots that are drawn
_IMAGE = ModelConfig(
    num_layers=2, hidden_size=8, num_heads=1, frame_height=4, frame_width=4, num_frames=1, text_length=TEXT,
    first_frame_position=TEXT, image_tokens=2, vocab_size=4, begin_of_image=3, base_positions=TEXT + 16, temporal=False,
)  # fmt: skip
EXAMPLES = {
    "stage 1": _IMAGE.video(),
    "stage 1, windows": _IMAGE.video(window=2),
    "stage 2": _IMAGE.video(order="interpolation", window=2),
}


def plot_stage(c: ModelConfig, title: str = "", *, time: int | None = None, place: int | None = None) -> Any:
    """One kind of model: at the left the frames with positions, what one place sees, and the earliest steps of decoding; at the
    right the masks of both channels and the windows.

    time, place: the place whose view is drawn (None: the middle of the last generated frame).
    """
    import matplotlib.pyplot as plt

    generated = masks.trained_frames(c)
    time = generated[-1] if time is None else time
    place = c.frame_tokens // 2 + c.frame_width // 2 if place is None else place
    channels = _channels(c)
    figure = plt.figure(
        figsize=(12.5, 2.0 + 1.55 * (2 + len(channels))), facecolor="white", layout="constrained"
    )
    halves: Any = figure.subfigures(1, 2, width_ratios=(2.6, 1))
    left, right = halves
    axes = left.subplots(2 + len(channels), c.num_frames + 1, width_ratios=[0.62] + [1] * c.num_frames)
    _draw_positions(axes[0], c, generated)
    for line, (name, (mask, color)) in zip(axes[1:], channels.items(), strict=False):
        _draw_view(line, c, name, mask, color, time, place)
    _draw_steps(axes[-1], c, generated)
    _draw_masks(right, c, channels, time, place)
    figure.suptitle(title or f"{c.order}, {c.num_frames} frames", fontsize=13)
    figure.set_label(f"{title or c.order}: positions, masks, windows and decoding order")
    return figure


def _channels(c: ModelConfig) -> dict[str, tuple[np.ndarray, str]]:
    """name -> (visible [T*N, T*N], colour) of each channel, in both kinds of layers where they differ."""
    spatial = torch.block_diag(*masks.spatial_visible(c).int()).bool().numpy()
    found = {"spatial channel": (spatial, BLUE)}
    if c.window is None:
        return found | {"temporal channel": (masks.temporal_visible(c, 0).numpy(), ORANGE)}
    even, odd = (masks.temporal_visible(c, layer).numpy() for layer in (0, 1))
    return found | {"temporal, even layers": (even, ORANGE), "temporal, odd layers": (odd, PINK)}


def _draw_positions(line: Any, c: ModelConfig, generated: list[int]) -> None:
    """The sequence: text, then frames with the rows of the position tables, and who is known beforehand."""
    order = masks.frame_order(c)
    _text_block(line[0], YELLOW, f"positions\n0..{c.first_frame_position - 1}")
    line[0].set_title("text", fontsize=9)
    for time, axis in enumerate(line[1:]):
        in_base, first = masks.first_position(c, time)
        known = time not in generated
        given = "given" if c.order == "interpolation" else "by the image model"
        _cells(axis, c, np.full(c.frame_tokens, GREEN if known else SKY, object))
        for number in range(c.frame_tokens):
            _write(axis, c, number, str(first + number))
        axis.set_title(f"frame {time}\n{given if known else 'generated'}", fontsize=9)
        table = "base" if in_base else "new"
        axis.set_xlabel(f"{table} table; {order.index(time) + 1}. computed", fontsize=7.5)
    line[0].set_ylabel("the sequence and\nits position ids", fontsize=9)


def _draw_view(
    line: Any, c: ModelConfig, name: str, mask: np.ndarray, color: str, time: int, place: int
) -> None:
    """What one place may look at; keys are put at the patches that they hold."""
    row = mask[time * c.frame_tokens + place][None]
    seen = to_patches(row, 0, c.frame_height, c.frame_width)
    _text_block(line[0], color, "all words")
    line[0].set_ylabel(f"{name}:\nwhat one place sees", fontsize=9)
    for other, axis in enumerate(line[1:]):
        colors = np.where(seen.grid[0, other].flatten(), color, "#f2f2f2").astype(object)
        _cells(axis, c, colors)
        if seen.begin[0, other]:
            axis.set_xlabel("and begin-of-image", fontsize=7)
        if other == time:
            _box(axis, c, place)


def _draw_steps(line: Any, c: ModelConfig, generated: list[int]) -> None:
    """The earliest step of every token; frames that are known have none."""
    import matplotlib.pyplot as plt

    steps = dict(zip(generated, masks.decoding_steps(c, generated).numpy(), strict=True))
    last = max(int(values.max()) for values in steps.values())
    shades = plt.get_cmap("cividis")
    line[0].axis("off")
    count = len(generated) * c.frame_tokens
    line[0].text(
        0.5, 0.5, f"earliest decoding:\n{count} tokens\nin {last} steps", ha="center", va="center", fontsize=9
    )
    for time, axis in enumerate(line[1:]):
        values = steps.get(time)
        if values is None:
            _cells(axis, c, np.full(c.frame_tokens, "#f2f2f2", object))
            axis.set_xlabel("known", fontsize=7)
            continue
        _cells(axis, c, [shades(value / last) for value in values])
        for number, value in enumerate(values):
            _write(axis, c, number, str(value), "black" if value / last > 0.55 else "white")
        axis.set_xlabel(f"steps {values.min()}..{values.max()}", fontsize=7.5)


def _draw_masks(
    home: Any, c: ModelConfig, channels: dict[str, tuple[np.ndarray, str]], time: int, place: int
) -> None:
    """Masks as matrices of places, and the windows of a frame."""
    *axes, last = home.subplots(len(channels) + 1, 1)
    n, total = c.frame_tokens, c.num_frames * c.frame_tokens
    for axis, (name, (mask, color)) in zip(axes, channels.items(), strict=True):
        whole = np.concatenate([np.ones((total, TEXT), bool), mask], 1)
        shown = np.ones((*whole.shape, 3))
        shown[whole] = _rgb(color)
        axis.imshow(shown, interpolation="nearest", extent=(-TEXT, total, total, 0))
        for edge in range(0, total + 1, n):
            axis.axvline(edge, color=GREY, lw=0.6)
            axis.axhline(edge, color=GREY, lw=0.6)
        axis.axhline(time * n + place + 0.5, color="black", lw=0.8, ls=":")
        middles = [n * number + n / 2 for number in range(c.num_frames)]
        axis.set_xticks([-TEXT / 2, *middles], ["text", *map(str, range(c.num_frames))], fontsize=7)
        axis.set_yticks(middles, list(map(str, range(c.num_frames))), fontsize=7)
        axis.set_title(f"mask, {name}", fontsize=9)
        axis.set_xlabel("frame looked at", fontsize=8)
        axis.set_ylabel("frame", fontsize=8)
    if c.window:
        _draw_windows(last, c)
    else:
        last.axis("off")
        lines = "coloured: may be looked at\ndotted: the place whose view is drawn\nplace j holds patch j-1 and predicts patch j"
        last.text(0.5, 0.9, lines, va="top", ha="center", fontsize=9)


def _draw_windows(axis: Any, c: ModelConfig) -> None:
    """The windows of even and of odd layers, side by side; the same colour: the same window."""
    h, w = c.frame_height, c.frame_width
    palette = [_rgb(color) for color in (SKY, YELLOW, GREEN, PINK, BLUE, ORANGE, GREY, "#F0E442", "#dddddd")]
    picture = np.ones((h, 2 * w + 1, 3))
    for layer in (0, 1):
        windows = masks.windows(c, layer).numpy()
        numbers = np.unique(windows, return_inverse=True)[1].reshape(h, w)
        picture[:, layer * (w + 1) : layer * (w + 1) + w] = np.array(palette)[numbers % len(palette)]
    axis.imshow(picture, interpolation="nearest")
    axis.set_xticks([(w - 1) / 2, w + 1 + (w - 1) / 2], ["even layers", "odd layers"], fontsize=8)
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_title(f"windows of {c.window} x {c.window}, alike in all frames", fontsize=9)


def _text_block(axis: Any, color: str, label: str) -> None:
    from matplotlib.patches import Rectangle

    for slot in range(TEXT):
        axis.add_patch(Rectangle((slot, 0), 1, 1, fc=color, ec="white"))
    axis.set(xlim=(0, TEXT), ylim=(2, -1), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)
    axis.set_xlabel(label, fontsize=7.5)


def _cells(axis: Any, c: ModelConfig, colors: Any) -> None:
    """A frame's places as squares."""
    from matplotlib.patches import Rectangle

    for number, color in enumerate(colors):
        row, column = divmod(number, c.frame_width)
        axis.add_patch(Rectangle((column, row), 1, 1, fc=color, ec="white", lw=0.8))
    axis.set(xlim=(0, c.frame_width), ylim=(c.frame_height, 0), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)


def _write(axis: Any, c: ModelConfig, number: int, text: str, color: str = "black") -> None:
    if c.frame_width > 6:
        return  # no room
    row, column = divmod(number, c.frame_width)
    axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=color)


def _box(axis: Any, c: ModelConfig, place: int) -> None:
    from matplotlib.patches import Rectangle

    row, column = divmod(place, c.frame_width)
    axis.add_patch(Rectangle((column, row), 1, 1, fill=False, ec="black", lw=2))
    axis.text(column + 0.5, row + 0.5, "?", ha="center", va="center", fontsize=9)


def _rgb(color: str) -> tuple[float, ...]:
    from matplotlib.colors import to_rgb

    return to_rgb(color)
