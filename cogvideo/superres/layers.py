"""What direct and iterative super-resolution share: the sandwich-LN block with local attention, the head, the files.

Both hold *given* places (text, and the low-resolution image) that attend densely among themselves, and *drawn* places, a
map of image tokens that attends to windows (reference SR_VQ_I3D, sections 1 to 4).

Shapes: B samples, L text slots, G given places, N drawn places, H heads, D hidden, d = D / H, V image tokens.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideo.checkpoints.native import read_folder, save_model
from cogvideo.checkpoints.sat import fill_model, our_name, read_sat_folder
from cogvideo.errors import CogVideoError
from cogvideo.model.attention import attend
from cogvideo.model.initialization import initialize_weights
from cogvideo.model.transformer import Channel, Mlp
from cogvideo.runtime.tensors import meta_of
from cogvideo.superres.local_attention import Tiles, local_attention

if TYPE_CHECKING:
    from typing_extensions import Self


class LocalBlock(nn.Module):
    """`x = x + LN3(attention(LN1(x)))`, `x = x + LN4(mlp(LN2(x)))` for the given and for the drawn places.

    Norms and MLP are shared; the drawn places have projections of their own, `drawn`, if `separate`.
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
        """given [B,G,D], drawn [B,N,D]; bias [B,1,G,G] of the given places; their last `seen` are keys of the tiles."""
        channel = self.given if self.drawn is None else self.drawn
        q, k, v = self.given.project(self.attention_norm(given))
        drawn_q, drawn_k, drawn_v = channel.project(self.attention_norm(drawn))
        first = given.shape[1] - seen
        keys = torch.cat([k[..., first:, :], drawn_k], -2)
        values = torch.cat([v[..., first:, :], drawn_v], -2)
        given = self._close(given, self.given.merge(attend(q, k, v, bias)))
        return given, self._close(drawn, channel.merge(local_attention(drawn_q, keys, values, tiles)))

    def _close(self, x: Tensor, out: Tensor) -> Tensor:
        """The attention output joins the stream, then the MLP."""
        x = x + self.attention_out_norm(out)
        return x + self.mlp_out_norm(self.mlp(self.mlp_norm(x)))


class SuperResolution(nn.Module):
    """Embeddings, blocks, head and files; a subclass builds the sequence."""

    config_class: ClassVar[type]
    separate: ClassVar[bool]  # the drawn places have projections of their own
    released_geometry: ClassVar[
        Callable[[int], dict[str, int]]
    ]  # settings that follow from a release's drawn places

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
    def from_config(cls, config: Any, seed: int = 0) -> "Self":
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
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        block_done: Callable[[nn.Module], Any] | None = None,
    ) -> "Self":
        """Load the release's folder or its state dict, in eval mode; dtype None keeps the type of the weights.

        block_done: see fill_model. Raises CogVideoError for missing, damaged or wrong-shaped weights and for a model that is
        too large for the device.
        """
        weights, where = read_released(source)
        config = cls.released_config(
            weights, num_heads=num_heads, image_tokens=image_tokens, begin_of_image=begin_of_image
        )
        return fill_model(
            lambda: cls(config), weights, where=where, device=device, dtype=dtype, block_done=block_done
        )

    @classmethod
    def released_config(
        cls, weights: Mapping[str, Tensor], *, num_heads: int, image_tokens: int, begin_of_image: int
    ) -> Any:
        """The configuration that weights of the release (see read_released) belong to, from their shapes."""
        meta = meta_of(weights)
        vocab_size, hidden_size = meta["word_embedding.weight"].shape
        layers = {int(name.split(".")[1]) for name in meta if name.startswith("blocks.")}
        if layers != set(range(len(layers))):  # before so many are made
            raise ValueError(f"layers between, up to number {max(layers)}")
        return cls.config_class(
            num_layers=len(layers),
            hidden_size=hidden_size,
            num_heads=num_heads,
            vocab_size=vocab_size,
            image_tokens=image_tokens,
            begin_of_image=begin_of_image,
            base_positions=len(meta["base_position_embedding.weight"]),
            **cls.released_geometry(len(meta["extra_position_embedding.weight"])),
        )

    def head(self, x: Tensor) -> Tensor:
        """[*,D] -> image-token logits [*,V] in fp32, tied to the word embedding."""
        return F.linear(
            self.final_norm(x).float(), self.word_embedding.weight[: self.config.image_tokens].float()
        )

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors (in `dtype`, or as the model is)."""
        save_model(self, folder, dtype=dtype)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = torch.float32,
        block_done: Callable[[nn.Module], Any] | None = None,
    ) -> "Self":
        """Read a folder written by save_pretrained, in eval mode; CogVideoError for missing or damaged files.

        block_done: see fill_model.
        """
        config, weights = read_folder(folder, cls.config_class)
        return fill_model(
            lambda: cls(config), weights, where=str(folder), device=device, dtype=dtype, block_done=block_done
        )


def read_released(source: str | Path | dict[str, Tensor]) -> tuple[Mapping[str, Tensor], str]:
    """Weights under our names from a released folder or its state dict, and what to call it in errors."""
    renamed: Mapping[str, Tensor]
    if isinstance(source, dict):
        table: Any = source.get("module", source)
        renamed = {ours: tensor for name, tensor in table.items() if (ours := our_superres_name(name))}
        where = "the state dict"
    else:
        renamed, where = read_sat_folder(source)[0].renamed(our_superres_name), str(source)
    for name in (
        "word_embedding.weight",
        "base_position_embedding.weight",
        "extra_position_embedding.weight",
    ):
        if name not in renamed:
            raise CogVideoError(
                f"{where} is no super-resolution checkpoint: it has no {name}; choose another folder."
            )
    return renamed, where


def our_superres_name(released: str) -> str | None:
    """The name in a SuperResolution of a released weight, or None; the two channels have other names than in CogVideo."""
    name = our_name(released)
    return name and name.replace(".spatial.", ".given.").replace(".temporal.", ".drawn.")


def text_visible(text_ids: Tensor, text_mask: Tensor | None) -> Tensor:
    """[B,L] bool: the real text tokens; all of them without a mask."""
    if text_mask is not None and text_mask.shape != text_ids.shape:
        raise CogVideoError(
            f"text_mask {list(text_mask.shape)} should have the shape of text_ids {list(text_ids.shape)}."
        )
    return torch.ones_like(text_ids, dtype=torch.bool) if text_mask is None else text_mask.bool()


def check_shape(name: str, tensor: Tensor, batch: int, places: int) -> None:
    if tensor.shape != (batch, places):
        raise CogVideoError(f"{name} should be [{batch},{places}] token ids, not {list(tensor.shape)}.")
