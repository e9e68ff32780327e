"""How a model is optimised: AdamW, or Muon for the matrices of linear layers, with warm-up and one cosine."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cogvideo.errors import CogVideoError
from cogvideo.training import distributed
from cogvideo.training.lora import adamw8


@dataclass(frozen=True)
class OptimizerConfig:
    """How a stage is optimised. The release: Adam, lr 2e-4, betas 0.9 / 0.95, clipping 0.1, cosine decay."""

    steps: int
    batch_size: int  # clips of a step, over all processes
    lr: float = 2e-3
    muon_lr: float = 0.0  # above 0: of the weight matrices of linear layers, which Muon moves
    warmup: int = 100  # steps
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip: float = 1.0  # the longest gradient
    final_lr: float = 0.02  # fraction of lr left at the last step
    accumulate: int = 1  # parts of a batch that are computed one after another

    def __post_init__(self):
        zero = ("steps", "warmup", "lr", "muon_lr", "weight_decay")
        for name, least in (dict.fromkeys(zero, 0) | {"batch_size": 1, "accumulate": 1}).items():
            if not least <= getattr(self, name) < math.inf:  # NaN is neither
                raise CogVideoError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0 < self.clip < math.inf:
            raise CogVideoError(f"clip, the longest gradient, must be above 0, not {self.clip}.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise CogVideoError(f"betas must be two numbers from 0 to below 1, not {list(self.betas)}.")
        if not 0 <= self.final_lr <= 1:
            raise CogVideoError(f"final_lr is a fraction of lr, from 0 to 1, not {self.final_lr}.")
        if self.batch_size % self.accumulate:
            raise CogVideoError(f"{self.batch_size} clips cannot be cut into {self.accumulate} parts.")

    def rate_at(self, step: int) -> float:
        """The fraction of the learning rates at a step: linear warm-up, then one cosine over all steps."""
        done = min(1.0, step / max(1, self.steps))
        cosine = self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
        return min(1.0, (step + 1) / max(1, self.warmup)) * cosine


def make_optimizers(
    model: nn.Module, config: OptimizerConfig, *, bits: int = 32
) -> list[torch.optim.Optimizer]:
    """AdamW for all weights that require a gradient; with muon_lr, Muon for the matrices of linear layers.

    bits: 32, or 8 for AdamW's states in bytes, by one process.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} if config.muon_lr else set()
    matrices, others = [p for p in trained if id(p) in linear], [p for p in trained if id(p) not in linear]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, config.muon_lr, weight_decay=config.weight_decay))
    if others:
        betas = (config.betas[0], config.betas[1])
        decay = config.weight_decay
        if bits == 8:
            if distributed.world_size() > 1:
                raise CogVideoError("8-bit optimiser states are for one process: set optimizer_bits to 32.")
            optimizers.append(adamw8(others, config.lr, betas, decay))
        else:
            optimizers.append(torch.optim.AdamW(others, config.lr, betas, weight_decay=decay, fused=True))
    return optimizers


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are made orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    torch.optim.Muon with adjust_lr_fn="match_rms_adamw", in the weights' own precision instead of bf16:
    without bf16 units a CPU takes 75 ms for a matrix of 384 x 128 in bf16 and 3 ms in fp32, a quarter of a
    training step. Of sharded matrices each process keeps its part of the momentum; all gather a step, make
    the same one orthogonal, and take their part of it.
    """

    def __init__(
        self, matrices: list[nn.Parameter], lr: float, *, weight_decay: float, momentum: float = 0.95
    ):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch passes it, always None
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                buffer = self.state[matrix].setdefault("momentum_buffer", torch.zeros_like(matrix))
                buffer.lerp_(matrix.grad, 1 - group["momentum"])
                ahead = matrix.grad.lerp(buffer, group["momentum"])  # Nesterov's look ahead
                update = distributed.shard_like(orthogonal(distributed.whole(ahead)), matrix)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                # Scaled to move the weights as far as a step of AdamW would (Liu et al. 2025).
                matrix.add_(update, alpha=-0.2 * group["lr"] * max(matrix.shape) ** 0.5)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """[m,n] -> nearly the nearest matrix of orthonormal rows or columns, by Newton-Schulz iterations."""
    a, b, c = 3.4445, -4.7750, 2.0315  # singular values end between about 0.7 and 1.2
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
