"""Reading real files: variable frame rates, turned recordings, parts of a file, broken ends."""

from pathlib import Path

import numpy as np
import pytest
from data.videos import cut, make_video, number_of, turn

from cogvideo.data.reading import fit, read_frames, read_timeline
from cogvideo.data.video import read_video
from cogvideo.errors import CogVideoError

UNEVEN = [0, 0.04, 0.08, 0.5, 0.54, 1.5, 1.54, 1.58, 3.0, 3.04]
EVEN = [i / 25 for i in range(100)]


def numbers(path: Path, moments: list[float], start: float = 0.0, end: float | None = None) -> list[int]:
    """The numbers shown by the frames at these moments."""
    timeline = read_timeline(path, start, end)
    wanted = timeline.at(np.array(moments)).tolist()
    frames, last = read_frames(path, timeline, wanted, [timeline.size], start)
    assert last >= max(wanted)
    return [number_of(frames[i][0]) for i in wanted]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx"),
        ("a.avi", "mpeg4"), ("a.ts", "libx264"),
    ],
)  # fmt: skip
def test_frames_are_found_by_the_time_they_are_shown(tmp_path, name, codec):
    """Frame number / mean rate would give other frames at all of these moments but the first."""
    path = make_video(tmp_path / name, UNEVEN, codec=codec)
    timeline = read_timeline(path)
    assert (
        np.allclose(timeline.times, UNEVEN, atol=2e-3) and timeline.size == (48, 64) and timeline.note is None
    )
    assert timeline.end == pytest.approx(3.04 + (0.338 if name in ("a.avi", "a.ts") else 0.04), abs=0.01)
    assert numbers(path, [0, 0.3, 0.5, 1.49, 1.55, 2.9, 3.0, 3.08]) == [0, 2, 3, 4, 6, 7, 8, 9]


def test_a_turned_recording_is_shown_upright(tmp_path):
    path = turn(make_video(tmp_path / "a.mp4", EVEN[:5]))
    assert read_timeline(path).size == (64, 48)
    frames, _ = read_frames(path, read_timeline(path), [0], [(64, 48)])
    whole, _ = read_video(path)
    for pixels in (frames[0][0], whole[0]):
        assert pixels.shape == (64, 48, 3)
        red = (pixels[..., 0] > 150) & (pixels[..., 1] < 90)
        assert (
            red[:14, -10:].all() and not red[20:].any() and not red[:, :30].any()
        )  # top left went to top right


def test_a_part_of_a_file(tmp_path):
    path = make_video(tmp_path / "a.mp4", [i / 10 for i in range(40)])
    timeline = read_timeline(path, 1.25, 2.5)
    assert timeline.end == pytest.approx(1.25) and timeline.times[0] == pytest.approx(-0.05)
    assert len(timeline.times) == 13 and timeline.fps == pytest.approx(10)
    assert numbers(path, [0, 0.1, 0.6, 1.25], 1.25, 2.5) == [12, 13, 18, 24]
    assert numbers(path, [0, 0.55], 3.3) == [33, 38]
    assert read_timeline(path, 3.5, 99).end == pytest.approx(0.44, abs=0.01)
    with pytest.raises(CogVideoError, match="from 9 to 10 s"):
        read_timeline(path, 9, 10)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_file_that_breaks_off_gives_what_is_there(tmp_path, name):
    path = cut(make_video(tmp_path / name, EVEN), 0.7)
    timeline = read_timeline(path)
    assert 0.5 < timeline.end < 3 and (
        name == "a.ts" or str(timeline.note).startswith(f"breaks off at {timeline.end:.1f} of 4.0")
    )
    wanted = timeline.at(np.linspace(0, timeline.end, 5)).tolist()
    frames, last = read_frames(path, timeline, wanted, [(48, 64)])
    if last < wanted[-1]:  # the last packet is there in part
        timeline = timeline.until(last)
        wanted = timeline.at(np.linspace(0, timeline.end, 5)).tolist()
        frames, last = read_frames(path, timeline, wanted, [(48, 64)])
    assert last >= wanted[-1]
    assert [number_of(frames[i][0]) for i in wanted] == [
        round(float(timeline.times[i]) * 25) % 43 for i in wanted
    ]


def test_a_damaged_middle(tmp_path):
    """The frame before stands in for frames that cannot be decoded."""
    path = make_video(tmp_path / "a.mp4", EVEN[:40], keys=10)
    content = bytearray(path.read_bytes())
    middle = len(content) * 7 // 10
    content[middle : middle + 200] = bytes(200)
    path.write_bytes(content)
    timeline = read_timeline(path)
    frames, last = read_frames(path, timeline, range(len(timeline.times)), [(48, 64)])
    shown = [number_of(frames[i][0]) for i in range(last + 1)]
    assert shown == sorted(shown) and shown[:10] == list(range(10)) and len(shown) >= 20


def test_only_the_size_that_is_asked_for_is_kept(tmp_path):
    path = make_video(tmp_path / "a.mp4", EVEN[:5], size=(64, 96))
    frames, _ = read_frames(path, read_timeline(path), {2, 4}, [(16, 16), (48, 48)])
    assert sorted(frames) == [2, 4] and [f.shape for f in frames[2]] == [(16, 16, 3), (48, 48, 3)]
    assert number_of(frames[4][0]) == 4
    assert fit(np.zeros((2, 30, 50, 3), np.uint8), 20, 10).shape == (2, 20, 10, 3)


def test_what_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video at all")
    cut(make_video(tmp_path / "b.mp4", EVEN), 0.02)
    for name, words in (
        ("a.mp4", "cannot be read as a video"),
        ("none.mp4", "cannot be read"),
        ("b.mp4", "no frames|no video|cannot"),
    ):
        with pytest.raises(CogVideoError, match=words):
            read_timeline(tmp_path / name)
