"""Training of the demo's frame tokenizer: reconstruction by gradients, codebook by moving averages.

A run is a function of its seed and the step alone: frames and random draws of a step are drawn from (seed, step), so a
run that was stopped goes on bit for bit from its checkpoint.
"""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.tokenizers.frames import FrameTokenizer, nearest_codes
from cogvideo.tokenizers.local import LocalVQVAE

WARM_UP = 0.04  # share of the run without quantisation: the codebook starts from vectors that already mean something
DECAY = 0.98  # of the moving averages of the codebook
REVIVE_BELOW = 0.3  # moving count of uses per step under which a code counts as dead
REVIVE_UNTIL = 0.8  # share of the run; codes settle afterwards
COMMITMENT = 0.25  # weight of the pull of vectors to their codes (van den Oord et al. 2017, eq. 3)
L1 = 0.1  # weight of absolute beside squared error: keeps edges sharp
OBJECT = 0.05  # pixels whose brightest channel is above this are object, not ground
LOG_EVERY = 50


class EMACodebook:
    """Moves a codebook [K, C] in place towards the vectors that choose its rows, and gives dead rows a new start."""

    def __init__(self, codebook: Tensor):
        self.codebook = codebook
        self.counts = torch.ones(len(codebook))  # moving average of how many vectors of a batch choose each code

    def start(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Start from vectors [M, C] drawn by distance from the median one.

        Most vectors are background; drawn evenly they would make nearly all codes alike.
        """
        distance = (vectors - vectors.median(0).values).norm(dim=-1)
        few = len(vectors) < len(self.codebook)
        chosen = torch.multinomial(distance + 1e-6, len(self.codebook), replacement=few, generator=generator)
        self.codebook.copy_(vectors[chosen])
        # Counting this batch at once lets `revive` move what nothing chose, without waiting for a count of 1 to fade.
        self.counts.copy_(torch.bincount(nearest_codes(vectors, self.codebook), minlength=len(self.codebook)))

    def update(self, vectors: Tensor, ids: Tensor) -> None:
        """One moving-average step from vectors [M, C] and the codes [M] they chose."""
        chose = F.one_hot(ids, len(self.codebook)).to(vectors.dtype)
        used = chose.sum(0)
        self.counts.mul_(DECAY).add_(used, alpha=1 - DECAY)
        pull = chose.T @ vectors - used[:, None] * self.codebook
        self.codebook.add_((1 - DECAY) * pull / self.counts.clamp(min=1e-6)[:, None])

    def revive(self, vectors: Tensor, ids: Tensor, generator: torch.Generator) -> int:
        """Move codes used less than REVIVE_BELOW times a step onto badly matched vectors; returns how many."""
        dead = (self.counts < REVIVE_BELOW).nonzero()[:, 0][: len(vectors)]
        if len(dead):
            error = (vectors - self.codebook[ids]).square().sum(-1)
            chosen = torch.multinomial(error + 1e-9, len(dead), generator=generator)
            self.codebook[dead] = vectors[chosen]
            self.counts[dead] = 1.0
        return len(dead)


def train_frame_tokenizer(
    sample_frames: Callable[[int, int], Tensor],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    seed: int,
    run_dir: str | Path,
    object_weight: float = 2.0,
    checkpoint_seconds: float = 60.0,
    network: dict | None = None,
) -> FrameTokenizer:
    """Train a LocalVQVAE (sizes in `network`); writes run_dir/frames.safetensors (float16), returns what it holds.

    sample_frames(seed, n) -> [n, 3, H, W] in 0..1 must depend on its arguments alone. lr falls to 0 over one cosine.
    object_weight is what a pixel off the ground counts beside one on it. A run that was stopped continues from
    run_dir/checkpoint.pt; run_dir/metrics.jsonl gets a line every 50 steps. Raises CogVideoError if run_dir holds a run
    with other settings or an unreadable checkpoint.
    """
    from tqdm import tqdm

    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    settings = {
        "steps": steps,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "object_weight": object_weight,
        "network": network or {},
    }
    torch.manual_seed(seed)
    model = LocalVQVAE(**settings["network"]).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = EMACodebook(model.codebook)
    step = _resume(run_dir, settings, model, optimizer, ema)
    saved, warm_up = time.monotonic(), round(WARM_UP * steps)

    with tqdm(total=steps, initial=step, desc="frame tokenizer", mininterval=5) as progress:
        while step < steps:
            step_seed = seed * 1_000_003 + step
            generator = torch.Generator().manual_seed(step_seed)
            frames = sample_frames(step_seed, batch_size).contiguous(memory_format=torch.channels_last)
            vectors = model.vectors(frames)
            flat = rearrange(vectors.detach(), "b h w c -> (b h w) c")
            if step == warm_up:
                ema.start(flat, generator)
            ids = nearest_codes(flat, model.codebook)
            quantised = model.codebook[ids].view_as(vectors) if step >= warm_up else vectors.detach()
            rebuilt = model.frames(vectors + (quantised - vectors).detach())  # straight-through gradient

            error = rebuilt - frames
            weight = 1 + (object_weight - 1) * _object_pixels(frames)
            loss = (weight * (error.square() + L1 * error.abs())).mean() + COMMITMENT * F.mse_loss(vectors, quantised)
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

            revived = 0
            if step >= warm_up:
                ema.update(flat, ids)
                if step < REVIVE_UNTIL * steps:
                    revived = ema.revive(flat, ids, generator)
            step += 1
            progress.update()
            if step % LOG_EVERY == 0 or step == steps:
                used = torch.bincount(ids, minlength=len(model.codebook))
                quality = {"loss": loss.item(), "psnr": _psnr(error.detach().square().mean()), "revived": revived}
                line = {"step": step} | quality | _usage(used)
                with open(run_dir / "metrics.jsonl", "a") as file:
                    file.write(json.dumps(line) + "\n")
                progress.set_postfix(psnr=f"{line['psnr']:.1f}", codes=line["codes_used"])
            if step == steps or time.monotonic() - saved > checkpoint_seconds:
                weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "counts": ema.counts}
                state = {"step": step, "settings": settings} | weights
                torch.save(state, run_dir / "checkpoint.pt.part")
                os.replace(run_dir / "checkpoint.pt.part", run_dir / "checkpoint.pt")
                saved = time.monotonic()

    path = run_dir / "frames.safetensors"
    FrameTokenizer(model).save(path.with_suffix(".part"), dtype=torch.float16)
    os.replace(path.with_suffix(".part"), path)
    return FrameTokenizer.load(path)


def _resume(
    run_dir: Path, settings: dict, model: LocalVQVAE, optimizer: torch.optim.Optimizer, ema: EMACodebook
) -> int:
    """Fill model, optimizer and codebook state from run_dir/checkpoint.pt if there is one; returns the steps done."""
    path, metrics = run_dir / "checkpoint.pt", run_dir / "metrics.jsonl"
    if not path.exists():
        metrics.unlink(missing_ok=True)
        return 0
    try:
        state = torch.load(path, weights_only=True)
    except Exception as error:
        raise CogVideoError(
            f"The checkpoint {path} cannot be read ({type(error).__name__}): delete it to start anew."
        ) from error
    if state["settings"] != settings:
        changed = ", ".join(key for key in settings if state["settings"].get(key) != settings[key])
        raise CogVideoError(f"{run_dir} holds a run with other settings ({changed}): use another folder or delete it.")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    ema.counts.copy_(state["counts"])
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    metrics.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] <= state["step"]))
    return state["step"]


class CropPool:
    """Draws crops [n, 3, crop, crop], half of 64 x 64 frames and half of 192 x 192 ones, from frames rendered once.

    Super-resolved frames use the same codebook, so it must know both scales. Windows begin on the 8 px token grid and
    are drawn by how much object they show, because black ground teaches nothing.
    render(seed, n, size) -> [n,3,size,size] in 0..1.
    """

    def __init__(self, render: Callable[[int, int, int], Tensor], *, seed: int, small: int, large: int, crop: int = 40):
        self.crop = crop
        self.pools, self.ink = [], []
        for count, size in ((small, 64), (large, 192)):
            chunks = [render(seed * 1_000_003 + first, min(64, count - first), size) for first in range(0, count, 64)]
            frames = torch.cat([(chunk * 255).round().to(torch.uint8) for chunk in chunks])
            ink = torch.cat([F.avg_pool2d(_object_pixels(chunk), crop, stride=8) for chunk in chunks])
            self.pools.append(frames)
            self.ink.append(ink[:, 0] + 0.01)  # [count, rows, columns] of possible windows

    def __call__(self, seed: int, n: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        crops = []
        for share, frames, ink in zip((n - n // 2, n // 2), self.pools, self.ink):
            which = torch.randint(len(frames), (share,), generator=generator)
            window = torch.multinomial(ink[which].flatten(1), 1, generator=generator)[:, 0]
            tops, lefts = 8 * (window // ink.shape[-1]), 8 * (window % ink.shape[-1])
            for i, y, x in zip(which.tolist(), tops.tolist(), lefts.tolist()):
                crops.append(frames[i, :, y : y + self.crop, x : x + self.crop])
        return torch.stack(crops).float() / 255


def codebook_report(tokenizer: FrameTokenizer, frames: Tensor) -> dict[str, float]:
    """How the codebook is used and how well frames [B,3,H,W] are kept: PSNR (dB) of all and of object pixels."""
    ids = torch.cat([tokenizer.encode(chunk) for chunk in frames.split(64)])
    rebuilt = torch.cat([tokenizer.decode(chunk) for chunk in ids.split(64)]).clamp(0, 1)
    squared, inside = (rebuilt - frames).square(), _object_pixels(frames).expand_as(frames) > 0
    used = torch.bincount(ids.flatten(), minlength=tokenizer.num_codes)
    return _usage(used) | {
        "commonest_share": used.max().item() / ids.numel(),
        "psnr": _psnr(squared.mean()),
        "psnr_objects": _psnr(squared[inside].mean()),
    }


def _object_pixels(frames: Tensor) -> Tensor:
    """[n,3,H,W] -> 1.0 where a pixel is not black ground, [n,1,H,W]."""
    return (frames.amax(1, keepdim=True) > OBJECT).to(frames.dtype)


def _psnr(mean_squared_error: Tensor) -> float:
    return -10 * math.log10(max(mean_squared_error.item(), 1e-12))


def _usage(used: Tensor) -> dict[str, float]:
    """Counts of uses [K] -> how many codes are used, and their perplexity (so many evenly used ones would do it)."""
    share = used / used.sum()
    return {"codes_used": int((used > 0).sum()), "perplexity": torch.special.entr(share).sum().exp().item()}
