"""The demo's own frame tokenizer network: every token is one 8 x 8 patch, and nothing else.

The encoder has no weights: a token is the nearest entry of a codebook of patches. The same patch gives the
same code wherever it stands, black ground is one code, and motion in steps of 8 px shifts codes exactly. A
transformer learns such codes much faster than those of a convolutional encoder, which spreads what it sees
over neighbouring tokens.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

SIDE = 8  # pixels
GROUND = 0.03  # a patch whose brightest channel is below this is ground: code 0


def to_patches(frames: Tensor) -> Tensor:
    """[B,3,H,W] -> [B,H/8,W/8,192]."""
    return rearrange(frames, "n c (h a) (w b) -> n h w (c a b)", a=SIDE, b=SIDE)


def to_frames(patches: Tensor) -> Tensor:
    """[B,h,w,192] -> [B,3,8h,8w]."""
    return rearrange(patches, "n h w (c a b) -> n c (h a) (w b)", c=3, a=SIDE, b=SIDE)


class PatchVQVAE(nn.Module):
    """Patches of frames [B,3,H,W] in 0..1; codebook [codes,192] of patches; decoder back to [B,3,H,W].

    The decoder puts the codebook's patches side by side and adds what a small convolutional network, which
    sees the neighbours, has to say about their seams. Code 0 is black ground.
    """

    rates = (SIDE,)

    def __init__(self, codes: int = 2048, widths: tuple[int, ...] = (128, 64, 32, 16)):
        super().__init__()
        self.architecture = {"kind": "patches", "codes": codes, "widths": list(widths)}
        self.codebook: Tensor
        self.register_buffer(
            "codebook", torch.zeros(codes, 3 * SIDE**2)
        )  # learned by moving averages, not by gradients

        def conv3(inside: int, outside: int) -> nn.Conv2d:
            return nn.Conv2d(inside, outside, 3, 1, 1, padding_mode="replicate")

        a, b, c, d = widths
        self.mend = nn.Sequential(
            nn.Conv2d(3 * SIDE**2, a, 1), nn.SiLU(),
            conv3(a, a), nn.SiLU(),
            conv3(a, 4 * b), nn.PixelShuffle(2), nn.SiLU(),
            conv3(b, 4 * c), nn.PixelShuffle(2), nn.SiLU(),
            conv3(c, 4 * d), nn.PixelShuffle(2), nn.SiLU(),
            conv3(d, 3),
        )  # fmt: skip
        for parameter in self.mend[-1].parameters():
            nn.init.zeros_(parameter)

    def vectors(self, frames: Tensor, compress: int = SIDE) -> Tensor:
        """[B,3,H,W] in 0..1 -> what is quantised, [B,H/8,W/8,192]; ground is exactly black."""
        patches = to_patches(frames)
        return patches * (patches.amax(-1, keepdim=True) > GROUND)

    def frames(self, vectors: Tensor, compress: int = SIDE) -> Tensor:
        """Rows of the codebook [B,h,w,192] -> [B,3,8h,8w] in 0..1 units, not clamped."""
        return to_frames(vectors) + self.mend(rearrange(vectors * 2 - 1, "b h w c -> b c h w"))
