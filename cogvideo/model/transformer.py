"""The transformer: sandwich-LN blocks with dual-channel attention (paper section 3.2).

One definition serves training, prefill and decoding. The text never sees the frames, so it is computed once
(`encode_text`) and its keys and values begin the caches that every chunk of frame positions attends to. A
chunk is all frames at once in training, the given frames in prefill, one position in each of a few frames in
decoding.

Shapes: B clips, F frames of a chunk, Q positions of each, L text tokens, T frames, N tokens a frame, H heads,
D hidden, d = D / H, V image tokens.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model import masks
from cogvideo.model.attention import (
    Bias,
    additive_bias,
    attend,
    block_sparse_bias,
    compute_dtype,
    hidden_bias,
    without_cudnn_attention,
)
from cogvideo.model.cache import CacheWrite, KVCache
from cogvideo.model.initialization import (
    EMBEDDING_SCALE,
    codebook_embedding,
    grid_positions,
    initialize_weights,
)
from cogvideo.model.losses import linear_cross_entropy, token_scores


def split_heads(x: Tensor, parts: list[int], num_heads: int) -> tuple[Tensor, ...]:
    """[*,P,sum(parts)*H*d] -> a tensor [part,*,H,P,d] for each part.

    Not by einops, whose bookkeeping would count in a decoding step.
    """
    heads = x.unflatten(-1, (sum(parts), num_heads, -1)).movedim(-3, 0).transpose(-3, -2)
    return heads.split_with_sizes(parts)


def join_heads(x: Tensor) -> Tensor:
    """[*,H,P,d] -> [*,P,D]."""
    return x.transpose(-3, -2).flatten(-2)


class Channel(nn.Module):
    """The projections of one attention channel."""

    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """[*,P,D] -> queries [*,H,P,d], keys and values [2,*,H,P,d]."""
        q, kv = split_heads(self.qkv(x), [1, 2], self.num_heads)
        return q.squeeze(0), kv

    def merge(self, out: Tensor) -> Tensor:
        """[*,H,P,d] -> [*,P,D]."""
        return self.dense(join_heads(out))


class Mlp(nn.Module):
    def __init__(self, hidden_size: int):
        super().__init__()
        self.up = nn.Linear(hidden_size, 4 * hidden_size)
        self.down = nn.Linear(4 * hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))


@dataclass
class LayerMemory:
    """What a chunk attends to besides itself in one layer: the text, in decoding also earlier positions."""

    spatial: KVCache
    temporal: KVCache | None = None


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
        # sigmoid(gate) weighs the spatial channel, for every hidden dimension
        self.gate = nn.Parameter(torch.zeros(hidden_size)) if temporal else None
        self.mlp = Mlp(hidden_size)

    def encode_text(self, x: Tensor, bias: Tensor) -> tuple[Tensor, LayerMemory]:
        """Text [B,L,D] attends to itself; returns it with its keys and values for both channels."""
        h = self.attention_norm(x)
        q, kv = self.spatial.project(h)
        temporal = None if self.temporal is None else KVCache(self.temporal.project(h)[1])
        k, v = kv.unbind(0)
        x = self.add_attention(x, self.spatial.merge(attend(q, k, v, bias)))
        return x, LayerMemory(KVCache(kv), temporal)

    def forward(
        self,
        x: Tensor,
        memory: LayerMemory,
        spatial_bias: Tensor,
        temporal_bias: Bias | None = None,
        write: tuple[CacheWrite | None, CacheWrite | None] = (None, None),
    ) -> Tensor:
        """A chunk x [B,F,Q,D] of frame positions; without a temporal bias, by the inherited image model.

        spatial_bias [B,F or 1,1,Q,K] over text and the frame's own positions, temporal_bias [B or 1,1,F*Q,K]
        over text and the positions of all frames; write: where the caches of both channels keep the chunk, if
        they do.
        """
        q, kv, *later = self.project(self.attention_norm(x), temporal_bias is not None)  # [..,B,F,H,Q,d]
        spatial = join_heads(memory.spatial.attend(q, kv, spatial_bias, write[0]))
        if temporal_bias is None or memory.temporal is None:
            return self.add_attention(x, self.spatial.dense(spatial))
        q, kv = later
        q, kv = q.transpose(1, 2).flatten(2, 3), kv.transpose(2, 3).flatten(3, 4)  # [..,B,H,F*Q,d]
        temporal = join_heads(memory.temporal.attend(q, kv, temporal_bias, write[1]))
        return self.add_attention(x, self.merge(spatial, temporal.view(x.shape)))

    def with_text(
        self, text: Tensor, x: Tensor, text_bias: Tensor, spatial_bias: Tensor, temporal_bias: Bias | None
    ) -> tuple[Tensor, Tensor]:
        """Text [B,L,D] and a chunk [B,F,Q,D] through this layer; text_bias [B,1,1,L] hides padding."""
        text, memory = self.encode_text(text, text_bias)
        return text, self.forward(x, memory, spatial_bias, temporal_bias)

    def project(self, h: Tensor, both: bool) -> tuple[Tensor, ...]:
        """[B,F,Q,D] -> queries [B,F,H,Q,d], keys and values [2,..] of the spatial and, with `both`, of the
        temporal channel."""
        spatial = self.spatial.project(h)
        return (*spatial, *self.temporal.project(h)) if both and self.temporal is not None else spatial

    def merge(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """What both channels read [*,D] -> the attention output [*,D], mixed by the gate."""
        assert self.temporal is not None and self.gate is not None
        weight = torch.sigmoid(self.gate)
        return weight * self.spatial.dense(spatial) + (1 - weight) * self.temporal.dense(temporal)

    def add_attention(self, x: Tensor, out: Tensor) -> Tensor:
        """Close the layer: the attention output [*,D] joins the stream, then the MLP."""
        x = x + self.attention_out_norm(out)
        return x + self.mlp_out_norm(self.mlp(self.mlp_norm(x)))


@dataclass
class EncodedText:
    """The text after all layers: what each layer keeps of it, and the bias [B,1,1,L] that hides padding."""

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
        places = int(masks.place(c, c.placed_rounds + 1, 0))
        self.place_embedding = nn.Embedding(places, c.hidden_size) if c.placed_rounds else None
        blocks = nn.ModuleList(Block(c.hidden_size, c.num_heads, c.temporal) for _ in range(c.num_layers))
        self.blocks = cast("list[Block]", blocks)  # for readers of types: torch knows only of modules
        self.final_norm = nn.LayerNorm(c.hidden_size)
        self.image_head: nn.Module | None = None  # stands in for the tied matrix in decoding (sampling.cpu)
        self._masks: dict[str, Tensor] = {}

    def initialize(self, seed: int = 0, codebook: Tensor | None = None) -> "CogVideoTransformer":
        """Random weights for training from nothing; frame positions start from `grid_positions`.

        codebook [image_tokens, C]: image tokens start from `codebook_embedding`, which halves the steps that
        the demo's image model needs.
        """
        c = self.config
        initialize_weights(self, c.num_layers, seed)
        if codebook is not None:
            embedding = codebook_embedding(codebook, c.hidden_size, seed)
            self.word_embedding.weight.data[: c.image_tokens] = embedding
        grid = EMBEDDING_SCALE * grid_positions(c.frame_height, c.frame_width, c.hidden_size)
        first = c.first_frame_position
        self.base_position_embedding.weight.data[first : first + c.frame_tokens] = grid
        if self.extra_position_embedding is not None:
            rows = torch.arange(c.extra_positions) % c.frame_tokens
            self.extra_position_embedding.weight.data.copy_(grid[rows])
        return self

    def temporal_parameters(self) -> dict[str, nn.Parameter]:
        """The weights that the image model does not have: all that stages 1 and 2 train."""
        added = (".temporal.", ".gate", "extra_position_embedding", "place_embedding")
        return {name: p for name, p in self.named_parameters() if any(part in name for part in added)}

    def position_vectors(self, time: int) -> Tensor:
        """[N,D] of the positions of the frame at `time`."""
        in_base, first = masks.first_position(self.config, time)
        table = self.base_position_embedding if in_base else self.extra_position_embedding
        assert table is not None
        return table.weight[first : first + self.config.frame_tokens]

    def place_vectors(self, round_: int | Tensor, numbers: Tensor) -> Tensor | None:
        """`conditioning` [*,1,D] of frames [*] that a round of interpolation reads or makes, by their numbers
        in the clip (masks.place); None for a model that is not told.
        """
        if self.place_embedding is None:
            return None
        return self.place_embedding(masks.place(self.config, round_, numbers))[..., None, :]

    def embed_text(self, text_ids: Tensor, text_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Text [B,L] -> its input [B,L,D], and the bias [B,1,1,L] that hides its padding; see encode_text."""
        mask = torch.ones_like(text_ids, dtype=torch.bool) if text_mask is None else text_mask.bool()
        x = self.word_embedding(text_ids) + self.base_position_embedding(masks.text_positions(mask))
        return x, hidden_bias(mask[:, None, None, :], compute_dtype(x))

    def embed_frames(
        self, frames: Tensor, times: list[int] | None = None, conditioning: Tensor | None = None
    ) -> Tensor:
        """Tokens [B,F,N] of the frames at `times` (None: 0..) -> the inputs [B,F,N,D], position by position.

        conditioning [B or 1,F,1 or N,D]: added to them, as in all that takes frames.
        """
        begin = torch.full_like(frames[..., :1], self.config.begin_of_image)
        rows = [self.position_vectors(time) for time in times or range(frames.shape[1])]
        x = self.word_embedding(torch.cat([begin, frames[..., :-1]], -1)) + torch.stack(rows)
        return x if conditioning is None else x + conditioning

    def encode_text(self, text_ids: Tensor, text_mask: Tensor | None = None) -> EncodedText:
        """Run the text [B,L] through all layers; text_mask [B,L] is true at real tokens (padding: left)."""
        x, bias = self.embed_text(text_ids, text_mask)
        layers = []
        for block in self.blocks:
            x, memory = block.encode_text(x, bias)
            layers.append(memory)
        return EncodedText(layers, bias)

    def run(
        self,
        x: Tensor,
        layers: list[LayerMemory],
        spatial_bias: Tensor,
        temporal_bias: list[Tensor] | None,
        write: tuple[CacheWrite | None, CacheWrite | None] = (None, None),
    ) -> Tensor:
        """All layers over a chunk [B,F,Q,D]; temporal_bias: of even and odd layers, or one for all."""
        for index, (block, memory) in enumerate(zip(self.blocks, layers, strict=True)):
            temporal = None if temporal_bias is None else temporal_bias[index % len(temporal_bias)]
            x = block(x, memory, spatial_bias, temporal, write)
        return x

    def head(self, x: Tensor) -> Tensor:
        """[*,D] -> image-token logits [*,V] in fp32, tied to the word embedding."""
        x = self.final_norm(x)
        if self.image_head is not None:
            return self.image_head(x.float())
        return token_scores(x, self.word_embedding.weight[: self.config.image_tokens])

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

    def prepare(
        self,
        text_ids: Tensor,
        frames: Tensor,
        text_mask: Tensor | None = None,
        conditioning: Tensor | None = None,
    ) -> tuple[Tensor, EncodedText, Tensor, list[Tensor] | None]:
        """For all frames at once: inputs [B,T,N,D], the text, the biases of both channels for `run`."""
        self._check(text_ids, frames)
        text, t = self.encode_text(text_ids, text_mask), frames.shape[1]
        temporal = None
        if self.config.temporal:
            temporal = [
                additive_bias(mask, text.bias) for mask in self._temporal_visible(t, text.bias.device)
            ]
        x = self.embed_frames(frames, conditioning=conditioning)
        return x, text, self._spatial_bias(text.bias, t), temporal

    def _spatial_bias(self, text_bias: Tensor, t: int) -> Tensor:
        """[B,t,1,N,L+N] from the text's [B,1,1,L]."""
        return additive_bias(self.mask("spatial", text_bias.device)[:t, None], text_bias[:, None])

    def _temporal_visible(self, t: int, device: torch.device) -> list[Tensor]:
        """Temporal masks [t*N,t*N] of even and odd layers, or one of all layers."""
        p = t * self.config.frame_tokens
        return [self.mask(f"temporal_{i}", device)[:p, :p] for i in range(2 if self.config.window else 1)]

    def forward(
        self,
        text_ids: Tensor,
        frames: Tensor,
        text_mask: Tensor | None = None,
        conditioning: Tensor | None = None,
    ) -> Tensor:
        """Logits [B,T*N,V] fp32 of every frame token given the text and what its mask lets it see.

        text_ids [B,L], frames [B,T,N] tokens, text_mask [B,L] (1 = real token; padding on the left).
        """
        x, text, spatial, temporal = self.prepare(text_ids, frames, text_mask, conditioning)
        return rearrange(self.head(self.run(x, text.layers, spatial, temporal)), "b t n v -> b (t n) v")

    def token_losses(
        self,
        text_ids: Tensor,
        frames: Tensor,
        text_mask: Tensor | None = None,
        conditioning: Tensor | None = None,
    ) -> Tensor:
        """Cross entropy [B,T,N] (nats) of every frame token, those of untrained frames as well."""
        logits = self(text_ids, frames, text_mask, conditioning).flatten(0, 1)
        return F.cross_entropy(logits, frames.flatten().long(), reduction="none").view(frames.shape)

    def loss(self, text_ids: Tensor, frames: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Mean cross entropy over the frames that this stage trains (masks.trained_frames)."""
        return self.frame_losses(text_ids, frames, text_mask).mean()

    @without_cudnn_attention()
    def frame_losses(
        self,
        text_ids: Tensor,
        frames: Tensor,
        text_mask: Tensor | None = None,
        *,
        recompute: bool = False,
        conditioning: Tensor | None = None,
    ) -> Tensor:
        """Mean cross entropy of every frame that this stage trains, without storing all scores.

        recompute: keep only the inputs of blocks, and compute a block again when its gradient is due.
        conditioning: see `embed_frames`.
        """
        c, t = self.config, frames.shape[1]
        trained = [time for time in masks.trained_frames(c) if time < t]
        if not trained:
            raise CogVideoError(
                f"None of these {t} frames is trained by this stage: give all {c.num_frames}."
            )
        self._check(text_ids, frames)
        text, text_bias = self.embed_text(text_ids, text_mask)
        x = self.embed_frames(frames, conditioning=conditioning)
        spatial, temporal = self._spatial_bias(text_bias, t), [None]
        if c.temporal:
            own = replace(c, num_frames=t)
            visible = self._temporal_visible(t, x.device)
            temporal = [
                block_sparse_bias(own, parity, mask, text_bias) for parity, mask in enumerate(visible)
            ]
        for index, block in enumerate(self.blocks):
            inputs = (text, x, text_bias, spatial, temporal[index % len(temporal)])
            if recompute:
                text, x = checkpoint(block.with_text, *inputs, use_reentrant=False)
            else:
                text, x = block.with_text(*inputs)
        hidden = rearrange(self.final_norm(x[:, trained]), "b t n d -> (b t n) d")
        targets = frames[:, trained].long()
        losses = linear_cross_entropy(hidden, self.word_embedding.weight[: c.image_tokens], targets.flatten())
        return losses.view(targets.shape).mean((0, 2))

    def _check(self, text_ids: Tensor, frames: Tensor) -> None:
        c = self.config
        if text_ids.ndim != 2 or frames.ndim != 3 or len(text_ids) != len(frames):
            raise CogVideoError(
                f"Expected text_ids [B,L] and frames [B,T,N], not {list(text_ids.shape)} and "
                f"{list(frames.shape)}."
            )
        if not 1 <= frames.shape[1] <= c.num_frames or frames.shape[2] != c.frame_tokens:
            raise CogVideoError(
                f"This model takes up to {c.num_frames} frames of {c.frame_tokens} tokens, "
                f"not {frames.shape[1]} of {frames.shape[2]}."
            )
