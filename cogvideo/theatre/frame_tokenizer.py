"""Training of the demo's frame tokenizer: the codebook by moving averages, then the decoder by gradients.

What a step sees is drawn from (seed, step), so that a resumed run equals an undisturbed one bit for bit.
"""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.config import to_dict
from cogvideo.tokenizers.frames import FrameTokenizer, nearest_codes
from cogvideo.tokenizers.patches import PatchVQVAE, to_patches
from cogvideo.training.checkpoints import read_checkpoint, save_atomic
from cogvideo.training.loop import Job, fit
from cogvideo.training.optimizer import OptimizerConfig

DECAYS = (0.9, 0.99)  # of the codebook's moving averages: while codes still move about, and when they settle
REVIVE_BELOW = 0.3  # moving count of uses per step under which a code counts as dead
SETTLE = 0.6  # share of the steps after which the slow average begins
REVIVE_UNTIL = 0.8  # share of the steps after which no code is moved any more
PATCHES = 8192  # in a step of the codebook
L1 = 0.1  # weight of absolute beside squared error: keeps edges sharp
OBJECT = 0.05  # pixels whose brightest channel is above this are object, not ground
OBJECT_WEIGHT = 4.0  # what a pixel of an object counts beside one of the ground, in the decoder's loss

Render = Callable[[int, int, int], Tensor]  # (seed, n, size) -> frames [n,3,size,size] in 0..1


class EMACodebook:
    """Moves a codebook [K, C] in place towards the vectors that choose its rows, and restarts dead rows."""

    def __init__(self, codebook: Tensor):
        self.codebook = codebook
        self.counts = torch.ones(len(codebook))  # moving average of a batch's vectors that choose each code

    def update(self, vectors: Tensor, ids: Tensor, decay: float) -> None:
        """One moving-average step from vectors [M,C] and their codes [M] (van den Oord et al. 2017)."""
        used = torch.bincount(ids, minlength=len(self.codebook)).to(vectors.dtype)
        self.counts.mul_(decay).add_(used, alpha=1 - decay)
        sums = torch.zeros_like(self.codebook).index_add_(0, ids, vectors)
        pull = sums - used[:, None] * self.codebook
        self.codebook.add_((1 - decay) * pull / self.counts.clamp(min=1e-6)[:, None])

    def revive(self, vectors: Tensor, ids: Tensor, generator: torch.Generator) -> int:
        """Move codes used less than REVIVE_BELOW times a step onto badly matched vectors -> how many."""
        dead = (self.counts < REVIVE_BELOW).nonzero()[:, 0][: len(vectors)]
        if len(dead):
            error = (vectors - self.codebook[ids]).square().sum(-1)
            chosen = torch.multinomial(error + 1e-9, len(dead), generator=generator)
            self.codebook[dead] = vectors[chosen]
            self.counts[dead] = 1.0
        return len(dead)


def train_codebook(pool: "FramePool", *, codes: int, steps: int, seed: int) -> Tensor:
    """Patches [codes,192] that stand for those of the pool's objects; code 0 is black ground.

    Starts from patches of objects drawn at random: drawn from whole frames, nearly all would be black and
    alike.
    """
    from tqdm import tqdm

    ema = EMACodebook(pool.patches(seed, codes - 1))
    for step in tqdm(range(steps), desc="codebook", mininterval=2):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        vectors = pool.patches(seed * 1_000_003 + step + 1, PATCHES)
        ids = nearest_codes(vectors, ema.codebook)
        ema.update(vectors, ids, DECAYS[step >= SETTLE * steps])
        if step < REVIVE_UNTIL * steps:
            ema.revive(vectors, ids, generator)
    return torch.cat([torch.zeros_like(ema.codebook[:1]), ema.codebook.clamp(0, 1)])


def train_frame_tokenizer(
    render: Render,
    *,
    codes: int,
    codebook_steps: int,
    decoder: OptimizerConfig,
    seed: int,
    run_dir: str | Path,
    widths: tuple[int, ...] = (128, 64, 32, 16),
    pool_frames: tuple[int, ...] = (6000, 600),
    what: dict | None = None,
    checkpoint_seconds: float = 60.0,
) -> FrameTokenizer:
    """Train a PatchVQVAE on frames of 64 x 64 and 192 x 192 pixels: codebook, then decoder with fixed codes.

    render(seed, n, size) must depend on its arguments alone. pool_frames: how many small and large frames are
    drawn once and used over and over. A finished codebook in run_dir/codebook.pt is kept, the decoder resumes
    from run_dir/checkpoint.pt. what: what `render` draws, kept with the settings.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = PatchVQVAE(codes, widths)
    pool = cache(lambda: FramePool(render, seed=seed, small=pool_frames[0], large=pool_frames[1]))
    settings = {
        "codes": codes,
        "steps": codebook_steps,
        "seed": seed,
        "pool": list(pool_frames),
        "what": what,
    }
    path = run_dir / "codebook.pt"
    if not path.exists():
        codebook = train_codebook(pool(), codes=codes, steps=codebook_steps, seed=seed)
        save_atomic({"codebook": codebook, "settings": settings}, path)
    model.codebook.copy_(read_checkpoint(path, settings)["codebook"])

    def loss(step: int) -> Tensor:
        frames = pool().crops(seed * 1_000_003 + step, decoder.batch_size)
        error = model.frames(model.codebook[nearest_codes(model.vectors(frames), model.codebook)]) - frames
        weight = 1 + (OBJECT_WEIGHT - 1) * object_pixels(frames)
        # Dim objects are as wrong as bright ones when their hue is: the error counts against the object's
        # brightness.
        weight = weight / frames.amax((1, 2, 3), keepdim=True).clamp(min=0.3)
        return (weight * (error.square() + L1 * error.abs())).mean()

    own = {"codebook": settings, "widths": list(widths), "decoder": to_dict(decoder)}
    job = Job(model, model.mend.parameters(), loss, decoder, run_dir, own, label="frame decoder")
    job.checkpoint_seconds = checkpoint_seconds
    fit(job)
    return FrameTokenizer(model).eval()


class FramePool:
    """Frames rendered once, at 64 x 64 and at 192 x 192 pixels: super-resolved frames use the same codebook.

    Draws patches of objects, three quarters of them small, and crops that begin on the 8 px grid and show
    some object.
    """

    def __init__(self, render: Render, *, seed: int, small: int, large: int, crop: int = 40):
        self.crop = crop
        self.pools, self.windows, self.inked = [], [], []
        for count, size in ((small, 64), (large, 192)):
            firsts = range(0, count, 64)
            chunks = [render(seed * 1_000_003 + at, min(64, count - at), size) for at in firsts]
            self.pools.append(torch.cat([(chunk * 255).round().to(torch.uint8) for chunk in chunks]))
            ink = torch.cat([object_pixels(chunk) for chunk in chunks])
            # Of crops [count, rows, columns]; patches [patches, 192] uint8.
            self.windows.append(F.avg_pool2d(ink, crop, stride=8)[:, 0] + 0.01)
            self.inked.append(to_patches(self.pools[-1])[F.max_pool2d(ink, 8)[:, 0] > 0])

    def patches(self, seed: int, n: int) -> Tensor:
        """n patches [n,192] in 0..1 that show something."""
        generator = torch.Generator().manual_seed(seed)
        shares = zip((n - n // 4, n // 4), self.inked, strict=True)
        found = [inked[torch.randint(len(inked), (share,), generator=generator)] for share, inked in shares]
        return torch.cat(found).float() / 255

    def crops(self, seed: int, n: int) -> Tensor:
        """n crops [n,3,crop,crop], half of small and half of large frames; more often where objects are."""
        generator = torch.Generator().manual_seed(seed)
        crops = []
        for share, frames, windows in zip((n - n // 2, n // 2), self.pools, self.windows, strict=True):
            which = torch.randint(len(frames), (share,), generator=generator)
            window = torch.multinomial(windows[which].flatten(1), 1, generator=generator)[:, 0]
            tops, lefts = 8 * (window // windows.shape[-1]), 8 * (window % windows.shape[-1])
            for i, y, x in zip(which.tolist(), tops.tolist(), lefts.tolist(), strict=True):
                crops.append(frames[i, :, y : y + self.crop, x : x + self.crop])
        return torch.stack(crops).float() / 255


def codebook_report(tokenizer: FrameTokenizer, frames: Tensor) -> dict[str, float]:
    """How the codebook is used, and the PSNR (dB) of all and of object pixels of frames [B,3,H,W]."""
    ids = torch.cat([tokenizer.encode(chunk) for chunk in frames.split(64)])
    rebuilt = torch.cat([tokenizer.decode(chunk) for chunk in ids.split(64)]).clamp(0, 1)
    squared, inside = (rebuilt - frames).square(), object_pixels(frames).expand_as(frames) > 0
    used = torch.bincount(ids.flatten(), minlength=tokenizer.num_codes)
    share = used / used.sum()
    return {
        "codes_used": int((used > 0).sum()),
        "perplexity": torch.special.entr(share).sum().exp().item(),  # so many evenly used codes would do it
        "commonest_share": share.max().item(),
        "psnr": psnr(squared.mean()),
        "psnr_objects": psnr(squared[inside].mean()),
    }


def object_pixels(frames: Tensor) -> Tensor:
    """[n,3,H,W] -> 1.0 where a pixel is not black ground, [n,1,H,W]."""
    return (frames.amax(1, keepdim=True) > OBJECT).to(frames.dtype)


def psnr(mean_squared_error: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0..1."""
    return -10 * math.log10(max(mean_squared_error.item(), 1e-12))
