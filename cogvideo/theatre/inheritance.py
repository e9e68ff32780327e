"""What a video model takes from its image model, looked at: which weights, what the gate does, what it is worth.

Paper section 3.2: CogVideo keeps CogView2 frozen and adds a temporal attention channel beside the spatial one. The notebook
weight_inheritance.ipynb shows what these functions compute.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cogvideo.checkpoints.native import inherit_image_model
from cogvideo.checkpoints.sat import fill_model
from cogvideo.config import ModelConfig, to_dict
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.tensors import without_memory
from cogvideo.theatre.batches import Batch
from cogvideo.training.loop import OptimizerConfig, fit

MUTED = 40.0  # a gate whose sigmoid is exactly 1 in fp32: the temporal channel counts nothing


@dataclass(frozen=True)
class Part:
    """All weights of one name but for the layer: how they start in a video model, their shape, how many numbers in all."""

    origin: str  # "inherited", "copied" (from another weight of the image model) or "new"
    name: str
    shape: tuple[int, ...]
    layers: int
    numbers: int


def origin(name: str) -> str:
    """How the weight `name` of a video model starts (see inherit_image_model)."""
    if ".temporal.qkv." in name or name.startswith("extra_position_embedding"):
        return "copied"
    return "new" if ".temporal." in name or name.endswith(".gate") else "inherited"


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


def image_model_of(model: CogVideoTransformer) -> CogVideoTransformer:
    """The image model inside a stage 1 or 2: its base, which shares the weights' memory.

    Raises CogVideoError for a model without a temporal channel.
    """
    if not model.config.temporal:
        raise CogVideoError("This is an image model already: give a stage 1 or stage 2 model.")
    config = replace(
        model.config, num_frames=1, temporal=False, extra_positions=0, order="sequential", window=None
    )
    base = {name: weight for name, weight in model.state_dict().items() if origin(name) == "inherited"}
    return fill_model(lambda: CogVideoTransformer(config), base, where="the stage")


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
    losses = [model.token_losses(*_inputs(batch)).mean((0, 2)) for batch in batches]
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
    """Train two video models on the same batches: one inherits `image` and keeps it frozen, one starts from nothing.

    Returns for "inherited" and "from nothing" rows {"step", "loss"}: the mean test loss of frames 1.. in nats a token,
    `evaluations` times. Runs are kept under `folder` and go on where they were cut off.
    """
    inherited = inherit_image_model(image, config=config, seed=seed)
    nothing = CogVideoTransformer(config).initialize(seed)
    starts = {
        "inherited": (inherited, list(inherited.temporal_parameters().values())),
        "from nothing": (nothing, list(nothing.parameters())),
    }
    every = max(1, optimizer.steps // evaluations)
    rows: dict[str, list[dict]] = {}
    for name, (model, trained) in starts.items():
        run = Path(folder) / name.replace(" ", "_")

        def test_loss(model: CogVideoTransformer = model) -> dict[str, float]:
            return {"test_loss": float(frame_losses(model, test)[1:].mean())}

        start = test_loss()["test_loss"]
        fit(
            model,
            trained,
            lambda step, model=model: model.loss(*_inputs(batches(step))),
            optimizer,
            run,
            settings={"seed": seed, "model": to_dict(config), "optimizer": to_dict(optimizer)},
            evaluate=test_loss,
            log_every=every,
            evaluate_every=every,
            label=name,
        )
        written = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        rows[name] = [{"step": 0, "loss": start}]
        rows[name] += [
            {"step": row["step"], "loss": row["test_loss"]} for row in written if "test_loss" in row
        ]
    return rows


def _inputs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.text_ids, batch.frames, batch.text_mask
