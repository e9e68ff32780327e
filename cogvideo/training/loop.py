"""One training loop for every transformer: AdamW or Muon, warm-up and cosine, clipping, checkpoints that survive kill -9."""

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cogvideo.errors import CogVideoError
from cogvideo.training.muon import Muon


@dataclass(frozen=True)
class OptimizerConfig:
    """How a stage is optimised. The release: Adam, lr 2e-4, betas 0.9 / 0.95, clipping 0.1, cosine decay.

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

    def __post_init__(self):
        for name, least in (("steps", 0), ("batch_size", 1), ("warmup", 0), ("lr", 0), ("muon_lr", 0), ("clip", 0)):
            if getattr(self, name) < least:
                raise CogVideoError(f"{name} must be at least {least}, not {getattr(self, name)}.")

    def rate_at(self, step: int) -> float:
        """Share of the learning rates at a step: linear warm-up, then one cosine over the whole budget."""
        done = min(1.0, step / max(1, self.steps))
        cosine = self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))
        return min(1.0, (step + 1) / max(1, self.warmup)) * cosine


def save_atomic(value: object, path: Path) -> None:
    """torch.save that leaves either the old or the new file, whatever happens."""
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def fit(
    model: nn.Module,
    trained: Iterable[nn.Parameter],
    loss_of_step: Callable[[int], Tensor],
    config: OptimizerConfig,
    run_dir: Path,
    *,
    settings: dict,
    evaluate: Callable[[], dict[str, float]] | None = None,
    checkpoint_seconds: float = 60.0,
    log_every: int = 50,
    evaluate_every: int = 1000,
    label: str = "train",
) -> nn.Module:
    """Optimise `trained` (all other weights stay as they are) until config.steps; go on from run_dir if it holds a start.

    loss_of_step(step) must depend on nothing but the weights and the step, so that a resumed run equals an undisturbed one.
    Writes checkpoint.pt and metrics.jsonl. Raises CogVideoError when run_dir belongs to other settings or a loss is NaN.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    parameters = list(trained)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    optimizers = _optimizers(model, config)
    full_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    path, start = run_dir / "checkpoint.pt", 0
    if path.exists():
        start = _resume(path, model, optimizers, settings)
        if start == config.steps:
            return model.eval()

    def save(step: int) -> None:
        weights = {name: p.detach() for name, p in model.named_parameters() if name in set(names)}
        states = [optimizer.state_dict() for optimizer in optimizers]
        save_atomic({"step": step, "weights": weights, "optimizers": states, "settings": settings}, path)

    log = _MetricsFile(run_dir / "metrics.jsonl", start)
    saved, recent, began = time.monotonic(), [], time.monotonic()
    bar = tqdm(range(start, config.steps), initial=start, total=config.steps, desc=label, mininterval=2, smoothing=0.05)
    with _StopOnTerm() as stop:
        for step in bar:
            for optimizer, rates in zip(optimizers, full_rates, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * config.rate_at(step)
            loss = loss_of_step(step)
            for parameter in parameters:
                parameter.grad = None
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, config.clip)
            recent.append(loss.item())
            if not math.isfinite(recent[-1]):
                raise CogVideoError(
                    f"The loss is {recent[-1]} at step {step}: lower lr and delete {run_dir} to start again."
                )
            for optimizer in optimizers:
                optimizer.step()
            if (step + 1) % log_every == 0 or step + 1 == config.steps:
                row = {
                    "step": step + 1,
                    "loss": sum(recent) / len(recent),
                    "gradient_norm": float(norm),
                    "lr": config.lr * config.rate_at(step),
                }
                if evaluate is not None and ((step + 1) % evaluate_every == 0 or step + 1 == config.steps):
                    row |= evaluate()
                log.write(row | {"seconds": round(time.monotonic() - began, 1)})
                bar.set_postfix(loss=f"{row['loss']:.3f}")
                recent = []
            if time.monotonic() - saved > checkpoint_seconds or step + 1 == config.steps or stop.asked:
                save(step + 1)
                saved = time.monotonic()
            if stop.asked:
                message = f"Stopped at step {step + 1}; the same command goes on from {path}."
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
        optimizers.append(Muon(matrices, config.muon_lr, weight_decay=config.weight_decay))
    if others:
        optimizers.append(
            torch.optim.AdamW(others, config.lr, config.betas, weight_decay=config.weight_decay, fused=True)  # type: ignore[arg-type]
        )
    return optimizers


def read_checkpoint(path: Path, settings: dict) -> dict:
    """A checkpoint of a training with these settings; raises CogVideoError if it had others, or the file is damaged."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        other = state["settings"] != settings
    except FileNotFoundError:
        raise CogVideoError(f"{path} is missing; delete {path.parent} to start again.") from None
    except Exception as error:  # torch raises many kinds for damaged files
        raise CogVideoError(f"{path} is damaged ({type(error).__name__}); delete it to start again.") from None
    if other:
        raise CogVideoError(
            f"{path} belongs to other settings; choose another run_dir, or delete {path.parent} to start again."
        )
    return state


def _resume(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer], settings: dict) -> int:
    state = read_checkpoint(path, settings)
    model.load_state_dict(state["weights"], strict=False)
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]


class _MetricsFile:
    """One JSON line a row; rows of steps that a killed run made after its last checkpoint are dropped."""

    def __init__(self, path: Path, start: int):
        rows = path.read_text().splitlines() if path.exists() else []
        kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= start]
        path.write_text("".join(row + "\n" for row in kept))
        self.path = path

    def write(self, row: dict) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")


class _StopOnTerm:
    """Inside `with`: SIGTERM and Ctrl-C ask to save and stop after the step in hand, instead of ending the process."""

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
        self.asked = number
