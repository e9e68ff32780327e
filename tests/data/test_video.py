"""Files against independent readers: Pillow for GIF, FFmpeg's own description of the stream for mp4."""

import base64
import re

import av
import numpy as np
import pytest
from PIL import Image

from cogvideo.data.video import Video, check_writable, read_video, write_video
from cogvideo.errors import CogVideoError

COLORS = np.array([[235, 60, 50], [60, 200, 80], [70, 110, 250], [245, 215, 60], [240, 240, 240]], np.uint8)


def moving_bars(t: int = 9, h: int = 64, w: int = 64) -> np.ndarray:
    """Coloured bars on black that move 2 px a frame and rest from frame 5 on."""
    frames = np.zeros((t, h, w, 3), np.uint8)
    for index in range(t):
        left = 4 + 2 * min(index, 5)
        for row, color in enumerate(COLORS):
            frames[index, 4 + 12 * row : 12 + 12 * row, left : left + 24] = color
    return frames


@pytest.mark.parametrize("fps", [1, 2.5, 8, 24000 / 1001, 30])
def test_mp4_comes_back(tmp_path, fps):
    frames = moving_bars()
    path = write_video(tmp_path / "clip.mp4", frames, fps)
    again, rate = read_video(path)
    assert again.shape == frames.shape and again.dtype == np.uint8
    assert rate == pytest.approx(fps, rel=1e-3)
    difference = np.abs(again.astype(int) - frames)
    assert difference.mean() < 2
    # Inside a bar neither chroma subsampling nor another colour matrix may change the colour.
    assert difference[3, 6:10, 16:28].max() <= 6
    assert [file.name for file in tmp_path.iterdir()] == ["clip.mp4"]


def test_mp4_is_what_browsers_play(tmp_path):
    path = write_video(tmp_path / "clip.mp4", moving_bars(), 8)
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, codec.width, codec.height) == ("h264", "yuv420p", 64, 64)
        assert (int(codec.colorspace), codec.color_primaries, codec.color_trc) == (1, 1, 1)  # BT.709
        assert float(container.duration) / av.time_base == pytest.approx(9 / 8)
    boxes = path.read_bytes()
    assert boxes.index(b"moov") < boxes.index(b"mdat")  # so that it plays before all of it is there


def test_odd_sizes_repeat_the_edge(tmp_path):
    frames = moving_bars()[:, :63, :61]
    again, _ = read_video(write_video(tmp_path / "odd.mp4", frames, 8))
    assert again.shape == (9, 64, 62, 3)
    assert np.abs(again[:, :63, :61].astype(int) - frames).mean() < 2


def test_without_x264_there_is_mpeg4(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    frames = moving_bars()
    path = write_video(tmp_path / "clip.mp4", frames, 8)
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    again, rate = read_video(path)
    assert rate == 8 and np.abs(again.astype(int) - frames).mean() < 4


@pytest.mark.parametrize("fps, delays", [(8, {120, 130}), (2, {500}), (25, {40})])
def test_gif_by_pillow(tmp_path, fps, delays):
    frames = moving_bars()
    path = write_video(tmp_path / "clip.gif", frames, fps)
    with Image.open(path) as picture:
        assert picture.info["loop"] == 0  # for ever
        assert picture.n_frames == 9  # frames that rest are frames, too
        total = 0
        for index in range(9):
            picture.seek(index)
            assert picture.info["duration"] in delays
            total += picture.info["duration"]
            assert np.array_equal(
                np.asarray(picture.convert("RGB")), frames[index]
            )  # few colours: nothing is lost
    assert total == pytest.approx(9000 / fps, abs=10)
    again, rate = read_video(path)
    assert rate == pytest.approx(fps) and np.array_equal(again, frames)


def test_gif_of_many_colours_stays_near(tmp_path):
    ramp = np.linspace(0, 255, 64).round().astype(np.uint8)
    still = np.stack(
        [np.broadcast_to(ramp, (64, 64)), np.broadcast_to(ramp[:, None], (64, 64)), np.full((64, 64), 90)], -1
    )
    frames = np.stack([still.astype(np.uint8)] * 4)
    again, _ = read_video(write_video(tmp_path / "ramp.gif", frames, 8))
    assert np.abs(again.astype(int) - frames).mean() < 8
    assert all(np.array_equal(frame, again[0]) for frame in again)  # one palette: nothing flickers


def test_refusals_leave_nothing(tmp_path):
    frames = moving_bars()
    (tmp_path / "folder.mp4").mkdir()
    for path, words in [
        (tmp_path / "clip.avi", "neither an mp4 nor a GIF"),
        (tmp_path / "clip", "neither an mp4 nor a GIF"),
        (tmp_path / "missing" / "clip.mp4", "choose a folder that exists"),
        (tmp_path / "folder.mp4", "is a folder"),
    ]:
        for refuse in (check_writable, lambda place: write_video(place, frames, 8)):
            with pytest.raises(CogVideoError, match=words):
                refuse(path)
    for bad, fps in [(frames / 255, 8), (frames[0], 8), (frames[:0], 8), (frames[..., :1], 8), (frames, 0)]:
        with pytest.raises(CogVideoError, match=r"give uint8 \[T,H,W,3\] and fps > 0"):
            write_video(tmp_path / "clip.mp4", bad, fps)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.mp4"]


def test_a_failing_encoder_leaves_the_old_file(tmp_path):
    path = tmp_path / "clip.gif"
    path.write_bytes(b"old")
    with pytest.raises(CogVideoError, match="cannot be written"):
        write_video(path, np.zeros((1, 1, 70000, 3), np.uint8), 8)  # GIF counts pixels in 16 bits
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_files_that_are_no_videos(tmp_path):
    whole = write_video(tmp_path / "clip.mp4", moving_bars(), 8).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    for name in ("cut.mp4", "text.mp4", "empty.mp4", "missing.mp4"):
        with pytest.raises(CogVideoError, match=name):
            read_video(tmp_path / name)


def test_video_shows_itself():
    video = Video(moving_bars(), 8.0, {"prompt": "a <red> cat drinks tea"})
    assert len(video) == 9 and video.seconds == 9 / 8
    assert repr(video) == "Video(9 frames of 64 x 64, 1.12 s at 8 fps, 'a <red> cat drinks tea')"
    page = video._repr_html_()
    assert "a &lt;red&gt; cat drinks tea" in page and "<red>" not in page
    assert all(word in page for word in ("autoplay", "loop", "muted", "pixelated", "width:320px"))
    (data,) = re.findall('src="data:video/mp4;base64,([^"]+)"', page)
    assert base64.b64decode(data)[4:8] == b"ftyp"


@pytest.mark.parametrize(
    "columns, chosen", [(5, [0, 2, 4, 6, 8]), (1, [0]), (3, [0, 4, 8]), (20, list(range(9)))]
)
def test_contact_sheet(columns, chosen):
    frames = moving_bars()
    sheet = np.asarray(Video(frames, 8).contact_sheet(columns))
    assert sheet.shape == (64, 64 * len(chosen) + 4 * (len(chosen) - 1), 3)
    for place, index in enumerate(chosen):
        assert np.array_equal(sheet[:, 68 * place : 68 * place + 64], frames[index])
    assert np.array_equal(np.asarray(Video(frames, 8).contact_sheet(columns, gap=0))[:, :64], frames[0])


def test_contact_sheet_of_nothing():
    with pytest.raises(CogVideoError, match="1 or more"):
        Video(moving_bars(), 8).contact_sheet(0)
