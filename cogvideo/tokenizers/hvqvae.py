"""The hierarchical VQ-VAE of icetk (CogView2, CogVideo): three compress rates over one codebook.

Facts: reference page "Super-resolution, image tokenizer, sampling, I3D and FVD", section 6. Module names are
those of the released file, so that its weights load without a table of names.
"""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# Of the release's training images, RGB in 0..1.
MEAN, STD = (0.79093, 0.76271, 0.75340), (0.30379, 0.32279, 0.32800)
# The release attends where a nominal 256 px image has shrunk to 16 px, whatever the real size.
ATTENTION_LEVEL = 4


class HVQVAE(nn.Module):
    """Encoder, residual down-samplers, one quantiser and one decoder per rate, coarsest first.

    Frames [B,3,H,W] in 0..1 <-> vectors [B,H/rate,W/rate,dim] at rates 4, 8 and 16. CogVideo uses 8 only.
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
        mults = {"encoder_mult": list(encoder_mult), "decoder_mults": list(map(list, decoder_mults))}
        self.architecture = {"kind": "icetk", "codes": codes, "dim": dim, "channels": channels} | mults
        self.rates = tuple(2 ** (len(encoder_mult) - 1 + level) for level in range(len(decoder_mults)))
        self.enc = _encoder(dim, channels, encoder_mult)
        self.down_samplers = nn.ModuleList(ResidualDownSampler(dim) for _ in self.rates[1:])
        # Nearest codes are found by FrameTokenizer.
        self.quantize = nn.ModuleDict({"proj": nn.Conv2d(dim, dim, 1), "embed": nn.Embedding(codes, dim)})
        self.decs = nn.ModuleList(_decoder(dim, channels, mult) for mult in decoder_mults)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    @property
    def codebook(self) -> Tensor:
        embed: Any = self.quantize["embed"]
        return embed.weight

    def vectors(self, frames: Tensor, compress: int = 8) -> Tensor:
        """[B,3,H,W] in 0..1 -> what is quantised, [B,H/compress,W/compress,dim]."""
        x = self.enc((frames - self.mean) / self.std)
        for down_sampler in self.down_samplers[: self.rates.index(compress)]:
            x = down_sampler(x)
        return rearrange(self.quantize["proj"](x), "b c h w -> b h w c")

    def frames(self, vectors: Tensor, compress: int = 8) -> Tensor:
        """Rows of the codebook [B,h,w,dim] -> [B,3,h*compress,w*compress] in 0..1 units, not clamped."""
        decoder = self.decs[len(self.rates) - 1 - self.rates.index(compress)]
        return decoder(rearrange(vectors, "b h w c -> b c h w")) * self.std + self.mean


def _named(**modules: nn.Module) -> nn.Sequential:
    """Modules one after the other, under the names of the release."""
    chain = nn.Sequential()
    for name, module in modules.items():
        chain.add_module(name, module)
    return chain


def _encoder(dim: int, channels: int, mult: tuple[int, ...]) -> nn.Sequential:
    """[B,3,H,W] -> [B,dim,H/4,W/4] for three multipliers."""
    widths = [channels * m for m in mult]
    stages = []
    for before, width in zip([channels, *widths[:-1]], widths, strict=True):
        stages.append(_named(block=nn.Sequential(ResBlock(before, width), ResBlock(width, width))))
        if len(stages) < len(widths):
            stages[-1].add_module("downsample", _halving(width))
    return _named(
        conv_in=_conv3(3, channels), down=nn.Sequential(*stages), mid=_middle(widths[-1]),
        norm_out=_norm(widths[-1]), silu=nn.SiLU(), conv_out=_conv3(widths[-1], dim),
    )  # fmt: skip


def _decoder(dim: int, channels: int, mult: tuple[int, ...]) -> nn.Sequential:
    """[B,dim,h,w] -> normalised [B,3,h*rate,w*rate]."""
    widths = [channels * m for m in mult]
    stages = {}
    for level, (width, before) in enumerate(zip(widths, [*widths[1:], widths[-1]], strict=True)):
        stages[str(level)] = stage = _named(block=nn.Sequential(ResBlock(before, width)))
        if level == ATTENTION_LEVEL:
            stage.add_module("attn", nn.Sequential(AttnBlock(width)))
        if level > 0:
            double = nn.Upsample(scale_factor=2.0)
            stage.add_module("upsample", _named(resize=double, conv=_conv3(width, width)))
    return _named(
        conv_in=_conv3(dim, widths[-1]), mid=_middle(widths[-1]),
        up=_named(**dict(reversed(stages.items()))),  # the highest level works on the smallest picture
        norm_out=_norm(widths[0]), silu=nn.SiLU(), conv_out=_conv3(widths[0], 3),
    )  # fmt: skip


def _middle(width: int) -> nn.Sequential:
    return _named(block_1=ResBlock(width, width), attn_1=AttnBlock(width), block_2=ResBlock(width, width))


class ResBlock(nn.Module):
    def __init__(self, before: int, width: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(before), _conv3(before, width)
        self.norm2, self.conv2 = _norm(width), _conv3(width, width)
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


class ResidualDownSampler(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.conv_down_sampler = _halving(dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) + self.conv_down_sampler(x)


def _halving(width: int) -> nn.Sequential:
    # Padded on the right and below only.
    return _named(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(width, width, 3, stride=2))


def _conv3(before: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(before, width, 3, padding=1)


def _norm(width: int) -> nn.GroupNorm:
    # The release's 32 groups; a network that is too narrow for them has groups of four channels.
    return nn.GroupNorm(32 if width % 32 == 0 else max(1, width // 4), width, eps=1e-6)
