"""What `cogvideo data inspect` tells of real files, and the picture it makes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from data.videos import cut, grey, make_video
from PIL import Image

from cogvideo.cli import app as cli
from cogvideo.data.frame_rates import RATES
from cogvideo.data.inspect import CELL, contact_sheet, inspect, report
from cogvideo.data.sources import open_dataset
from cogvideo.errors import CogVideoError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name, count in (("one", 15), ("two", 15), ("three", 40), ("short", 3)):  # 1.44, 1.44, 3.94 and 0.3 s
        make_video(folder / f"{name}.mp4", [i / 10 for i in range(count)], size=(64, 64))
    cut(make_video(folder / "broken.mp4", [i / 25 for i in range(100)]), 0.8)
    (folder / "text.mp4").write_text("no video")
    names = ["one", "two", "three", "short", "broken", "text", "gone"]
    (folder / "captions.jsonl").write_text(
        "\n".join(json.dumps({"path": f"{n}.mp4", "caption": n}) for n in names)
    )
    return folder


def test_the_report(folder):
    found = inspect(open_dataset(str(folder)), progress=False)
    lines = report(found).splitlines()
    assert lines[0].endswith("6 clips, 6 different captions")
    assert lines[1] == "readable 5, unreadable 1, missing 1, breaking off or damaged 1, without five frames 1"
    assert lines[2].startswith("seconds: shortest 0.30,") and "longest 3.94" in lines[2]
    assert lines[4] == "pixels: 64 x 64 (4), 64 x 48 (1)"
    chosen = dict(zip((clip.source for clip in found.dataset.clips), found.rates, strict=True))
    assert [chosen[f"{name}.mp4"] for name in ("one", "two", "three", "short", "text")] == [
        4,
        4,
        2,
        None,
        None,
    ]
    assert "     4 a second (1 s) ######################################## 2" in lines
    text = "\n".join(lines)
    for words in (
        "missing: gone.mp4",
        "text.mp4 cannot be read",
        "broken.mp4 breaks off at",
        "short.mp4 gives no five",
    ):
        assert words in text
    assert inspect(found.dataset, [1.0], progress=False).rates[:3] == [None, None, None]


def test_the_contact_sheet_shows_the_frames_of_the_rule(folder, tmp_path):
    found = inspect(open_dataset(str(folder)), progress=False)
    lines = contact_sheet(found, tmp_path / "sheet.png", RATES, rows=3)
    assert lines[0].startswith("1  4 fps, 0.22 to 1.22 s, one.mp4: one") and len(lines) == 3
    pixels = np.asarray(Image.open(tmp_path / "sheet.png").convert("L")).astype(float)
    assert pixels.shape == (3 * (CELL + 4), 5 * (CELL + 4) + 60)
    shown = [
        pixels[CELL // 2 + 20 : CELL - 10, 60 + c * (CELL + 4) + 70 : 60 + c * (CELL + 4) + 120].mean()
        for c in range(5)
    ]
    assert np.allclose(shown, [grey(number) for number in (2, 4, 7, 9, 12)], atol=3)
    with pytest.raises(CogVideoError, match="name a .png file"):
        contact_sheet(found, tmp_path / "sheet.xyz", RATES)


def test_the_command(folder, tmp_path, monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cogvideo", "data", "inspect", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    code, out, _ = run(folder, "--sheet", tmp_path / "a.png", "--rows", 2)
    assert code == 0 and "different captions" in out and f"{tmp_path / 'a.png'}:\n1  4 fps" in out
    code, out, err = run("theatre:train?clips=1", "--rates", "0.25", "--sheet", tmp_path / "b.png")
    assert code == 2 and err.endswith("no clip that gives five frames: there is nothing to show.\n")
    assert run(tmp_path / "nowhere")[2].count("\n") == 1
