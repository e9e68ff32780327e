"""Sweep files: the points they make, and that every mistake is one sentence before anything runs."""

import json
from pathlib import Path

import pytest
from sweeps.books import write_sweep

from cogvideo.errors import CogVideoError
from cogvideo.sweeps.spec import Resources, fingerprint, load

ROOT = Path(__file__).parents[2]


def test_points_are_lists_times_grid_times_seeds(tmp_path):
    file = write_sweep(
        tmp_path,
        parameters={"rate": 1},
        points=[{"variant": "full", "size": 4}, {"variant": "half"}],
        grid={"steps": [None, 3]},
        seeds=2,
        variant="variant",
        baseline="half",
        resources={"memory": "1.5GB", "minutes": 2, "threads": 2},
        collect=["score"],
    )
    sweep = load(file)
    assert [tuple(p.parameters[k] for k in ("variant", "size", "steps", "seed")) for p in sweep.points] == [
        ("full", 4, None, 0), ("full", 4, None, 1), ("full", 4, 3, 0), ("full", 4, 3, 1),
        ("half", 2, None, 0), ("half", 2, None, 1), ("half", 2, 3, 0), ("half", 2, 3, 1),
    ]  # fmt: skip
    first = sweep.points[0]
    assert first.given == {"rate": 1.0, "variant": "full", "size": 4, "steps": None, "seed": 0}
    assert isinstance(first.given["rate"], float) and first.parameters["names"] == ["a", "b"]
    assert (
        first.name.startswith("size=4,variant=full,steps=None,seed=0_")
        and len({p.name for p in sweep.points}) == 8
    )
    assert sweep.folder_of(first) == tmp_path / "runs" / "study" / first.name
    assert sweep.resources.memory_bytes == 1_500_000_000 and sweep.takes_folder
    assert (sweep.variant, sweep.baseline, sweep.collect) == ("variant", "half", ["score"])


def test_a_sweep_of_one_point(tmp_path):
    (point,) = load(write_sweep(tmp_path)).points
    assert point.given == {} and point.parameters["seed"] == 0 and "output_dir" not in point.parameters


def test_names_are_safe_for_folders(tmp_path):
    file = write_sweep(tmp_path, grid={"variant": ["../../x y", "a" * 300, "ä{b}"]})
    names = [p.name for p in load(file).points]
    assert all("/" not in name and "{" not in name and len(name) < 120 and name.isascii() for name in names)


def test_yaml_floats_and_truth_values(tmp_path):
    file = write_sweep(tmp_path, cell="rate: float = 1.0\nfast: bool = True\n", grid={"rate": ["2e-3", 1]})
    assert [p.given["rate"] for p in load(file).points] == [0.002, 1.0]


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"notebok": "x"}, "unknown key 'notebok'"),
        ({"notebook": "none.ipynb"}, "no notebook none.ipynb"),
        ({"grid": {"sized": [1]}}, "no parameter 'sized'; it takes variant, size,"),
        ({"parameters": {"size": "3"}}, "size must be of type int, not '3'"),
        ({"grid": {"size": [1, 2.5]}}, "size must be of type int, not 2.5"),
        ({"grid": {"size": [True]}}, "size must be of type int, not True"),
        ({"grid": {"size": 3}}, "size must be a list of values"),
        ({"grid": {"rate": ["fast"]}}, "rate must be of type float, not 'fast'"),
        ({"grid": {"names": [["a", 1]]}}, "names must be of type list[str]"),
        ({"grid": {"steps": ["many"]}}, "steps must be of type int | None"),
        ({"grid": {"size": [1, 1]}}, "is there twice"),
        ({"grid": {"size": [1]}, "parameters": {"size": 1}}, "size is given in two places"),
        ({"grid": {"size": [1]}, "points": [{"size": 1}]}, "size is given in two places"),
        ({"grid": {"seed": [1]}, "seeds": 2}, "seeds are given twice"),
        ({"seeds": 0}, "seeds must be their number, at least 1"),
        ({"seeds": ["a"]}, "seed must be of type int"),
        ({"points": [3]}, "points must be a list of groups"),
        ({"parameters": {"output_dir": "x"}}, "output_dir is set to the folder of each point"),
        ({"resources": {"memory": "4 apples"}}, "memory must be a number and a unit"),
        ({"resources": {"minutes": 0}}, "must be positive"),
        ({"resources": {"cores": 1}}, "unknown key 'cores'"),
        ({"variant": "model"}, "variant 'model' is no parameter"),
        ({"variant": "variant", "baseline": "none"}, "baseline none is none of full"),
        ({"baseline": "full"}, "baseline needs variant"),
        ({"collect": [1]}, "collect must be a list of names"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, keys, words):
    with pytest.raises(CogVideoError) as error:
        load(
            write_sweep(tmp_path, **keys)
            if "notebook" not in keys
            else _with_notebook(tmp_path, keys["notebook"])
        )
    assert words in str(error.value) and str(error.value).endswith(".") and "\n" not in str(error.value)


def _with_notebook(folder: Path, notebook: str) -> Path:
    file = folder / "one.yaml"
    file.write_text(f"notebook: {notebook}\n")
    return file


@pytest.mark.parametrize("text", ["no notebook", "{}", '{"cells": []}'])
def test_a_file_that_is_no_notebook_with_parameters(tmp_path, text):
    (tmp_path / "x.ipynb").write_text(text)
    with pytest.raises(CogVideoError, match="x.ipynb"):
        load(_with_notebook(tmp_path, "x.ipynb"))


def test_the_fingerprint_is_of_code_and_not_of_outputs(tmp_path):
    write_sweep(tmp_path)
    notebook = tmp_path / "notebooks" / "study.ipynb"
    before = fingerprint(notebook)
    book = json.loads(notebook.read_text())
    book["cells"][1]["execution_count"] = 7
    notebook.write_text(json.dumps(book, indent=4))
    assert fingerprint(notebook) == before
    book["cells"][1]["source"] = "1 + 1"
    notebook.write_text(json.dumps(book))
    assert fingerprint(notebook) != before


def test_memory_units():
    assert [Resources(memory=text).memory_bytes for text in ("500MB", "2 GiB", "0.5GB")] == [
        5 * 10**8,
        2**31,
        5 * 10**8,
    ]


@pytest.mark.parametrize(
    "file", sorted((ROOT / "reports" / "sweeps").glob("*.yaml")), ids=lambda file: file.name
)
def test_the_sweeps_of_the_project_fit_their_notebooks(file):
    assert load(file).points
