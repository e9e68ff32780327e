"""`cogvideo explore` as a user meets it."""

import numpy as np
import pytest
from cli.test_app import assert_one_sentence

from cogvideo.data.video import write_video


@pytest.fixture
def clip(tmp_path):
    """A video of the demo's frame size, so that nothing need be generated."""
    return write_video(
        tmp_path / "clip.mp4", np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8), 2.0
    )


@pytest.mark.filterwarnings("always:These weights have never seen the words <rings>:UserWarning")
def test_writes_one_file(run, tmp_path, clip):
    page = tmp_path / "attention.html"
    options = ["--layers", "1,3", "--heads", "0", "--patch", "2,3,4", "--max-mb", "2", "--clip", clip]
    code, out, _ = run("explore", "a lion <rings>", "-o", page, *options)
    assert code == 0 and out.startswith(f"{page}: ") and out.endswith(" MB\n")
    assert page.stat().st_size < 2e6 and page.stat().st_size / 1e6 == pytest.approx(
        float(out.split()[-2]), abs=0.05
    )
    text = page.read_text("utf-8")
    assert '"layers":[1,3],"heads":[0]' in text and '"start":{"patch":156,' in text
    assert "a lion &lt;rings&gt;" in text and "<rings>" not in text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["attention.html", "clip.mp4"]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--layers", "4"], "There is no layer 4: this model has layers 0..3"),
        (["--heads", "0,x"], "--heads should be whole numbers with commas between, such as 0,2, not '0,x'"),
        (["--patch", "2,8,0"], "There is no patch 2,8,0: give frame 0..4, row 0..7 and column 0..7"),
        (["--seconds", "3"], "3 seconds were not trained"),
        (["-o", "missing/page.html"], "choose a folder that exists"),
        (["--clip", "missing.mp4"], "cannot be read as a video"),
        (["--weights", "missing"], "There are no weights at missing"),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(run("explore", "a lion", *options), words)
    assert list(tmp_path.iterdir()) == []


def test_clips_without_five_frames_and_pages_without_room_are_refused(run, tmp_path, clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = write_video(tmp_path / "short.mp4", np.zeros((3, 192, 192, 3), np.uint8), 2.0)
    words = "The clip is [3, 192, 192, 3], but these weights look at 5 or more frames"
    assert_one_sentence(run("explore", "a lion", "--clip", short), words)
    code, _, err = run("explore", "a lion", "--clip", clip, "--max-mb", "0.05")
    assert code == 2 and err.endswith(
        "do not fit into 0.05 MB: choose fewer layers or heads, or allow more.\n"
    )
    assert not (tmp_path / "attention.html").exists()
