"""The command line as a user meets it: exit codes, one sentence for every mistake, files written whole."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from cogvideo.data.video import read_video
from cogvideo.checkpoints.registry import DEMO

PROMPT = "a red 3 moves right"


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


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "--nothing"],
        ["paint", "x"],
        ["generate", PROMPT, "--seconds", "long"],
        ["data", "make-digits", "x"],
        ["evaluate", "alignment", "--seed", -1],
        ["evaluate", "kinetics", "x", "--weights", "demo", "--overlap", 5],
    ],
)
def test_usage_errors_exit_with_2(run, arguments):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and "Usage: cogvideo" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["generate"], "Give sentences"),
        (["generate", PROMPT, "--prompts", "prompts.txt"], "Give sentences"),
        (["generate", "--prompts", "prompts.txt"], "--out-dir"),
        (["generate", "--prompts", "no such file", "--out-dir", "x"], "cannot be read"),
        (["generate", " "], "empty"),
        (["generate", "a red 3 " * 20], "text slots"),
        (["generate", PROMPT, "--seconds", 3], "0.5, 1, 2, 4, 8"),
        (["generate", PROMPT, "--weights", "absent"], "absent"),
        (["generate", PROMPT, "--device", "quantum"], "quantum"),
        (["train", "absent.yaml"], "absent.yaml"),
        (["evaluate", "alignment", "-n", 0], "1 or more"),
        (["evaluate", "alignment", "--weights", "absent"], "absent"),
        (["data", "make-digits", "digits", "--clips", -1], "0 or more"),
        (["data", "make-digits", "digits", "--clips", 1, "--glyphs", "runes"], "runes"),
        (["data", "make-digits", "digits", "--clips", 1, "--split", "all"], "all"),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(run(*arguments), words)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize("prompts", [[PROMPT], [PROMPT, "a blue 7 grows"]])
@pytest.mark.parametrize("output", ["clip.avi", "missing/clip.mp4", "folder.mp4"])
def test_the_output_is_tried_before_the_weights(run, tmp_path, monkeypatch, prompts, output):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder.mp4", "folder-1.mp4"):
        (tmp_path / folder).mkdir()
    before = sorted(tmp_path.iterdir())
    assert_one_sentence(run("generate", *prompts, "-o", output, "--weights", "absent"), output.split(".")[0])
    assert sorted(tmp_path.iterdir()) == before


def test_cuda_where_there_is_none(run, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_one_sentence(
        run("generate", PROMPT, "-o", tmp_path / "clip.mp4", "--device", "cuda"), "cuda", "--device cpu"
    )
    assert list(tmp_path.iterdir()) == []


def test_generate_writes_what_was_asked(run, tmp_path):
    arguments = ["--seconds", 0.5, "--seed", 3, "--device", "cpu"]
    code, out, err = run("generate", PROMPT, "-o", tmp_path / "one.mp4", *arguments)
    assert code == 0 and "one.mp4" in out and "key frames" in err
    frames, fps = read_video(tmp_path / "one.mp4")
    assert frames.shape == (5, 192, 192, 3) and fps == 8
    code, out, _ = run(
        "generate", PROMPT, "一个绿色的8旋转", "-o", tmp_path / "two.gif", "--no-enlarge", *arguments
    )
    assert code == 0 and len(out.splitlines()) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.mp4", "two-1.gif", "two-2.gif"]
    assert read_video(tmp_path / "two-2.gif")[0].shape == (5, 64, 64, 3)


def test_doctor_tells_what_is_there(run):
    code, out, _ = run("doctor")
    facts = dict(line.split("  ", 1) for line in out.splitlines())
    assert code == 0 and {"python", "torch", "cpu", "memory", "demo weights", "video"} <= facts.keys()
    assert torch.__version__ in facts["torch"] and "GiB" in facts["memory"]
    assert f"MB in {DEMO}; Score:" in facts["demo weights"] and "libx264" in facts["video"]
    columns = {len(line) - len(line.split("  ", 1)[1].lstrip()) for line in out.splitlines()}
    assert len(columns) == 1  # aligned


def test_make_digits(run, tmp_path):
    out = tmp_path / "digits"
    code, printed, _ = run("data", "make-digits", out, "--clips", 2, "--seed", 3, "--split", "test")
    assert code == 0 and printed == f"{out / 'captions.jsonl'}: 2 clips\n"
    rows = [json.loads(line) for line in (out / "captions.jsonl").read_text("utf-8").splitlines()]
    assert [row["split"] for row in rows] == ["test", "test"]
    for row in rows:
        frames, fps = read_video(out / row["file"])
        assert fps == 8 and len(frames) == row["seconds"] * 8 + 1


def test_ctrl_c_is_130_and_a_word(tmp_path):
    command = [sys.executable, "-m", "cogvideo", "data", "make-digits", tmp_path / "digits", "--clips", "300"]

    def listen():  # a runner in the background hands down a SIGINT that is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:
        while not (tmp_path / "digits" / "000000.mp4").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.endswith("Stopped.\n") and "Traceback" not in err
    assert all(file.stat().st_size for file in (tmp_path / "digits").glob("*.mp4"))
