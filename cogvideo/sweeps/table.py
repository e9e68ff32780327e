"""All points of a sweep as one table: a row each, also of those that failed or have not run."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogvideo.sweeps import notes
from cogvideo.sweeps.spec import Sweep, fingerprint

if TYPE_CHECKING:
    from pandas import DataFrame

FIRST = ("point", "status", "reason", "error")
LAST = ("commit", "versions", "host", "started", "seconds", "peak_memory")


def gather(sweep: Sweep) -> "DataFrame":
    """One row a point, in the order of the sweep file.

    Columns: point (its folder), status, reason and error of what failed; all parameters of the notebook, seed among them;
    the metrics recorded; commit, versions, host, started (UTC), seconds, peak_memory (bytes). A parameter or metric that
    has the name of another column is called parameter_NAME or metric_NAME. Lists and groups are JSON. Metrics of points
    that are not done are left out.
    """
    import pandas as pd

    code = fingerprint(sweep.notebook)
    rows = [
        row(sweep.folder_of(point), code, sweep.collect, point.name, point.parameters)
        for point in sweep.points
    ]
    columns = dict.fromkeys([*FIRST, *(name for some in rows for name in some if name not in LAST), *LAST])
    return pd.DataFrame(rows, columns=list(columns))


def row(folder: Path, code: str, collect: list[str], name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    note = notes.read_note(folder)
    note["status"] = notes.status(folder, note, code, collect)
    found = {"point": name} | {column: note.get(column) for column in FIRST[1:]}
    for parameter, value in parameters.items():
        found[parameter_column(parameter)] = value
    if note["status"] in ("done", "changed"):
        for metric, value in notes.read_json(folder / "result.json").get("metrics", {}).items():
            found[metric_column(metric, parameters)] = value
    found |= {column: note.get(column) for column in LAST}
    return {
        k: json.dumps(v, ensure_ascii=False) if isinstance(v, (list, dict)) else v for k, v in found.items()
    }


def parameter_column(name: str) -> str:
    return f"parameter_{name}" if name in FIRST + LAST else name


def metric_column(name: str, parameters: Iterable[str]) -> str:
    return f"metric_{name}" if name in FIRST + LAST or name in map(parameter_column, parameters) else name


def write(sweep: Sweep) -> Path:
    """Gather into table.parquet and table.csv in the sweep's folder. Returns the CSV file."""
    table = gather(sweep)
    for column in table.columns:  # Parquet wants one type a column
        if table[column].map(type).nunique() > 1 and table[column].dtype == object:
            kinds = {type(value) for value in table[column].dropna()}
            if len(kinds) > 1:
                table[column] = table[column].map(lambda value: value if value is None else str(value))
    csv = sweep.folder / "table.csv"
    for path, save in ((csv.with_suffix(".parquet"), table.to_parquet), (csv, table.to_csv)):
        part = path.with_name(path.name + ".part")
        save(part, index=False)
        os.replace(part, path)
    return csv
