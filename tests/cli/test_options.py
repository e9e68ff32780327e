"""What several commands refuse before their work: numbers out of range, places that cannot be written."""

import json
import tempfile
from io import FileIO
from pathlib import Path

import pytest
from cli.test_app import PROMPT, assert_one_sentence
from typer.main import get_command

from cogvideo.cli import options
from cogvideo.cli.app import app
from cogvideo.errors import CogVideoError

# Whatever a command writes to is OUT in these, and they ask for as little work as they can.
WRITERS = {
    "generate": ["generate", PROMPT, "-o", "OUT/clip.mp4"],
    "generate several": ["generate", PROMPT, PROMPT, "-o", "OUT/clip.gif"],
    "generate many": ["generate", "--prompts", "prompts.txt", "--out-dir", "OUT/clips"],
    "explore": ["explore", PROMPT, "-o", "OUT/attention.html"],
    "report": ["report", "--weights", "demo", "-o", "OUT/report.html"],
    "train": ["train", "demo.yaml", "--set", "run_dir=OUT/run"],
    "make-theatre": ["data", "make-theatre", "OUT/theatre", "--clips", 1],
    "cut": ["data", "cut", "absent", "OUT/pieces"],
    "inspect": ["data", "inspect", "theatre:train?clips=1", "-o", "OUT/sheet.png"],
    "tokenize": ["data", "tokenize", "theatre:train?clips=1", "OUT/tokens"],
    "alignment": ["evaluate", "alignment", "-n", 1, "-o", "OUT/result.json"],
    "fvd": ["evaluate", "fvd", "theatre:seen", "demo", "-n", 2, "-o", "OUT/result.json"],
    "attention": ["evaluate", "attention", "theatre:test?clips=1", "-o", "OUT/attention.csv"],
    "sensitivity": ["evaluate", "sensitivity", "theatre:seen", "-n", 2, "-o", "OUT/result.json"],
    "is": ["evaluate", "is", "absent", "--c3d", "absent", "-o", "OUT/result.json"],
    "clipsim": ["evaluate", "clipsim", "absent", "--clip", "absent", "-o", "OUT/result.json"],
    "ucf101": ["evaluate", "ucf101", "absent", "demo", "-o", "OUT/result.json"],
    "kinetics": ["evaluate", "kinetics", "absent", "demo", "-o", "OUT/result.json"],
    "sweep": ["sweep", "run", "OUT/sweeps/small.yaml"],
    "sweep keep": ["sweep", "keep", "OUT/sweeps/small.yaml", "OUT/kept"],
    "convert": ["weights", "convert", "absent", "OUT/converted"],
    "assemble": ["weights", "assemble", "OUT/assembled", "demo"],
    "sampler": ["bench", "sampler", "-o", "OUT/sampler.json"],
    "bench train": ["bench", "train", "-o", "OUT/train.json"],
    "superres": ["bench", "superres", "-o", "OUT/superres.json"],
    "bench i3d": ["bench", "i3d", "-o", "OUT/i3d.json"],
    "full-size": ["bench", "full-size", "-o", "OUT/full_size.json"],
    "gpu-table": ["bench", "gpu-table", "-o", "OUT/gpu"],
    "make-checkpoint": ["bench", "make-checkpoint", "OUT/checkpoint", "--layers", 1, "--width", 64],
}


# Every command, by its words.
def below(command, words=()):
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from below(inner, (*words, name))


COMMANDS = {words: command for words, command in below(get_command(app)) if not hasattr(command, "commands")}
SEEDS = [
    (words, option)
    for words, command in COMMANDS.items()
    for parameter in command.params
    for option in parameter.opts
    if option in ("--seed", "--other-seed")
]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """command(name): its arguments, in a folder that has the files they name."""
    (tmp_path / "prompts.txt").write_text(PROMPT)
    demo = Path(options.__file__).parents[2] / "configs" / "demo.yaml"
    (tmp_path / "demo.yaml").write_bytes(demo.read_bytes())
    sweeps = tmp_path / "out" / "sweeps"
    sweeps.mkdir(parents=True)
    cell = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ["seed: int = 0"]}
    (sweeps / "small.ipynb").write_text(json.dumps({"cells": [cell]}))
    (sweeps / "small.yaml").write_text("notebook: small.ipynb")
    monkeypatch.chdir(tmp_path)
    return lambda name: [str(word).replace("OUT", "out") for word in WRITERS[name]]


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_before_the_work(run, tmp_path, monkeypatch, command, name):
    """/dev/full says what a full disk says; nothing but the probe is ever written."""
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: FileIO("/dev/full", "w"))
    assert_one_sentence(run(*command(name)), "No space left on device", "out")
    made = {path for path in tmp_path.rglob("*") if path.is_file()} - set(before)
    assert not made


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "sweep"])
def test_a_place_that_cannot_be_is_one_sentence(run, tmp_path, command, name):
    (tmp_path / "out" / "sweeps" / "small.yaml").unlink()
    (tmp_path / "out" / "sweeps" / "small.ipynb").unlink()
    (tmp_path / "out" / "sweeps").rmdir()
    (tmp_path / "out").rmdir()
    (tmp_path / "out").write_text("a file where a folder should be")
    assert_one_sentence(run(*command(name)), "out", "Not a directory")


@pytest.mark.parametrize(
    "arguments",
    [
        ["weights", "get", "i3d"],
        ["evaluate", "fvd", "theatre:seen", "demo", "-n", 2],
        ["evaluate", "sensitivity", "theatre:seen", "-n", 2],
    ],
)
def test_a_cache_that_cannot_be_written(run, tmp_path, monkeypatch, arguments):
    (tmp_path / "file").touch()
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "file" / "cache"))
    assert_one_sentence(run(*arguments), str(tmp_path / "file" / "cache"), "COGVIDEO_CACHE")


def test_every_command_that_writes_is_tried():
    """What a command writes to is its --output, or an argument of these names."""
    writes = {
        words
        for words, command in COMMANDS.items()
        if any({"--output", "out", "target", "output"} & {*p.opts, p.name} for p in command.params)
    }
    assert len(writes) > 20
    assert not writes - {tuple(map(str, words[: len(one)])) for words in WRITERS.values() for one in writes}


@pytest.mark.parametrize(
    "words, option", SEEDS, ids=lambda one: one if isinstance(one, str) else "-".join(one)
)
def test_seeds_beyond_64_bits(run, tmp_path, monkeypatch, words, option):
    """Everywhere that a seed is taken, whatever else is given."""
    monkeypatch.chdir(tmp_path)
    wanted = [p for p in COMMANDS[words].params if p.required]
    others = [word for p in wanted for word in (*p.opts[: p.param_type_name == "option"], "x")]
    for seed in (2**63, -1, 10**30):
        assert_one_sentence(run(*words, option, seed, *others), str(seed), "2**63 - 1")


@pytest.mark.parametrize("guidance", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("arguments", [["generate", PROMPT], ["evaluate", "alignment", "-n", 1]])
def test_guidance_that_is_not_finite(run, tmp_path, monkeypatch, arguments, guidance):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(run(*arguments, "--guidance", guidance), guidance, "finite")


@pytest.mark.parametrize(
    "kind, text, found", [(int, None, None), (int, "0,2", (0, 2)), (float, "0.5", (0.5,))]
)
def test_numbers(kind, text, found):
    assert options.numbers(text, "--x", kind) == found
    with pytest.raises(CogVideoError, match=r"^--x should be .*numbers with commas.*'1;2'"):
        options.numbers("1;2", "--x", kind)
