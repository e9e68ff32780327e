"""Small notebooks and sweeps of them, for tests."""

from pathlib import Path
from typing import Any

import nbformat
import yaml

PARAMETERS = """\
variant: str = "full"  # which model
size: int = 2  # anything
rate: float = 0.5
steps: int | None = None
names: list[str] = ["a", "b"]
seed: int = 0
output_dir: str = "out"
"""
CELLS = [
    "from cogvideo.sweeps import record",
    'record({"score": size * rate + seed, "kind": variant}, output_dir=output_dir)',
]


def write_sweep(
    folder: Path, cells: list[str] = CELLS, cell: str = PARAMETERS, name: str = "study", **keys: Any
) -> Path:
    """A notebook and a sweep file NAME.yaml that runs it; keys are those of the file."""
    code = [
        nbformat.v4.new_code_cell(cell, metadata={"tags": ["parameters"]}),
        *map(nbformat.v4.new_code_cell, cells),
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    (folder / "sweeps").mkdir(exist_ok=True)
    nbformat.write(
        nbformat.v4.new_notebook(cells=code, metadata=kernel), folder / "notebooks" / f"{name}.ipynb"
    )
    file = folder / "sweeps" / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"notebook": f"notebooks/{name}.ipynb", **keys}))
    return file
