"""The log of a training: rows in metrics.jsonl, TensorBoard's curves of them, one line on screen."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cogvideo.errors import CogVideoError
from cogvideo.io import disk_errors, write_whole
from cogvideo.training import distributed


class Metrics:
    """One JSON line a row, by process 0. Damaged rows and those after the step `start` are dropped.

    tensorboard: also write scalars and pictures into run_dir/tensorboard; CogVideoError if it is not
    installed.
    """

    def __init__(self, run_dir: Path, start: int, *, tensorboard: bool = False):
        self.path, self.board, self.active = run_dir / "metrics.jsonl", None, distributed.rank() == 0
        if not self.active:
            return
        text = self.path.read_text(errors="replace") if self.path.exists() else ""
        kept = "".join(row + "\n" for row in text.splitlines() if _step_of(row) <= start)
        if kept != text:
            write_whole(self.path, kept)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                advice = 'pip install "cogvideo[train]", or set tensorboard to false'
                raise CogVideoError(f"TensorBoard is not installed: {advice}.") from None
            with disk_errors(run_dir):
                self.board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)

    def write(self, row: dict[str, Any]) -> None:
        """A row with its "step"; a list becomes one curve for each of its numbers."""
        if self.active:
            with disk_errors(self.path), open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in row.items():
                if name == "note":
                    self.board.add_text(name, value, row["step"])
                    continue
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


@dataclass
class Pace:
    """What a step takes over all processes, and the seconds of the steps since the last row of the log."""

    tokens: int
    flops: float
    peak: float  # operations a second that all devices together could do
    steps: list[float] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        rate = len(self.steps) / sum(self.steps)
        self.steps.clear()
        mfu = self.flops * rate / self.peak
        return {"tokens_per_second": round(self.tokens * rate, 1), "mfu": round(mfu, 4)}


@torch.no_grad()
def gate_values(model: nn.Module) -> list[float]:
    """The mean gate weight (0..1) of the spatial channel, layer by layer; [] without gates."""
    gates = [p for name, p in model.named_parameters() if name.endswith(".gate")]
    return [round(float(distributed.whole(gate).float().sigmoid().mean()), 5) for gate in gates]


def on_screen(row: dict[str, Any]) -> dict[str, str]:
    """What of a row stands beside the progress bar."""
    shown = {"loss": f"{row['loss']:.3f}"}
    if frames := row.get("frame_losses"):
        shown["frames"] = " ".join(f"{value:.2f}" for value in frames)
    if gates := row.get("gates"):
        shown["gate"] = f"{min(gates):.2f}-{max(gates):.2f}"
    shown["norm"] = f"{row['gradient_norm']:.2f}"
    if "mfu" in row:
        shown |= {"tokens/s": f"{row['tokens_per_second']:.0f}", "mfu": f"{row['mfu']:.1%}"}
    return shown | {"GB": f"{row['peak_gb']:.1f}"}
