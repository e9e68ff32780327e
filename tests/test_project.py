"""The project around the package: one set of dependencies told in three files, and the two commands."""

import ast
import csv
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from cogvideo import Pipeline
from cogvideo.checkpoints.registry import DEMO, weights_hash
from cogvideo.explore.explorer.page import PARTS
from cogvideo.theatre.ablation import image_model_digest

tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest brings tomli

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "reports" / "README.md"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
CONDA_NAMES = {  # under other names on conda-forge
    "torch": "pytorch", "matplotlib": "matplotlib-base", "open_clip_torch": "open-clip-torch",
    "playwright": "playwright-python", "scikit-video": "sk-video",
}  # fmt: skip
CONDA_ONLY = {"python", "nodejs", "mkdocstrings-python", "pip"}  # what extras of pyright, mkdocstrings bring
# triton: on Linux alone, which a conda environment cannot say; torch for CUDA brings it there.
# axe-playwright-python: not on conda-forge; its test is skipped without it.
PIP_ONLY = {"triton", "axe-playwright-python"}


def declared() -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [
        *project["dependencies"],
        *(text for extra in project["optional-dependencies"].values() for text in extra),
    ]
    requirements = [Requirement(text) for text in texts]
    assert len({r.name for r in requirements}) == len(requirements), "a package is named twice"
    return {r.name: r for r in requirements}


def pinned(python: str) -> dict[str, str]:
    """The one exact version that constraints.txt gives this Python of every package."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    chosen = [r for r in requirements if r.marker is None or r.marker.evaluate({"python_version": python})]
    assert len({r.name for r in chosen}) == len(chosen), f"two pins of one package for Python {python}"
    assert all(re.fullmatch(r"==[\d.]+", str(r.specifier)) for r in chosen)
    return {r.name: str(r.specifier)[2:] for r in chosen}


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_dependency_and_no_other(python):
    pins = pinned(python)
    assert pins.keys() == declared().keys()
    for name, requirement in declared().items():
        assert pins[name] in requirement.specifier, name


def test_conda_names_the_same_packages():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = {
        (r := Requirement(text)).name: r for text in environment["dependencies"] if isinstance(text, str)
    }
    wanted = {name: r for name, r in declared().items() if name not in PIP_ONLY}
    assert conda.keys() == {CONDA_NAMES.get(name, name) for name in wanted} | CONDA_ONLY
    for name, requirement in wanted.items():
        assert conda[CONDA_NAMES.get(name, name)].specifier == requirement.specifier, name
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert conda["python"].specifier == Requirement(f"python{python}").specifier
    assert environment["dependencies"][-1] == {"pip": ["-e ."]}


def test_one_version():
    import cogvideo

    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == cogvideo.__version__


def test_ci_is_make_test_and_nothing_else():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines == [
        "#!/usr/bin/env bash",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "make test",
    ]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_make_installs_torch_first_and_under_the_constraints():
    commands = planned("test")
    installs = [line for line in commands if "pip install" in line]
    assert len(installs) == 2 and all("-c constraints.txt" in line for line in installs)
    assert installs[0].split()[-1] == "torch"
    ran = "\n".join(commands[commands.index(installs[1]) :])
    assert re.search(r"ruff check .*ruff format --check .*pyright.*pytest", ran, re.DOTALL)


def test_make_demo_says_last_what_to_open():
    last = planned("demo")[-1]
    assert last.startswith('echo "Done. Open this page') and "reports/runs/demo/index.html" in last


def test_the_wheel_is_small_and_tried_in_an_empty_environment():
    ran = "\n".join(planned("wheel"))
    assert re.search(r"pip wheel .*-size \+40000k.*-m venv .*pip install .*cogvideo generate", ran, re.DOTALL)


def planned(target: str) -> list[str]:
    """What make would run for a target in a fresh clone."""
    make = subprocess.run(
        ["make", "--no-print-directory", "-n", "-W", "pyproject.toml", target],
        cwd=ROOT, env=clean_environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return make.stdout.strip().splitlines()


def clean_environment() -> dict[str, str]:
    """Without what an outer make tells its children."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))
    }


@pytest.mark.parametrize(
    "version_check, sentence", [("exit 1", "Python 3.10 or newer is needed"), ("", "venv module is missing")]
)
def test_an_unfit_python_is_one_sentence(tmp_path, version_check, sentence):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / "python"
    answers = f"*version_info*) {version_check or 'exit 0'};; *) echo no >&2; exit 1;;"
    python.write_text(f'#!/bin/sh\ncase "$*" in {answers} esac\n')
    python.chmod(0o755)
    make = subprocess.run(
        ["make", "--no-print-directory", "test", f"PYTHON={python}"],
        cwd=tmp_path, env=clean_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert make.returncode == 2 and not (tmp_path / ".venv").exists()
    assert len(make.stdout.splitlines()) == 1 and sentence in make.stdout
    assert "Traceback" not in make.stderr and "no\n" not in make.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_stripped_and_take_parameters(path):
    code = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    (parameters,) = (cell for cell in code if "parameters" in cell["metadata"].get("tags", []))
    for line in "".join(parameters["source"]).splitlines():
        assert re.match(r"\w+: [\w\[\]| ]+ = |[ \])}]", line), f"not a typed parameter: {line}"


def test_weights_and_the_explorers_front_end_travel_with_the_package():
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert package_data["cogvideo"] == [
        "py.typed", "weights/**", "checkpoints/*.yaml", "evaluation/*.yaml", "explore/explorer/app/*",
        "reports/*.css",
    ]  # fmt: skip
    app = {file.name for file in (ROOT / "cogvideo").glob("explore/explorer/app/*")}
    assert app == {*(f"{part}.js" for part in PARTS), "explorer.css", "types.d.ts", "tsconfig.json"}
    for part in PARTS:
        lines = (ROOT / "cogvideo/explore/explorer/app" / f"{part}.js").read_text("utf-8").splitlines()
        assert len(lines) < 300 and max(map(len, lines)) <= 240, part
    sizes = {
        file.name: file.stat().st_size
        for file in (ROOT / "cogvideo" / "weights").rglob("*")
        if file.is_file()
    }
    assert {"pipeline.json", "frames.safetensors", "text.model"} <= sizes.keys()
    assert sum(sizes.values()) < 21e6


def test_the_tests_mirror_the_package():
    """tests/ROOM/test_X.py tests cogvideo/ROOM/X.py."""
    others = {
        "test_gpu.py",  # all that runs on a GPU, on a pretended one
        "test_import.py",  # cogvideo/__init__.py
        "test_fuzzing.py",  # readers of several rooms
        "test_documents.py",  # the commands in README and docs
        "test_project.py",
        "checkpoints/test_inspect_files.py",  # inspect.py, from real and damaged files
        "explore/test_capture.py",  # __init__.py: the public capture
        "explore/test_explorer.py",  # the explorer's page, in a browser
        "explore/test_explorer_cli.py",
        "explore/test_explorer_tools.py",  # the explorer's page, what it answers besides the map
        "explore/test_explorer_live.py",  # explorer/widget.py, in JupyterLab
        "reports/test_sweep_report.py",  # sweep.py and the page it makes
        "sampling/test_wavefront.py",  # decode.py with frame-parallel steps
        "sweeps/test_record.py",  # __init__.py: the public record
        "training/test_kills.py",  # recipe.py, killed at random moments
    }
    tests, package = ROOT / "tests", ROOT / "cogvideo"
    found = {str(file.relative_to(tests)) for file in tests.rglob("test_*.py")}
    mirrored = {name for name in found if (package / name.replace("test_", "", 1)).is_file()}
    assert found - mirrored == others
    rooms = {folder.name for folder in tests.iterdir() if any(folder.glob("*.py"))}
    assert rooms <= {folder.name for folder in package.iterdir() if folder.is_dir()}


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("document", documents(), ids=lambda path: path.name)
def test_links_lead_to_files_which_hold_what_is_named_with_them(document):
    """[`Name.part`](file) and [`name` and `name`](file): all names are defined in the file."""
    for text, target in re.findall(r"\[([^\[\]]+)\]\(([^)\s]+)\)", document.read_text("utf-8")):
        if re.match(r"https?:", target):
            continue
        file = document.parent / target.partition("#")[0]
        assert file.exists(), f"{document.name} links to {target}"
        if file.suffix != ".py":
            continue
        defined = definitions(file)
        for name in re.findall(r"`([A-Za-z_][\w.]*)`", text):
            assert set(name.split(".")) <= defined, f"{document.name}: {target} has no {name}"


def definitions(file: Path) -> set[str]:
    """Names of the functions, classes and variables of a file, methods and attributes included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_the_house_in_the_docs_is_the_contract():
    """docs/architecture.md has the rooms of the layers in pyproject.toml, floor by floor from the top."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [set(re.findall(r"\w+", layer)) for layer in contracts[0]["layers"]]
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| (?:\d|ground) \| ([^|]+) \|", text, re.M)
    assert [set(re.findall(r"`(\w+)[/.]", row)) for row in rows] == layers


def test_type_ignores_are_few_and_say_why():
    places = [
        f"{file.relative_to(ROOT)}: {line.strip()}"
        for folder in ("cogvideo", "tests")
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line in file.read_text("utf-8").splitlines()
        if re.search(r"#\s*(type|pyright): ignore", line)
    ]
    assert len(places) < 15, "\n".join(places)
    assert all(re.search(r"ignore\[[\w-]+\]\W+\w", place) for place in places), "\n".join(places)


def test_no_module_outgrows_one_room():
    for path in (ROOT / "cogvideo").rglob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= 400, path


def listed_results() -> dict[str, tuple[str, str, str]]:
    """Committed results, as reports/README.md lists them: path -> command, commit, weights."""
    row = re.compile(r"^\| `([^`]+)` \|.*\| `(\w[^`]*)` \| (\S+) \| (\S+) \|$", re.MULTILINE)
    found = row.findall(REPORTS.read_text("utf-8"))
    return {path: (command, commit, weights) for path, command, commit, weights in found}


def stale(folder: Path, results: dict[str, tuple[str, str, str]], *shipped: str) -> list[str]:
    """Sentences about results that are not listed, are not what the list says, or are of other weights.

    shipped: the hash of the weights, and that of the image model, on which alone the ablations depend.
    """
    kept = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = [p for p in kept if not (p.endswith("README.md") or p.startswith(("runs/", "sweeps/")))]
    below = tuple(path for path in results if path.endswith("/"))
    wrong = [f"{path} is not listed" for path in kept if path not in results and not path.startswith(below)]
    for path, (_, commit, weights) in results.items():
        files = sorted((folder / path).rglob("*.*")) if path.endswith("/") else [folder / path]
        texts = [f.read_text("utf-8") for f in files if f.suffix in (".json", ".csv", ".html")]
        if not any(commit in text for text in texts):
            wrong.append(f"{path} does not name the commit {commit}")
        if weights not in ("–", *shipped):
            wrong.append(f"{path} is of the weights {weights}; the shipped ones are {' and '.join(shipped)}")
        told = {
            name for text in texts for name in re.findall(r'"(?:sha256|weights)": "([0-9a-f]{16})"', text)
        }
        for file in (file for file in files if file.suffix == ".csv"):
            rows = csv.DictReader(file.open(encoding="utf-8"))
            told |= {row.get("weights") or row.get("image_model") or weights for row in rows}
        if told - {weights}:
            wrong.append(f"{path} is of the weights {told}; the list says {weights}")
    return wrong


def test_committed_results_are_of_the_shipped_weights():
    """Results of older weights, or that nobody can repeat, do not stay in the repository."""
    results = listed_results()
    assert len(results) >= 4
    assert all(command.startswith(("cogvideo ", "make ")) for command, *_ in results.values())
    image_model = image_model_digest(Pipeline.from_pretrained(DEMO, device="cpu"))
    assert stale(REPORTS.parent, results, weights_hash(DEMO), image_model) == []


def test_a_result_of_other_weights_is_told(tmp_path):
    (tmp_path / "new.json").write_text('{"sha256": "0123456789abcdef", "commit": "abc"}')
    (tmp_path / "table.csv").write_text("point,image_model,commit\np,0123456789abcdef,abc\n")
    good = {name: ("cogvideo x", "abc", "0123456789abcdef") for name in ("new.json", "table.csv")}
    assert stale(tmp_path, good, "0123456789abcdef") == []
    assert len(stale(tmp_path, good, "f" * 16)) == 2  # new weights are shipped
    other = ("cogvideo x", "abc", "f" * 16)  # the list says them, the files still others
    assert len(stale(tmp_path, dict.fromkeys(good, other), "f" * 16)) == 2
    assert stale(tmp_path, {"new.json": good["new.json"]}, "0123456789abcdef") == ["table.csv is not listed"]
    wrong = good | {"new.json": ("cogvideo x", "other", "0123456789abcdef")}
    assert stale(tmp_path, wrong, "0123456789abcdef") == ["new.json does not name the commit other"]
