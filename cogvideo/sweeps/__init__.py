"""Sweeps: a grid in YAML, each point a notebook run by papermill in processes of its own, one table, a report.

Notebooks call `record` once, at their end: it is the way by which results leave them.
"""

import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cogvideo.errors import CogVideoError
from cogvideo.io import write_json

RESULT_FILE = "COGVIDEO_SWEEP_RESULT"  # in the environment of a point: where its result goes


def record(
    metrics: Mapping[str, Any],
    files: Mapping[str, str | Path | list[str] | list[Path]] | None = None,
    output_dir: str | Path | None = None,
) -> Path | None:
    """Write what a notebook found to result.json, whole or not at all, and print it; a second call replaces the first.

    A point of a sweep writes into the point's folder; a notebook run by hand into `output_dir`, or nowhere without one.
    metrics: numbers, strings, truth values or None by name; what has .item() (NumPy, a tensor of one number) becomes a
    number, and numbers that are not finite become None. files: what else was written, by name, such as sample clips;
    paths are kept relative to the folder of result.json if they lie in it.
    Returns the file written, if any. Raises CogVideoError for other metrics, missing files and a place that cannot be
    written.
    """
    values = {name: _plain(name, value) for name, value in metrics.items()}
    for name, value in values.items():
        print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")
    place = os.environ.get(RESULT_FILE) or (Path(output_dir) / "result.json" if output_dir else None)
    if place is None:
        return None
    place = Path(place)
    paths = {}
    for name, path in (files or {}).items():
        paths[name] = (
            [_inside(p, place.parent) for p in path]
            if isinstance(path, list)
            else _inside(path, place.parent)
        )
    write_json(place, {"metrics": values, "files": paths}, parents=True)
    return place


def _plain(name: Any, value: Any) -> Any:
    if hasattr(value, "item"):
        with suppress(RuntimeError, ValueError):  # more than one number
            value = value.item()
    if not isinstance(name, str) or not isinstance(value, (int, float, str, bool, type(None))):
        raise CogVideoError(
            f"The metric {name!r} must be one number, a string or None, not {type(value).__name__}."
        )
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _inside(path: str | Path, folder: Path) -> str:
    path, folder = Path(path).resolve(), folder.resolve()
    if not path.exists():
        raise CogVideoError(f"The file {path} to record does not exist: write it first.")
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
