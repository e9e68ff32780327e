"""Data sets in their own layouts, with real files: captions, parts of files, splits, and every mistake."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.videos import make_video, number_of

from cogvideo.checkpoints.tokenizers import load_tokenizers
from cogvideo.data.inspect import inspect, report
from cogvideo.data.sources import open_dataset
from cogvideo.data.tokenize import tokenize
from cogvideo.data.tokenized import summary
from cogvideo.errors import CogVideoError
from cogvideo.theatre.dataset import TheatreClip, make_theatre
from cogvideo.theatre.drawing import render

TENTHS = [i / 10 for i in range(30)]


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    """Three seconds, ten frames each."""
    return make_video(tmp_path_factory.mktemp("video") / "a.mp4", TENTHS).read_bytes()


def put(folder: Path, *names: str, content: bytes) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def first_number(clip) -> int:
    timeline = clip.timeline()
    frames, _ = clip.frames(timeline, {0}, [(16, 16)])
    return number_of(frames[0][0])


def test_captions_in_json_lines(tmp_path, video):
    put(tmp_path, "a.mp4", "sub/b.mp4", content=video)
    rows = [
        {"path": "sub/b.mp4", "caption": "落叶", "start": 1.0, "end": 2.5},
        {"file": "a.mp4", "caption": " a leaf falls ", "more": 1},
        {"path": "gone.mp4", "caption": "nothing"},
        {"path": "sub/b.mp4", "caption": "again", "start": 2},
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    for spec in (str(tmp_path), str(tmp_path / "captions.jsonl")):
        dataset = open_dataset(spec)
        assert [clip.caption for clip in dataset.clips] == ["落叶", "a leaf falls", "again"]
        assert dataset.missing == ["gone.mp4"] and dataset.clips[0].source == dataset.clips[2].source
    assert [round(clip.timeline().end, 2) for clip in dataset.clips] == [1.5, 2.94, 0.94]
    assert [first_number(clip) for clip in dataset.clips] == [10, 0, 20]


def test_captions_in_csv(tmp_path, video):
    put(tmp_path, "a.mp4", content=video)
    (tmp_path / "captions.csv").write_text(
        'path,caption,start,end\na.mp4,"red, then blue",,\n./a.mp4,x,0.5,1.5\n', "utf-8-sig"
    )
    clips: Sequence[Any] = open_dataset(str(tmp_path)).clips
    assert [(clip.caption, clip.start, clip.end) for clip in clips] == [
        ("red, then blue", 0, None),
        ("x", 0.5, 1.5),
    ]
    assert clips[0].group == clips[1].group


def test_an_empty_caption_is_for_its_clip_to_answer(tmp_path, video):
    put(tmp_path, "a.mp4", content=video)
    (tmp_path / "captions.jsonl").write_text(
        '{"path": "a.mp4", "caption": "a zebra"}\n{"path": "a.mp4", "caption": " "}\n'
    )
    dataset, parts = open_dataset(str(tmp_path)), load_tokenizers("demo")
    assert [clip.caption for clip in dataset.clips] == ["a zebra", ""]
    lines = report(inspect(dataset, progress=False), parts.text)
    assert "without a caption 1" in lines and "a.mp4 has no caption" in lines and "zebra (1)" in lines
    made = tokenize(dataset, tmp_path / "tokens", lambda: parts, progress=False)
    assert made["problems"] == {"count": 1, "first": [["a.mp4", "has no caption"]]}
    assert made["unknown_words"] == {"zebra": 1}
    assert "zebra (1)" in summary(made) and "a.mp4: has no caption" in summary(made)


@pytest.mark.parametrize(
    "line",
    [
        '{"path": "a.mp4"}',
        '{"caption": "x"}',
        '{"path": "a.mp4", "caption": "x", "start": 2, "end": 1}',
        '{"path": "a.mp4", "caption": "x", "start": "soon"}',
    ],
)
def test_a_wrong_row_is_named(tmp_path, video, line):
    put(tmp_path, "a.mp4", content=video)
    (tmp_path / "captions.jsonl").write_text('{"path": "a.mp4", "caption": "fine"}\n' + line)
    with pytest.raises(CogVideoError, match="Line 2 of .*captions.jsonl must have path and caption"):
        open_dataset(str(tmp_path))


def test_the_demo_world_on_disk_and_drawn(tmp_path):
    make_theatre(tmp_path, clips=2, seed=0, progress=False)
    assert [clip.source for clip in open_dataset(str(tmp_path)).clips] == ["000000.mp4", "000001.mp4"]
    clips: Sequence[Any] = open_dataset("theatre:test?clips=6&seed=2").clips
    assert [clip.caption.isascii() for clip in clips] == [True, False] * 3
    timeline = clips[3].timeline()
    frames, last = clips[3].frames(timeline, {0, 4}, [(64, 64), (192, 192)])
    truth = render(clips[3].clip, np.array([[0, 0.5]]))[0]
    assert np.array_equal(frames[4][0], (truth[1] * 255).round().byte().permute(1, 2, 0).numpy())
    assert frames[0][1].shape == (192, 192, 3) and timeline.end == clips[3].clip.duration[0] + 1 / 8
    assert last == len(timeline.times) - 1
    chinese = open_dataset("theatre:picture-only?clips=2&language=zh").clips
    assert not any(clip.caption.isascii() for clip in chinese)


def test_clips_that_look_the_same_are_one_group():
    clips = open_dataset("theatre:train?clips=300").clips
    looks: dict[str, set[tuple]] = {}
    for clip in clips:
        assert isinstance(clip, TheatreClip)
        truth = clip.clip
        looks.setdefault(clip.group, set()).add((*truth.names(0), truth.background[0], truth.duration[0]))
    assert all(len(found) == 1 for found in looks.values()) and 200 < len(looks) < 300
    assert len({clip.source for clip in clips}) == 300


def test_test_is_seen_under_other_seeds_than_train():
    specs = [f"theatre:{split}?clips=20" for split in ("train", "test", "seen")]
    train, test, seen = ([clip.group for clip in open_dataset(spec).clips] for spec in specs)
    assert test == seen != train


def test_ucf101(tmp_path, video):
    put(tmp_path, "TaiChi/v_TaiChi_g01_c01.avi", "YoYo/v_YoYo_g01_c01.avi", content=video)
    (tmp_path / "trainlist01.txt").write_text("YoYo/v_YoYo_g01_c01.avi 1\n")
    assert [clip.caption for clip in open_dataset(f"ucf101:{tmp_path}").clips] == ["tai chi", "yo yo"]
    (clip,) = open_dataset(f"ucf101:{tmp_path}?split=trainlist01.txt").clips
    assert clip.source == "YoYo/v_YoYo_g01_c01.avi" and clip.caption == "yo yo"
    (tmp_path / "zh.csv").write_text("YoYo,玩悠悠球\nTaiChi,打太极\n", "utf-8")
    texts = [clip.caption for clip in open_dataset(f"ucf101:{tmp_path}?prompts={tmp_path / 'zh.csv'}").clips]
    assert texts == ["打太极", "玩悠悠球"]
    put(tmp_path, "TaiChi/v_TaiChi_g01_c02.avi", "TaiChi/v_TaiChi_g02_c01.avi", content=video)
    groups = [clip.group for clip in open_dataset(f"ucf101:{tmp_path}").clips]
    assert groups == ["v_TaiChi_g01", "v_TaiChi_g01", "v_TaiChi_g02", "v_YoYo_g01"]


def test_kinetics_takes_parts_of_whole_videos(tmp_path, video):
    put(tmp_path, "aaaaaaaaaaa_000010_000020.mp4", "bbbbbbbbbbb.mp4", "other/ccccccccccc.mp4", content=video)
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split\nflying "
        "kite,aaaaaaaaaaa,10,20,train\nzumba,bbbbbbbbbbb,1,2,train\n"
    )
    clips: Sequence[Any] = open_dataset(f"kinetics:{tmp_path}?split=train.csv").clips
    trimmed, whole = clips
    assert (trimmed.caption, trimmed.start, trimmed.end) == ("flying kite", 0, None)
    assert (trimmed.group, whole.group) == ("aaaaaaaaaaa", "bbbbbbbbbbb")
    assert (whole.caption, whole.start, whole.end, first_number(whole)) == ("zumba", 1, 2, 10)


def test_vatex(tmp_path, video):
    put(tmp_path, "v/aaaaa_aaaaa_000001_000003.mp4", "v/bbbbbbbbbbb.mp4", content=video)
    rows = [{"videoID": f"{v}_00000{s}_00000{s + 2}", "enCap": [f"{v} one", f"{v} two"], "chCap": [f"{v} 一"]}
            for v, s in (("aaaaa_aaaaa", 1), ("bbbbbbbbbbb", 1), ("gone", 4))]  # fmt: skip
    (tmp_path / "v.json").write_text(json.dumps(rows))
    spec = f"vatex:{tmp_path / 'v'}?captions={tmp_path / 'v.json'}"
    dataset: Any = open_dataset(spec)
    assert [(c.caption, c.start, c.end) for c in dataset.clips] == [
        ("aaaaa_aaaaa one", 0, None),
        ("bbbbbbbbbbb one", 1, 3),
    ]
    assert dataset.missing == ["gone_000004_000006"]
    assert [c.caption for c in open_dataset(spec + "&language=zh").clips] == [
        "aaaaa_aaaaa 一",
        "bbbbbbbbbbb 一",
    ]
    assert len(open_dataset(spec + "&each=2").clips) == 4
    assert [c.group for c in dataset.clips] == ["aaaaa_aaaaa", "bbbbbbbbbbb"]


def test_options_are_read_as_in_an_address_but_for_the_plus(tmp_path, video):
    put(tmp_path, "1.mp4", content=video)
    (tmp_path / "a+b &c.csv").write_text("videoid,name\n1,x\n")
    assert len(open_dataset(f"webvid:{tmp_path}?captions=a+b %26c.csv").clips) == 1


def test_webvid(tmp_path, video):
    put(tmp_path, "000001_000050/1066674784.mp4", content=video)
    (tmp_path / "train.csv").write_text(
        "videoid,contentUrl,duration,page_dir,name\n1066674784,http://x,PT00H00M20S,000001_000050,Rotating "
        "tree\n"
        "2,http://x,PT00H00M20S,000001_000050,Gone\n"
    )
    dataset = open_dataset(f"webvid:{tmp_path}?captions=train.csv")
    assert [clip.caption for clip in dataset.clips] == ["Rotating tree"] and dataset.missing == ["2"]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("/nowhere/at/all", "no folder or captions file"),
        ("{0}/empty", "no captions.jsonl or captions.csv"),
        ("ucf101:/nowhere", "There is no folder"),
        ("ucf101:{0}?speed=2", "unknown option speed"),
        ("vatex:{0}", "does not name the captions"),
        ("vatex:{0}?captions=bad.json", "no VATEX file"),
        ("vatex:{0}?captions=none.json", "cannot be read"),
        ("vatex:{0}?captions=bad.json&language=fr", "language=en or zh"),
        ("webvid:{0}?captions=bad.json", "line 1 is no object"),
        ("webvid:{0}/empty?captions=bad.json", "holds no videos"),
        ("theatre:train?clips=0", "clips of 1 or more"),
        ("theatre:dev", "'dev' .*train, seen, unseen, picture-only, pictures"),
        ("theatre:train?clips=many", "'many' in .* is no number"),
        ("theatre:train?clips=inf", "'inf' in .* is no number"),
        ("theatre:train?seed=nan", "'nan' in .* is no number"),
        ("ucf101:{0}?split=", "option split in .* has no value: write split=VALUE"),
        ("theatre:train?clips", "option clips in .* has no value"),
        ("{0}/gone.jsonl", "holds no clips; x.mp4, the first of its files, is missing"),
        ("{0}/bad.jsonl", "is damaged"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, video, spec, words):
    put(tmp_path, "a.mp4", content=video)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('[{"videoID": "a"}]')
    (tmp_path / "bad.jsonl").write_text("path: a.mp4")
    (tmp_path / "gone.jsonl").write_text('{"path": "x.mp4", "caption": "x"}')
    with pytest.raises(CogVideoError, match=words):
        open_dataset(spec.format(tmp_path))
