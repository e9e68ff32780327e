"""The demo's own frame tokenizer network: a vector-quantised auto-encoder whose codes are local.

A token sees 14 x 14 px only (its own 8 x 8 and 3 px around), so the same patch gives the same code wherever it stands,
black ground is one code, and motion in steps of 8 px shifts codes exactly. A transformer learns such codes faster.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn


class LocalVQVAE(nn.Module):
    """Encoder [B,3,H,W] -> vectors [B,H/8,W/8,dim]; codebook [codes,dim]; decoder back to [B,3,H,W]. Frames in 0..1.

    The encoder has no 3x3 convolution: 4/2, 4/2, 2/2, then 1x1. The decoder keeps its 3x3, so that neighbours agree on
    what lies between them. Replicated borders make the outside of a frame look like its edge, not like black.
    """

    rates = (8,)

    def __init__(
        self,
        codes: int = 1024,
        dim: int = 16,
        encoder: Sequence[int] = (48, 96, 192),
        decoder: Sequence[int] = (192, 96, 48, 24),
    ):
        super().__init__()
        sizes = {"codes": codes, "dim": dim, "encoder": list(encoder), "decoder": list(decoder)}
        self.architecture = {"kind": "local"} | sizes
        a, b, c = encoder
        self.encoder = nn.Sequential(
            nn.Conv2d(3, a, 4, 2, 1, padding_mode="replicate"), nn.SiLU(),
            nn.Conv2d(a, b, 4, 2, 1, padding_mode="replicate"), nn.SiLU(),
            nn.Conv2d(b, c, 2, 2), nn.SiLU(),
            nn.Conv2d(c, c, 1), nn.SiLU(),
            nn.Conv2d(c, dim, 1),
        )  # fmt: skip
        self.codebook: Tensor
        self.register_buffer("codebook", torch.zeros(codes, dim))  # learned by moving averages, not by gradients

        def conv3(inside: int, outside: int) -> nn.Conv2d:
            return nn.Conv2d(inside, outside, 3, 1, 1, padding_mode="replicate")

        e, f, g, h = decoder
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, e, 1), nn.SiLU(),
            conv3(e, e), nn.SiLU(), nn.Upsample(scale_factor=2),
            conv3(e, f), nn.SiLU(), nn.Upsample(scale_factor=2),
            conv3(f, g), nn.SiLU(), nn.Upsample(scale_factor=2),
            conv3(g, h), nn.SiLU(),
            conv3(h, 3),
        )  # fmt: skip
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                # Without normalisation layers PyTorch's default start shrinks the signal a thousandfold in ten layers.
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def vectors(self, frames: Tensor, compress: int = 8) -> Tensor:
        """[B,3,H,W] in 0..1 -> what is quantised, [B,H/8,W/8,dim]."""
        return rearrange(self.encoder(frames * 2 - 1), "b c h w -> b h w c")

    def frames(self, vectors: Tensor, compress: int = 8) -> Tensor:
        """Rows of the codebook [B,h,w,dim] -> [B,3,8h,8w] in 0..1 units, not clamped."""
        return self.decoder(rearrange(vectors, "b h w c -> b c h w"))
