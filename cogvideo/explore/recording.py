"""Attention maps, gates and channel norms of one clip, as named arrays.

    captured = cogvideo.explore.capture(model, text_ids, frames, layers=[0, 3])
    captured.temporal[layer, head, query]      # weights over text slots and the positions of all frames
    captured.patches(captured.temporal)        # the same as words, begin-of-images and a grid for every frame

The model runs once over the finished clip and the inputs of chosen layers are kept (`record`); maps come from
those, with the model's own masks (`Recording.capture`), as in training: without the sampler's text bonus.
Letters: L text slots, T frames, N token positions a frame, Q queries, D hidden, H heads, d = D / H.

**Which patch is which.** Position j of a frame takes token j-1 as its input (position 0: begin-of-image) and
predicts token j. So what patch j looked at while it was drawn is the row of the *query* at position j, and
weight on the *key* at position j is weight on patch j-1; the last patch of a frame is no key. This shift is
made in `to_patches` and nowhere else. Rows of given frames (frame 0 of stage 1, every other frame of stage 2)
predict nothing: what a patch looks at is the row of the position that holds it as input, one later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.explore.requests import (
    CHANNELS,
    CHUNK_BYTES,
    Chosen,
    check_memory,
    choose,
    numbers,
    one_clip,
)  # fmt: skip
from cogvideo.model import masks
from cogvideo.model.transformer import CogVideoTransformer, LayerMemory
from cogvideo.runtime.memory import GB

PARTS = ("", "_visible", "_norm", "_values")  # of a channel in Captured


class Patches(NamedTuple):
    """Keys by what they hold. F: the query's own frame alone (spatial channel) or all frames (temporal)."""

    words: np.ndarray  # [..., L] text slots
    begin: np.ndarray  # [..., F] the begin-of-image of each frame
    grid: np.ndarray  # [..., F, rows, columns] patches; the last one of a frame is never a key


@dataclass(frozen=True)
class Captured:
    """What `capture` returns: float32 arrays unless noted. A channel that was not asked for is None."""

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    queries: np.ndarray  # int [Q,2]: time and position
    # [layers, heads, Q, keys]: weights over the text and the own frame (L+N), or over the text and all
    # frames in the order of time (L+T*N); rows sum to 1
    spatial: np.ndarray | None
    temporal: np.ndarray | None
    # bool [layers, Q, keys]: what a query may attend to, without padding; odd layers have shifted windows
    spatial_visible: np.ndarray | None
    temporal_visible: np.ndarray | None
    # [layers, Q]: length of the channel's output over all heads, before the gate
    spatial_norm: np.ndarray | None
    temporal_norm: np.ndarray | None
    # [layers, heads, L+T*N]: length of what each key adds to the channel's output at a weight of 1
    spatial_values: np.ndarray | None
    temporal_values: np.ndarray | None
    # [layers, D]: sigmoid(gate), the spatial channel's weight; None in an image model
    gate: np.ndarray | None
    text_ids: np.ndarray  # int64 [L]
    text_mask: np.ndarray  # bool [L]: true at real tokens
    frames: np.ndarray  # int64 [T,N] tokens
    words: tuple[str, ...]  # L readable labels
    config: ModelConfig

    @property
    def sizes(self) -> tuple[int, int, int]:
        """L, T, N."""
        t, n = self.frames.shape
        return len(self.text_ids), t, n

    def maps(self, channel: str) -> np.ndarray:
        """Weights [layers, heads, Q, keys] of a channel that was captured."""
        return self._of(channel, "")

    def visible(self, channel: str) -> np.ndarray:
        """What may be attended to, bool [layers, Q, keys], in a channel that was captured."""
        return self._of(channel, "_visible")

    def norm(self, channel: str) -> np.ndarray:
        """Length of the output [layers, Q] of a channel that was captured."""
        return self._of(channel, "_norm")

    def values(self, channel: str) -> np.ndarray:
        """Length of the keys' values [layers, heads, L+T*N] of a channel that was captured."""
        return self._of(channel, "_values")

    def _of(self, channel: str, what: str) -> np.ndarray:
        found = getattr(self, f"{channel}{what}") if channel in CHANNELS else None
        if found is None:
            raise CogVideoError(
                f"The {channel} channel was not captured: name it in channels, if the model has it."
            )
        return found

    def patches(self, keys: np.ndarray) -> Patches:
        """Keys [..., L+N] or [..., L+T*N] (weights or bools) by what they hold: see `to_patches`."""
        return to_patches(keys, len(self.text_ids), self.config.frame_height, self.config.frame_width)

    @property
    def made(self) -> list[int]:
        """Times of the frames that the model makes; the others are given."""
        return [time for time in masks.trained_frames(self.config) if time < len(self.frames)]

    def at_readers(self, rows: np.ndarray) -> np.ndarray:
        """Values of all positions [..., T*N] at the patches they read for: [..., T, rows, columns].

        NaN at the last patch of given frames, which no position holds.
        """
        c, (_, t, n) = self.config, self.sizes
        rows = rows.reshape(*rows.shape[:-1], t, n)
        held = np.concatenate([rows[..., 1:], np.full_like(rows[..., :1], np.nan)], -1)
        made = np.isin(np.arange(t), self.made)[:, None]
        return np.where(made, rows, held).reshape(*rows.shape[:-1], c.frame_height, c.frame_width)

    def reader(self, time: int, patch: int) -> int:
        """Number of the query whose row says what this patch looks at."""
        held = time not in self.made
        if held and patch == self.config.frame_tokens - 1:
            raise CogVideoError(
                f"No position holds the last patch of frame {time}, which is given: choose another."
            )
        return self.row(time, patch + held)

    def row(self, time: int, position: int) -> int:
        """Number of the query at this position."""
        found = np.flatnonzero((self.queries == (time, position)).all(1))
        if not len(found):
            raise CogVideoError(f"Position {position} of frame {time} was not captured: name it in queries.")
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
    conditioning: Tensor | None = None  # see CogVideoTransformer.embed_frames

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
        c, recorded = self.model.config, list(self.inputs)
        chosen = choose(c, recorded, layers, heads, queries, channels, len(self.frames))
        if missing := [layer for layer in chosen.layers if layer not in self.inputs]:
            raise CogVideoError(f"Layers {missing} were not recorded: name them in record(layers=...).")
        check_memory(self.model, self.text_ids, self.frames, chosen, max_bytes, recorded=True)
        return self._capture(chosen, words)

    def _capture(self, chosen: Chosen, words: Sequence[str] | None) -> Captured:
        layers, heads, queries, kinds = chosen
        length, (t, n) = len(self.text_ids), self.frames.shape
        kept: dict[str, Any] = dict.fromkeys(kind + part for kind in CHANNELS for part in PARTS)
        for kind in kinds:
            keys = length + (n if kind == "spatial" else t * n)
            kept[kind] = np.empty((len(layers), len(heads), len(queries), keys), np.float32)
            kept[f"{kind}_visible"] = np.empty((len(layers), len(queries), keys), bool)
            kept[f"{kind}_norm"] = np.empty((len(layers), len(queries)), np.float32)
            kept[f"{kind}_values"] = np.empty((len(layers), len(heads), length + t * n), np.float32)
        gates = {}
        # Iterated, not indexed, so that blocks kept in host memory (offload.py) come to the device.
        for index, block in enumerate(self.model.blocks):
            if index in layers:
                for kind in kinds:
                    target = [kept[kind + part][layers.index(index)] for part in PARTS]
                    self._capture_layer(block, index, kind, chosen, *target)
                gate: Any = block.gate
                gates[index] = None if gate is None else gate.sigmoid().float().cpu().numpy()
        names = tuple(map(str, self.text_ids.tolist() if words is None else words))
        if len(names) != length:
            raise CogVideoError(f"There are {len(names)} words for {length} text slots: give one for each.")
        return Captured(
            layers=tuple(layers),
            heads=tuple(heads),
            queries=queries,
            gate=np.stack([gates[layer] for layer in layers]) if self.model.config.temporal else None,
            text_ids=self.text_ids.cpu().numpy(),
            text_mask=self.text_mask.cpu().numpy(),
            frames=self.frames.cpu().numpy(),
            words=names,
            config=self.model.config,
            **kept,
        )

    def project(self, block: Any, index: int, kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q [F,H,P,d], k and v [F,H,K,d], bias [F,P,K] of a channel; F: T (spatial) or 1 (temporal)."""
        h, memory = block.attention_norm(self.inputs[index]), self.text[index]
        if kind == "spatial":
            q, kv = block.spatial.project(h)
            k, v = memory.spatial.update(kv)
            return q[0], k[0], v[0], self.spatial_bias[0, :, 0].expand(len(self.frames), -1, -1)
        text, biases = memory.temporal, self.temporal_bias
        assert text is not None and biases is not None  # `choose` refuses this channel of an image model
        q, kv = block.temporal.project(rearrange(h, "one t n d -> one (t n) d"))
        k, v = text.update(kv)
        return q, k, v, biases[index % len(biases)][0]

    def _capture_layer(
        self,
        block: nn.Module,
        index: int,
        kind: str,
        chosen: Chosen,
        maps: np.ndarray,
        visible: np.ndarray,
        norms: np.ndarray,
        values: np.ndarray,
    ) -> None:
        """Fill in one channel of one layer: maps [heads,Q,K], visible [Q,K], norms [Q], values [heads,L+T*N].

        Raises: CogVideoError where they are not finite.
        """
        channel: Any = getattr(block, kind)
        queries, n = chosen.queries, self.frames.shape[1]
        q, k, v, bias = self.project(block, index, kind)
        values[:] = self._value_lengths(channel, v)[chosen.heads].cpu().numpy()
        at_once = max(1, CHUNK_BYTES // (4 * q.shape[1] * maps.shape[-1]))
        for group, frame in query_groups(queries, kind):
            for some in np.split(group, range(at_once, len(group), at_once)):
                positions = queries[some, 1] + (0 if kind == "spatial" else n * queries[some, 0])
                rows = torch.from_numpy(positions).to(q.device)
                hidden = bias[frame, rows].float()
                scores = (q[frame][:, rows].float() / q.shape[-1] ** 0.5) @ k[frame].float().mT
                weights = (scores + hidden).softmax(-1)
                out = channel.merge(weights.to(v.dtype) @ v[frame])
                maps[:, some] = weights[chosen.heads].cpu().numpy()
                visible[some] = (hidden == 0).cpu().numpy()
                norms[some] = out.float().norm(dim=-1).cpu().numpy()
        if not np.isfinite(norms).all():
            raise CogVideoError(
                f"Layer {index} of this model computes numbers that are not finite (NaN): its weights are "
                "damaged, or their training has diverged. Take an earlier checkpoint."
            )

    def _value_lengths(self, channel: Any, v: Tensor) -> Tensor:
        """[H,L+T*N]: lengths of values v [F,H,K,d] once the channel's last product has taken them."""
        size, identity = v.shape[-1], torch.eye(self.model.config.hidden_size, dtype=v.dtype, device=v.device)
        # Its columns, whatever they are stored in: the product of each unit vector, without the bias.
        columns = channel.dense(identity) - channel.dense(torch.zeros_like(identity[:1]))
        out = columns.float().unflatten(0, (-1, size))  # [H,d,D]
        lengths = ((v.float() @ (out @ out.mT)) * v.float()).sum(-1).clamp(min=0).sqrt()  # [F,H,K]
        text, own = lengths.split([len(self.text_ids), lengths.shape[-1] - len(self.text_ids)], -1)
        return torch.cat([text[0], rearrange(own, "f h n -> h (f n)")], -1)


def to_patches(keys: np.ndarray, text_length: int, height: int, width: int) -> Patches:
    """Keys [..., L+F*N] (weights or bools) -> words, begins, patch grids; the last patch, no key, gets 0."""
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
    conditioning: Tensor | None = None,
) -> Recording:
    """Run the model over a clip once and keep the inputs of `layers` (None: all).

    text_ids [L] or [1,L], frames [T,N] or [1,T,N]; text_mask [L] or [1,L] is true at real tokens;
    conditioning [1,T,1 or N,D]: what the frames' inputs get besides tokens and positions.
    """
    text_ids, frames, text_mask = one_clip(model, text_ids, frames, text_mask)
    wanted = numbers("layers", layers, model.config.num_layers)
    x, text, spatial, temporal = model.prepare(text_ids, frames, text_mask, conditioning)
    inputs, memories = {}, {}
    for index, (block, memory) in enumerate(zip(model.blocks, text.layers, strict=True)):
        if index in wanted:
            inputs[index], memories[index] = x, memory
        if index == max(wanted):
            break
        x = block(x, memory, spatial, None if temporal is None else temporal[index % len(temporal)])
    shown = text_ids[0], text_mask[0], frames[0]
    return Recording(model, *shown, inputs, memories, spatial, temporal, conditioning)


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

    layers, heads: numbers from 0; None for all. queries: (time, position) pairs; None for all positions.
    channels: of "spatial" and "temporal". words: L labels for the text, such as TextTokenizer.pieces gives.
    max_bytes: the most memory this may take beside the model (`memory_needed`); above 1 GB it is announced.
    """
    text_ids, frames, mask = one_clip(model, text_ids, frames, text_mask)
    c = model.config
    chosen = choose(c, range(c.num_layers), layers, heads, queries, channels, frames.shape[1])
    check_memory(model, text_ids[0], frames[0], chosen, max_bytes)
    recording = record(model, text_ids, frames, layers=chosen[0], text_mask=mask)
    return recording._capture(chosen, words)


def query_groups(queries: np.ndarray, kind: str) -> list[tuple[np.ndarray, int]]:
    """(rows, frame) of queries that share keys: of one frame in the spatial channel, all in the temporal."""
    if kind == "temporal":
        return [(np.arange(len(queries)), 0)]
    return [(np.flatnonzero(queries[:, 0] == time), int(time)) for time in np.unique(queries[:, 0])]
