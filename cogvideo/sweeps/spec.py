"""A sweep as its YAML file describes it: checked against the notebook before anything runs."""

import hashlib
import itertools
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cogvideo.config import from_dict, load_yaml
from cogvideo.errors import CogVideoError
from cogvideo.sweeps.parameters import Parameter, code_cells, read_parameters

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_PACKAGE = Path(__file__).parents[1]
# Code that runs notebooks and reads their results, but does not make them.
NO_RESULTS = ("cli/*", "sweeps/*", "reports/*")


@dataclass(frozen=True)
class Resources:
    """The limits of one point (None: no limit), and its threads."""

    memory: str | None = None  # such as 4GB or 500MB
    minutes: float | None = None
    threads: int = 1

    def __post_init__(self):
        if self.threads < 1 or (self.minutes is not None and self.minutes <= 0):
            raise CogVideoError("resources: minutes and threads must be positive.")
        _ = self.memory_bytes  # its own check

    @property
    def memory_bytes(self) -> int | None:
        size = re.fullmatch(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})", self.memory or "0MB")
        if not size:
            said = f"a number and a unit, such as 4GB or 500MB, not {self.memory!r}"
            raise CogVideoError(f"resources: memory must be {said}.")
        return int(float(size[1]) * _UNITS[size[2]]) or None


@dataclass(frozen=True)
class _File:
    """The keys of the file."""

    notebook: str
    question: str = ""
    parameters: dict = field(default_factory=dict)
    grid: dict = field(default_factory=dict)
    points: list = field(default_factory=list)
    seeds: list = field(default_factory=list)
    resources: Resources = Resources()
    collect: list = field(default_factory=list)
    variant: str | None = None
    baseline: str | None = None


@dataclass(frozen=True)
class Point:
    """One run of the notebook."""

    name: str  # of its folder: what varies, and the first digits of a hash of all parameters
    given: dict[str, Any]  # the parameters that the sweep gives
    parameters: dict[str, Any]  # with the notebook's defaults for all others


@dataclass(frozen=True)
class Sweep:
    """A checked sweep. `folder` holds all that it makes: reports/runs/NAME for reports/sweeps/NAME.yaml."""

    file: Path
    folder: Path
    notebook: Path
    question: str
    points: list[Point]
    resources: Resources
    collect: list[str]  # metrics that every point must record
    variant: str | None  # the parameter that tells variants apart
    baseline: Any  # the variant that all others are compared with
    takes_folder: bool  # the notebook has a parameter output_dir

    @property
    def name(self) -> str:
        return self.file.stem

    def folder_of(self, point: Point) -> Path:
        return self.folder / point.name


def load(file: str | Path) -> Sweep:
    """Read a sweep file and check its keys, parameters and their types, and points given twice."""
    file = Path(file).resolve()
    where, values = str(file), load_yaml(file)
    seeds = values.get("seeds")
    if isinstance(seeds, int) and not isinstance(seeds, bool):
        if seeds < 1:
            raise CogVideoError(f"{where}: seeds must be their number, at least 1, or a list, not {seeds}.")
        values["seeds"] = list(range(seeds))
    if "baseline" in values:
        values["baseline"] = str(values["baseline"])
    spec = from_dict(_File, values, where)
    folders = [folder for folder in file.parents if os.path.isfile(folder / spec.notebook)]  # any name at all
    if not folders:
        name = spec.notebook[:200]
        raise CogVideoError(f"{where}: there is no notebook {name} beside the file or above it.")
    notebook = folders[0] / spec.notebook
    known = read_parameters(notebook)
    points = _points(spec, known, where)
    home = file.parent.parent if file.parent.name == "sweeps" else file.parent
    return Sweep(
        file=file,
        folder=home / "runs" / file.stem,
        notebook=notebook,
        question=spec.question.strip(),
        points=points,
        resources=spec.resources,
        collect=spec.collect,
        variant=spec.variant,
        baseline=_baseline(spec, points, where),
        takes_folder="output_dir" in known,
    )


def _points(spec: _File, known: dict[str, Parameter], where: str) -> list[Point]:
    """Points x grid x seeds, in this order, the last one fastest."""
    grid = dict(spec.grid)
    if spec.seeds:
        if "seed" in grid:
            raise CogVideoError(f"{where}: seeds are given twice, as seeds and in grid.")
        grid["seed"] = spec.seeds
    for name, choices in grid.items():
        if not isinstance(choices, list) or not choices:
            raise CogVideoError(f"{where}: grid: {name} must be a list of values, not {choices!r}.")
    if not all(isinstance(some, dict) for some in spec.points):
        raise CogVideoError(f"{where}: points must be a list of groups of parameters.")
    defaults = {p.name: p.default for p in known.values() if p.name != "output_dir"}
    found: dict[str, Point] = {}
    for some, combination in itertools.product(spec.points or [{}], itertools.product(*grid.values())):
        varied = some | dict(zip(grid, combination, strict=True))
        if twice := (some.keys() & grid.keys()) | (varied.keys() & spec.parameters.keys()):
            raise CogVideoError(f"{where}: {sorted(twice)[0]} is given in two places: keep one.")
        given = {n: _fit(known, n, value, where) for n, value in (spec.parameters | varied).items()}
        name = _name({name: given[name] for name in varied}, given)
        if name in found:
            raise CogVideoError(f"{where}: the point {name} is there twice.")
        found[name] = Point(name, given, defaults | given)
    return list(found.values())


def _fit(known: dict[str, Parameter], name: str, value: Any, where: str) -> Any:
    if name == "output_dir":
        raise CogVideoError(f"{where}: output_dir is set to the folder of each point: take it out.")
    if name not in known:
        names = ", ".join(known) or "none"
        raise CogVideoError(f"{where}: the notebook has no parameter {name!r}; it takes {names}.")
    try:
        json.dumps(value)
    except TypeError:  # such as YAML's dates
        raise CogVideoError(f"{where}: {name} must be plain values, not {value!r}: quote it.") from None
    return known[name].fit(value, where)


def _name(varied: dict[str, Any], given: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:8]
    readable = ",".join(f"{name}={value}" for name, value in varied.items())
    return "_".join(filter(None, [re.sub(r"[^\w.,=+-]+", "-", readable, flags=re.ASCII)[:100], digest]))


def _baseline(spec: _File, points: list[Point], where: str) -> Any:
    """The baseline as a value of the variant's parameter."""
    if not all(isinstance(name, str) for name in spec.collect):
        raise CogVideoError(f"{where}: collect must be a list of names of metrics.")
    if spec.variant is None:
        if spec.baseline is not None:
            raise CogVideoError(f"{where}: baseline needs variant, the parameter that it is a value of.")
        return None
    if spec.variant not in points[0].parameters:
        raise CogVideoError(f"{where}: variant {spec.variant!r} is no parameter of the notebook.")
    variants = {str(point.parameters[spec.variant]): point.parameters[spec.variant] for point in points}
    if spec.baseline is not None and spec.baseline not in variants:
        raise CogVideoError(f"{where}: baseline {spec.baseline} is none of {', '.join(variants)}.")
    return None if spec.baseline is None else variants[spec.baseline]


def fingerprint(notebook: Path) -> str:
    """A hash of the notebook's code and of the package: when it changes, finished points are run again."""
    digest = hashlib.sha256(json.dumps([cell["source"] for cell in code_cells(notebook)]).encode())
    for path in sorted(_PACKAGE.rglob("*.py")):
        relative = path.relative_to(_PACKAGE)
        if not any(relative.match(pattern) for pattern in NO_RESULTS):
            digest.update(f"\n{relative.as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
