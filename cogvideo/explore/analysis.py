"""Where attention goes, as tables: to which words and frames, how far in space and time, how evenly.

Functions take what `capture` returns. Rows of a table are means over the captured positions of one frame;
`where` [Q] bool selects positions. Keys are named after the patches they hold (recording.py).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from cogvideo.errors import CogVideoError
from cogvideo.explore.recording import CHANNELS, Captured, Recording


def attention_table(captured: Captured, where: np.ndarray | None = None) -> Any:
    """DataFrame with a row for every channel, layer, head and frame of queries ("time").

    Parts of the attention, which sum to 1: "text", "begin" (the begin-of-images), and "frame -4" .. "frame
    +4", counted from the query's own frame 0 (NaN: no such frame). "entropy" in nats, "evenness" (entropy
    over that of equal weights, 0..1), "distance" (patches) and "lag" (frames back), both over patches alone.
    """
    rows, (_, t, _), times = [], captured.sizes, captured.queries[:, 0]
    for channel in _channels(captured):
        maps, visible = captured.maps(channel), captured.visible(channel)
        text, begin, grid = captured.patches(maps)
        frames = grid.sum((-1, -2))  # [layers, heads, Q, F]
        lags = times[:, None] - (times[:, None] if channel == "spatial" else np.arange(t))
        on_patches = frames.sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.where(maps > 0, maps * np.log(maps), 0).sum(-1)
            evenness = entropy / np.log(visible.sum(-1))[:, None]
            distance = np.einsum("lhqfyx,qyx->lhq", grid, _distances(captured)) / on_patches
            lag = np.einsum("lhqf,qf->lhq", frames, lags) / on_patches
        measured = {"text": text.sum(-1), "begin": begin.sum(-1), "entropy": entropy, "evenness": evenness}
        measured |= {"distance": distance, "lag": lag}
        for time, some in _by_frame(captured, where):
            means = {name: _mean(values[..., some]) for name, values in measured.items()}
            offsets = [0] if channel == "spatial" else [other - time for other in range(t)]
            means |= {_offset(o): frames[..., some, i].mean(-1) for i, o in enumerate(offsets)}
            rows += _rows(captured, channel, time, means)
    order = ["channel", "layer", "head", "time", "text", "begin", *map(_offset, range(1 - t, t))]
    return pd.DataFrame(rows).reindex(columns=[*order, "entropy", "evenness", "distance", "lag"])


def word_table(captured: Captured, where: np.ndarray | None = None) -> Any:
    """DataFrame of the "weight" on every word, by channel, layer, head, frame ("time") and text slot."""
    rows = []
    for channel in _channels(captured):
        text = captured.patches(captured.maps(channel)).words
        for time, some in _by_frame(captured, where):
            for slot in map(int, np.flatnonzero(captured.text_mask)):
                weight = {"weight": text[:, :, some, slot].mean(-1)}
                word = {"slot": slot, "word": captured.words[slot]}
                rows += [row | word for row in _rows(captured, channel, time, weight)]
    columns = ["channel", "layer", "head", "time", "slot", "word", "weight"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns[:5], ignore_index=True)


def gate_table(captured: Captured) -> Any:
    """DataFrame with a row a layer: the gate's spread over dimensions, and how much each channel contributes.

    "mean", "std", "least", "lower", "median", "upper", "most" of the spatial channel's gate weight.
    "spatial", "temporal": mean length of the channels' outputs. "temporal part": that of the mixed output.
    """
    if captured.gate is None:
        raise CogVideoError("An image model has no gates: look at a stage 1 or stage 2 model.")
    quartiles = np.quantile(captured.gate, [0, 0.25, 0.5, 0.75, 1], axis=1)
    return pd.DataFrame({
        "layer": captured.layers,
        "mean": captured.gate.mean(1),
        "std": captured.gate.std(1),
        **dict(zip(("least", "lower", "median", "upper", "most"), quartiles, strict=True)),
        "spatial": captured.norm("spatial").mean(1),
        "temporal": captured.norm("temporal").mean(1),
        "temporal part": (1 - spatial_part(captured)).mean(1),
    }).astype(float).astype({"layer": int})  # fmt: skip


def spatial_part(captured: Captured) -> np.ndarray:
    """[layers,Q]: the spatial channel's part (0..1) of the output, by gate weight times length."""
    if captured.gate is None:
        return np.ones_like(captured.norm("spatial"))
    weight = captured.gate.mean(1)[:, None]
    spatial, temporal = weight * captured.norm("spatial"), (1 - weight) * captured.norm("temporal")
    return spatial / (spatial + temporal)


def both_channels(captured: Captured) -> np.ndarray:
    """[layers, Q, L+T*N]: mean over heads of both channels' maps, weighted by their part of the output."""
    length, t, n = captured.sizes
    part = spatial_part(captured)[..., None]
    spatial = captured.maps("spatial").mean(1)
    mixed = np.zeros((*spatial.shape[:2], length + t * n), np.float32)
    mixed[..., :length] = part * spatial[..., :length]
    for row, (time, _) in enumerate(captured.queries):
        own = slice(length + time * n, length + (time + 1) * n)
        mixed[:, row, own] = part[:, row] * spatial[:, row, length:]
    return mixed if captured.gate is None else mixed + (1 - part) * captured.maps("temporal").mean(1)


def rollout(captured: Captured) -> np.ndarray:
    """[T*N, L+T*N]: attention through all captured layers (Abnar & Zuidema 2020); rows sum to 1.

    A layer passes on one half by its residual stream and one half by `both_channels`. What has reached a word
    stays there. Needs all positions as queries, and both channels; layers are taken in the model's order.
    """
    _needs_all_positions(captured)
    return _rolled(captured.sizes, both_channels(captured)[np.argsort(captured.layers)])


def rollout_of(recording: Recording) -> np.ndarray:
    """The same through all recorded layers, in the memory of one layer's maps."""
    layers = (both_channels(recording.capture(layers=[layer]))[0] for layer in sorted(recording.inputs))
    t, n = recording.frames.shape
    return _rolled((len(recording.text_ids), t, n), layers)


def _rolled(sizes: tuple[int, int, int], layers: Iterable[np.ndarray]) -> np.ndarray:
    """[T*N, L+T*N] from maps of that size, the first layer's first."""
    length, t, n = sizes
    positions = np.arange(t * n)
    total = np.zeros((t * n, length + t * n), np.float32)
    total[positions, length + positions] = 1
    for layer in layers:
        step = layer / 2
        step[positions, length + positions] += 0.5
        # One step back from every position: its weights on words, and what it gets from earlier positions.
        earlier = step[:, length:] @ total
        earlier[:, :length] += step[:, :length]
        total = earlier
    return total


def value_weighted(captured: Captured, channel: str) -> np.ndarray:
    """[layers, heads, Q, keys]: weights times the length of what the key's value adds; rows sum to 1.

    A head that looks at a key whose value is next to nothing takes next to nothing from it (Kobayashi et al.
    2020).
    """
    maps, values = captured.maps(channel), captured.values(channel)
    length, _, n = captured.sizes
    if channel == "spatial":
        keys = np.arange(length + n) + np.where(
            np.arange(length + n) < length, 0, captured.queries[:, :1] * n
        )
        weighted = maps * values[:, :, keys]  # of each query's own frame
    else:
        weighted = maps * values[:, :, None]
    return weighted / weighted.sum(-1, keepdims=True)


def word_heat(captured: Captured, slot: int, channel: str, *, reduce: str = "mean") -> np.ndarray:
    """[T, rows, columns]: how much every patch of the clip attends to a text slot; NaN as in `at_readers`.

    reduce: "mean" or "max" over captured layers and heads. Needs all positions as queries.
    """
    _needs_all_positions(captured)
    if not 0 <= slot < len(captured.text_ids) or not captured.text_mask[slot]:
        real = np.flatnonzero(captured.text_mask)
        raise CogVideoError(f"There is no word in text slot {slot}: choose one of {real[0]}..{real[-1]}.")
    if reduce not in ("mean", "max"):
        raise CogVideoError(f"Heat is the mean or max over layers and heads, not {reduce!r}.")
    return captured.at_readers(getattr(captured.maps(channel)[..., slot], reduce)((0, 1)))


def side_by_side(tables: Mapping[str, Any], label: str = "of") -> Any:
    """One table of several (of two prompts, two checkpoints), with a column that names each."""
    return pd.concat(tables, names=[label]).reset_index(level=0).reset_index(drop=True)


def changed_patches(frames: np.ndarray) -> np.ndarray:
    """[T,N] bool: patches that are not as in the clip's first frame."""
    return frames != frames[:1]


def _channels(captured: Captured) -> list[str]:
    return [channel for channel in CHANNELS if getattr(captured, channel) is not None]


def _by_frame(captured: Captured, where: np.ndarray | None) -> Iterator[tuple[int, np.ndarray]]:
    """(time, [Q] bool) of the selected queries of every frame that has some."""
    times = captured.queries[:, 0]
    for time in np.unique(times):
        some = (times == time) & (True if where is None else where)
        if some.any():
            yield int(time), some


def _rows(
    captured: Captured, channel: str, time: int, values: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Rows of a table from values [layers, heads] by name."""
    return [
        {"channel": channel, "layer": layer, "head": head, "time": time}
        | {name: float(value[i, j]) for name, value in values.items()}
        for i, layer in enumerate(captured.layers)
        for j, head in enumerate(captured.heads)
    ]


def _offset(frames: int) -> str:
    return f"frame {frames:+d}" if frames else "frame 0"


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, without NaN: positions that look at no patch at all have no distance."""
    count = np.isfinite(values).sum(-1)
    return np.where(count, np.nansum(values, -1) / np.maximum(count, 1), np.nan)


def _distances(captured: Captured) -> np.ndarray:
    """[Q, rows, columns]: from the query's patch to all patches; NaN where it holds begin-of-image."""
    c, (times, positions) = captured.config, captured.queries.T
    patches = np.where(np.isin(times, captured.made), positions, positions - 1)[:, None, None]
    rows, columns = np.mgrid[: c.frame_height, : c.frame_width]
    apart = np.hypot(rows - patches // c.frame_width, columns - patches % c.frame_width)
    return np.where(patches < 0, np.nan, apart)


def _needs_all_positions(captured: Captured) -> None:
    _, t, n = captured.sizes
    if not np.array_equal(captured.queries, np.argwhere(np.ones((t, n), bool))):
        raise CogVideoError("This needs all positions of the clip: capture it with queries=None.")
