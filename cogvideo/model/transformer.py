"""The transformer: sandwich-LN blocks with dual-channel attention (paper section 3.2).

One definition serves training, prefill and decoding. The text never sees the frames, so it is computed once
(`encode_text`) and its keys and values become the memory that every chunk of frame places attends to. A chunk is all
frames at once in training, the given frames in prefill, one place per frame in decoding.

Shapes: B clips, F frames of a chunk, Q places of each, L text slots, T frames, N places a frame, H heads, D hidden,
d = D / H, V image tokens.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model import masks
from cogvideo.model.attention import Pieces, attend, compute_dtype, hidden_bias, temporal_pieces
from cogvideo.model.initialization import (
    EMBEDDING_SCALE,
    codebook_embedding,
    grid_positions,
    initialize_weights,
)
from cogvideo.model.losses import linear_cross_entropy

KeysValues = tuple[Tensor, Tensor]  # each [B,H,places,d]
QueriesKeysValues = tuple[Tensor, Tensor, Tensor]


class Channel(nn.Module):
    """The projections of one attention channel."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[*,P,D] -> q, k, v, each [*,H,P,d]."""
        q, k, v = rearrange(self.qkv(x), "... p (three h d) -> three ... h p d", three=3, h=self.num_heads)
        return q, k, v

    def merge(self, out: Tensor) -> Tensor:
        """[*,H,P,d] -> [*,P,D]."""
        return self.dense(rearrange(out, "... h p d -> ... p (h d)"))


class Mlp(nn.Module):
    def __init__(self, hidden_size: int):
        super().__init__()
        self.up = nn.Linear(hidden_size, 4 * hidden_size)
        self.down = nn.Linear(4 * hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


class Block(nn.Module):
    """`x = x + LN3(attention(LN1(x)))`, `x = x + LN4(mlp(LN2(x)))`."""

    def __init__(self, hidden_size: int, num_heads: int, temporal: bool):
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention_out_norm = nn.LayerNorm(hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp_out_norm = nn.LayerNorm(hidden_size)
        self.spatial = Channel(hidden_size, num_heads)
        self.temporal = Channel(hidden_size, num_heads) if temporal else None
        # a = sigmoid(gate): the share of the spatial channel, for every hidden dimension
        self.gate = nn.Parameter(torch.zeros(hidden_size)) if temporal else None
        self.mlp = Mlp(hidden_size)

    def add_attention(self, x: Tensor, out: Tensor) -> Tensor:
        """Close the layer: the attention output [*,D] of the same places joins the stream, then the MLP."""
        x = x + self.attention_out_norm(out)
        return x + self.mlp_out_norm(self.mlp(self.mlp_norm(x)))

    def encode_text(self, x: Tensor, bias: Tensor) -> tuple[Tensor, KeysValues, KeysValues | None]:
        """Text [B,L,D] attends to itself; returns it with its keys and values for both channels."""
        h = self.attention_norm(x)
        q, k, v = self.spatial.project(h)
        temporal = None if self.temporal is None else self.temporal.project(h)[1:]
        return self.add_attention(x, self.spatial.merge(attend(q, k, v, bias))), (k, v), temporal

    def forward(
        self, x: Tensor, memory: "LayerMemory", spatial_bias: Tensor, temporal_bias: Tensor | Pieces | None
    ) -> Tensor:
        """A chunk x [B,F,Q,D] of frame places. Without a temporal bias the block is the inherited image model's.

        spatial_bias [B,F or 1,1,Q,K] over text and the frame's own places, temporal_bias [B or 1,1,F*Q,K] over text and
        the places of all frames, or Pieces of it.
        """
        f = x.shape[1]
        (q, k, v), later = self.project(self.attention_norm(x), temporal_bias is not None)
        k, v = memory.spatial_extend(k, v)
        rows = (
            "(b f)" if memory.wave is None else "(f b)"
        )  # as they lie in memory, so that caches are not copied
        bias = rearrange(spatial_bias.expand(len(x), f, -1, -1, -1), f"b f one q k -> {rows} one q k")
        q, k, v = (rearrange(t, f"b f h p d -> {rows} h p d") for t in (q, k, v))
        out = rearrange(attend(q, k, v, bias), f"{rows} h q d -> b f q (h d)", f=f)
        if later is None:
            return self.add_attention(x, self.spatial.dense(out))
        q, k, v = (rearrange(t, "b f h q d -> b h (f q) d") for t in later)
        k, v = memory.temporal_extend(k, v)
        later = rearrange(attend(q, k, v, temporal_bias), "b h (f q) d -> b f q (h d)", f=f)
        return self.add_attention(x, self.merge(out, later))

    def both(
        self,
        text: Tensor,
        x: Tensor,
        real: Tensor,
        spatial_bias: Tensor,
        temporal_bias: Tensor | Pieces | None,
    ) -> tuple[Tensor, Tensor]:
        """Text [B,L,D] and a chunk [B,F,Q,D] through this layer; real: the bias [B,1,1,L] that hides padding."""
        text, spatial, temporal = self.encode_text(text, real)
        return text, self.forward(x, LayerMemory(spatial, temporal), spatial_bias, temporal_bias)

    def project(self, h: Tensor, both: bool) -> tuple[QueriesKeysValues, QueriesKeysValues | None]:
        """[B,F,Q,D] -> q, k, v, each [B,F,H,Q,d], of the spatial and, with `both`, of the temporal channel."""
        return self.spatial.project(h), self.temporal.project(h) if both else None  # type: ignore[union-attr]

    def merge(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """What both channels read [*,D] -> the attention output [*,D], mixed by the gate."""
        assert self.temporal is not None and self.gate is not None
        share = torch.sigmoid(self.gate)
        return share * self.spatial.dense(spatial) + (1 - share) * self.temporal.dense(temporal)


@dataclass
class Wave:
    """Where a chunk of one place in each of several frames is written, and how much of the caches is live.

    rows: the frames' part of the spatial cache, a slice so that reading it copies nothing (frames that are decoded
    together follow each other); places [F]: places in it; temporal [F]: places in the temporal cache.
    """

    rows: slice
    places: Tensor
    temporal: Tensor
    spatial_end: int
    temporal_end: int


@dataclass
class LayerMemory:
    """What a chunk attends to besides itself in one layer: the text, and in decoding the places computed before.

    `text_*` are keys and values [B,H,L,d]. The caches are buffers whose first L places hold the text: spatial
    [B,F,H,L+N,d] for the frames being generated, temporal [B,H,L+T*N,d]. `*_end` is where the next chunk is written, unless
    it is spread over frames (`wave`).
    """

    text_spatial: KeysValues
    text_temporal: KeysValues | None = None
    spatial_cache: KeysValues | None = None
    temporal_cache: KeysValues | None = None
    spatial_end: int = 0
    temporal_end: int = 0
    wave: Wave | None = None

    def spatial_extend(self, k: Tensor, v: Tensor) -> KeysValues:
        if self.spatial_cache is None:
            text = (repeat(t, "b h l d -> b f h l d", f=k.shape[1]) for t in self.text_spatial)
            return tuple(torch.cat(pair, -2) for pair in zip(text, (k, v), strict=True))  # type: ignore[return-value]
        if self.wave is not None:
            return self._spread(self.spatial_cache, k, v, self.wave)
        return _write(self.spatial_cache, (k, v), self.spatial_end)

    def temporal_extend(self, k: Tensor, v: Tensor) -> KeysValues:
        if self.temporal_cache is None:
            assert self.text_temporal is not None
            return tuple(torch.cat(pair, -2) for pair in zip(self.text_temporal, (k, v), strict=True))  # type: ignore[return-value]
        if self.wave is not None:
            for buffer, chunk in zip(self.temporal_cache, (k, v), strict=True):
                buffer.index_copy_(2, self.wave.temporal, chunk)
            return tuple(buffer[:, :, : self.wave.temporal_end] for buffer in self.temporal_cache)  # type: ignore[return-value]
        return _write(self.temporal_cache, (k, v), self.temporal_end)

    @staticmethod
    def _spread(cache: KeysValues, k: Tensor, v: Tensor, wave: Wave) -> KeysValues:
        """Write k, v [B,F,H,1,d] to their frames' places; return the live part of these frames [B,F,H,end,d]."""
        live = cache[0][:, wave.rows], cache[1][:, wave.rows]
        index = rearrange(wave.places, "f -> 1 f 1 1 1").expand_as(k)
        for buffer, chunk in zip(live, (k, v), strict=True):
            buffer.scatter_(-2, index, chunk)
        return live[0][..., : wave.spatial_end, :], live[1][..., : wave.spatial_end, :]


def _write(cache: KeysValues, new: KeysValues, start: int) -> KeysValues:
    """Write a chunk into the buffers at `start`; return the live part."""
    end = start + new[0].shape[-2]
    for buffer, chunk in zip(cache, new, strict=True):
        buffer[..., start:end, :] = chunk
    return cache[0][..., :end, :], cache[1][..., :end, :]


@dataclass
class EncodedText:
    """The text after all layers' projections: one LayerMemory per layer, and the score bias [B,1,1,L] of its places."""

    layers: list[LayerMemory]
    bias: Tensor


class CogVideoTransformer(nn.Module):
    """An image model (one frame) or a video model (both channels); see ModelConfig."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = c = config
        self.word_embedding = nn.Embedding(c.vocab_size, c.hidden_size)
        self.base_position_embedding = nn.Embedding(c.base_positions, c.hidden_size)
        self.extra_position_embedding = nn.Embedding(c.extra_positions, c.hidden_size) if c.temporal else None
        self.blocks = nn.ModuleList(
            Block(c.hidden_size, c.num_heads, c.temporal) for _ in range(c.num_layers)
        )
        self.final_norm = nn.LayerNorm(c.hidden_size)
        self.image_head: nn.Module | None = None  # stands in for the tied matrix in decoding (sampling.fast)
        self._masks: dict[str, Tensor] = {}

    def initialize(self, seed: int = 0, codebook: Tensor | None = None) -> "CogVideoTransformer":
        """Random weights for training from nothing (`initialize_weights`); frame places start from `grid_positions`.

        codebook [image_tokens, C]: image tokens start from `codebook_embedding`, which makes the demo's image model learn
        about twice as fast.
        """
        c = self.config
        initialize_weights(self, c.num_layers, seed)
        if codebook is not None:
            self.word_embedding.weight.data[: c.image_tokens] = codebook_embedding(
                codebook, c.hidden_size, seed
            )
        grid = EMBEDDING_SCALE * grid_positions(c.frame_height, c.frame_width, c.hidden_size)
        first = c.first_frame_position
        self.base_position_embedding.weight.data[first : first + c.frame_tokens] = grid
        if self.extra_position_embedding is not None:
            rows = torch.arange(c.extra_positions) % c.frame_tokens
            self.extra_position_embedding.weight.data.copy_(grid[rows])
        return self

    def temporal_parameters(self) -> dict[str, nn.Parameter]:
        """The weights that the image model does not have: all that stages 1 and 2 train."""
        added = (".temporal.", ".gate", "extra_position_embedding")
        return {name: p for name, p in self.named_parameters() if any(part in name for part in added)}

    def embed_places(self, ids: Tensor, times: list[int], start: int = 0) -> Tensor:
        """Inputs [B,F,Q] at places start..start+Q-1 of the frames at `times` -> [B,F,Q,D], positions added."""
        rows = [self.position_vectors(time)[start : start + ids.shape[-1]] for time in times]
        return self.word_embedding(ids) + torch.stack(rows)

    def position_vectors(self, time: int) -> Tensor:
        """[N,D] of the places of the frame at `time`."""
        in_base, first = masks.first_position(self.config, time)
        table = self.base_position_embedding if in_base else self.extra_position_embedding
        assert table is not None
        return table.weight[first : first + self.config.frame_tokens]

    def embed_text(self, text_ids: Tensor, text_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Text [B,L] -> its input [B,L,D], and the score bias [B,1,1,L] that hides its padding; see encode_text."""
        mask = torch.ones_like(text_ids, dtype=torch.bool) if text_mask is None else text_mask.bool()
        x = self.word_embedding(text_ids) + self.base_position_embedding(masks.text_positions(mask))
        return x, hidden_bias(mask[:, None, None, :], compute_dtype(x))

    def embed_frames(self, frames: Tensor) -> Tensor:
        """Tokens [B,T,N] of frames 0.. -> the inputs [B,T,N,D] from which each place predicts its own."""
        begin = torch.full_like(frames[..., :1], self.config.begin_of_image)
        return self.embed_places(torch.cat([begin, frames[..., :-1]], -1), list(range(frames.shape[1])))

    def encode_text(self, text_ids: Tensor, text_mask: Tensor | None = None) -> EncodedText:
        """Run the text [B,L] through all layers; text_mask [B,L] is true at real tokens (padding stands on the left)."""
        x, real = self.embed_text(text_ids, text_mask)
        memories = []
        for block in self.blocks:
            assert isinstance(block, Block)
            x, spatial, temporal = block.encode_text(x, real)
            memories.append(LayerMemory(spatial, temporal))
        return EncodedText(memories, real)

    def run(
        self, x: Tensor, text: EncodedText, spatial_bias: Tensor, temporal_bias: list[Tensor] | None
    ) -> Tensor:
        """All layers over a chunk [B,F,Q,D]; temporal_bias holds one bias for even and one for odd layers."""
        for index, (block, memory) in enumerate(zip(self.blocks, text.layers, strict=True)):
            x = block(x, memory, spatial_bias, None if temporal_bias is None else temporal_bias[index % 2])
        return x

    def head(self, x: Tensor) -> Tensor:
        """[*,D] -> image-token logits [*,V] in fp32, tied to the word embedding."""
        x = self.final_norm(x).float()
        if self.image_head is not None:
            return self.image_head(x)
        return F.linear(x, self.word_embedding.weight[: self.config.image_tokens].float())

    def mask(self, name: str, device: torch.device) -> Tensor:
        """Visibility masks of masks.py, made once: spatial [T,N,N]; temporal_{0,1}(_quirks) [T*N,T*N]."""
        if name not in self._masks or self._masks[name].device != device:
            kind, _, rest = name.partition("_")
            made = (
                masks.spatial_visible(self.config)
                if kind == "spatial"
                else masks.temporal_visible(self.config, int(rest[0]), release_quirks="quirks" in rest)
            )
            self._masks[name] = made.to(device)
        return self._masks[name]

    def hidden_states(self, text_ids: Tensor, frames: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """The training forward: text_ids [B,L], frames [B,T,N] -> [B,T,N,D] before the final norm."""
        return self.run(*self.prepare(text_ids, frames, text_mask))

    def prepare(
        self, text_ids: Tensor, frames: Tensor, text_mask: Tensor | None = None
    ) -> tuple[Tensor, EncodedText, Tensor, list[Tensor] | None]:
        """What `run` takes for all frames at once: their inputs [B,T,N,D], the text, the biases of both channels."""
        self._check(text_ids, frames)
        text = self.encode_text(text_ids, text_mask)
        t = frames.shape[1]
        spatial, temporal = self._spatial_bias(text.bias, t), None
        if self.config.temporal:
            biases = [
                _join(text.bias, hidden_bias(mask, text.bias.dtype)[None, None])
                for mask in self._temporal_visible(t, text.bias.device)
            ]
            temporal = [biases[0], biases[-1]]
        return self.embed_frames(frames), text, spatial, temporal

    def _spatial_bias(self, real: Tensor, t: int) -> Tensor:
        """[B,t,1,N,L+N] from the text's [B,1,1,L]."""
        return _join(
            real[:, None], hidden_bias(self.mask("spatial", real.device)[:t], real.dtype)[None, :, None]
        )

    def _temporal_visible(self, t: int, device: torch.device) -> list[Tensor]:
        """Temporal masks [t*N,t*N] of even and odd layers, or one of all layers."""
        p = t * self.config.frame_tokens
        return [
            self.mask(f"temporal_{parity}", device)[:p, :p]
            for parity in range(2 if self.config.window else 1)
        ]

    def forward(self, text_ids: Tensor, frames: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Logits [B,T*N,V] fp32 of every frame token given the text and what its mask lets it see.

        text_ids [B,L], frames [B,T,N] tokens, text_mask [B,L] (1 = real token; padding on the left).
        Raises CogVideoError when shapes do not fit the configuration.
        """
        return rearrange(self.head(self.hidden_states(text_ids, frames, text_mask)), "b t n v -> b (t n) v")

    def token_losses(self, text_ids: Tensor, frames: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Cross entropy [B,T,N] (nats) of every frame token; places of untrained frames are computed as well."""
        logits = self(text_ids, frames, text_mask)
        losses = F.cross_entropy(
            rearrange(logits, "b p v -> (b p) v"), frames.reshape(-1).long(), reduction="none"
        )
        return losses.view(frames.shape)

    def loss(self, text_ids: Tensor, frames: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Mean cross entropy over the frames that this stage trains (masks.trained_frames)."""
        return self.frame_losses(text_ids, frames, text_mask).mean()

    def frame_losses(
        self,
        text_ids: Tensor,
        frames: Tensor,
        text_mask: Tensor | None = None,
        *,
        recompute: bool = False,
        shift: Tensor | None = None,
    ) -> Tensor:
        """Mean cross entropy of every frame that this stage trains; attention in pieces, scores a few at a time.

        recompute: keep only the inputs of blocks, and compute a block again when its gradient is due. shift, to be broadcast
        to [B,T,N,D], is added to the inputs of the frames (training.moments).
        """
        c, t = self.config, frames.shape[1]
        trained = [time for time in masks.trained_frames(c) if time < t]
        if not trained:
            raise CogVideoError(f"{t} frames hold none that this stage trains: give all {c.num_frames}.")
        self._check(text_ids, frames)
        (text, real), x = self.embed_text(text_ids, text_mask), self.embed_frames(frames)
        if shift is not None:
            x = x + shift
        spatial, temporal = self._spatial_bias(real, t), None
        if c.temporal:
            own = replace(c, num_frames=t)
            visible = self._temporal_visible(t, x.device)
            temporal = [temporal_pieces(own, parity, mask, real) for parity, mask in enumerate(visible)]
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            inputs = (text, x, real, spatial, None if temporal is None else temporal[index % len(temporal)])
            text, x = (
                checkpoint(block.both, *inputs, use_reentrant=False) if recompute else block.both(*inputs)
            )
        hidden = rearrange(self.final_norm(x[:, trained]), "b t n d -> (b t n) d")
        targets = frames[:, trained].long()
        losses = linear_cross_entropy(hidden, self.word_embedding.weight[: c.image_tokens], targets.flatten())
        return losses.view(targets.shape).mean((0, 2))

    def _check(self, text_ids: Tensor, frames: Tensor) -> None:
        c = self.config
        if text_ids.ndim != 2 or frames.ndim != 3 or len(text_ids) != len(frames):
            raise CogVideoError(
                f"Expected text_ids [B,L] and frames [B,T,N], not {list(text_ids.shape)} and {list(frames.shape)}."
            )
        if not 1 <= frames.shape[1] <= c.num_frames or frames.shape[2] != c.frame_tokens:
            raise CogVideoError(
                f"This model takes up to {c.num_frames} frames of {c.frame_tokens} tokens, "
                f"not {frames.shape[1]} of {frames.shape[2]}."
            )


def _join(text_bias: Tensor, frame_bias: Tensor) -> Tensor:
    """Put the biases of text places [..,1,L] and of frame places [..,Q,K] side by side -> [..,Q,L+K]."""
    shape = torch.broadcast_shapes(text_bias.shape[:-1], frame_bias.shape[:-1])
    return torch.cat([text_bias.expand(*shape, -1), frame_bias.expand(*shape, -1)], -1)
