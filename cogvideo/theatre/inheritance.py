"""What a video model takes from its image model: which weights, what the gate does, what it is worth.

Paper section 3.2: CogVideo keeps CogView2 frozen and adds a temporal attention channel beside the spatial
one. The notebook 04_weight_inheritance.ipynb shows what these functions compute.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cogvideo.checkpoints.native import image_model_of, inherit_image_model, origin
from cogvideo.config import ModelConfig, to_dict
from cogvideo.data.tokenized import Batch
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.tensors import without_memory
from cogvideo.training.loop import Job, fit
from cogvideo.training.optimizer import OptimizerConfig

__all__ = ["compare_starts", "frame_losses", "image_model_of", "origin", "parts", "set_gates"]

MUTED = 40.0  # a gate whose sigmoid is exactly 1 in fp32: the temporal channel counts nothing


@dataclass(frozen=True)
class Part:
    """All weights of one name but for the layer: how they start in a video model, their shape, their size."""

    origin: str  # "inherited", "copied" (from another weight of the image model) or "new"
    name: str
    shape: tuple[int, ...]
    layers: int
    numbers: int


def parts(config: ModelConfig) -> list[Part]:
    """The weights of a video model of any size, without making them; inherited ones first."""
    with without_memory():
        model = CogVideoTransformer(config)
    groups: dict[str, list[Tensor]] = {}
    for name, weight in model.named_parameters():
        groups.setdefault(re.sub(r"blocks\.\d+", "blocks.*", name), []).append(weight)
    found = [
        Part(origin(name), name, tuple(weights[0].shape), len(weights), sum(w.numel() for w in weights))
        for name, weights in groups.items()
    ]
    return sorted(found, key=lambda part: ("inherited", "copied", "new").index(part.origin))


@torch.no_grad()
def set_gates(model: CogVideoTransformer, share: float) -> CogVideoTransformer:
    """Let the temporal channel count `share` (0..1) in every layer and dimension, in place."""
    gate = MUTED if share == 0 else float(torch.logit(torch.tensor(1.0 - share)).clamp(-MUTED, MUTED))
    for name, weight in model.named_parameters():
        if name.endswith(".gate"):
            weight.fill_(gate)
    return model


@torch.no_grad()
def frame_losses(model: CogVideoTransformer, batches: Sequence[Batch]) -> Tensor:
    """Mean cross entropy of every frame [T], in nats a token."""
    losses = [model.token_losses(*batch.inputs).mean((0, 2)) for batch in batches]
    return torch.stack(losses).mean(0)


def compare_starts(
    image: CogVideoTransformer,
    config: ModelConfig,
    batches: Callable[[int], Batch],
    test: Sequence[Batch],
    optimizer: OptimizerConfig,
    folder: str | Path,
    *,
    seed: int,
    evaluations: int = 6,
) -> dict[str, list[dict]]:
    """Train two video models on the same batches: one inherits `image` and keeps it frozen, one from nothing.

    Returns for "inherited" and "from nothing" rows {"step", "loss"}: the mean test loss of frames 1.. in nats
    a token, `evaluations` times. Runs are kept under `folder` and resumed.
    """
    inherited = inherit_image_model(image, config=config, seed=seed)
    nothing = CogVideoTransformer(config).initialize(seed)
    starts = {
        "inherited": (inherited, list(inherited.temporal_parameters().values())),
        "from nothing": (nothing, list(nothing.parameters())),
    }
    every = max(1, optimizer.steps // evaluations)
    rows: dict[str, list[dict]] = {}

    def loss(model: CogVideoTransformer, step: int) -> Tensor:
        return model.loss(*batches(step).inputs)

    def test_loss(model: CogVideoTransformer) -> dict[str, float]:
        return {"test_loss": float(frame_losses(model, test)[1:].mean())}

    for name, (model, trained) in starts.items():
        run = Path(folder) / name.replace(" ", "_")
        rows[name] = [{"step": 0, "loss": test_loss(model)["test_loss"]}]
        settings = {"seed": seed, "model": to_dict(config), "optimizer": to_dict(optimizer)}
        job = Job(model, trained, partial(loss, model), optimizer, run, settings, label=name)
        job.evaluate, job.evaluate_every, job.log_every = partial(test_loss, model), every, every
        fit(job)
        written = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        rows[name] += [
            {"step": row["step"], "loss": row["test_loss"]} for row in written if "test_loss" in row
        ]
    return rows
