"""Training of the demo's frame tokenizer: the codebook by weighted k-means, then the decoder by gradients.

A run is a function of its seed and the step alone: what a step sees is drawn from (seed, step), so a run that
was stopped resumes bit for bit from its checkpoint.
"""

import math
from functools import cache
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from cogvideo.config import to_dict
from cogvideo.theatre.drawing import FRAME_SIZE, LARGE_SIZE, random_frames
from cogvideo.theatre.scene_tokens import scene_patches
from cogvideo.tokenizers.frames import FrameTokenizer, nearest_codes
from cogvideo.tokenizers.patches import SIDE, PatchVQVAE, to_patches
from cogvideo.training.checkpoints import read_checkpoint, save_atomic
from cogvideo.training.loop import Job, fit
from cogvideo.training.optimizer import OptimizerConfig

SMALL_WEIGHT = (
    4.0  # of a patch of small frames beside one of large frames: the transformer draws the small ones
)
BEGIN = 256  # codes at the beginning; the codebook grows where it is worst
GROWTHS, SETTLING = 10, 8  # rounds in which codes are added, rounds of plain k-means after them
CROP = 40  # pixels of a crop's side in the decoder's batches
L1 = 0.1  # weight of absolute beside squared error: keeps edges sharp


def train_codebook(patches: Tensor, weights: Tensor, *, codes: int, seed: int) -> Tensor:
    """Codebook [codes,C] of patches [M,C] with weights [M]: k-means that grows where its error is largest."""
    generator = torch.Generator().manual_seed(seed)

    def some(chances: Tensor, n: int) -> Tensor:
        return patches[torch.multinomial(chances, n, generator=generator)]

    codebook = some(weights, min(BEGIN, codes))
    for round_ in tqdm(range(GROWTHS + SETTLING), desc="codebook", mininterval=2):
        ids = nearest_codes(patches, codebook)
        error = (patches - codebook[ids]).square().sum(-1) * weights
        mass = torch.zeros(len(codebook)).index_add_(0, ids, weights)
        sums = torch.zeros_like(codebook).index_add_(0, ids, patches * weights[:, None])
        codebook = torch.where(mass[:, None] > 0, sums / mass.clamp(min=1e-9)[:, None], codebook)
        if round_ < GROWTHS:
            if added := (codes - len(codebook)) // (GROWTHS - round_):
                codebook = torch.cat([codebook, some(error + 1e-9, added)])
        elif round_ < GROWTHS + SETTLING - 2 and (dead := mass == 0).any():
            codebook[dead] = some(error + 1e-9, int(dead.sum()))
    return codebook.clamp(0, 1)


def train_frame_tokenizer(
    *,
    codes: int,
    decoder: OptimizerConfig,
    seed: int,
    run_dir: str | Path,
    widths: tuple[int, ...] = (128, 64, 32, 16),
    pool_frames: tuple[int, ...] = (4000, 1000),
    checkpoint_seconds: float = 60.0,
) -> FrameTokenizer:
    """Train a PatchVQVAE on the theatre at 64 and 192 pixels: codebook, then decoder with the codes fixed.

    pool_frames: how many small and large frames the decoder's crops are cut from. A finished codebook in
    run_dir/codebook.pt is kept, the decoder resumes from run_dir/checkpoint.pt.
    Raises CogVideoError if run_dir holds a run with other settings or a damaged file.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = PatchVQVAE(codes, widths)
    settings = {"codes": codes, "seed": seed, "small_weight": SMALL_WEIGHT}
    path = run_dir / "codebook.pt"
    if not path.exists():
        codebook = train_codebook(*_weighted_patches(), codes=codes, seed=seed)
        save_atomic({"codebook": codebook, "settings": settings}, path)
    model.codebook.copy_(read_checkpoint(path, settings)["codebook"])
    sizes = zip(pool_frames, (FRAME_SIZE, LARGE_SIZE), strict=True)
    pool = cache(lambda: [random_frames(seed, n, size, split="pictures") for n, size in sizes])

    def loss(step: int) -> Tensor:
        frames = _crops(pool(), seed * 1_000_003 + step, decoder.batch_size)
        error = model.frames(model.codebook[nearest_codes(model.vectors(frames), model.codebook)]) - frames
        return (error.square() + L1 * error.abs()).mean()

    what = {
        "codebook": settings,
        "widths": list(widths),
        "pool": list(pool_frames),
        "decoder": to_dict(decoder),
    }
    job = Job(model, model.mend.parameters(), loss, decoder, run_dir, what, label="frame decoder")
    job.checkpoint_seconds = checkpoint_seconds
    fit(job)
    return FrameTokenizer(model).eval()


def _weighted_patches() -> tuple[Tensor, Tensor]:
    """All distinct patches [M,192] in 0..1, and the square root of how often each occurs."""
    patches, weights = [], []
    for size, weight in ((FRAME_SIZE, SMALL_WEIGHT), (LARGE_SIZE, 1.0)):
        scenes = scene_patches(size)
        patches.append(rearrange(scenes.patches.float() / 255, "m c a b -> m (c a b)"))
        weights.append(weight * scenes.counts.float().sqrt())
    return torch.cat(patches), torch.cat(weights)


def _crops(pool: list[Tensor], seed: int, n: int) -> Tensor:
    """n crops [n,3,CROP,CROP] on the grid of tokens, half of small and half of large frames."""
    generator = torch.Generator().manual_seed(seed)
    crops = []
    for part, frames in zip((n - n // 2, n // 2), pool, strict=True):
        which = torch.randint(len(frames), (part,), generator=generator)
        corners = SIDE * torch.randint((frames.shape[-1] - CROP) // SIDE + 1, (part, 2), generator=generator)
        crops += [frames[i, :, y : y + CROP, x : x + CROP] for i, (y, x) in zip(which, corners, strict=True)]
    return torch.stack(crops)


def codebook_report(tokenizer: FrameTokenizer, frames: Tensor) -> dict[str, float]:
    """How the codebook is used, and PSNR (dB) of frames [B,3,H,W] before and after the decoder."""
    ids = torch.cat([tokenizer.encode(chunk) for chunk in frames.split(64)])
    rebuilt = torch.cat([tokenizer.decode(chunk) for chunk in ids.split(64)]).clamp(0, 1)
    share = torch.bincount(ids.flatten(), minlength=tokenizer.num_codes) / ids.numel()
    return {
        "codes_used": int((share > 0).sum()),
        "perplexity": torch.special.entr(share).sum().exp().item(),  # so many evenly used codes would do it
        "psnr_patches": psnr((tokenizer.codebook[ids] - to_patches(frames)).square().mean()),
        "psnr": psnr((rebuilt - frames).square().mean()),
    }


def psnr(mean_squared_error: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in 0..1."""
    return -10 * math.log10(max(mean_squared_error.item(), 1e-12))
