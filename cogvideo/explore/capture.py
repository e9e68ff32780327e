"""Attention maps, gates and channel norms of one clip, as named arrays.

    captured = cogvideo.explore.capture(model, text_ids, frames, layers=[0, 3])
    captured.temporal[layer, head, query]            # weights over text slots and the places of all frames
    captured.patches(captured.temporal)              # the same as words, begin-of-images and a grid for every frame

Nothing is hooked into the model. It runs once over the finished clip and the inputs of the chosen layers are kept
(`record`); maps are computed from those for the chosen layers, heads and queries alone (`Recording.capture`). Masks are
the model's own, from masks.py, and the computation is the training forward: a text bonus of the sampler is not in it.

Letters: L text slots, T frames, N places a frame, Q queries, D hidden, H heads, d = D / H.

**Which patch is which.** Place j of a frame takes token j-1 as its input (place 0: begin-of-image) and predicts token j.
So what patch j looked at while it was drawn is the row of the *query* at place j, and weight on the *key* at place j is
weight on patch j-1. The last patch of a frame is no key: nothing ever looks at it. `Captured.patches` makes this shift,
once for all. Rows of frames that are known beforehand (frame 0 of stage 1, given frames of stage 2) predict nothing: there
the row at place j tells what the place that holds patch j-1 looks at (`Captured.at_readers`, `Captured.reader`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.explore.requests import (
    CHANNELS,
    CHUNK_BYTES,
    Chosen,
    check_memory,
    choose,
    labels,
    numbers,
    one_clip,
)
from cogvideo.model import masks
from cogvideo.model.transformer import Block, Channel, CogVideoTransformer, LayerMemory
from cogvideo.runtime.memory import GB


class Patches(NamedTuple):
    """Weights over keys, put where one sees them. F: the query's own frame alone (spatial) or all frames (temporal)."""

    words: np.ndarray  # [..., L] text slots
    begin: np.ndarray  # [..., F] the begin-of-image of each frame
    grid: np.ndarray  # [..., F, rows, columns] patches; the last one of a frame is never a key


@dataclass(frozen=True)
class Captured:
    """What `capture` returns; arrays are float32 but where said otherwise. A channel that was not asked for is None."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    queries: np.ndarray  # int [Q,2]: time and place
    spatial: (
        np.ndarray | None
    )  # [layers, heads, Q, L+N] over the text and the query's own frame; rows sum to 1
    temporal: np.ndarray | None  # [layers, heads, Q, L+T*N] over the text and all frames in the order of time
    spatial_visible: (
        np.ndarray | None
    )  # bool [layers, Q, L+N]: what a query may attend to (padding it may not)
    temporal_visible: np.ndarray | None  # bool [layers, Q, L+T*N]; odd layers have shifted windows
    gate: (
        np.ndarray | None
    )  # [layers, D]: sigmoid(gate), the spatial channel's share; None for an image model
    spatial_norm: (
        np.ndarray | None
    )  # [layers, Q]: length of the channel's output over all heads, before the gate
    temporal_norm: np.ndarray | None  # [layers, Q]
    text_ids: np.ndarray  # int64 [L]
    text_mask: np.ndarray  # bool [L]: true at real tokens
    frames: np.ndarray  # int64 [T,N] tokens
    words: tuple[str, ...]  # L readable labels
    config: ModelConfig

    @property
    def sizes(self) -> tuple[int, int, int]:
        """L, T, N."""
        return len(self.text_ids), *self.frames.shape  # type: ignore[return-value]

    def maps(self, channel: str) -> np.ndarray:
        """Weights [layers, heads, Q, keys] of a channel; raises CogVideoError where it was not captured."""
        found = {"spatial": self.spatial, "temporal": self.temporal}.get(channel)
        if found is None:
            raise CogVideoError(
                f"The {channel} channel was not captured: name it in channels, if the model has it."
            )
        return found

    def visible(self, channel: str) -> np.ndarray:
        """What may be attended to, bool [layers, Q, keys], in a channel that was captured."""
        self.maps(channel)
        return getattr(self, f"{channel}_visible")

    def patches(self, keys: np.ndarray) -> Patches:
        """Put keys [..., L+N] or [..., L+T*N] (weights, or what is visible) where one sees them: see the head of this file."""
        length, c = len(self.text_ids), self.config
        return to_patches(keys, length, c.frame_height, c.frame_width)

    @property
    def made(self) -> list[int]:
        """Times of the frames that the model makes; the others are known beforehand."""
        return [time for time in masks.trained_frames(self.config) if time < len(self.frames)]

    def at_readers(self, rows: np.ndarray) -> np.ndarray:
        """Values of all places [..., T*N], put at the patches that read: [..., T, rows, columns]; see the head of this file.

        NaN at the last patch of frames that are known beforehand, which no place holds.
        """
        c, (_, t, n) = self.config, self.sizes
        rows = rows.reshape(*rows.shape[:-1], t, n)
        held = np.concatenate([rows[..., 1:], np.full_like(rows[..., :1], np.nan)], -1)
        made = np.isin(np.arange(t), self.made)[:, None]
        return np.where(made, rows, held).reshape(*rows.shape[:-1], c.frame_height, c.frame_width)

    def reader(self, time: int, patch: int) -> int:
        """Number of the query whose row tells what this patch looks at; raises CogVideoError where it was not captured."""
        held = time not in self.made
        if held and patch == self.config.frame_tokens - 1:
            raise CogVideoError(
                f"No place holds the last patch of frame {time}, which is known beforehand: choose another."
            )
        return self.row(time, patch + held)

    def row(self, time: int, place: int) -> int:
        """Number of the query at this place; raises CogVideoError where it was not captured."""
        found = np.flatnonzero((self.queries == (time, place)).all(1))
        if not len(found):
            raise CogVideoError(f"Place {place} of frame {time} was not captured: name it in queries.")
        return int(found[0])


@dataclass(frozen=True)
class Recording:
    """One run of the model over a clip: the inputs of its layers, from which `capture` computes maps."""

    model: CogVideoTransformer
    text_ids: Tensor  # [L]
    text_mask: Tensor  # bool [L]
    frames: Tensor  # [T,N]
    inputs: dict[int, Tensor]  # [1,T,N,D] of each recorded layer
    text: dict[int, LayerMemory]  # the text's keys and values there
    spatial_bias: Tensor  # [1,T,1,N,L+N]
    temporal_bias: list[Tensor] | None  # [1,1,T*N,L+T*N] of even and odd layers, or one for all

    @torch.inference_mode()
    def capture(
        self,
        *,
        layers: Sequence[int] | None = None,
        heads: Sequence[int] | None = None,
        queries: Sequence[tuple[int, int]] | np.ndarray | None = None,
        channels: Sequence[str] = CHANNELS,
        words: Sequence[str] | None = None,
        max_bytes: int = 2 * GB,
    ) -> Captured:
        """Maps of the chosen parts; see the function `capture`."""
        chosen = choose(
            self.model.config, list(self.inputs), layers, heads, queries, channels, self.frames.shape[0]
        )
        if missing := [layer for layer in chosen.layers if layer not in self.inputs]:
            raise CogVideoError(f"Layers {missing} were not recorded: name them in record(layers=...).")
        check_memory(self.model, self.text_ids, self.frames, chosen, max_bytes, recorded=True)
        return self._capture(chosen, words)

    def _capture(self, chosen: Chosen, words: Sequence[str] | None) -> Captured:
        layers, heads, places, kinds = chosen
        kept = {kind: _Kept(len(layers), len(heads), len(places), *self._keys(kind)) for kind in kinds}
        gates = {}
        # Iterated, not indexed: so blocks that are kept in host memory (offload.py) come to the device as well.
        for index, block in enumerate(self.model.blocks):
            if index in layers:
                assert isinstance(block, Block)
                self._capture_layer(block, index, layers.index(index), heads, places, kept)
                gates[index] = None if block.gate is None else block.gate.sigmoid().float().cpu().numpy()
        arrays = {
            name: value for kind, channel in kept.items() for name, value in channel.named(kind).items()
        }
        absent = dict.fromkeys(f"{kind}{end}" for kind in CHANNELS for end in ("", "_visible", "_norm"))
        return Captured(
            layers=tuple(layers),
            heads=tuple(heads),
            queries=places,
            gate=np.stack([gates[layer] for layer in layers]) if self.model.config.temporal else None,
            text_ids=self.text_ids.cpu().numpy(),
            text_mask=self.text_mask.cpu().numpy(),
            frames=self.frames.cpu().numpy(),
            words=labels(words, self.text_ids),
            config=self.model.config,
            **(absent | arrays),  # type: ignore[arg-type]
        )

    @torch.inference_mode()
    def mix(self, captured: Captured) -> np.ndarray:
        """[layers,Q,D]: the attention output of each layer, from captured maps, values, dense layers and the gate.

        This is what the layer itself adds to the stream (before its norm), so maps changed by hand show what the change
        does. Raises CogVideoError unless all heads and both channels were captured.
        """
        c = self.model.config
        if captured.heads != tuple(range(c.num_heads)):
            raise CogVideoError("A layer's output needs all of its heads: capture them all to mix them.")
        maps = {kind: captured.maps(kind) for kind in (CHANNELS if c.temporal else CHANNELS[:1])}
        out = np.empty((len(captured.layers), len(captured.queries), c.hidden_size), np.float32)
        for index, block in enumerate(self.model.blocks):
            if index not in captured.layers:
                continue
            assert isinstance(block, Block)
            number, read = captured.layers.index(index), []
            for kind, value in maps.items():
                rows = torch.empty(len(captured.queries), c.hidden_size, dtype=self.inputs[index].dtype)
                rows = rows.to(self.inputs[index].device)
                _, _, v, _ = self._project(block, index, kind)
                for some, time in _groups(captured.queries, kind):
                    weights = torch.from_numpy(value[number][:, some]).to(v)
                    rows[some] = rearrange(weights @ v[time], "h q d -> q (h d)")
                read.append(rows)
            mixed = block.merge(*read) if c.temporal else block.spatial.dense(read[0])
            out[number] = mixed.float().cpu().numpy()
        return out

    def _keys(self, kind: str) -> tuple[int, int]:
        """How many keys a row of this channel has, and how many of them are text."""
        t, n = self.frames.shape
        return len(self.text_ids) + (n if kind == "spatial" else t * n), len(self.text_ids)

    def _project(self, block: Block, index: int, kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q [F,H,P,d], k and v [F,H,K,d], bias [F,P,K] of one channel; F = T frames (spatial), or 1 (temporal)."""
        h, memory = block.attention_norm(self.inputs[index]), self.text[index]
        if kind == "spatial":
            q, k, v = block.spatial.project(h)
            k, v = memory.spatial.update(k, v)
            t = self.frames.shape[0]
            return q[0], k[0], v[0], self.spatial_bias[0, :, 0].expand(t, -1, -1)
        assert block.temporal is not None and memory.temporal is not None and self.temporal_bias is not None
        q, k, v = block.temporal.project(rearrange(h, "one t n d -> one (t n) d"))
        k, v = memory.temporal.update(k, v)
        return q, k, v, self.temporal_bias[index % len(self.temporal_bias)][0]

    def _capture_layer(
        self,
        block: Block,
        index: int,
        number: int,
        heads: list[int],
        queries: np.ndarray,
        kept: dict[str, "_Kept"],
    ) -> None:
        n = self.frames.shape[1]
        for kind, target in kept.items():
            channel = getattr(block, kind)
            assert isinstance(channel, Channel)
            q, k, v, bias = self._project(block, index, kind)
            at_once = max(1, CHUNK_BYTES // (4 * q.shape[1] * target.keys))
            for group, frame in _groups(queries, kind):
                for some in np.split(group, range(at_once, len(group), at_once)):
                    places = queries[some, 1] + (0 if kind == "spatial" else n * queries[some, 0])
                    rows = torch.from_numpy(places).to(q.device)
                    hidden = bias[frame, rows].float()
                    scores = (q[frame][:, rows].float() / q.shape[-1] ** 0.5) @ k[frame].float().mT
                    weights = (scores + hidden).softmax(-1)
                    out = channel.merge(weights.to(v.dtype) @ v[frame])
                    target.maps[number][:, some] = weights[heads].cpu().numpy()
                    target.visible[number, some] = (hidden == 0).cpu().numpy()
                    target.norms[number, some] = out.float().norm(dim=-1).cpu().numpy()


class _Kept:
    """Room for what is captured of one channel."""

    def __init__(self, layers: int, heads: int, queries: int, keys: int, text: int):
        self.keys = keys
        self.maps = np.empty((layers, heads, queries, keys), np.float32)
        self.visible = np.empty((layers, queries, keys), bool)
        self.norms = np.empty((layers, queries), np.float32)

    def named(self, kind: str) -> dict[str, np.ndarray]:
        return {kind: self.maps, f"{kind}_visible": self.visible, f"{kind}_norm": self.norms}


def to_patches(keys: np.ndarray, text_length: int, height: int, width: int) -> Patches:
    """Keys [..., L+F*N] (weights or bools) -> words, begin-of-images and patch grids, shifted by one place.

    The key at place j holds patch j-1, at place 0 the begin-of-image; the last patch of a frame, never a key, gets 0.
    """
    frames = keys[..., text_length:]
    frames = frames.reshape(*frames.shape[:-1], -1, height * width)
    grid = np.concatenate([frames[..., 1:], np.zeros_like(frames[..., :1])], -1)
    return Patches(keys[..., :text_length], frames[..., 0], grid.reshape(*grid.shape[:-1], height, width))


@torch.inference_mode()
def record(
    model: CogVideoTransformer,
    text_ids: Tensor,
    frames: Tensor,
    *,
    layers: Sequence[int] | None = None,
    text_mask: Tensor | None = None,
) -> Recording:
    """Run the model over a clip once and keep the inputs of `layers` (None: all): text_ids [L] or [1,L], frames [T,N] or [1,T,N].

    text_mask [L] or [1,L] is true at real tokens. Raises CogVideoError for a clip of another geometry and layers that the
    model does not have.
    """
    text_ids, frames, text_mask = one_clip(model, text_ids, frames, text_mask)
    wanted = numbers("layers", layers, model.config.num_layers, range(model.config.num_layers))
    x, text, spatial, temporal = model.prepare(text_ids, frames, text_mask)
    inputs, memories = {}, {}
    for index, (block, memory) in enumerate(zip(model.blocks, text.layers, strict=True)):
        if index in wanted:
            inputs[index], memories[index] = x, memory
        if index == max(wanted):
            break
        x = block(x, memory, spatial, None if temporal is None else temporal[index % len(temporal)])
    return Recording(model, text_ids[0], text_mask[0], frames[0], inputs, memories, spatial, temporal)


@torch.inference_mode()
def capture(
    model: CogVideoTransformer,
    text_ids: Tensor,
    frames: Tensor,
    *,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None = None,
    queries: Sequence[tuple[int, int]] | np.ndarray | None = None,
    channels: Sequence[str] = CHANNELS,
    text_mask: Tensor | None = None,
    words: Sequence[str] | None = None,
    max_bytes: int = 2 * GB,
) -> Captured:
    """Attention of one finished clip: text_ids [L] or [1,L], frames [T,N] or [1,T,N], text_mask [L] or [1,L].

    layers, heads: numbers from 0; None for all. queries: (time, place) pairs; None for all places. channels: of "spatial" and
    "temporal" (an image model has no temporal one). words: L labels for the text, such as TextTokenizer.pieces gives.
    max_bytes bounds what this takes beside the model, as `memory_needed` computes it; above 1 GB it is told on stderr
    before the start. Raises CogVideoError for parts that do not exist, a clip of another geometry, and more memory
    than max_bytes or than is free.
    """
    text_ids, frames, mask = one_clip(model, text_ids, frames, text_mask)
    c = model.config
    chosen = choose(c, range(c.num_layers), layers, heads, queries, channels, frames.shape[1])
    check_memory(model, text_ids[0], frames[0], chosen, max_bytes)
    recording = record(model, text_ids, frames, layers=chosen[0], text_mask=mask)
    return recording._capture(chosen, words)


def _groups(queries: np.ndarray, kind: str) -> list[tuple[np.ndarray, int]]:
    """(rows, frame) of queries that share their keys: those of one frame in the spatial channel, all in the temporal."""
    if kind == "temporal":
        return [(np.arange(len(queries)), 0)]
    return [(np.flatnonzero(queries[:, 0] == time), int(time)) for time in np.unique(queries[:, 0])]
