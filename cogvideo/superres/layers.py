"""What direct and iterative super-resolution share: the sandwich-LN block with local attention, and the head.

Both hold *given* tokens (text, and the low-resolution image) that attend densely among themselves, and
*drawn* tokens, a map of image tokens that attends to windows (reference SR_VQ_I3D, sections 1 to 4). Shapes:
B samples, L text slots, G given tokens, N drawn tokens, H heads, D hidden, d = D / H, V image tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from cogvideo.errors import CogVideoError
from cogvideo.model.attention import attend, hidden_bias
from cogvideo.model.initialization import initialize_weights
from cogvideo.model.losses import token_scores
from cogvideo.model.masks import text_positions
from cogvideo.model.strategies import Generators, Strategy, draw
from cogvideo.model.transformer import Channel, Mlp
from cogvideo.superres.local_attention import Tiles, local_attention


class LocalBlock(nn.Module):
    """`x = x + LN3(attention(LN1(x)))`, `x = x + LN4(mlp(LN2(x)))` for the given and for the drawn tokens.

    Norms and MLP are shared; the drawn tokens have projections of their own, `drawn`, if `separate`.
    """

    def __init__(self, hidden_size: int, num_heads: int, separate: bool):
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.attention_out_norm = nn.LayerNorm(hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size)
        self.mlp_out_norm = nn.LayerNorm(hidden_size)
        self.given = Channel(hidden_size, num_heads)
        self.drawn = Channel(hidden_size, num_heads) if separate else None
        self.mlp = Mlp(hidden_size)

    def forward(
        self, given: Tensor, drawn: Tensor, bias: Tensor, tiles: Tiles, seen: int
    ) -> tuple[Tensor, Tensor]:
        """given [B,G,D], drawn [B,N,D], bias [B,1,G,G]; tiles see the last `seen` given tokens."""
        channel = self.given if self.drawn is None else self.drawn
        q, (k, v) = self.given.project(self.attention_norm(given))
        drawn_q, (drawn_k, drawn_v) = channel.project(self.attention_norm(drawn))
        first = given.shape[1] - seen
        keys = torch.cat([k[..., first:, :], drawn_k], -2)
        values = torch.cat([v[..., first:, :], drawn_v], -2)
        given = self._close(given, self.given.merge(attend(q, k, v, bias)))
        return given, self._close(drawn, channel.merge(local_attention(drawn_q, keys, values, tiles)))

    def _close(self, x: Tensor, out: Tensor) -> Tensor:
        """The attention output joins the stream, then the MLP."""
        x = x + self.attention_out_norm(out)
        return x + self.mlp_out_norm(self.mlp(self.mlp_norm(x)))


@dataclass(frozen=True)
class MapConfig:
    """The geometry that both super-resolutions have; the defaults are the release's."""

    num_layers: int
    hidden_size: int
    num_heads: int
    vocab_size: int  # rows of the word embedding
    image_tokens: int  # ids 0 .. image_tokens-1 are frame tokens, the only ones that are predicted
    begin_of_image: int  # the input at positions to be drawn

    def check(self, needed: int, base_positions: int) -> None:
        """CogVideoError unless heads divide the hidden size and the position table has the rows needed."""
        if self.hidden_size % self.num_heads:
            raise CogVideoError(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}."
            )
        if needed > base_positions:
            raise CogVideoError(f"base_positions {base_positions} is too small: {needed} are needed.")


class SuperResolution(nn.Module):
    """Embeddings, blocks and head; a subclass builds the sequence."""

    config_class: ClassVar[type]
    separate: ClassVar[bool]  # the drawn tokens have projections of their own

    def __init__(self, config: Any):
        super().__init__()
        self.config = c = config
        self.word_embedding = nn.Embedding(c.vocab_size, c.hidden_size)
        self.base_position_embedding = nn.Embedding(c.base_positions, c.hidden_size)
        self.extra_position_embedding = nn.Embedding(c.high_tokens, c.hidden_size)
        self.blocks = nn.ModuleList(
            LocalBlock(c.hidden_size, c.num_heads, self.separate) for _ in range(c.num_layers)
        )
        self.final_norm = nn.LayerNorm(c.hidden_size)

    @classmethod
    def from_config(cls, config: Any, seed: int = 0) -> Self:
        """A model with random weights, for training from nothing."""
        model = cls(config)
        initialize_weights(model, config.num_layers, seed)
        return model

    @classmethod
    def from_sat(
        cls,
        source: str | Path | dict[str, Tensor],
        *,
        num_heads: int,
        image_tokens: int = 20000,
        begin_of_image: int = 150000,
        **load: Any,
    ) -> Self:
        """Load the release's folder or its state dict, in eval mode.

        load: device ("cpu"), dtype (None: as in the files), block_done; see checkpoints.superres.
        """
        from cogvideo.checkpoints.superres import Ids, load_sat_superres

        ids: Ids = {"image_tokens": image_tokens, "begin_of_image": begin_of_image}
        return load_sat_superres(cls, source, num_heads=num_heads, ids=ids, **load)

    def head(self, x: Tensor) -> Tensor:
        """[*,D] -> image-token logits [*,V] in fp32, tied to the word embedding."""
        return token_scores(self.final_norm(x), self.word_embedding.weight[: self.config.image_tokens])

    def embed_text(self, text_ids: Tensor, real: Tensor) -> Tensor:
        return self.word_embedding(text_ids) + self.base_position_embedding(text_positions(real))

    def draw_each(
        self, hidden: Sequence[Tensor], strategy: Strategy, generator: Generators, step: int = 0
    ) -> list[Tensor]:
        """Tokens [n] drawn from the hidden states [n,D] of each sample."""
        generators = generator if isinstance(generator, Sequence) else [generator] * len(hidden)
        # One sample at a time: logits of the release's size take 288 MB each.
        samples = zip(hidden, generators, strict=True)
        return [draw(strategy, self.head(x), step, own) for x, own in samples]

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors (in `dtype`, or as the model is)."""
        from cogvideo.checkpoints.native import save_model

        save_model(self, folder, dtype=dtype)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = torch.float32,
        block_done: Callable[[nn.Module], Any] | None = None,
    ) -> Self:
        """Read what save_pretrained wrote, in eval mode; block_done: see checkpoints.sat.fill_model."""
        from cogvideo.checkpoints.native import load_native

        return load_native(cls, cls.config_class, folder, device=device, dtype=dtype, block_done=block_done)


def text_visible(text_ids: Tensor, text_mask: Tensor | None) -> Tensor:
    """[B,L] bool: the real text tokens; all of them without a mask."""
    if text_mask is not None and text_mask.shape != text_ids.shape:
        raise CogVideoError(
            f"text_mask {list(text_mask.shape)} should have the shape of text_ids {list(text_ids.shape)}."
        )
    return torch.ones_like(text_ids, dtype=torch.bool) if text_mask is None else text_mask.bool()


def given_bias(real: Tensor, image_tokens: int, dtype: torch.dtype) -> Tensor:
    """[B,1,G,G] for text, whose tokens `real` [B,L] are seen, and image tokens, which see all of it."""
    batch, length = real.shape
    # Padding sees itself, so that its (unused) softmax is over something.
    visible = torch.eye(length + image_tokens, dtype=torch.bool, device=real.device).repeat(batch, 1, 1)
    visible[:, :, :length] |= real[:, None, :]
    visible[:, length:, length:] = True
    return hidden_bias(visible[:, None], dtype)


def check_shape(name: str, tensor: Tensor, batch: int, tokens: int) -> None:
    if tensor.shape != (batch, tokens):
        raise CogVideoError(f"{name} should be [{batch},{tokens}] token ids, not {list(tensor.shape)}.")
