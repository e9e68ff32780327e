"""How well a frame tokenizer gives frames back: PSNR, SSIM, and how much of its codebook it uses."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.tokenizers.frames import FrameTokenizer

AT_ONCE = 16  # frames
WINDOW, SIGMA = 11, 1.5  # of SSIM, pixels
C1, C2 = 0.01**2, 0.03**2  # of SSIM, for values in 0..1


@torch.no_grad()
def quality(tokenizer: FrameTokenizer, frames: Tensor, compress: int) -> tuple[dict[str, float], Tensor]:
    """PSNR (dB), SSIM, codes used, their perplexity on frames [B,3,H,W] in 0..1 -> (these, rebuilt frames).

    Perplexity: so many evenly used codes would say as much.
    """
    ids = torch.cat([tokenizer.encode(some, compress) for some in frames.split(AT_ONCE)])
    rebuilt = torch.cat([tokenizer.decode(some, compress) for some in ids.split(AT_ONCE)]).float().clamp(0, 1)
    share = torch.bincount(ids.flatten(), minlength=tokenizer.num_codes) / ids.numel()
    scores = {
        "psnr": psnr((rebuilt - frames).square().mean((1, 2, 3))).mean().item(),
        "ssim": ssim(rebuilt, frames).mean().item(),
        "codes_used": int((share > 0).sum()),
        "perplexity": torch.special.entr(share).sum().exp().item(),
    }
    return scores, rebuilt


def psnr(mean_squared_error: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures in 0..1."""
    return -10 * mean_squared_error.clamp(min=1e-12).log10()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity [B] of pictures [B,C,H,W] in 0..1, at least 11 pixels a side, mean over channels.

    Source: Wang et al. 2004, https://doi.org/10.1109/TIP.2003.819861, with its Gaussian window.
    """
    at = torch.arange(WINDOW, device=a.device) - WINDOW // 2
    line = torch.exp(-at.square() / (2 * SIGMA**2)) / (SIGMA * math.sqrt(2 * math.pi))
    window = (line[:, None] * line)[None, None]
    window /= window.sum()

    def local(x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1)[:, None], window)

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    both = local(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    found = light * (2 * both + C2) / (var_a + var_b + C2)
    return found.mean((1, 2, 3)).unflatten(0, a.shape[:2]).mean(1)
