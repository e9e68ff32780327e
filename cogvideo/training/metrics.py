"""What a training tells of itself: rows in metrics.jsonl (the truth), the same as TensorBoard curves, one line on screen."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cogvideo.errors import CogVideoError
from cogvideo.runtime.memory import GB
from cogvideo.training import distributed
from cogvideo.training.checkpoints import write_whole, writing


@dataclass(frozen=True)
class Work:
    """What one step is, over all processes, to tell its pace. peak: operations a second of all devices together."""

    tokens: int
    flops: float
    peak: float


class Metrics:
    """One JSON line a row; rows that a killed run made after its last checkpoint, and damaged ones, are dropped.

    tensorboard: also write scalars and pictures for TensorBoard into run_dir/tensorboard. Raises CogVideoError if it is
    asked for and not installed.
    """

    def __init__(self, run_dir: Path, start: int, *, tensorboard: bool = False):
        self.path, self.board = run_dir / "metrics.jsonl", None
        text = self.path.read_text(errors="replace") if self.path.exists() else ""
        kept = "".join(row + "\n" for row in text.splitlines() if _step_of(row) <= start)
        if kept != text:
            write_whole(self.path, lambda file: file.write(kept.encode()))
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise CogVideoError(
                    'TensorBoard is not installed: pip install "cogvideo[train]", or set tensorboard to false.'
                ) from None
            self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)

    def write(self, row: dict[str, Any]) -> None:
        """A row with its "step"; lists become one curve for each place."""
        with writing(self.path), open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in row.items():
                for index, number in enumerate(value) if isinstance(value, list) else [(None, value)]:
                    self.board.add_scalar(name if index is None else f"{name}/{index}", number, row["step"])
            self.board.flush()

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """uint8 [H,W,3] to TensorBoard."""
        if self.board is not None:
            self.board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def _step_of(row: str) -> float:
    """Infinity for a row that is cut off."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


class Pace:
    """Time of steps since the last row -> tokens a second and MFU; nothing without `work`. What is between steps is not in it."""

    def __init__(self, work: Work | None):
        self.work, self.steps, self.seconds = work, 0, 0.0

    def add(self, seconds: float) -> None:
        self.steps, self.seconds = self.steps + 1, self.seconds + seconds

    def row(self) -> dict[str, float]:
        rate = self.steps / self.seconds
        self.steps, self.seconds = 0, 0.0
        if self.work is None:
            return {}
        return {
            "tokens_per_second": round(self.work.tokens * rate, 1),
            "mfu": round(self.work.flops * rate / self.work.peak, 4),
        }


@torch.no_grad()
def gate_values(model: nn.Module) -> list[float]:
    """The temporal channel's gate, layer by layer: the mean share (0..1) of the spatial channel; [] without gates."""
    gates = [p for name, p in model.named_parameters() if name.endswith(".gate")]
    return [round(float(distributed.whole(gate).float().sigmoid().mean()), 5) for gate in gates]


def memory_row(device: torch.device) -> dict[str, float]:
    """The most that was taken so far: of a GPU's memory, or of the host's by this process."""
    from cogvideo.runtime.machine import peak_bytes

    return {"peak_gb": round(peak_bytes(device) / GB, 3)}


def on_screen(row: dict[str, Any]) -> dict[str, str]:
    """What of a row stands beside the bar."""
    shown = {"loss": f"{row['loss']:.3f}"}
    if frames := row.get("frame_losses"):
        shown["frames"] = " ".join(f"{value:.2f}" for value in frames)
    if gates := row.get("gates"):
        shown["gate"] = f"{min(gates):.2f}-{max(gates):.2f}"
    shown["norm"] = f"{row['gradient_norm']:.2f}"
    if "mfu" in row:
        shown |= {"tokens/s": f"{row['tokens_per_second']:.0f}", "mfu": f"{row['mfu']:.1%}"}
    if "peak_gb" in row:
        shown["GB"] = f"{row['peak_gb']:.1f}"
    return shown
