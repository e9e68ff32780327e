"""A sweep's results, read for a report: its table, its sweep file, and the clips that its points kept."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cogvideo.data.video import Video, read_video, write_video
from cogvideo.errors import CogVideoError
from cogvideo.io import replacing, write_whole
from cogvideo.sweeps import notes, table
from cogvideo.sweeps.spec import Sweep, load

if TYPE_CHECKING:
    from pandas import DataFrame

USABLE = ("done", "changed")  # states of points whose metrics are in the table
NOT_RUN = ("waiting", "running", "stopped", "interrupted")  # and of those without a verdict

Files = dict[str, dict[str, tuple[str, Path]]]  # by variant, by prompt and seed: the prompt and a clip's file


@dataclass(frozen=True)
class Results:
    """A sweep's table and what is needed to read it."""

    sweep: Sweep
    rows: list[dict[str, Any]]  # one a point; None where there is no value
    parameters: list[str]  # columns that were given to the points
    metrics: list[str]  # columns to be reported
    variant: str | None  # the column that tells variants apart
    baseline: Any
    folder: Path  # of the points' folders, which may be missing

    @property
    def usable(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["status"] in USABLE]

    @property
    def variants(self) -> list[Any]:
        return list(dict.fromkeys(row[self.variant] for row in self.rows)) if self.variant else []

    @cached_property
    def fixed(self) -> dict[str, Any]:
        """Parameters that are the same in all points."""
        kinds = {name: {json.dumps(row.get(name)) for row in self.rows} for name in self.parameters}
        return {name: self.rows[0].get(name) for name, found in kinds.items() if len(found) == 1}

    @property
    def varied(self) -> list[str]:
        return [name for name in self.parameters if name not in self.fixed]

    @property
    def others(self) -> list[str]:
        """Varied parameters beside variant and seed: variants are compared where these are the same."""
        return [name for name in self.varied if name not in (self.variant, "seed")]

    def groups(self) -> dict[str, list[dict[str, Any]]]:
        """Usable rows by the values of the other parameters; "" where there are no such parameters."""
        others, found = self.others, {}
        for row in self.usable:
            found.setdefault(", ".join(f"{name} {row[name]}" for name in others), []).append(row)
        return found


def read_results(path: str | Path) -> Results:
    """The results of a sweep from its file (NAME.yaml), its folder (runs/NAME) or its table (.csv, .parquet).

    A folder or table belongs to the sweep file of its name in a folder `sweeps` near by. Clips of a table lie
    in the folder NAME beside it (see keep). A sweep that is still running is read as far as it is.
    """
    path = Path(path).resolve()
    if not path.exists():
        raise CogVideoError(f"There is no {path}: give a sweep file, the folder of its runs, or its table.")
    if path.is_dir():
        sweep = load(_sweep_file(path, path.name))
        folder, rows = path, _rows_of(sweep, path)
    elif path.suffix in (".csv", ".parquet"):
        sweep = load(_sweep_file(path, path.stem))
        folder, rows = path.with_suffix(""), read_table(path)
    elif path.suffix in (".yaml", ".yml"):
        sweep = load(path)
        folder, rows = sweep.folder, _rows_of(sweep, sweep.folder)
    else:
        raise CogVideoError(f"{path} is no sweep file (.yaml), folder of runs, or table (.csv, .parquet).")
    if not any(row["status"] in USABLE for row in rows):
        raise CogVideoError(f"No point of {sweep.name} is done: look with `cogvideo sweep status`.")
    return Results(
        sweep=sweep,
        rows=rows,
        parameters=[n for n in map(table.parameter_column, sweep.points[0].parameters) if n in rows[0]],
        metrics=_metrics(sweep, rows),
        variant=sweep.variant and table.parameter_column(sweep.variant),
        baseline=sweep.baseline,
        folder=folder,
    )


def _sweep_file(path: Path, name: str) -> Path:
    for folder in list(path.parents)[:3]:
        for file in (folder / f"{name}.yaml", folder / "sweeps" / f"{name}.yaml"):
            if file.is_file():
                return file
    raise CogVideoError(f"There is no sweep file {name}.yaml near {path} or in a folder `sweeps` above.")


def _rows_of(sweep: Sweep, folder: Path) -> list[dict[str, Any]]:
    if not any((folder / point.name / "point.json").exists() for point in sweep.points):
        raise CogVideoError(f"{folder} holds no points of {sweep.file.name}: run `cogvideo sweep run` first.")
    if folder == sweep.folder:
        return _plain(table.gather(sweep))
    if not (folder / "table.csv").exists():  # moved here from elsewhere
        raise CogVideoError(f"{folder} has no table.csv: run `cogvideo sweep run` on its sweep file.")
    return read_table(folder / "table.csv")


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a sweep's table."""
    import pandas as pd

    try:
        found = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise CogVideoError(f"{path} cannot be read as a table: {str(error).splitlines()[0]}.") from None
    if missing := {"point", "status"} - set(found.columns):
        raise CogVideoError(f"{path} is no table of a sweep: it has no column {', '.join(sorted(missing))}.")
    if found.empty:
        raise CogVideoError(f"{path} has no rows: run the sweep first.")
    return _plain(found)


def _plain(found: "DataFrame") -> list[dict[str, Any]]:
    """Rows with Python's own values; None for the NaN by which tables mark that there is no value."""
    return found.astype(object).where(found.notna(), None).to_dict("records")


def _metrics(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the sweep collects; by default all other columns of numbers."""
    parameters = sweep.points[0].parameters
    own = {*table.FIRST, *table.LAST, *map(table.parameter_column, parameters)}
    wanted = [table.metric_column(name, parameters) for name in sweep.collect]
    wanted = wanted or [name for name in rows[0] if name not in own]
    return [name for name in wanted if any(isinstance(row.get(name), (int, float)) for row in rows)]


def sample_clips(results: Results) -> tuple[int, dict[str, list[Video | None]]]:
    """Clips that points kept, of the first seed that has them of the most variants.

    Returns the seed, and by prompt one clip of each variant; no prompts without clips, and where more than
    variant and seed vary.
    """
    seed, points = _points_with_clips(results)
    kept = [_clips_of(points[variant]) if variant in points else {} for variant in results.variants]
    prompts = dict.fromkeys(prompt for found in kept for prompt in found)
    return seed, {
        prompt: [
            Video(*read_video(found[prompt]), {"prompt": prompt}) if prompt in found else None
            for found in kept
        ]
        for prompt in prompts
    }


def _points_with_clips(results: Results) -> tuple[int, dict[Any, Path]]:
    """The seed that sample_clips shows, and its points' folders by variant."""
    by_seed: dict[int, dict[Any, Path]] = {}
    if results.variant and not results.others:
        for row in results.usable:
            folder = results.folder / row["point"]
            if _clips_of(folder):
                by_seed.setdefault(int(row.get("seed") or 0), {})[row[results.variant]] = folder
    seed = max(by_seed, key=lambda seed: (len(by_seed[seed]), -seed), default=0)
    return seed, by_seed.get(seed, {})


def keep(file: str | Path, out: str | Path) -> Path:
    """Copy what a report shows of a sweep (its file NAME.yaml) to out/NAME.csv and the folder out/NAME.

    These are the table, and of the points whose clips are shown the clips, their prompts and FVD's card.
    Returns the table's path.
    """
    results, out = read_results(file), Path(out)
    kept = out / results.sweep.name
    for folder in _points_with_clips(results)[1].values():
        listed = notes.read_json(folder / "result.json").get("files", {})
        wanted = [*listed.get("samples", []), listed.get("sample_prompts"), listed.get("fvd"), "result.json"]
        for name in filter(None, wanted):
            with replacing(kept / folder.name / name, parents=True) as part:
                shutil.copyfile(folder / name, part)
    rows = table.write(results.sweep).read_text("utf-8")
    return write_whole(out / f"{kept.name}.csv", rows, parents=True)


def clip_files(results: Results) -> Files:
    """Files of all clips that points kept, as a human study takes them."""
    found: Files = {}
    if results.variant:
        for row in results.usable:
            given = ", ".join(f"{name} {row[name]}" for name in ["seed", *results.others] if name in row)
            for prompt, path in _clips_of(results.folder / row["point"]).items():
                found.setdefault(str(row[results.variant]), {})[f"{prompt} ({given})"] = (prompt, path)
    if not found:
        raise CogVideoError(f"No point of {results.sweep.name} kept clips here: run the sweep here first.")
    return found


def save_clips(
    folder: Path, clips: Mapping[str, np.ndarray], prompts: Sequence[str], fps: float = 8.0
) -> Files:
    """Write clips uint8 [n,T,H,W,3] of every variant as files; returns the same as clip_files."""
    found: Files = {}
    for variant, frames in clips.items():
        (folder / variant).mkdir(parents=True, exist_ok=True)
        for i, (clip, prompt) in enumerate(zip(frames, prompts, strict=True)):
            path = write_video(folder / variant / f"{i}.mp4", clip, fps)
            found.setdefault(variant, {})[f"{prompt} ({i})"] = (prompt, path)
    return found


def _clips_of(folder: Path) -> dict[str, Path]:
    """Files of the clips that a point kept, by prompt."""
    files = notes.read_json(folder / "result.json").get("files", {})
    list_of_prompts = folder / files.get("sample_prompts", "")
    prompts = json.loads(list_of_prompts.read_text("utf-8")) if list_of_prompts.is_file() else []
    found = {}
    for i, name in enumerate(files.get("samples", [])):
        prompt = prompts[i].get("prompt") if i < len(prompts) else None
        if (folder / name).is_file():
            found[prompt or f"clip {i + 1}"] = folder / name
    return found


def fvd_card(results: Results) -> str | None:
    """The protocol card of the first point that has an FVD."""
    from cogvideo.evaluation.fvd_score import FVDResult, card

    for row in results.usable:
        folder = results.folder / row["point"]
        name = notes.read_json(folder / "result.json").get("files", {}).get("fvd")
        if name and (stored := notes.read_json(folder / name)):
            return f"{row['point']}\n{card(FVDResult(**stored))}"
    return None
