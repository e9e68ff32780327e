"""How the two channels work together, drawn from masks.py: positions, masks, windows and the decoding order.

gallery.plot_stage(gallery.EXAMPLES["stage 1, windows"])
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from cogvideo.config import ModelConfig
from cogvideo.explore.plots import BLUE, GREEN, GREY, ORANGE, PINK, SKY, YELLOW, labelled
from cogvideo.explore.recording import to_patches
from cogvideo.model import masks

TEXT = 3  # text slots that are drawn
PALE = "#f2f2f2"
_IMAGE = ModelConfig(
    num_layers=2, hidden_size=8, num_heads=1, frame_height=4, frame_width=4, num_frames=1, text_length=TEXT,
    first_frame_position=TEXT, image_tokens=2, vocab_size=4, begin_of_image=3, base_positions=TEXT + 16,
    temporal=False,
)  # fmt: skip
EXAMPLES = {
    "stage 1": _IMAGE.video(),
    "stage 1, windows": _IMAGE.video(window=2),
    "stage 2": _IMAGE.video(order="interpolation", window=2),
}


def plot_stage(c: ModelConfig, title: str) -> Any:
    """One kind of model.

    At the left, the frames with their position ids, what the middle position of the last generated frame
    sees, and the earliest steps of decoding; at the right, the masks of both channels and the windows.
    """
    generated, channels = masks.trained_frames(c), _channels(c)
    time, position = generated[-1], c.frame_tokens // 2 + c.frame_width // 2
    rows = 2 + len(channels)
    figure = plt.figure(figsize=(12.5, 2.0 + 1.55 * rows), facecolor="white", layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(2.6, 1))
    left, right = halves
    axes = left.subplots(rows, c.num_frames + 1, width_ratios=[0.62] + [1] * c.num_frames)
    _draw_positions(axes[0], c, generated)
    for line, (name, (mask, color)) in zip(axes[1:], channels.items(), strict=False):
        line[0].set_ylabel(f"{name}:\nwhat one position sees", fontsize=9)
        _draw_view(line, c, mask, color, time, position)
    _draw_steps(axes[-1], c, generated)
    *homes, last = right.subplots(len(channels) + 1, 1)
    for axis, (name, (mask, color)) in zip(homes, channels.items(), strict=True):
        axis.set_title(f"mask, {name}", fontsize=9)
        _draw_mask(axis, c, mask, color, time * c.frame_tokens + position)
    _draw_windows(last, c)
    figure.suptitle(title, fontsize=13)
    return labelled(figure, f"{title}: positions, masks, windows and decoding order")


def _channels(c: ModelConfig) -> dict[str, tuple[np.ndarray, str]]:
    """name -> (visible [T*N, T*N], colour) of each channel, in both kinds of layers where they differ."""
    spatial = torch.block_diag(*masks.spatial_visible(c).int()).bool().numpy()
    even, odd = (masks.temporal_visible(c, layer).numpy() for layer in (0, 1))
    found = {"spatial channel": (spatial, BLUE)}
    if c.window is None:
        return found | {"temporal channel": (even, ORANGE)}
    return found | {"temporal, even layers": (even, ORANGE), "temporal, odd layers": (odd, PINK)}


def _draw_positions(line: Any, c: ModelConfig, generated: list[int]) -> None:
    """The sequence: text, then frames with the rows of the position tables; given frames in green."""
    order = masks.frame_order(c)
    _draw_text(line[0], YELLOW, f"positions\n0..{c.first_frame_position - 1}")
    line[0].set_title("text", fontsize=9)
    line[0].set_ylabel("the sequence and\nits position ids", fontsize=9)
    for time, axis in enumerate(line[1:]):
        in_base, first = masks.first_position(c, time)
        given = "given" if c.order == "interpolation" else "by the image model"
        color, kind = (SKY, "generated") if time in generated else (GREEN, given)
        label = f"{'base' if in_base else 'new'} table; {order.index(time) + 1}. computed"
        ids = range(first, first + c.frame_tokens)
        _draw_frame(axis, c, [color] * c.frame_tokens, dict(enumerate(map(str, ids))), label=label)
        axis.set_title(f"frame {time}\n{kind}", fontsize=9)


def _draw_view(line: Any, c: ModelConfig, mask: np.ndarray, color: str, time: int, position: int) -> None:
    """What one position may look at; keys are drawn at the patches that they hold."""
    seen = to_patches(mask[time * c.frame_tokens + position][None], 0, c.frame_height, c.frame_width)
    _draw_text(line[0], color, "all words")
    for other, axis in enumerate(line[1:]):
        colors = [color if cell else PALE for cell in seen.grid[0, other].flat]
        label = "and begin-of-image" if seen.begin[0, other] else ""
        _draw_frame(axis, c, colors, {position: "?"} if other == time else {}, label=label)
        if other == time:
            _square(axis, c, position, fill=False, ec="black", lw=2)


def _draw_steps(line: Any, c: ModelConfig, generated: list[int]) -> None:
    """The earliest step of every token; given frames have none."""
    steps, shades = masks.decoding_steps(c, generated).numpy(), plt.get_cmap("cividis")
    last = steps.max()
    line[0].axis("off")
    said = f"earliest decoding:\n{steps.size} tokens\nin {last} steps"
    line[0].text(0.5, 0.5, said, ha="center", va="center", fontsize=9)
    for time, axis in enumerate(line[1:]):
        if time not in generated:
            _draw_frame(axis, c, [PALE] * c.frame_tokens, label="known")
            continue
        values = steps[generated.index(time)]
        ink = ["black" if value / last > 0.55 else "white" for value in values]
        texts, label = dict(enumerate(map(str, values))), f"steps {values.min()}..{values.max()}"
        _draw_frame(axis, c, [shades(v / last) for v in values], texts, ink, label)


def _draw_mask(axis: Any, c: ModelConfig, mask: np.ndarray, color: str, row: int) -> None:
    """A mask [T*N, T*N] with the text before it as a matrix, a dotted line at a row."""
    n, total = c.frame_tokens, c.num_frames * c.frame_tokens
    whole = np.concatenate([np.ones((total, TEXT), bool), mask], 1)
    shown = np.where(whole[..., None], to_rgb(color), 1.0)
    axis.imshow(shown, interpolation="nearest", extent=(-TEXT, total, total, 0))
    for edge in range(0, total + 1, n):
        axis.axvline(edge, color=GREY, lw=0.6)
        axis.axhline(edge, color=GREY, lw=0.6)
    axis.axhline(row + 0.5, color="black", lw=0.8, ls=":")
    middles, names = [n * time + n / 2 for time in range(c.num_frames)], list(map(str, range(c.num_frames)))
    axis.set_xticks([-TEXT / 2, *middles], ["text", *names], fontsize=7)
    axis.set_yticks(middles, names, fontsize=7)
    axis.set_xlabel("frame looked at", fontsize=8)
    axis.set_ylabel("frame", fontsize=8)


def _draw_windows(axis: Any, c: ModelConfig) -> None:
    """The windows of even and of odd layers, side by side, one colour a window; without windows a legend."""
    if not c.window:
        axis.axis("off")
        said = "coloured: may be looked at\ndotted: the position whose view is drawn"
        said += "\nposition j holds patch j-1 and predicts patch j"
        axis.text(0.5, 0.9, said, va="top", ha="center", fontsize=9)
        return
    h, w = c.frame_height, c.frame_width
    palette = np.array([*map(to_rgb, (SKY, YELLOW, GREEN, PINK, BLUE, ORANGE, GREY, "#F0E442", "#dddddd"))])
    picture = np.ones((h, 2 * w + 1, 3))
    for layer in (0, 1):
        numbers = np.unique(masks.windows(c, layer).numpy(), return_inverse=True)[1].reshape(h, w)
        picture[:, layer * (w + 1) :][:, :w] = palette[numbers % len(palette)]
    axis.imshow(picture, interpolation="nearest")
    axis.set_xticks([(w - 1) / 2, w + 1 + (w - 1) / 2], ["even layers", "odd layers"], fontsize=8)
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_title(f"windows of {c.window} x {c.window}, alike in all frames", fontsize=9)


def _draw_text(axis: Any, color: str, label: str) -> None:
    for slot in range(TEXT):
        axis.add_patch(Rectangle((slot, 0), 1, 1, fc=color, ec="white"))
    axis.set(xlim=(0, TEXT), ylim=(2, -1), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)
    axis.set_xlabel(label, fontsize=7.5)


def _draw_frame(
    axis: Any, c: ModelConfig, colors: Sequence[Any], texts: Mapping[int, str] = {}, ink: Sequence[str] = (),
    label: str = "",
) -> None:  # fmt: skip
    """A frame's positions as squares [N] with texts by position, if there is room, in colours `ink` [N]."""
    axis.set_xlabel(label, fontsize=7.5)
    for number, color in enumerate(colors):
        _square(axis, c, number, fc=color, ec="white", lw=0.8)
    for number, text in texts.items() if c.frame_width <= 6 else ():
        row, column = divmod(number, c.frame_width)
        color = ink[number] if ink else "black"
        axis.text(column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=7, color=color)
    axis.set(xlim=(0, c.frame_width), ylim=(c.frame_height, 0), xticks=[], yticks=[], aspect="equal")
    axis.spines[:].set_visible(False)


def _square(axis: Any, c: ModelConfig, position: int, **look: Any) -> None:
    row, column = divmod(position, c.frame_width)
    axis.add_patch(Rectangle((column, row), 1, 1, **look))
