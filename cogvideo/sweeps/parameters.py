"""What parameters a notebook takes: read from its cell tagged `parameters`, without running it."""

import ast
import json
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideo.errors import CogVideoError

_TYPES = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "list": list,
    "dict": dict,
    "None": type(None),
}


@dataclass(frozen=True)
class Parameter:
    """One line of the cell: `name: type = default`; without a type that of the default holds."""

    name: str
    hint: Any  # a type, list[type], union of types; object: anything
    written: str  # the hint as the notebook has it
    default: Any  # its source where it is not a plain value

    def fit(self, value: Any, where: str) -> Any:
        """The value as the notebook wants it: whole numbers and YAML's 2e-3 become floats where floats are meant.

        Raises CogVideoError when it is of another type.
        """
        try:
            return _fit(self.hint, value)
        except TypeError:
            raise CogVideoError(
                f"{where}: {self.name} must be of type {self.written}, not {value!r}."
            ) from None


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells, their source as one string. Raises CogVideoError for what is no notebook."""
    try:
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        return [cell | {"source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]
    except OSError as error:
        raise CogVideoError(f"Cannot read the notebook {notebook}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise CogVideoError(
            f"{notebook} is not a notebook of format 4: open and save it in Jupyter."
        ) from None


def read_parameters(notebook: Path) -> dict[str, Parameter]:
    """Parameters by name. Raises CogVideoError without exactly one cell of them, and for one that is not Python."""
    cells = [
        cell["source"]
        for cell in code_cells(notebook)
        if "parameters" in cell.get("metadata", {}).get("tags", [])
    ]
    if len(cells) != 1:
        raise CogVideoError(f"{notebook} has {len(cells)} cells tagged 'parameters': exactly one must be.")
    try:
        body = ast.parse(cells[0]).body
    except SyntaxError as error:
        raise CogVideoError(f"The parameters of {notebook} are not Python: {error}.") from None
    found = {}
    for line in body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            name, default = line.target.id, _value(line.value)
            found[name] = Parameter(name, _hint(line.annotation), ast.unparse(line.annotation), default)
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


def _hint(node: ast.expr) -> Any:
    """The annotation as a type; what is neither a plain type nor made of them allows anything."""
    if isinstance(node, ast.Constant) and node.value is None:
        return type(None)
    if isinstance(node, ast.Name):
        return _TYPES.get(node.id, object)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return typing.Union[_hint(node.left), _hint(node.right)]  # noqa: UP007
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "list":
        return list[_hint(node.slice)]
    return object


def _fit(hint: Any, value: Any) -> Any:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for some in sorted(
            arguments, key=lambda some: some is float
        ):  # a whole number stays one where both are allowed
            try:
                return _fit(some, value)
            except TypeError:
                continue
    elif typing.get_origin(hint) is list and isinstance(value, list):
        return [_fit(arguments[0], item) for item in value]
    elif hint is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    elif (
        isinstance(hint, type)
        and isinstance(value, hint)
        and (hint is object or isinstance(value, bool) == (hint is bool))
    ):
        return value
    raise TypeError
