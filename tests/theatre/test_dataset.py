"""Clips of the theatre on disk and drawn: what the truth says is what the files show."""

import json

import numpy as np
import pytest

import cogvideo.theatre.dataset as dataset
from cogvideo.data.sources import open_dataset
from cogvideo.errors import CogVideoError
from cogvideo.theatre.dataset import REST, make_theatre, one_clip, pixels
from cogvideo.theatre.drawing import draw, render
from cogvideo.theatre.scenes import BACKGROUNDS, PICTURE_ONLY_ACTORS, PICTURE_ONLY_OBJECTS, SPLITS, phase


def lines(captions) -> list[dict]:
    return [json.loads(line) for line in captions.read_text(encoding="utf-8").splitlines()]


def names(clip) -> tuple:
    return (*clip.names(0), clip.background[0], clip.duration[0])


def test_a_clip_depends_on_split_seed_and_index_alone():
    assert names(one_clip("train", 5, 7)) == names(one_clip("train", 5, 7))
    several = [[names(one_clip(split, seed, i)) for i in range(20)] for split, seed in
               (("train", 0), ("train", 1), ("seen", 0), ("unseen", 0))]  # fmt: skip
    assert all(one != other for n, one in enumerate(several) for other in several[:n])
    assert names(one_clip("test", 3, 1)) == names(one_clip("seen", 3, 1))


@pytest.mark.parametrize("size", [64, 192])
def test_pixels_are_those_that_render_gives(size):
    clip, times = one_clip("pictures", 1, 2), np.array([0, 0.3, 1.1, 9])
    expected = render(clip, times[None], size)[0].permute(0, 2, 3, 1) * 255
    assert np.array_equal(pixels(clip, times, size), expected.round().byte().numpy())


def test_make_theatre_writes_clips_and_their_truth(tmp_path):
    av = pytest.importorskip("av", reason="PyAV reads the files again")
    captions = make_theatre(tmp_path / "a" / "b", clips=2, seed=254, split="picture-only", progress=False)
    records = lines(captions)
    assert sorted(p.name for p in captions.parent.iterdir()) == [
        "000000.mp4", "000001.mp4", "captions.jsonl", "dataset.json",
    ]  # fmt: skip
    for i, record in enumerate(records):
        clip = one_clip("picture-only", 254, i)
        assert (record["file"], record["index"], record["seed"]) == (f"{i:06d}.mp4", i, 254)
        assert (record["caption"], record["caption_zh"]) == (clip.caption(0), clip.caption(0, "zh"))
        assert record["split"] == record["group"] == "picture-only"
        assert record["actor"] in PICTURE_ONLY_ACTORS or record["object"] in PICTURE_ONLY_OBJECTS
        assert record["span"] == clip.span(0) and record["seconds"] == clip.duration[0] + REST
        scene = record["actor"], record["action"], record["object"]
        assert scene == clip.names(0) and record["duration"] == clip.duration[0]
        assert record["background"] == BACKGROUNDS[clip.background[0]]
        with av.open(str(captions.parent / record["file"])) as video:
            stream = video.streams.video[0]
            frames, times = zip(
                *((f.to_ndarray(format="rgb24"), f.time) for f in video.decode(video=0)), strict=True
            )
            assert stream.average_rate == 8 and times[0] == 0 and times[-1] == record["seconds"]
        assert len(frames) == len(record["states"]) == round(record["seconds"] * 8) + 1
        for frame, state in zip(frames, record["states"], strict=True):
            expected = draw(*scene, state, record["background"], 192)
            assert frame.shape == expected.shape and np.abs(frame - expected.astype(float)).mean() < 6


@pytest.mark.parametrize("split", SPLITS)
def test_phases_and_states_tell_the_same(tmp_path, split):
    """Of every frame: the phase that its time falls into is the phase of its state."""
    (record,) = lines(make_theatre(tmp_path, clips=1, seed=3, split=split, size=64, progress=False))
    phases = record["phases"]
    assert phases[0]["start"] == 0 and phases[-1]["end"] == record["seconds"]
    assert [p["end"] for p in phases[:-1]] == [p["start"] for p in phases[1:]]
    for number, state in enumerate(record["states"]):
        time = min(number / 8, record["seconds"] - 0.01)
        (now,) = [p["name"] for p in phases if p["start"] <= time < p["end"]]
        assert phase(record["action"], state) == now
    assert record["states"][-9:] == [16] * 9  # a second of rest


def test_make_theatre_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    arguments = {"clips": 4, "seed": 1, "seconds": 0.5, "size": 64, "progress": False}
    whole = make_theatre(tmp_path / "whole", **arguments)
    write, written = dataset.write_video, []

    def dies_at_the_third(path, frames, fps):
        written.append(path)
        if len(written) == 3:
            path.with_name(f".{path.stem}.99.mp4").write_bytes(b"what a killed write_video leaves")
            raise KeyboardInterrupt
        return write(path, frames, fps)

    monkeypatch.setattr(dataset, "write_video", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        make_theatre(tmp_path / "stopped", **arguments)
    left = sorted(p.name for p in (tmp_path / "stopped").iterdir())
    assert left == [".000002.99.mp4", "000000.mp4", "000001.mp4", "dataset.json"]  # no list of missing clips
    (tmp_path / "stopped" / "captions.jsonl.0a1b2c3d.part").write_text("what a killed write_whole leaves")
    make_theatre(tmp_path / "stopped", **arguments)
    assert len(written) == 5  # two, the one that failed, and the two that were left
    assert len(list((tmp_path / "stopped").iterdir())) == 6
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "stopped" / path.name).read_bytes() == path.read_bytes()

    times = {path.name: path.stat().st_mtime_ns for path in whole.parent.iterdir()}
    make_theatre(tmp_path / "whole", **arguments)
    assert len(written) == 5
    assert times == {path.name: path.stat().st_mtime_ns for path in whole.parent.iterdir()}

    more = make_theatre(tmp_path / "whole", **{**arguments, "clips": 5})
    assert len(written) == 6 and len(lines(more)) == 5


def test_make_theatre_refuses_what_it_cannot_do(tmp_path):
    def make(out=tmp_path / "new", **arguments):
        return make_theatre(
            out, **{"clips": 1, "seed": 0, "seconds": 0.25, "size": 64, "progress": False, **arguments}
        )

    for wrong in (
        {"clips": -1}, {"seed": -1}, {"seconds": 0}, {"seconds": 61}, {"size": 100}, {"split": "dev"},
        {"split": "dev", "clips": 0},
    ):  # fmt: skip
        with pytest.raises(CogVideoError):
            make(**wrong)
        assert not (tmp_path / "new").exists()  # nothing half-written
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CogVideoError, match="cannot be written"):
        make(tmp_path / "file")
    with pytest.raises(CogVideoError, match="cannot be written"):
        make(tmp_path / "file" / "below")
    make()
    with pytest.raises(CogVideoError, match="other arguments"):
        make(seed=1)
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "holiday.mp4").write_bytes(b"")
    with pytest.raises(CogVideoError, match="empty folder"):
        make(tmp_path / "album")
    assert make(tmp_path / "none", clips=0).read_text() == ""


def test_files_and_drawn_clips_are_the_same(tmp_path):
    """What the folder's captions name is what theatre:train draws."""
    make_theatre(tmp_path, clips=3, seed=0, size=64, progress=False)
    drawn = open_dataset("theatre:train?clips=3&language=en").clips
    for file, clip in zip(open_dataset(str(tmp_path)).clips, drawn, strict=True):
        assert file.caption == clip.caption
        ends, end = file.timeline().end, clip.timeline().end
        assert abs(ends - end - REST) < 0.01  # a file has a second of rest after the action
