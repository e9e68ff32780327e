"""All points of a sweep as one table: a row each, also for those that failed or have not run."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogvideo.io import replacing
from cogvideo.sweeps import notes
from cogvideo.sweeps.spec import Point, Sweep, fingerprint

if TYPE_CHECKING:
    from pandas import DataFrame

FIRST = ("point", "status", "reason", "error")
LAST = ("commit", "versions", "host", "started", "seconds", "peak_memory")


def gather(sweep: Sweep) -> "DataFrame":
    """One row a point, in the order of the sweep file.

    Columns: point (its folder), status, reason and error of what failed; all parameters of the notebook, with
    seed; the recorded metrics of points that are done; commit, versions, host, started (UTC), seconds,
    peak_memory (bytes). A parameter or metric with the name of another column is called parameter_NAME or
    metric_NAME. Lists and groups are JSON.
    """
    import pandas as pd

    code = fingerprint(sweep.notebook)
    rows = [_row(sweep, point, code) for point in sweep.points]
    columns = dict.fromkeys([*FIRST, *(name for row in rows for name in row if name not in LAST), *LAST])
    return pd.DataFrame(rows, columns=list(columns))


def _row(sweep: Sweep, point: Point, code: str) -> dict[str, Any]:
    folder = sweep.folder_of(point)
    note = notes.look(folder, code, sweep.collect) | {"point": point.name}
    found = {column: note.get(column) for column in FIRST}
    found |= {parameter_column(name): value for name, value in point.parameters.items()}
    if note["status"] in ("done", "changed"):
        metrics = notes.read_json(folder / "result.json").get("metrics", {})
        found |= {metric_column(name, point.parameters): value for name, value in metrics.items()}
    found |= {column: note.get(column) for column in LAST}
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
        for name, value in found.items()
    }


def parameter_column(name: str) -> str:
    return f"parameter_{name}" if name in FIRST + LAST else name


def metric_column(name: str, parameters: Iterable[str]) -> str:
    return f"metric_{name}" if name in FIRST + LAST or name in map(parameter_column, parameters) else name


def write(sweep: Sweep) -> Path:
    """Gather into table.parquet and table.csv in the sweep's folder. Returns the CSV file."""
    table = gather(sweep)
    for column in table.columns:  # Parquet wants one type a column
        if len(set(map(type, table[column].dropna()))) > 1:
            table[column] = table[column].map(lambda value: value if value is None else str(value))
    csv = sweep.folder / "table.csv"
    for path, save in ((csv.with_suffix(".parquet"), table.to_parquet), (csv, table.to_csv)):
        with replacing(path) as part:
            save(part, index=False)
    return csv
