"""One training loop for everything, on one process or many: AdamW or Muon, warm-up and cosine, clipping, checkpoints."""

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cogvideo.errors import CogVideoError
from cogvideo.training import distributed
from cogvideo.training.checkpoints import Checkpoints, read_checkpoint, save_atomic
from cogvideo.training.metrics import Metrics, Pace, Work, gate_values, memory_row, on_screen
from cogvideo.training.muon import Muon

__all__ = ["OptimizerConfig", "fit", "read_checkpoint", "save_atomic", "use_threads"]


@dataclass(frozen=True)
class OptimizerConfig:
    """How a stage is optimised. The release: Adam, lr 2e-4, betas 0.9 / 0.95, clipping 0.1, cosine decay.

    batch_size counts the clips of a step, over all processes; accumulate: in so many parts they are computed.
    muon_lr > 0: the weight matrices of linear layers are moved by Muon (orthogonalised momentum, Jordan et al. 2024) with
    this learning rate, in units that move a matrix as far as AdamW would; everything else by AdamW with lr.
    """

    steps: int
    batch_size: int
    lr: float = 2e-3
    muon_lr: float = 0.0
    warmup: int = 100
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0
    final_lr: float = 0.02  # share of lr left at the last step
    accumulate: int = 1

    def __post_init__(self):
        leasts = {
            "steps": 0,
            "batch_size": 1,
            "accumulate": 1,
            "warmup": 0,
            "lr": 0,
            "muon_lr": 0,
            "weight_decay": 0,
        }
        for name, least in leasts.items():
            if not least <= getattr(self, name) < math.inf:  # NaN is neither
                raise CogVideoError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0 < self.clip < math.inf:
            raise CogVideoError(f"clip, the longest gradient, must be above 0, not {self.clip}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise CogVideoError(f"betas must be two numbers from 0 to below 1, not {list(self.betas)}.")
        if not 0 <= self.final_lr <= 1:
            raise CogVideoError(f"final_lr is a share of lr, from 0 to 1, not {self.final_lr}.")
        if self.batch_size % self.accumulate:
            raise CogVideoError(
                f"A batch of {self.batch_size} clips cannot be cut into {self.accumulate} parts."
            )

    def rate_at(self, step: int) -> float:
        """Share of the learning rates at a step: linear warm-up, then one cosine over the whole budget."""
        done = min(1.0, step / max(1, self.steps))
        cosine = self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
        return min(1.0, (step + 1) / max(1, self.warmup)) * cosine


def use_threads(count: int | None) -> None:
    """How many CPU threads train (None: torch's choice), with numbers below 1e-38 taken for 0. Call it before other work.

    The gradients of a model that is nearly certain are full of such numbers, and a product with them takes a hundred times
    as long: twice the time for a whole step of a trained demo model. The process keeps this mode. A thread has it from the
    one that starts it, so threads that torch has begun before go without.
    """
    torch.set_flush_denormal(True)
    if count:
        torch.set_num_threads(min(count, os.cpu_count() or 1))


def fit(
    model: nn.Module,
    trained: Iterable[nn.Parameter],
    loss_of_step: Callable[[int], Tensor],
    config: OptimizerConfig,
    run_dir: Path,
    *,
    settings: dict,
    evaluate: Callable[[], dict[str, float]] | None = None,
    sample: Callable[[int], np.ndarray] | None = None,
    checkpoint_seconds: float = 60.0,
    log_every: int = 50,
    evaluate_every: int = 1000,
    sample_every: int = 1000,
    work: Work | None = None,
    tensorboard: bool = False,
    label: str = "train",
) -> nn.Module:
    """Optimise `trained` (all other weights stay as they are) until config.steps; go on from run_dir if it holds a start.

    loss_of_step(step) is a loss, or a vector of losses by frame whose mean is; it must depend on nothing but the weights
    and the step, so that a resumed run equals an undisturbed one. With config.accumulate parts it is asked for parts
    0, 1, .. of all steps. sample(step) draws a picture uint8 [H,W,3]. Under torchrun every process calls fit with a model
    that distributed.shard made, and its own share of the batches.
    Writes a checkpoint, metrics.jsonl and with tensorboard its files. Raises CogVideoError when run_dir belongs to other
    settings, a loss is not finite, or the disk is full; the last checkpoint stays.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    parameters = list(trained)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizers = _optimizers(model, config)
    full_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    checkpoints = Checkpoints(run_dir, model, optimizers, settings)
    start, extra = checkpoints.load()
    if start == config.steps and start:
        return model.eval()
    recent: list[list[float]] = extra.get("recent", [])  # losses since the last row
    first = distributed.rank() == 0
    log = Metrics(run_dir, start, tensorboard=tensorboard) if first else None
    saved, began, pace = time.monotonic(), time.monotonic(), Pace(work)
    device, parts = parameters[0].device, config.accumulate
    if log and sample is not None and not start:
        log.picture("samples", sample(0), 0)
    bar = tqdm(
        range(start, config.steps), initial=start, total=config.steps, desc=label, mininterval=2, smoothing=0.05,
        disable=not first,
    )  # fmt: skip
    with _StopOnTerm() as stop, contextlib.closing(log) if log else contextlib.nullcontext():
        for step in bar:
            clock = time.monotonic()
            for optimizer, rates in zip(optimizers, full_rates, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * config.rate_at(step)
            for parameter in parameters:
                parameter.grad = None
            found: Tensor | float = 0.0
            for part in range(parts):
                losses = loss_of_step(step * parts + part)
                distributed.without_sync(model, last=part == parts - 1)
                (losses.mean() / parts).backward()
                found = found + losses.detach().flatten() / parts
            norm = distributed.whole(nn.utils.clip_grad_norm_(parameters, config.clip))
            recent.append(distributed.mean(torch.as_tensor(found)).tolist())
            if not all(map(math.isfinite, (*recent[-1], float(norm)))):
                wrong = (
                    f"loss is {np.mean(recent[-1])}"
                    if math.isfinite(float(norm))
                    else "gradient is not finite"
                )
                raise CogVideoError(
                    f"The {wrong} at step {step}; the checkpoint before it is kept in {run_dir}. "
                    "Look at the batch, or train with a lower lr into another run_dir."
                )
            for optimizer in optimizers:
                optimizer.step()
            pace.add(time.monotonic() - clock)
            done = step + 1
            tests = evaluate if done % evaluate_every == 0 or done == config.steps else None
            if done % log_every == 0 or done == config.steps or tests is not None:
                by_frame = np.mean(recent, 0).tolist()
                row = {
                    "step": done,
                    "loss": sum(map(np.mean, recent)) / len(recent),
                    "gradient_norm": float(norm),
                }
                row["lr"] = config.lr * config.rate_at(step)
                if len(by_frame) > 1:
                    row["frame_losses"] = by_frame
                if gates := gate_values(model):
                    row["gates"] = gates
                row |= pace.row() | memory_row(device)
                if tests is not None:
                    row |= tests()
                bar.set_postfix(on_screen(row), refresh=False)
                if log:
                    log.write(row | {"seconds": round(time.monotonic() - began, 1)})
                recent.clear()
            if log and sample is not None and (done % sample_every == 0 or done == config.steps):
                log.picture("samples", sample(done), done)
            asked, due = distributed.most(stop.asked, time.monotonic() - saved > checkpoint_seconds)
            if due or asked or done == config.steps:
                checkpoints.save(done, {"recent": recent})
                saved = time.monotonic()
            if asked:
                message = f"Stopped at step {done}; the same command goes on from {run_dir}."
                if stop.asked == signal.SIGINT:
                    tqdm.write(message, file=sys.stderr)
                    raise KeyboardInterrupt
                raise CogVideoError(message)
    return model.eval()


def _optimizers(model: nn.Module, config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all weights that are trained; with muon_lr, Muon for the matrices of linear layers."""
    trained = [p for p in model.parameters() if p.requires_grad]
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} if config.muon_lr else set()
    matrices, others = [p for p in trained if id(p) in linear], [p for p in trained if id(p) not in linear]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        if distributed.world_size() > 1:
            raise CogVideoError("Muon needs whole matrices: set muon_lr to 0 to train by several processes.")
        optimizers.append(Muon(matrices, config.muon_lr, weight_decay=config.weight_decay))
    if others:
        optimizers.append(
            torch.optim.AdamW(others, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)  # type: ignore[arg-type]
        )
    return optimizers


class _StopOnTerm:
    """Inside `with`: SIGTERM and Ctrl-C ask to save and stop after the step in hand; a second Ctrl-C stops at once."""

    def __enter__(self) -> "_StopOnTerm":
        self.asked, self.before = 0, {}
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(ValueError):  # not the main thread: the caller's handling stays
                self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _) -> None:
        if self.asked == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
