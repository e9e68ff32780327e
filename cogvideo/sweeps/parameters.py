"""Which parameters a notebook takes: read from its cell tagged `parameters`, without running it."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideo.config import coerce
from cogvideo.errors import CogVideoError

_TYPES = {kind.__name__: kind for kind in (int, float, str, bool, list, dict)}


@dataclass(frozen=True)
class Parameter:
    """One line of the cell: `name: type = default`; without a type, that of the default."""

    name: str
    hint: Any  # a type, list[type], union of types; object: anything
    written: str  # the hint as the notebook has it
    default: Any  # its source where it is not a plain value

    def fit(self, value: Any, where: str) -> Any:
        """The value in the parameter's type: whole numbers and YAML's 2e-3 become floats where asked."""
        try:
            return coerce(self.hint, value, where)
        except CogVideoError:
            said = f"must be of type {self.written}, not {value!r}"
            raise CogVideoError(f"{where}: {self.name} {said}.") from None


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, the source of each as one string."""
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        return [cell | {"source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]
    except OSError as error:
        raise CogVideoError(f"Cannot read the notebook {notebook}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise CogVideoError(f"{notebook} is no notebook of format 4: save it again in Jupyter.") from None


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """The parameters of a notebook by name."""
    cells = [c for c in code_cells(notebook) if "parameters" in c.get("metadata", {}).get("tags", [])]
    if len(cells) != 1:
        raise CogVideoError(f"{notebook} has {len(cells)} cells tagged 'parameters': there must be one.")
    try:
        body = ast.parse(cells[0]["source"]).body
    except SyntaxError as error:
        raise CogVideoError(f"The parameters of {notebook} are not Python: {error}.") from None
    found = {}
    for line in body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            name, default, written = line.target.id, _value(line.value), ast.unparse(line.annotation)
            found[name] = Parameter(name, _hint(written), written, default)
        elif isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            name, default = line.targets[0].id, _value(line.value)
            hint = object if default is None else type(default)
            found[name] = Parameter(name, hint, hint.__name__, default)
    return found


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _hint(written: str) -> Any:
    """The annotation as a type; what is not made of plain types allows anything."""
    try:
        return eval(written, {"__builtins__": {}}, _TYPES)
    except Exception:
        return object
