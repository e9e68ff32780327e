"""Sides made of folders, of the data sets' own layouts, of the demo world and of its weights."""

from pathlib import Path

import numpy as np
import pytest

from cogvideo.checkpoints.registry import DEMO
from cogvideo.data.sources import read_options
from cogvideo.data.video import write_video
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.sources import generations, open_side, real_sides


def video(path, grey: int, frames: int = 16):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, np.full((frames, 16, 16, 3), grey, np.uint8), 8)


def test_a_folder_is_searched_and_drawn_from_by_seed(tmp_path):
    for i in range(6):
        video(tmp_path / f"part{i % 2}" / f"{i}.mp4", 40 * i)
    side = open_side(str(tmp_path), 10)
    assert {round(int(np.median(side.read(name))) / 40) for name in side.names} == set(range(6))
    assert open_side(str(tmp_path), 3).names == side.names[:3]
    assert open_side(str(tmp_path), 6, seed=1).names != side.names


def test_frames_without_a_codec(tmp_path):
    frames = np.random.default_rng(0).integers(256, size=(16, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "a.npy", frames)
    np.savez(tmp_path / "b.npz", anything=frames)
    np.savez(tmp_path / "c.npz", frames=frames, other=np.zeros(3))
    side = open_side(str(tmp_path), 9)
    assert len(side.names) == 3 and all(np.array_equal(side.read(name), frames) for name in side.names)
    for name, content in (("d.npy", b""), ("e.npz", b"PK\x03\x04"), ("f.npy", b"text")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CogVideoError, match=f"{name} cannot be read as frames"):
            side.read(str(tmp_path / name))
    np.savez(tmp_path / "g.npz", a=frames, b=frames)
    with pytest.raises(CogVideoError, match="frames is not a file in the archive"):
        side.read(str(tmp_path / "g.npz"))


def test_ucf101_split(tmp_path):
    for name in ("Archery/v_Archery_g01_c01", "Archery/v_Archery_g02_c01", "Diving/v_Diving_g01_c01"):
        video(tmp_path / f"{name}.avi.mp4", 50)
        (tmp_path / f"{name}.avi.mp4").rename(tmp_path / f"{name}.avi")
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text("Archery/v_Archery_g02_c01.avi 1\nDiving/v_Diving_g01_c01.avi 2\n")
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    train, test = (open_side(f"ucf101:{tmp_path}?split={kind}list01.txt", 9) for kind in ("train", "test"))
    assert sorted(name[-16:-4] for name in train.names) == ["hery_g02_c01", "ving_g01_c01"]
    assert [name.endswith("v_Archery_g01_c01.avi") for name in test.names] == [True]
    assert test.read(test.names[0]).shape == (16, 16, 16, 3)
    with pytest.raises(CogVideoError, match="no split file"):
        open_side(f"ucf101:{tmp_path}?split=none.txt", 9)
    (lists / "pictures.txt").write_bytes(bytes(range(256)))
    with pytest.raises(CogVideoError, match="no split file of UCF-101"):
        open_side(f"ucf101:{tmp_path}?split=pictures.txt", 9)


def test_kinetics_split(tmp_path):
    for name in (
        "abseiling/aaaaaaaaaaa_000010_000020",
        "zumba/bbbbbbbbbbb",
        "zumba/ccccccccccc_000001_000011",
    ):
        video(tmp_path / f"{name}.mp4", 50)
    split = tmp_path / "validate.csv"
    split.write_text(
        "label,youtube_id,time_start,time_end,split\na,aaaaaaaaaaa,10,20,v\nb,bbbbbbbbbbb,3,13,v\n"
    )
    names = open_side(f"kinetics:{tmp_path}?split=validate.csv", 9).names
    assert sorted(Path(name).stem for name in names) == ["aaaaaaaaaaa_000010_000020", "bbbbbbbbbbb"]
    for content in (b"name\nx\n", bytes(range(256))):
        split.write_bytes(content)
        with pytest.raises(CogVideoError, match="youtube_id, time_start and time_end"):
            open_side(f"kinetics:{tmp_path}?split=validate.csv", 9)


def test_the_theatre_depends_on_seed_split_and_place_alone():
    side = open_side("theatre:test?seed=3&seconds=2", 4)
    clips = [side.read(name) for name in side.names]
    assert clips[0].shape == (17, 64, 64, 3) and clips[0].dtype == np.uint8 and clips[0].max() > 100
    again = open_side("theatre:test?seed=3&seconds=2", 2)
    assert np.array_equal(again.read(again.names[1]), clips[1])
    for other in ("theatre:train?seed=3&seconds=2", "theatre:test?seed=4&seconds=2"):
        assert not np.array_equal(open_side(other, 1).read("0"), clips[0])


def test_samples_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path))
    side = open_side("demo", 1, device="cpu", progress=False)
    frames = side.read(side.names[0])
    assert frames.shape == (33, 64, 64, 3) and frames.dtype == np.uint8 and frames.max() > 100
    with pytest.raises(CogVideoError, match="seed cannot be -1"):
        open_side("demo", 1, seed=-1)
    monkeypatch.setattr(
        "cogvideo.sampling.pipeline.Pipeline.from_pretrained", lambda *_, **__: pytest.fail("made anew")
    )
    assert np.array_equal(open_side("demo", 1, progress=False).read(side.names[0]), frames)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("/nowhere/at/all", "no folder, no data set and no weights"),
        ("theatre:middle", "Split 'middle' of the theatre is unknown"),
        ("theatre:test?speed=2", "unknown option speed"),
        ("theatre:test?seed=two", "'two' in .* is no number"),
        ("theatre:test?seconds=0", "more than 0"),
        ("ucf101:/nowhere/at/all", "There is no folder"),
    ],
)
def test_bad_specs_are_one_sentence(spec, sentence):
    with pytest.raises(CogVideoError, match=sentence):
        open_side(spec, 2)


def test_a_folder_without_videos(tmp_path):
    with pytest.raises(CogVideoError, match="holds no videos"):
        open_side(str(tmp_path), 2)
    (tmp_path / "ice_image.pt").touch()
    with pytest.raises(CogVideoError, match="holds the released weights, and no prompts"):
        open_side(str(tmp_path), 2)


def test_what_can_be_generated_anew(tmp_path):
    """With other seeds than the real side's, which is 5: captions must not be shared."""
    assert generations("demo", 5, 3) == [("demo", 6), ("demo", 7), ("demo", 8)]
    assert generations(str(DEMO), 5) == [(str(DEMO), 6)]
    assert generations("theatre:test", 5, 2) == [("theatre:test", 6), ("theatre:test", 7)]
    assert generations("theatre:test?seed=9", 5) == [("theatre:test?seed=9", 6)]
    specs = [spec for spec, _ in generations("theatre:test?seed=7&seconds=2", 0, 2)]
    assert specs == ["theatre:test?seed=7&seconds=2", "theatre:test?seed=8&seconds=2"]
    assert generations(str(tmp_path), 3) == [(str(tmp_path), 3)]
    samples = "ucf101-samples:x?weights=demo"
    assert generations(samples, 3, 2) == [(samples, 3), (samples, 4)]
    (_, (spec, _)) = generations("theatre:a b?seed=1&weights=my weights+", 0, 2)
    assert read_options(spec) == {"seed": "2", "weights": "my weights+"}  # a space and a plus go through
    with pytest.raises(CogVideoError, match="cannot be generated anew"):
        generations(str(tmp_path), 0, 2)
    with pytest.raises(CogVideoError, match="'x' in theatre:test.seed=x is no number"):
        generations("theatre:test?seed=x", 0, 2)
    with pytest.raises(CogVideoError, match="cannot be 0 generations"):
        generations("demo", 0, 0)


def test_floor_and_score_see_the_same_captions(tmp_path):
    """Real clips are of other captions than both; the split of a folder is by its own order."""
    right, others = real_sides("theatre:test", 3, 5)
    spec, seed = generations("theatre:test", 5)[0]
    made = open_side(spec, 3, seed=seed)
    assert others.label == made.label != right.label and len(right.names) == len(others.names) == 3
    labels = [side.label for side in real_sides("theatre:test?seed=7&seconds=2", 2, 0)]
    assert labels == ["theatre:test?seed=7&seconds=2", "theatre:test?seed=8&seconds=2"]
    for i in range(5):
        (tmp_path / f"{i}.mp4").touch()
    right, others = real_sides(str(tmp_path), 3, 0)
    assert len(right.names) == 3 and len(others.names) == 2 and not set(right.names) & set(others.names)
