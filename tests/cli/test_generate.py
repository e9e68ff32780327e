"""`cogvideo generate` as a user meets it: clips written whole, the output tried before the work."""

import pytest
import torch
from cli.test_app import PROMPT, assert_one_sentence

from cogvideo.data.video import read_video


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["generate"], "Give sentences"),
        (["generate", PROMPT, "--prompts", "prompts.txt"], "Give sentences"),
        (["generate", "--prompts", "prompts.txt"], "--out-dir"),
        (["generate", "--prompts", "no such file", "--out-dir", "x"], "cannot be read"),
        (["generate", " "], "empty"),
        (["generate", "a lion drinks milk " * 20], "text slots"),
        (["generate", PROMPT, "--seconds", 3], "0.5, 1, 2, 4, 8"),
        (["generate", PROMPT, "--weights", "absent"], "absent"),
        (["generate", PROMPT, "--device", "quantum"], "quantum"),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(run(*arguments), words)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


@pytest.mark.parametrize("prompts", [[PROMPT], [PROMPT, "a bear eats an apple"]])
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
        "generate", PROMPT, "一只猫喝茶", "-o", tmp_path / "two.gif", "--no-enlarge", *arguments
    )
    assert code == 0 and len(out.splitlines()) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.mp4", "two-1.gif", "two-2.gif"]
    assert read_video(tmp_path / "two-2.gif")[0].shape == (5, 64, 64, 3)
