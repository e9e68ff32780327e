"""Where attention goes, as tables: to words, to frames earlier and later, how far in space and time, how evenly.

Functions take what `capture` returns. Rows of a table are means over the captured places of one frame; `where` [Q] bool
keeps some of them, such as those of an object. Keys are named after the patches that they hold (see capture.py).
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cogvideo.errors import CogVideoError
from cogvideo.explore.capture import Captured


def attention_table(captured: Captured, where: np.ndarray | None = None) -> Any:
    """DataFrame with a row for every channel, layer, head and frame of queries ("time").

    Shares of the attention, which sum to 1: "text", "begin" (the begin-of-images), and "frame -4" .. "frame +4", counted from
    the query's own frame 0 (NaN: no such frame). "entropy" in nats, "evenness" (entropy over that of looking at all visible
    keys alike, 0..1), "distance" (patches, from the query's patch to those looked at) and "lag" (frames back; negative: ahead),
    both over patches alone.
    """
    import pandas as pd

    rows, (_, t, _), times = [], captured.sizes, captured.queries[:, 0]
    for channel in _channels(captured):
        maps, visible = captured.maps(channel), captured.visible(channel)
        text, begin, grid = captured.patches(maps)
        frames = grid.sum((-1, -2))  # [layers, heads, Q, F]
        on_patches = frames.sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.where(maps > 0, maps * np.log(maps), 0).sum(-1)
            evenness = entropy / np.log(visible.sum(-1))[:, None]
            distance = np.einsum("lhqfyx,qyx->lhq", grid, _distances(captured)) / on_patches
            lag = np.einsum("lhqf,qf->lhq", frames, _lags(times, t, channel)) / on_patches
        measured = {"text": text.sum(-1), "begin": begin.sum(-1), "entropy": entropy, "evenness": evenness}
        measured |= {"distance": distance, "lag": lag}
        for time in np.unique(times):
            some = (times == time) & (True if where is None else where)
            if not some.any():
                continue
            means = {name: _mean(values[..., some]) for name, values in measured.items()}
            offsets = [0] if channel == "spatial" else [other - time for other in range(t)]
            means |= {
                f"frame {o:+d}" if o else "frame 0": frames[..., some, i].mean(-1)
                for i, o in enumerate(offsets)
            }
            for index in np.ndindex(maps.shape[:2]):
                place = {
                    "channel": channel,
                    "layer": captured.layers[index[0]],
                    "head": captured.heads[index[1]],
                }
                rows.append(
                    place
                    | {"time": int(time)}
                    | {name: float(values[index]) for name, values in means.items()}
                )
    offsets = [f"frame {o:+d}" if o else "frame 0" for o in range(1 - t, t)]
    order = [
        "channel",
        "layer",
        "head",
        "time",
        "text",
        "begin",
        *offsets,
        "entropy",
        "evenness",
        "distance",
        "lag",
    ]
    return pd.DataFrame(rows).reindex(columns=order)


def word_table(captured: Captured, where: np.ndarray | None = None) -> Any:
    """DataFrame of the "weight" on every word: a row for every channel, layer, head, frame ("time") and text slot."""
    import pandas as pd

    rows, times = [], captured.queries[:, 0]
    real = np.flatnonzero(captured.text_mask)
    for channel in _channels(captured):
        text = captured.patches(captured.maps(channel)).words
        for time in np.unique(times):
            some = (times == time) & (True if where is None else where)
            means = text[:, :, some].mean(2) if some.any() else np.empty((0, 0, 0))
            for layer, head in np.ndindex(means.shape[:2]):
                for slot in real:
                    rows.append(
                        {
                            "channel": channel,
                            "layer": captured.layers[layer],
                            "head": captured.heads[head],
                            "time": int(time),
                            "slot": int(slot),
                            "word": captured.words[slot],
                            "weight": float(means[layer, head, slot]),
                        }
                    )
    return pd.DataFrame(rows)


def gate_table(captured: Captured) -> Any:
    """DataFrame with a row a layer: the gate's spread over dimensions, and how much each channel then says.

    "mean", "std", "least", "lower", "median", "upper", "most": of the spatial channel's share sigmoid(gate), quartiles as lower
    and upper. "spatial", "temporal": mean length of the channels' outputs. "temporal part": share of the temporal channel in
    the mixed output, mean share times length. Raises CogVideoError for an image model and where a channel is missing.
    """
    import pandas as pd

    if captured.gate is None:
        raise CogVideoError("An image model has no gates: look at a stage 1 or stage 2 model.")
    part = 1 - spatial_part(captured)
    rows = []
    for index, gate in enumerate(captured.gate):
        least, lower, median, upper, most = np.quantile(gate, [0, 0.25, 0.5, 0.75, 1])
        row = {
            "layer": captured.layers[index],
            "mean": gate.mean(),
            "std": gate.std(),
            "least": least,
            "lower": lower,
        }
        row |= {"median": median, "upper": upper, "most": most}
        row |= {
            "spatial": captured.spatial_norm[index].mean(),
            "temporal": captured.temporal_norm[index].mean(),
        }  # type: ignore[index]
        rows.append(row | {"temporal part": part[index].mean()})
    return pd.DataFrame(rows).astype(float).astype({"layer": int})


def spatial_part(captured: Captured) -> np.ndarray:
    """[layers,Q] 0..1: mean share times length of the spatial channel's output, over the sum of both; 1 in an image model."""
    captured.maps("spatial")
    assert captured.spatial_norm is not None
    if captured.gate is None:
        return np.ones_like(captured.spatial_norm)
    captured.maps("temporal")
    assert captured.temporal_norm is not None
    share = captured.gate.mean(1)[:, None]
    spatial, temporal = share * captured.spatial_norm, (1 - share) * captured.temporal_norm
    return spatial / (spatial + temporal)


def both_channels(captured: Captured) -> np.ndarray:
    """[layers, Q, L+T*N]: the mean over heads of both channels' maps, each counted by its part of the output."""
    length, t, n = captured.sizes
    part = spatial_part(captured)[..., None]
    spatial = captured.maps("spatial").mean(1)
    mixed = np.zeros((*spatial.shape[:2], length + t * n), np.float32)
    mixed[..., :length] = part * spatial[..., :length]
    for row, (time, _) in enumerate(captured.queries):
        own = slice(length + time * n, length + (time + 1) * n)
        mixed[:, row, own] = (part[:, row] if captured.gate is not None else 1) * spatial[:, row, length:]
    if captured.gate is not None:
        mixed += (1 - part) * captured.maps("temporal").mean(1)
    return mixed


def rollout(captured: Captured) -> np.ndarray:
    """[T*N, L+T*N]: attention followed back through all captured layers (Abnar & Zuidema 2020); rows sum to 1.

    A layer passes on one half by its residual stream and one half by `both_channels`. What has reached a word stays there:
    words attend to each other as well, which is not followed. Needs all places as queries, and both channels; layers are
    taken in the model's order.
    """
    length, t, n = captured.sizes
    _all_places(captured)
    places = np.arange(t * n)
    total = np.zeros((t * n, length + t * n), np.float32)
    total[places, length + places] = 1
    for layer in both_channels(captured)[np.argsort(captured.layers)]:
        step = layer / 2
        step[places, length + places] += 0.5
        # One step back from every place: what it passes to words, and what it takes over from places before it.
        earlier = step[:, length:] @ total
        earlier[:, :length] += step[:, :length]
        total = earlier
    return total


def word_heat(captured: Captured, slot: int, channel: str, *, reduce: str = "mean") -> np.ndarray:
    """[T, rows, columns]: how much every patch of the clip attends to a text slot, mean or max over captured layers and heads.

    NaN at the last patch of frames that are known beforehand (`Captured.at_readers`). Raises CogVideoError for a slot that does not exist or is padding, and unless all places were captured.
    """
    length = len(captured.text_ids)
    _all_places(captured)
    if not 0 <= slot < length or not captured.text_mask[slot]:
        real = np.flatnonzero(captured.text_mask)
        raise CogVideoError(f"There is no word in text slot {slot}: choose one of {real[0]}..{real[-1]}.")
    if reduce not in ("mean", "max"):
        raise CogVideoError(f"Heat is the mean or max over layers and heads, not {reduce!r}.")
    return captured.at_readers(getattr(captured.maps(channel)[..., slot], reduce)((0, 1)))


def side_by_side(tables: Mapping[str, Any], label: str = "of") -> Any:
    """One table of several (of two prompts, two checkpoints), a column telling which."""
    import pandas as pd

    return pd.concat(tables, names=[label]).reset_index(level=0).reset_index(drop=True)


def object_patches(frames: np.ndarray) -> np.ndarray:
    """[T,N] bool: patches of tokens [T,N] other than the clip's commonest one, which in the demo world is black ground."""
    tokens, counts = np.unique(frames, return_counts=True)
    return frames != tokens[counts.argmax()]


def _channels(captured: Captured) -> list[str]:
    return [channel for channel in ("spatial", "temporal") if getattr(captured, channel) is not None]


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis; places that look at no patch at all have no distance and are left out."""
    count = np.isfinite(values).sum(-1)
    return np.where(count, np.nansum(values, -1) / np.maximum(count, 1), np.nan)


def _distances(captured: Captured) -> np.ndarray:
    """[Q, rows, columns]: from the query's patch to every patch of a frame; NaN where it holds begin-of-image."""
    c, (times, places) = captured.config, captured.queries.T
    patches = np.where(np.isin(times, captured.made), places, places - 1)[:, None, None]
    rows, columns = np.mgrid[: c.frame_height, : c.frame_width]
    apart = np.hypot(rows - patches // c.frame_width, columns - patches % c.frame_width)
    return np.where(patches < 0, np.nan, apart)


def _lags(times: np.ndarray, num_frames: int, channel: str) -> np.ndarray:
    """[Q,F]: by how many frames each frame of a row's keys lies before the query's."""
    if channel == "spatial":
        return np.zeros((len(times), 1))
    return times[:, None] - np.arange(num_frames)


def _all_places(captured: Captured) -> None:
    _, t, n = captured.sizes
    if len(captured.queries) != t * n or (captured.queries != np.argwhere(np.ones((t, n), bool))).any():
        raise CogVideoError("This needs all places of the clip: capture it with queries=None.")
