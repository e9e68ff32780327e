"""Sweeps: a grid in YAML, each point a notebook run by papermill in processes of its own, one table.

Notebooks call `record` once, at their end: this is how their results are collected.
"""

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cogvideo.errors import CogVideoError
from cogvideo.io import write_json

RESULT_FILE = "COGVIDEO_SWEEP_RESULT"  # environment variable of a point: the file its result goes to


def record(
    metrics: Mapping[str, Any],
    files: Mapping[str, str | Path | list[str] | list[Path]] | None = None,
    output_dir: str | Path | None = None,
) -> Path | None:
    """Write a notebook's results to result.json, replacing earlier ones, and print them.

    In a sweep the file is in the point's folder; by hand in `output_dir`, or nowhere without one.

    metrics: numbers, strings, truth values or None by name. What has .item() (NumPy, a tensor of one number)
        becomes a number; numbers that are not finite become None.
    files: other files that the notebook wrote, such as sample clips; paths inside result.json's folder are
        kept relative to it.
    Returns the file written, if any.
    """
    values = {name: _plain(name, value) for name, value in metrics.items()}
    for name, value in values.items():
        print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
    target = os.environ.get(RESULT_FILE) or (output_dir and Path(output_dir) / "result.json")
    if not target:
        return None
    folder = Path(target).parent
    paths = {
        name: [_inside(p, folder) for p in path] if isinstance(path, list) else _inside(path, folder)
        for name, path in (files or {}).items()
    }
    return write_json(target, {"metrics": values, "files": paths}, parents=True)


def _plain(name: Any, value: Any) -> Any:
    if hasattr(value, "item"):
        with suppress(RuntimeError, ValueError):  # more than one number
            value = value.item()
    if not isinstance(name, str) or not isinstance(value, (int, float, str, bool, type(None))):
        kind = type(value).__name__
        raise CogVideoError(f"The metric {name!r} must be one number, a string or None, not {kind}.")
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _inside(path: str | Path, folder: Path) -> str:
    path, folder = Path(path).resolve(), folder.resolve()
    if not path.exists():
        raise CogVideoError(f"The file {path} to record does not exist: write it first.")
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
