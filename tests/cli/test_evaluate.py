"""`cogvideo evaluate` as a user meets it: what it prints and writes, and one sentence for every mistake."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from cogvideo.data.video import write_video


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))


def test_help_names_the_commands(run):
    code, out, _ = run("evaluate", "--help")
    assert code == 0 and all(
        f"\n  {name} " in out for name in ("alignment", "fvd", "is", "clipsim", "ucf101", "kinetics")
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["alignment", "-n", 0], "1 or more"),
        (["alignment", "--weights", "absent"], "absent"),
        (["is", "demo", "--c3d", "none.npz"], "none.npz is missing"),
        (["ucf101", "none", "--weights", "demo"], "There is no folder none"),
        (["ucf101", "none", "--weights", "nowhere"], "no weights at nowhere"),
        (["kinetics", "none", "--weights", "nowhere"], "no weights at nowhere"),
        (
            ["clipsim", "demo", "--clip", "none.pt"],
            "open_clip" if find_spec("open_clip") is None else "none.pt is missing",
        ),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run("evaluate", *arguments)
    assert code == 2 and out == "" and words in err
    assert err.startswith("Error: ") and err.endswith(".\n") and err.count("\n") == 1


def test_inception_score_of_a_folder(run, tmp_path):
    """With random weights: what is printed is what is written."""
    from cogvideo.evaluation.c3d import C3D

    torch.manual_seed(0)
    state = {name.partition(".")[2]: tensor for name, tensor in C3D().state_dict().items() if name != "mean"}
    torch.save(state, tmp_path / "c3d.pth")
    for i in range(2):
        write_video(tmp_path / f"{i}.mp4", np.full((16, 32, 32, 3), 100 * i, np.uint8), 8)
    out = tmp_path / "is.json"
    code, shown, _ = run(
        "evaluate",
        "is",
        tmp_path,
        "--c3d",
        tmp_path / "c3d.pth",
        "-n",
        2,
        "--splits",
        1,
        "--out",
        out,
        "--device",
        "cpu",
    )
    result = json.loads(out.read_text())
    assert code == 0 and result["n"] == 2 and f"{result['value']:.3f} ± 0.000" in shown
