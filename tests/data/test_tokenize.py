"""Data sets to tokens: the right frames and texts, any number of processes, and kills that lose nothing."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from data.videos import cut, make_video

from cogvideo.checkpoints.tokenizers import Tokenizers, load_tokenizers
from cogvideo.cli import app as cli
from cogvideo.data import tokenize as tokenize_module
from cogvideo.data.reading import CannotReadNow
from cogvideo.data.sources import FileClip, open_dataset
from cogvideo.data.tokenize import Settings, _claim, sequences, tokenize
from cogvideo.data.tokenized import TokenizedBatches, shard_name
from cogvideo.errors import CogVideoError
from cogvideo.theatre.drawing import render
from cogvideo.theatre.scenes import SPANS

LOAD = partial(load_tokenizers, "demo")
KILLS = int(os.environ.get("COGVIDEO_TEST_KILLS", 2))


@pytest.fixture(scope="module")
def parts() -> Tokenizers:
    return LOAD()


@pytest.fixture(scope="module")
def theatre(tmp_path_factory, parts) -> Path:
    """Six clips of the demo world in three shards, by one process."""
    out = tmp_path_factory.mktemp("theatre") / "tokens"
    tokenize(
        open_dataset("theatre:train?clips=6"), out, lambda: parts, Settings(shard_clips=2), progress=False
    )
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tokens_and_texts_are_those_of_the_clips(theatre, parts):
    """Against the demo world's own renderer, tokenizer and span."""
    batches = TokenizedBatches(theatre, 6, seed=0, caption_dropout=0, test_share=0)
    clips = open_dataset("theatre:train?clips=6").clips
    expected = {}
    for clip in clips:
        span = clip.clip.span(0)
        pictures = render(clip.clip, np.linspace(0, span, 5)[None])[0]
        tokens = parts.frames.encode(pictures).flatten(1)
        expected[str(tokens.tolist())] = parts.text.encode_prompt(clip.caption, span)
    seen = 0
    for split in ("train", "test"):
        batch = batches(0, split=split)
        for ids, mask, frames in zip(batch.text_ids, batch.text_mask, batch.frames, strict=True):
            assert expected[str(frames.tolist())] == ids[mask].tolist()
            seen += 1
    assert seen == 12 and set(batches.manifest["rates"]) <= {f"{4 / span:g}" for span in SPANS}


def test_again_is_nothing_to_do_and_more_clips_go_on(theatre, parts, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in theatre.iterdir()}

    def run(clips: int, **changes) -> dict:
        dataset = open_dataset(f"theatre:train?clips={clips}")
        return tokenize(dataset, theatre, lambda: parts, Settings(shard_clips=2, **changes), progress=False)

    old = run(6)
    assert before == {path: path.stat().st_mtime_ns for path in theatre.iterdir()}
    new = run(7)
    assert (old["samples"], new["samples"]) == (6, 7)
    kept = [path for path, changed in before.items() if path.stat().st_mtime_ns == changed]
    assert {path.name for path in kept} == {"settings.json", *(shard_name(i) for i in range(3))}
    assert TokenizedBatches(theatre, 2, seed=0)(0).frames.shape == (2, 5, 64)
    assert run(6) == old and {path.name for path in theatre.iterdir()} == {path.name for path in before}
    with pytest.raises(CogVideoError, match="tokens of other settings"):
        run(6, kind="interpolation")
    (tmp_path / "file").touch()
    with pytest.raises(CogVideoError, match="holds something else"):
        tokenize(open_dataset("theatre:train?clips=1"), tmp_path, lambda: parts)


def test_a_damaged_shard_is_made_again_when_it_is_deleted(theatre, parts):
    whole = contents(theatre)
    (theatre / shard_name(1)).write_bytes(whole[shard_name(1)][:-10])  # not even that: it is cut off
    dataset = open_dataset("theatre:train?clips=6")
    tokenize(dataset, theatre, lambda: parts, Settings(shard_clips=2), progress=False)
    assert contents(theatre) == whole


def test_what_a_killed_one_left_is_removed(parts, tmp_path):
    """Killed while it wrote the settings, then while it wrote the manifest."""
    for left in ("settings.json.0a1b2c3d.part", ".finishing-1", ".finishing-1.part"):
        (tmp_path / left).write_text("{")
        tokenize(open_dataset("theatre:train?clips=1"), tmp_path, lambda: parts, progress=False)
        assert sorted(contents(tmp_path)) == [
            "index.safetensors",
            "manifest.json",
            "settings.json",
            shard_name(0),
        ]


def test_processes_may_begin_at_the_same_moment(parts, tmp_path, monkeypatch):
    """Each has written its part before the other moves its own to its place."""
    made, both, real = parts_format(parts), threading.Barrier(2, timeout=30), os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (both.wait(), real(*paths)))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: _claim(tmp_path, made, Settings()), range(2)))
    assert list(contents(tmp_path)) == ["settings.json"]


def test_a_process_whose_part_another_took_has_finished(parts, tmp_path, monkeypatch):
    dataset = open_dataset("theatre:train?clips=1")
    real, faster = tokenize_module.finish, []

    def slow(*arguments, **named):
        """The other process writes the manifest, then this one finds its part gone."""
        faster.append(real(*arguments, **named))
        raise FileNotFoundError

    monkeypatch.setattr(tokenize_module, "finish", slow)
    assert tokenize(dataset, tmp_path, lambda: parts, progress=False) == faster[0]


def test_processes_give_the_same_bytes(theatre, parts, tmp_path, monkeypatch):
    """Two processes of a pool; then two of torchrun, the first of which leaves the manifest to the second."""
    dataset, settings = open_dataset("theatre:train?clips=6"), Settings(shard_clips=2)
    tokenize(dataset, tmp_path / "pool", LOAD, settings, workers=2, progress=False)
    assert contents(tmp_path / "pool") == contents(theatre)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        made = tokenize(dataset, tmp_path / "ranks", lambda: parts, settings, progress=False)
        assert made["complete"] == (rank == 1)
    assert contents(tmp_path / "ranks") == contents(theatre)


def test_real_files_with_everything_that_can_be_wrong(tmp_path, parts):
    make_video(tmp_path / "whole.mp4", [i / 25 for i in range(100)], size=(64, 96))
    cut(make_video(tmp_path / "cut.mp4", [i / 25 for i in range(100)]), 0.8)
    make_video(tmp_path / "short.mp4", [0, 0.04, 0.08])
    make_video(tmp_path / "slow.mp4", [0, 0.5, 1.0, 1.5, 2.0])
    (tmp_path / "text.mp4").write_text("no video")
    names = ["whole", "cut", "short", "slow", "text", "gone"]
    rows = [{"path": f"{name}.mp4", "caption": "a lion drinks milk " + 40 * "slowly "} for name in names]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = open_dataset(str(tmp_path))
    made = tokenize(dataset, tmp_path / "out", lambda: parts, progress=False)
    problems = dict(made["problems"]["first"])
    assert problems.keys() == {"cut.mp4", "short.mp4", "text.mp4"} and made["missing"] == 1
    assert problems["cut.mp4"].startswith("breaks off at") and problems["short.mp4"].startswith(
        "gives no five frames"
    )
    assert made["samples"] == 3 and made["rates"]["1"] == 1  # 4 s
    batch = TokenizedBatches(tmp_path / "out", 3, seed=0)(0)
    assert batch.text_mask.sum(1).max() == parts.text_length  # longer captions are cut


def test_parts_of_one_video_are_not_shared_by_train_and_test(tmp_path, parts):
    """Two parts of each of four files; by their own names they would be hashed to both splits."""
    for name in "1234":
        make_video(tmp_path / f"{name}.mp4", [i / 8 for i in range(24)])
    rows = [
        {"videoID": f"{name}_00000{s}_00000{s + 2}", "enCap": [f"a red {name}"]}
        for name in "1234"
        for s in (0, 1)
    ]
    (tmp_path / "v.json").write_text(json.dumps(rows))
    out = tmp_path / "out"
    settings = Settings(rates=(4.0,))
    tokenize(open_dataset(f"vatex:{tmp_path}?captions=v.json"), out, lambda: parts, settings, progress=False)
    batches = TokenizedBatches(out, 2, seed=0, caption_dropout=0, test_share=0.5)
    assert (batches.count("train"), batches.count("test")) == (4, 4)
    seen = {}
    for split in ("train", "test"):
        found = [batches(step, split=split) for step in range(2)]
        seen[split] = {
            str(ids[mask].tolist()) for b in found for ids, mask in zip(b.text_ids, b.text_mask, strict=True)
        }
    assert len(seen["train"]) == len(seen["test"]) == 2 and not seen["train"] & seen["test"]


def test_a_video_that_goes_while_tokens_are_made_is_its_own_problem(tmp_path, parts):
    for name in "ab":
        make_video(tmp_path / f"{name}.mp4", [i / 8 for i in range(24)])
    rows = [{"path": f"{name}.mp4", "caption": name} for name in "ab"]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset, settings = open_dataset(str(tmp_path)), Settings(shard_clips=1)

    def load() -> Tokenizers:
        (tmp_path / "b.mp4").unlink()
        return parts

    with pytest.raises(
        CogVideoError, match=r"b.mp4 cannot be read any more \(No such file or directory\): put it back"
    ):
        tokenize(dataset, tmp_path / "out", load, settings, progress=False)
    assert not (tmp_path / "out").exists()
    make_video(tmp_path / "b.mp4", [i / 8 for i in range(24)])
    b = dataset.clips[1]
    going = replace(dataset, clips=[Going(**vars(dataset.clips[0]), other=b.path), b])
    made = tokenize(going, tmp_path / "out", lambda: parts, settings, progress=False)
    assert (
        made["samples"] == 1 and "b.mp4 cannot be read as a video" in dict(made["problems"]["first"])["b.mp4"]
    )


@dataclass(frozen=True)
class Going(FileClip):
    """A clip during which another file is deleted."""

    other: Path = Path()

    def timeline(self):
        self.other.unlink()
        return super().timeline()


def test_what_the_system_cannot_read_stops_the_run(tmp_path, parts):
    """It is no property of the clips: they are read when there are files to open again."""
    make_video(tmp_path / "a.mp4", [i / 8 for i in range(24)])
    (tmp_path / "captions.jsonl").write_text('{"path": "a.mp4", "caption": "a"}')
    (clip,) = open_dataset(str(tmp_path)).clips
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(
            CannotReadNow, match=r"a.mp4 cannot be read now \(Too many open files\): .* run again"
        ):
            clip.timeline()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (tmp_path / "a.mp4").unlink()
    (tmp_path / "a.mp4").symlink_to("/proc/self/mem")  # its first byte cannot be read: EIO, as of a lost disk
    with pytest.raises(CannotReadNow, match="a.mp4 cannot be read now"):
        tokenize(open_dataset(str(tmp_path)), tmp_path / "out", lambda: parts, progress=False)
    assert list(contents(tmp_path / "out")) == ["settings.json"]


def test_one_process_loads_the_tokenizers_once(parts, tmp_path):
    loaded = []
    tokenize(
        open_dataset("theatre:train?clips=1"), tmp_path, lambda: loaded.append(1) or parts, progress=False
    )
    assert loaded == [1]


def test_clips_that_give_nothing(tmp_path, parts):
    make_video(tmp_path / "a.mp4", [0, 0.1])
    (tmp_path / "captions.jsonl").write_text('{"path": "a.mp4", "caption": "x"}')
    for _ in range(2):
        with pytest.raises(CogVideoError, match="gives no training sequences"):
            tokenize(open_dataset(str(tmp_path)), tmp_path / "out", lambda: parts, progress=False)


def test_a_full_disk_is_one_sentence_and_what_is_finished_stays(tmp_path, parts):
    """The limit of a file's size stands for a disk that is full."""
    dataset, settings = open_dataset("theatre:train?clips=6"), Settings(shard_clips=5)
    tokenize(open_dataset("theatre:train?clips=5"), tmp_path, lambda: parts, settings, progress=False)
    first = contents(tmp_path)[shard_name(0)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(CogVideoError, match="cannot be written to .*: make room or choose another"):
            tokenize(dataset, tmp_path, lambda: parts, settings, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path)[shard_name(0)] == first and shard_name(1) not in contents(tmp_path)
    assert tokenize(dataset, tmp_path, lambda: parts, settings, progress=False)["samples"] == 6
    assert sorted(contents(tmp_path)) == [
        "index.safetensors",
        "manifest.json",
        "settings.json",
        shard_name(0),
        shard_name(1),
    ]


def test_the_demo_cannot_write_all_rates(parts):
    long = open_dataset("theatre:train?clips=1")
    with pytest.raises(CogVideoError, match=r"cannot write the rate 0.25 \(16 s\)"):
        tokenize(long, "nowhere", lambda: parts, Settings(rates=(0.25, 1.0)))


@pytest.mark.parametrize(
    ("kind", "shape", "count"),
    [
        ("interpolation", (5, 64), None), ("fixed-rate", (5, 64), None), ("one-stage-2", (5, 64), None),
        ("image", (1, 64), 3),
    ],
)  # fmt: skip
def test_other_kinds(tmp_path, parts, kind, shape, count):
    dataset = open_dataset("theatre:train?clips=3&seed=1")
    settings = Settings(kind=kind, rates=(1.0, 2.0, 4.0, 8.0))
    made = tokenize(dataset, tmp_path, lambda: parts, settings, progress=False)
    batches = TokenizedBatches(tmp_path, 2, seed=0)
    assert batches(0).frames.shape == (2, *shape) and batches.format.kind == kind
    assert count is None or made["samples"] == count
    if kind == "image":
        text = parts.text.decode(batches(0).text_ids[0].tolist())
        assert "秒" not in text and made["rates"] == {"0": 3}


def test_pairs_of_super_resolution_show_one_moment(tmp_path, parts):
    tokenize(
        open_dataset("theatre:train?clips=3"),
        tmp_path,
        lambda: parts,
        Settings(kind="superres"),
        progress=False,
    )
    batch = TokenizedBatches(tmp_path, 2, seed=0)(0)
    assert (
        batch.frames.shape == (2, 1, 64) and batch.high_res is not None and batch.high_res.shape == (2, 576)
    )
    small = parts.frames.decode(batch.frames[:, 0].view(2, 8, 8))
    large = parts.frames.decode(batch.high_res.view(2, 24, 24))
    assert (torch.nn.functional.avg_pool2d(large, 3) - small).abs().mean() < 0.02


def test_a_sequence_is_not_given_twice(parts):
    (clip,) = open_dataset("theatre:train?clips=1").clips
    made = parts_format(parts)
    one, many = (
        sequences(clip, parts, Settings(per_clip=n, rates=(0.5, 1, 2, 4, 8)), made)[0] for n in (1, 9)
    )
    assert len(one) == 1 and 1 < len(many) <= 2  # an eighth of a second more than the action: two places


def parts_format(parts):
    from cogvideo.data.tokenize import _format

    return _format(Settings(), parts)


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cogvideo", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_the_command(run, tmp_path):
    code, out, _ = run(
        "tokenize", "theatre:train?clips=3", tmp_path / "out", "--min-rate", 1, "--rates", "0.5,1,2,4,8"
    )
    assert code == 0 and "sequences of 3 clips (" in out
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["rates"] == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rates", "1;2"], "numbers with commas"),
        (["--rates", "0.25,8"], "cannot write the rate 0.25"),
        (["--kind", "stage1"], "sequential, interpolation"),
        (["--per-clip", "0"], "1 or more"),
        (["--weights", "nowhere"], "no weights at nowhere"),
        (["--min-rate", "9"], "No frame rate is left"),
    ],
)
def test_mistakes_are_one_sentence(run, tmp_path, arguments, words):
    code, out, err = run("tokenize", "theatre:train?clips=2", tmp_path / "out", *arguments)
    assert code == 2 and out == "" and words in err and not (tmp_path / "out").exists()
    assert err.startswith("Error: ") and err.endswith(".\n") and err.count("\n") == 1


def test_kills_lose_at_most_the_shards_in_hand(tmp_path):
    """kill -9 at random times, KILLS times the same command: the files are those of an undisturbed run."""
    draw, out = random.Random(0), tmp_path / "out"
    data = f"theatre:train?clips={30 * KILLS}"
    tokenize(open_dataset(data), tmp_path / "whole", LOAD, Settings(shard_clips=2), progress=False)
    command = [sys.executable, "-m", "cogvideo", "data", "tokenize", data, out, "--shard-clips", "2"]
    finished: dict[str, int] = {}
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        goal = len(finished) + draw.randrange(0, 11)
        while len(list(out.glob("shard-*"))) < goal and process.poll() is None:
            time.sleep(0.002)
        time.sleep(draw.random() * 0.1)
        process.kill()
        assert process.wait() == -signal.SIGKILL, "it was done before it was killed"
        shards = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
        assert finished.items() <= shards.items(), "a finished shard was lost or made again"
        finished = shards
    subprocess.run(command, check=True, capture_output=True)
    assert contents(out) == contents(tmp_path / "whole")
    assert all((out / name).stat().st_mtime_ns == changed for name, changed in finished.items())
    print(f"{KILLS} kills; {len(finished)} of {15 * KILLS} shards were there after the last one, and stayed")


def test_the_processes_of_a_killed_one_end(tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "cogvideo",
        "data",
        "tokenize",
        "theatre:train?clips=200",
        out,
        "--workers",
        "2",
    ]
    command += ["--shard-clips", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(out.glob("shard-*")):
        assert process.poll() is None
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert len(children) >= 2 and not psutil.wait_procs(children, timeout=60)[1]
