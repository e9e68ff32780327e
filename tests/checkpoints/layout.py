"""Checkpoints in the layout of the release, for the tests of what looks into them."""

import json
from pathlib import Path

import torch
from conftest import DATA

SAT = DATA / "cogvideo"


def released_weights(name="sequential_window"):
    weights = torch.load(SAT / name / "1" / "mp_rank_00_model_states.pt", weights_only=True)
    return weights.get("module", weights), json.loads((SAT / name / "model_config.json").read_text())


def split(name, tensor, ranks):
    """What every rank of a model-parallel run holds of a weight."""
    if "query_key_value" in name:
        parts = [part.chunk(ranks) for part in tensor.chunk(3)]
        return [torch.cat([part[rank] for part in parts]) for rank in range(ranks)]
    if "word_embeddings" in name or "dense_h_to_4h" in name:
        return tensor.chunk(ranks)
    if "dense" in name and tensor.ndim == 2:
        return tensor.chunk(ranks, dim=1)
    return [tensor] * ranks


def write_released(folder: Path, weights, settings, ranks=1) -> Path:
    (folder / "7").mkdir(parents=True)
    (folder / "latest").write_text("7")
    (folder / "model_config.json").write_text(json.dumps(settings))
    parts = {name: split(name, tensor, ranks) for name, tensor in weights.items()}
    for rank in range(ranks):
        own = {name: part[rank].clone() for name, part in parts.items()}
        torch.save({"module": own, "iteration": 7}, folder / "7" / f"mp_rank_{rank:02d}_model_states.pt")
    return folder


def numbers(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
