"""One training loop for everything, on one process or many: steps, a log, checkpoints."""

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from cogvideo.errors import CogVideoError
from cogvideo.runtime.machine import peak_bytes
from cogvideo.runtime.memory import GB
from cogvideo.training import distributed
from cogvideo.training.checkpoints import Checkpoints, kept
from cogvideo.training.lock import held
from cogvideo.training.metrics import Metrics, Pace, gate_values, on_screen
from cogvideo.training.optimizer import OptimizerConfig, make_optimizers


@dataclass
class Job:
    """What fit() trains, on what, and how often it logs.

    loss(step) is a loss, or losses by frame [T] whose mean is the loss. It must depend on nothing but the
    weights and the step, so that a resumed run equals an undisturbed one. With optimizer.accumulate parts it
    is called for parts 0, 1, .. of all steps. Under torchrun, every process has its own rows of the batches,
    and a model that distributed.shard() has sharded, or all of it.
    """

    model: nn.Module
    parameters: Iterable[nn.Parameter]  # of the model: the trained ones
    loss: Callable[[int], Tensor]
    optimizer: OptimizerConfig
    folder: Path  # of the checkpoint, metrics.jsonl and TensorBoard's files
    settings: dict[str, Any]  # what a checkpoint must agree with to be resumed
    evaluate: Callable[[], dict[str, Any]] | None = None  # test losses
    sample: Callable[[int], np.ndarray] | None = None  # of a step: a picture uint8 [H,W,3] for TensorBoard
    checkpoint_seconds: float = 60.0
    log_every: int = 50  # steps
    evaluate_every: int = 1000
    sample_every: int = 1000
    pace: Pace | None = None  # to log tokens a second and MFU
    tensorboard: bool = False
    bits: int = 32  # of the optimiser's states
    label: str = "train"  # of the progress bar


def use_threads(count: int | None) -> None:
    """Set how many CPU threads train (None: torch's choice), with numbers below 1e-38 taken for 0.

    The gradients of a model that is nearly certain are full of such numbers, and a product with them takes a
    hundred times as long: twice the time for a whole step of a trained demo model. Call it before other work:
    the process keeps this mode, a thread has it from the one that starts it, and threads that torch has
    started before go without.
    """
    torch.set_flush_denormal(True)
    if count:
        torch.set_num_threads(min(count, os.cpu_count() or 1))


def fit(job: Job) -> nn.Module:
    """Train until job.optimizer.steps, from the checkpoint in job.folder if there is one -> the model.

    Raises CogVideoError when the folder belongs to other settings or is being trained by others, a loss is
    not finite, the disk is full or SIGTERM stops the run; the last checkpoint stays. A finished run is
    lengthened when more steps are asked for; the first row of its log then has a note that says so.
    """
    with held(job.folder):
        return _fit(job)


def _fit(job: Job) -> nn.Module:
    run, steps = _Run(job), job.optimizer.steps
    if run.start == steps and steps:
        return job.model.eval()
    log = Metrics(job.folder, run.start, tensorboard=job.tensorboard)
    notes = {"note": "; ".join(run.checkpoints.changes)} if run.checkpoints.changes else {}
    if notes and distributed.rank() == 0:
        print(f"{job.folder} resumes at step {run.start}; {notes['note']}.", file=sys.stderr)
    saved = began = time.monotonic()
    bar = tqdm(
        range(run.start, steps), initial=run.start, total=steps, desc=job.label, mininterval=2,
        smoothing=0.05, disable=distributed.rank() > 0,
    )  # fmt: skip
    with _StopOnTerm() as stop, contextlib.closing(log):
        if job.sample and not run.start:
            log.picture("samples", job.sample(0), 0)
        for step in bar:
            norm = run.step(step)
            done = step + 1
            last = done == steps
            evaluate = job.evaluate if last or done % job.evaluate_every == 0 else None
            if last or evaluate or done % job.log_every == 0:
                row = run.row(done, norm) | (evaluate() if evaluate else {})
                bar.set_postfix(on_screen(row), refresh=False)
                log.write(row | {"seconds": round(time.monotonic() - began, 1)} | notes)
                notes = {}
            if job.sample and (last or done % job.sample_every == 0):
                log.picture("samples", job.sample(done), done)
            asked, due = distributed.most(stop.asked, time.monotonic() - saved > job.checkpoint_seconds)
            if due or asked or last:
                run.checkpoints.save(done, {"recent": run.recent})
                saved = time.monotonic()
            if asked:
                stop.leave(f"Stopped at step {done}; the same command resumes from {job.folder}.")
    return job.model.eval()


class _Run:
    """A job under way: its optimisers, its checkpoint, and the losses since the last row of the log."""

    def __init__(self, job: Job):
        self.job, self.parameters = job, list(job.parameters)
        job.model.requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.optimizers = make_optimizers(job.model, job.optimizer, bits=job.bits)
        self.checkpoints = Checkpoints(job.folder, job.model, self.optimizers, job.settings)
        self.start, extra = self.checkpoints.load()
        self.recent: list[list[float]] = extra.get("recent", [])

    def step(self, step: int) -> float:
        """Move the weights by one step -> the norm of the gradient."""
        began, parts = time.monotonic(), self.job.optimizer.accumulate
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = optimizer.defaults["lr"] * self.job.optimizer.rate_at(step)
        self.job.model.zero_grad()
        found = torch.zeros(())
        for part in range(parts):
            losses = self.job.loss(step * parts + part)
            if sync := getattr(self.job.model, "set_requires_gradient_sync", None):  # a sharded model
                sync(part == parts - 1)  # gradients are averaged after the last part only
            (losses.mean() / parts).backward()
            found = found + losses.detach().flatten() / parts
        if not hasattr(self.job.model, "set_requires_gradient_sync"):  # a model that every process has whole
            for parameter in self.parameters:
                if parameter.grad is not None:
                    distributed.mean(parameter.grad)
        norm = float(distributed.whole(nn.utils.clip_grad_norm_(self.parameters, self.job.optimizer.clip)))
        self.recent.append(distributed.mean(found).tolist())
        if not all(map(math.isfinite, (*self.recent[-1], norm))):
            what = f"loss is {np.mean(self.recent[-1])}" if math.isfinite(norm) else "gradient is not finite"
            if kept(self.job.folder):
                what += f" at step {step}; the checkpoint before it is kept"
            else:
                what += f" at step {step}, before the first checkpoint"
            advice = "look at the batch, or train with a lower lr into another run_dir"
            raise CogVideoError(f"The {what}: {advice}.")
        for optimizer in self.optimizers:
            optimizer.step()
        if self.job.pace:
            self.job.pace.steps.append(time.monotonic() - began)
        return norm

    def row(self, done: int, norm: float) -> dict[str, Any]:
        """A row of the log over the steps since the last one, which begins the next one."""
        by_frame = np.mean(self.recent, 0).tolist()
        row: dict[str, Any] = {
            "step": done,
            "loss": float(sum(map(np.mean, self.recent)) / len(self.recent)),
            "gradient_norm": norm,
            "lr": self.job.optimizer.lr * self.job.optimizer.rate_at(done - 1),
        }
        if len(by_frame) > 1:
            row["frame_losses"] = by_frame
        if gates := gate_values(self.job.model):
            row["gates"] = gates
        if self.job.pace:
            row |= self.job.pace.row()
        self.recent.clear()
        return row | {"peak_gb": round(peak_bytes(self.parameters[0].device) / GB, 3)}


class _StopOnTerm:
    """Inside `with`: SIGTERM and Ctrl-C ask to stop after the current step; a second Ctrl-C stops at once."""

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

    def leave(self, message: str) -> None:
        """End the run as what asked for it would: Ctrl-C by KeyboardInterrupt, SIGTERM by CogVideoError."""
        if self.asked == signal.SIGINT:
            tqdm.write(message, file=sys.stderr)
            raise KeyboardInterrupt
        raise CogVideoError(message)
