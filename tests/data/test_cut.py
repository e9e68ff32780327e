"""Videos cut into pieces: lengths, what is held out together, captions, what is refused."""

import csv

import numpy as np
import pytest

from cogvideo.data.cut import cut
from cogvideo.data.sources import open_dataset
from cogvideo.data.video import read_video, write_video
from cogvideo.errors import CogVideoError


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A video of 3 s at 8 frames a second, whose frame n is as bright as 10 n."""
    folder = tmp_path_factory.mktemp("videos")
    pixels = np.broadcast_to(10 * np.arange(24, dtype=np.uint8)[:, None, None, None], (24, 48, 64, 3))
    write_video(folder / "a_slow-dog.mp4", pixels, fps=8)
    return folder


def test_pieces_overlap_within_moments_alone(videos, tmp_path):
    assert cut(str(videos), tmp_path / "clips", seconds=1, moment=1.5, pieces=3, side=24) == 6
    rows = list(csv.DictReader((tmp_path / "clips/captions.csv").open()))
    assert {row["caption"] for row in rows} == {"a slow dog"}
    groups = {}
    for row in rows:
        frames, fps = read_video(tmp_path / "clips" / row["path"])
        assert frames.shape == (8, 24, 32, 3) and fps == 8
        groups.setdefault(row["group"], []).append(frames.mean((1, 2, 3)))
    first, second = (np.array(found) for found in groups.values())
    np.testing.assert_allclose(first[:, 0], [0, 20, 40], atol=3)
    np.testing.assert_allclose(second[:, 0], [120, 140, 160], atol=3)
    np.testing.assert_allclose(np.diff(first, axis=1), 10, atol=3)
    clips = open_dataset(str(tmp_path / "clips")).clips
    assert len({clip.group for clip in clips}) == 2  # held out whole


def test_captions_are_those_of_the_video(videos, tmp_path):
    (tmp_path / "list.csv").write_text(
        f"path,caption,start,end\n{videos}/a_slow-dog.mp4,a dog sleeps,1,2.5\n"
    )
    assert cut(str(tmp_path / "list.csv"), tmp_path / "clips", pieces=1) == 1
    (row,) = csv.DictReader((tmp_path / "clips/captions.csv").open())
    assert row["caption"] == "a dog sleeps"
    frames, _ = read_video(tmp_path / "clips" / row["path"])
    assert frames[0].mean() == pytest.approx(90, abs=15)  # from second 1 on


def test_what_cannot_be_cut_is_refused(videos, tmp_path):
    with pytest.raises(CogVideoError, match="shorter pieces"):
        cut(str(videos), tmp_path / "clips", seconds=9)
    with pytest.raises(CogVideoError, match="no longer than a moment"):
        cut(str(videos), tmp_path / "clips", seconds=2, moment=1)
    with pytest.raises(CogVideoError, match="no files"):
        cut("theatre:train?clips=1", tmp_path / "clips")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CogVideoError, match="no videos"):
        cut(str(tmp_path / "empty"), tmp_path / "clips")
