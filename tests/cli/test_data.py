"""`cogvideo data make-theatre` as a user meets it; inspect and tokenize are tested in tests/data."""

import json

import pytest
from cli.test_app import assert_one_sentence

from cogvideo.data.video import read_video


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["data", "make-theatre", "theatre", "--clips", -1], "0 or more"),
        (["data", "make-theatre", "theatre", "--clips", 1, "--seed", -1], "0 or more"),
        (["data", "make-theatre", "theatre", "--clips", 1, "--split", "all"], "all"),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(run(*arguments), words)
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_make_theatre(run, tmp_path):
    out = tmp_path / "theatre"
    code, printed, _ = run("data", "make-theatre", out, "--clips", 2, "--seed", 3, "--split", "unseen")
    assert code == 0 and printed == f"{out / 'captions.jsonl'}: 2 clips\n"
    rows = [json.loads(line) for line in (out / "captions.jsonl").read_text("utf-8").splitlines()]
    assert [row["split"] for row in rows] == [row["group"] for row in rows] == ["unseen", "unseen"]
    for row in rows:
        frames, fps = read_video(out / row["file"])
        assert fps == 8 and len(frames) == row["seconds"] * 8 + 1
