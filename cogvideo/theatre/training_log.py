"""What a run of the recipe leaves beside its weights: losses of every part, their curves, what made them."""

import json
from pathlib import Path
from typing import Any

from cogvideo.io import file_hash, write_json, write_whole

LOGGED = ("frames", "image", "stage1_first_layer", "stage1", "stage2_first_layer", "stage2", "superres")


def keep_log(run_dir: Path, folder: Path, made_at: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Copy the parts' metrics into `folder` and draw loss_curves.png -> commit, settings, their hashes."""
    hashes, rows = {}, {}
    for part in LOGGED:
        text = (run_dir / part / "metrics.jsonl").read_text(encoding="utf-8")
        rows[part] = [json.loads(line) for line in text.splitlines()]
        hashes[part] = file_hash(write_whole(folder / f"{part}.jsonl", text, parents=True))
    _draw(rows, folder / "loss_curves.png")
    record = {"commit": made_at, "settings": settings, "sha256 of the logs": hashes}
    write_json(folder / "record.json", record)
    return record


def _draw(rows: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Loss of every part against its steps, and its losses on held-out clips; both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(rows), 2.8), layout="constrained")
    for axis, (part, logged) in zip(figure.subplots(1, len(rows)), rows.items(), strict=True):
        axis.loglog([row["step"] for row in logged], [row["loss"] for row in logged], label="training")
        for name in sorted({name for row in logged for name in row if name.startswith("test_loss ")}):
            points = [(row["step"], row[name]) for row in logged if name in row]
            axis.loglog(*zip(*points, strict=True), "o-", markersize=3, label=name.removeprefix("test_loss "))
        label = "squared and absolute error" if part == "frames" else "nats a token"
        label = "relative error" if part.endswith("first_layer") else label
        axis.set(title=part.replace("_", " "), xlabel="step", ylabel=label)
        axis.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
