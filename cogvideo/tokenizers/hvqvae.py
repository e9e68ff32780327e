"""The hierarchical VQ-VAE of icetk (CogView2, CogVideo): three compress rates over one codebook.

Facts: reference page "Super-resolution, image tokenizer, sampling, I3D and FVD", section 6. Module names are
those of the released file, so that its weights load without a table of names.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

MEAN, STD = (
    (0.79093, 0.76271, 0.75340),
    (0.30379, 0.32279, 0.32800),
)  # of the release's training images, RGB in 0..1
ATTENTION_LEVEL = (
    4  # the release attends where a nominal 256 px image has shrunk to 16 px, whatever the real size
)


class HVQVAE(nn.Module):
    """Encoder, residual down-samplers, one quantiser and one decoder per rate.

    Frames [B,3,H,W] in 0..1 <-> vectors [B,H/rate,W/rate,dim] at rates 4, 8 and 16. CogVideo uses rate 8
    only.
    """

    def __init__(
        self,
        codes: int = 20000,
        dim: int = 256,
        channels: int = 128,
        encoder_mult: tuple[int, ...] = (1, 2, 4),
        decoder_mults: tuple[tuple[int, ...], ...] = ((1, 1, 1, 2, 4), (1, 1, 2, 4), (1, 2, 4)),
    ):
        super().__init__()
        self.architecture = {
            "kind": "icetk",
            "codes": codes,
            "dim": dim,
            "channels": channels,
            "encoder_mult": list(encoder_mult),
            "decoder_mults": [list(mult) for mult in decoder_mults],
        }
        finest = 2 ** (len(encoder_mult) - 1)
        self.rates = tuple(finest * 2**level for level in range(len(decoder_mults)))
        self.enc = Encoder(dim, channels, encoder_mult)
        self.down_samplers = nn.ModuleList(ResidualDownSampler(dim) for _ in self.rates[1:])
        self.quantize = Quantizer(codes, dim)
        self.decs = nn.ModuleList(
            Decoder(dim, channels, mult) for mult in decoder_mults
        )  # coarsest rate first
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    @property
    def codebook(self) -> Tensor:
        return self.quantize.embed.weight

    def vectors(self, frames: Tensor, compress: int = 8) -> Tensor:
        """[B,3,H,W] in 0..1 -> what is quantised, [B,H/compress,W/compress,dim]."""
        x = self.enc((frames - self.mean) / self.std)
        for down_sampler in self.down_samplers[: self.rates.index(compress)]:
            x = down_sampler(x)
        return rearrange(self.quantize.proj(x), "b c h w -> b h w c")

    def frames(self, vectors: Tensor, compress: int = 8) -> Tensor:
        """Rows of the codebook [B,h,w,dim] -> [B,3,h*compress,w*compress] in 0..1 units, not clamped."""
        decoder = self.decs[len(self.rates) - 1 - self.rates.index(compress)]
        return decoder(rearrange(vectors, "b h w c -> b c h w")) * self.std + self.mean


class Quantizer(nn.Module):
    """Holds the 1x1 projection and the codebook; nearest codes are found by FrameTokenizer."""

    def __init__(self, codes: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(dim, dim, 1)
        self.embed = nn.Embedding(codes, dim)


class Encoder(nn.Module):
    """[B,3,H,W] -> [B,dim,H/4,W/4] for three multipliers."""

    def __init__(self, dim: int, channels: int, mult: tuple[int, ...]):
        super().__init__()
        widths = [channels * m for m in mult]
        before = [channels, *widths[:-1]]
        last = len(mult) - 1
        self.conv_in = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList(Down(before[i], widths[i], halve=i < last) for i in range(len(mult)))
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for stage in self.down:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Down(nn.Module):
    """Two ResBlocks and, if `halve`, a strided convolution."""

    def __init__(self, before: int, width: int, halve: bool):
        super().__init__()
        self.block = nn.ModuleList([ResBlock(before, width), ResBlock(width, width)])
        self.downsample = StridedConv(width) if halve else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.downsample(x)


class Decoder(nn.Module):
    """[B,dim,h,w] -> normalised [B,3,h*rate,w*rate]."""

    def __init__(self, dim: int, channels: int, mult: tuple[int, ...]):
        super().__init__()
        widths = [channels * m for m in mult]
        before = [*widths[1:], widths[-1]]
        self.conv_in = nn.Conv2d(dim, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        self.up = nn.ModuleList(
            Up(before[i], widths[i], attend=i == ATTENTION_LEVEL, double=i > 0) for i in range(len(mult))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        for stage in reversed(self.up):  # the highest index works on the smallest picture
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Up(nn.Module):
    """One ResBlock, attention at one level only, and, if `double`, twice the sides."""

    def __init__(self, before: int, width: int, attend: bool, double: bool):
        super().__init__()
        self.block = nn.ModuleList([ResBlock(before, width)])
        self.attn = nn.ModuleList([AttnBlock(width)] if attend else [])
        self.upsample = UpsampleConv(width) if double else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.block, *self.attn]:
            x = layer(x)
        return self.upsample(x)


class Middle(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.block_1 = ResBlock(width, width)
        self.attn_1 = AttnBlock(width)
        self.block_2 = ResBlock(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class ResBlock(nn.Module):
    def __init__(self, before: int, width: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(before), nn.Conv2d(before, width, 3, padding=1)
        self.norm2, self.conv2 = _norm(width), nn.Conv2d(width, width, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(before, width, 1) if before != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return inner + self.nin_shortcut(x)


class AttnBlock(nn.Module):
    """Every position attends to all others, with one head."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (rearrange(layer(normed), "b c h w -> b 1 (h w) c") for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)  # scales by width ** -0.5
        return x + self.proj_out(rearrange(mixed, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class StridedConv(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and below only


class UpsampleConv(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


class ResidualDownSampler(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.conv_down_sampler = StridedConv(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) + self.conv_down_sampler(x)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)
