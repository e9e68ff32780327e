"""The command line as a user meets it: exit codes, one sentence for every mistake, files written whole."""

import signal
import subprocess
import sys
import time
import warnings

import pytest
from typer.main import get_command

import cogvideo
from cogvideo.cli.app import app

PROMPT = "a lion drinks milk"


def assert_one_sentence(result: tuple[int, str, str], *words: str) -> None:
    code, out, err = result
    assert code == 2 and out == "" and "Traceback" not in err
    assert err.startswith("Error: ") and err.endswith(".\n") and err.count("\n") == 1
    for word in words:
        assert word in err


def test_as_a_program():
    """A process of its own: the same error, code and streams, and no traceback."""
    command = [sys.executable, "-m", "cogvideo", "generate", PROMPT, "-o", "clip.avi"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert_one_sentence((ended.returncode, ended.stdout, ended.stderr), "clip.avi", ".mp4 or .gif")


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0 and all(
        f"\n  {name} " in out for name in ("generate", "train", "doctor", "data", "evaluate")
    )


def test_version(run):
    assert run("--version")[:2] == (0, f"cogvideo {cogvideo.__version__}\n")


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_without_the_code_it_came_from(run, monkeypatch):
    def doctor():
        warnings.warn("These weights know\n  nothing.", stacklevel=2)
        return "fine"

    monkeypatch.setattr("cogvideo.benchmarks.doctor.report", doctor)
    assert run("doctor") == (0, "fine\n", "Warning: These weights know nothing.\n")


def help_of(run, path=(), command=get_command(app)):
    """(path, help text) of a command and of all below it."""
    yield path, run(*path, "--help")[1]
    for name, below in getattr(command, "commands", {}).items():
        yield from help_of(run, (*path, name), below)


def test_no_line_of_help_is_cut(run):
    texts = dict(help_of(run))
    assert {path[-1] for path in texts if path} >= {"full-size", "is", "doctor"}
    for path, text in texts.items():
        assert f"Usage: {' '.join(('cogvideo', *path))} " in text and "..." not in text.split("\n", 1)[1], (
            path
        )


def test_an_option_has_one_name_everywhere(run):
    """What is written is -o/--output; the former names work and are not shown."""
    for path, text in help_of(run):
        assert "--out " not in text and "--sheet" not in text and "--hidden" not in text, path
        assert ("-o, --output" in text) == ("--output" in text), path
    code, _, err = run("bench", "full-size", "--hidden=64", "--heads", 3, "--out", "x", "--device", "cpu")
    assert code == 2 and "num_heads 3" in err


def test_completion(run, monkeypatch):
    monkeypatch.setattr(
        "shellingham.detect_shell", lambda: ("bash", "/bin/bash")
    )  # tests may run without one
    code, script, _ = run("--show-completion")
    assert code == 0 and "complete -o default -F _cogvideo_completion cogvideo" in script
    monkeypatch.setenv("_COGVIDEO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "cogvideo evaluate k")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert run()[1].split() == ["kinetics"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--nothing"],
        ["paint", "x"],
        ["generate", PROMPT, "--seconds", "long"],
        ["data", "make-theatre", "x"],
        ["evaluate", "kinetics", "x", "--weights", "demo", "--overlap", 5],
    ],
)
def test_usage_errors_exit_with_2(run, arguments):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and "Usage: cogvideo" in err and "Traceback" not in err


def test_ctrl_c_is_130_and_a_word(tmp_path):
    make = ["data", "make-theatre", tmp_path / "theatre", "--clips", "300"]
    command = [sys.executable, "-m", "cogvideo", *make]

    def listen():  # a runner in the background hands down a SIGINT that is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:
        while not (tmp_path / "theatre" / "000000.mp4").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=600)
    assert process.returncode == 130 and err.endswith("Stopped.\n") and "Traceback" not in err
    assert all(file.stat().st_size for file in (tmp_path / "theatre").glob("*.mp4"))
