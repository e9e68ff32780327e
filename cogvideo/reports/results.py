"""What a sweep found, read for a report: its table, what the sweep file says of it, and the clips that points kept."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cogvideo.data.video import Video, read_video, write_video
from cogvideo.errors import CogVideoError
from cogvideo.sweeps import notes, table
from cogvideo.sweeps.spec import Sweep, load

USABLE = ("done", "changed")  # states of points whose metrics are in the table
NOT_RUN = ("waiting", "running", "stopped", "interrupted")  # and of those that have come to no end


@dataclass(frozen=True)
class Results:
    """A sweep's table and what is needed to read it."""

    name: str
    question: str
    rows: list[dict[str, Any]]  # one a point; None where there is no value
    parameters: list[str]  # columns that were given to the points
    metrics: list[str]  # columns to be reported
    variant: str | None  # the column that tells variants apart
    baseline: Any
    folder: Path | None  # where the points' folders lie, if they are here
    repeat: list[str]  # commands

    @property
    def usable(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["status"] in USABLE]

    @property
    def variants(self) -> list[Any]:
        return list(dict.fromkeys(row[self.variant] for row in self.rows)) if self.variant else []

    @property
    def others(self) -> list[str]:
        """Parameters that vary beside the variant and the seed: variants are compared where these are the same."""
        return [n for n in self.parameters if n not in self.fixed() and n not in (self.variant, "seed")]

    def groups(self) -> dict[str, list[dict[str, Any]]]:
        """Usable rows by what their other varied parameters are; "" where there are no such parameters."""
        found: dict[str, list[dict[str, Any]]] = {}
        for row in self.usable:
            found.setdefault(", ".join(f"{name} {row[name]}" for name in self.others), []).append(row)
        return found

    def fixed(self) -> dict[str, Any]:
        """Parameters that are the same in all points."""
        return {
            name: self.rows[0].get(name)
            for name in self.parameters
            if len({json.dumps(row.get(name)) for row in self.rows}) == 1
        }


def read_results(path: str | Path) -> Results:
    """The results of a sweep from its file (NAME.yaml), its folder (runs/NAME) or its table (.csv, .parquet).

    A folder and a table belong to the sweep file of their name in a folder `sweeps` near by. A sweep that is still running
    is read as far as it is. Raises CogVideoError for what is none of these, and where there is no sweep file or no result.
    """
    path = Path(path).resolve()
    if not path.exists():
        raise CogVideoError(f"There is no {path}: give a sweep file, the folder of its runs, or its table.")
    if path.is_dir():
        sweep, rows, folder = load(_sweep_file(path, path.name)), None, path
    elif path.suffix in (".csv", ".parquet"):
        sweep, rows, folder = load(_sweep_file(path, path.stem)), read_table(path), None
    elif path.suffix in (".yaml", ".yml"):
        sweep, rows, folder = load(path), None, None
    else:
        raise CogVideoError(f"{path} is no sweep file (.yaml), folder of runs, or table (.csv, .parquet).")
    if rows is None:
        folder = folder or sweep.folder
        made = {point.name for point in sweep.points if (folder / point.name / "point.json").exists()}
        rows = (
            _plain(table.gather(sweep).to_dict("records"))
            if folder == sweep.folder
            else read_table(_table(folder))
        )
        if not made:
            raise CogVideoError(
                f"{folder} holds no points of {sweep.file.name}: run `cogvideo sweep run` first."
            )
    if not any(row["status"] in USABLE for row in rows):
        raise CogVideoError(f"No point of {sweep.name} is done: look with `cogvideo sweep status`.")
    return Results(
        name=sweep.name,
        question=sweep.question,
        rows=rows,
        parameters=[
            name for name in map(table.parameter_column, sweep.points[0].parameters) if name in rows[0]
        ],
        metrics=_metrics(sweep, rows),
        variant=sweep.variant and table.parameter_column(sweep.variant),
        baseline=sweep.baseline,
        folder=folder,
        repeat=[f"cogvideo sweep run reports/sweeps/{sweep.file.name}"],
    )


def _sweep_file(path: Path, name: str) -> Path:
    for folder in list(path.parents)[:3]:
        for file in (folder / f"{name}.yaml", folder / "sweeps" / f"{name}.yaml"):
            if file.is_file():
                return file
    raise CogVideoError(
        f"There is no sweep file {name}.yaml beside {path} or in a folder `sweeps` above it: give the sweep file itself."
    )


def _table(folder: Path) -> Path:
    path = folder / "table.csv"
    if not path.exists():
        raise CogVideoError(
            f"{folder} has no table.csv: run `cogvideo sweep run` on its sweep file to the end."
        )
    return path


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a sweep's table. Raises CogVideoError for a file that is none."""
    import pandas as pd

    try:
        found = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise CogVideoError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}.") from None
    if missing := {"point", "status"} - set(found.columns):
        raise CogVideoError(f"{path} is no table of a sweep: it has no column {', '.join(sorted(missing))}.")
    if found.empty:
        raise CogVideoError(f"{path} has no rows: run the sweep first.")
    return _plain(found.to_dict("records"))


def _plain(rows: Sequence[Mapping[Any, Any]]) -> list[dict[str, Any]]:
    """NaN, which is how tables tell of nothing, becomes None; NumPy's numbers become Python's."""

    def plain(value: Any) -> Any:
        value = value.item() if hasattr(value, "item") else value
        return None if isinstance(value, float) and math.isnan(value) else value

    return [{str(name): plain(value) for name, value in row.items()} for row in rows]


def _metrics(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the sweep collects; without that, all columns of numbers that are neither parameters nor the sweep's own."""
    parameters = sweep.points[0].parameters
    own = {*table.FIRST, *table.LAST, *map(table.parameter_column, parameters)}
    wanted = [table.metric_column(name, parameters) for name in sweep.collect] or [
        n for n in rows[0] if n not in own
    ]
    return [name for name in wanted if any(isinstance(row.get(name), (int, float)) for row in rows)]


def sample_clips(results: Results) -> tuple[int, dict[str, list[Video | None]]]:
    """Clips that points kept, of the first seed that has them of the most variants -> the seed, and by prompt one clip of
    each variant. Without clips, and where more than variant and seed vary: no prompts."""
    by_seed: dict[int, dict[Any, dict[str, Path]]] = {}
    if results.folder and results.variant and not results.others:
        for row in results.usable:
            if found := _clips_of(results.folder / row["point"]):
                by_seed.setdefault(int(row.get("seed") or 0), {})[row[results.variant]] = found
    if not by_seed:
        return 0, {}
    seed = max(by_seed, key=lambda seed: (len(by_seed[seed]), -seed))
    kept = by_seed[seed]
    prompts = dict.fromkeys(prompt for found in kept.values() for prompt in found)
    return seed, {
        prompt: [_read_clip(kept.get(variant, {}).get(prompt), prompt) for variant in results.variants]
        for prompt in prompts
    }


def _read_clip(path: Path | None, prompt: str) -> Video | None:
    return None if path is None else Video(*read_video(path), {"prompt": prompt})


def clip_files(results: Results) -> dict[str, dict[str, tuple[str, Path]]]:
    """By variant, by prompt and seed: the prompt and the file of every clip that points kept, as a human study takes them.

    Raises CogVideoError where no clips are here.
    """
    found: dict[str, dict[str, tuple[str, Path]]] = {}
    if results.folder and results.variant:
        for row in results.usable:
            given = ", ".join(f"{name} {row[name]}" for name in ["seed", *results.others] if name in row)
            for prompt, path in _clips_of(results.folder / row["point"]).items():
                found.setdefault(str(row[results.variant]), {})[f"{prompt} ({given})"] = (prompt, path)
    if not found:
        raise CogVideoError(
            f"No point of {results.name} kept clips here: run the sweep on this machine first."
        )
    return found


def save_clips(
    folder: Path, clips: Mapping[str, np.ndarray], prompts: Sequence[str], fps: float = 8.0
) -> dict[str, dict[str, tuple[str, Path]]]:
    """Write clips uint8 [n,T,H,W,3] of every variant as files -> the same as clip_files."""
    found: dict[str, dict[str, tuple[str, Path]]] = {}
    for variant, frames in clips.items():
        (folder / variant).mkdir(parents=True, exist_ok=True)
        for i, (clip, prompt) in enumerate(zip(frames, prompts, strict=True)):
            path = write_video(folder / variant / f"{i}.mp4", clip, fps)
            found.setdefault(variant, {})[f"{prompt} ({i})"] = (prompt, path)
    return found


def _clips_of(folder: Path) -> dict[str, Path]:
    """Files of the clips that a point kept, by prompt."""
    files = notes.read_json(folder / "result.json").get("files", {})
    told = folder / files.get("sample_prompts", "")
    prompts = dict(enumerate(json.loads(told.read_text("utf-8")))) if told.is_file() else {}
    named = {
        prompts.get(i, {}).get("prompt", f"clip {i + 1}"): folder / n
        for i, n in enumerate(files.get("samples", []))
    }
    return {prompt: path for prompt, path in named.items() if path.is_file()}


def fvd_card(results: Results) -> str | None:
    """The protocol card of the first point that has an FVD."""
    from cogvideo.evaluation.fvd_score import FVDResult, card

    if results.folder is None:
        return None
    for row in results.usable:
        folder = results.folder / row["point"]
        name = notes.read_json(folder / "result.json").get("files", {}).get("fvd")
        if name and (stored := notes.read_json(folder / name)):
            return f"{row['point']}\n{card(FVDResult(**stored))}"
    return None
