"""What a training will cost on this machine, by a trial of a few steps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from cogvideo.runtime.machine import peak_bytes, wait
from cogvideo.runtime.memory import GB
from cogvideo.training.optimizer import OptimizerConfig, make_optimizers

TRIAL = 2.0  # seconds, and at least two steps: the first ones fetch memory, and take up to twice as long
MOST = 10  # steps of a trial


@dataclass(frozen=True)
class Cost:
    steps: int
    tokens: float  # over all steps
    seconds: float
    bytes: int  # of the device's memory at the most; on a CPU of the whole process
    parameters: int

    def __str__(self) -> str:
        minutes = f"{self.seconds / 60:.1f} min" if self.seconds < 5400 else f"{self.seconds / 3600:.1f} h"
        size = f"{self.tokens / 1e6:.1f} M tokens, {self.parameters / 1e6:.1f} M parameters"
        return f"{self.steps} steps, {size}, about {minutes}, {self.bytes / GB:.1f} GB"


def measure(
    model: nn.Module,
    loss: Callable[[], Tensor],
    tokens: int,
    *,
    optimizer: OptimizerConfig,
    device: torch.device,
    dtype: str,
    trained: Sequence[str] | None = None,
) -> Cost:
    """By the median of some steps after the first, of a model that is thrown away.

    tokens: of one call of loss; trained: names, None: all.
    """
    model.to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for name, weight in model.named_parameters():
        weight.requires_grad_(trained is None or name in trained)
    optimizers, taken = make_optimizers(model, optimizer), []
    while len(taken) < 2 or (sum(taken) < TRIAL and len(taken) < MOST):
        wait(device)
        began = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bf16"):
            found = loss()
        found.backward()
        for one in optimizers:
            one.step()
        wait(device)
        taken.append(time.perf_counter() - began)
    parts = optimizer.steps * optimizer.accumulate
    return Cost(
        optimizer.steps,
        tokens * parts,
        median(taken[1:]) * parts,
        peak_bytes(device),
        sum(p.numel() for p in model.parameters()),
    )
