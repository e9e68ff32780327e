"""Halved batches and resumable folders, with the real demo pipeline."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from cogvideo import CogVideoError, Pipeline
from cogvideo.data.video import read_video
from cogvideo.sampling.batches import fill_folder, identity, read_prompts, slug
from cogvideo.sampling.halving import halving

PROMPTS = ["a lion throws a ball", "a fox eats a cake slowly", "a cat rings a bell"]


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_pretrained("demo", device="cpu")


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, MemoryError])
def test_a_halved_batch_gives_the_clips_of_the_whole(pipe, error):
    def make(part: slice, limit: int = 1):
        if part.stop - part.start > limit:
            raise error("no memory")
        return list(pipe.key_frames(PROMPTS[part], seed=[0, 1, 2][part]))

    with pytest.warns(UserWarning, match="3 clips at once: going on with 1"):
        halved = halving(make, 3)
    assert np.array_equal(halved, make(slice(0, 3), limit=3))


def test_other_errors_and_one_clip_too_large_are_told():
    def make(_: slice):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        halving(make, 4)


def test_names_are_safe():
    assert slug("../../etc: A *7*?") == "etc-a-7" and slug("//") == "clip"


def test_the_pipeline_goes_on_with_halves(pipe, monkeypatch):
    whole = pipe(PROMPTS, seconds=0.5, seed=[5, 6, 7], enlarge=False, progress=False)
    interpolate = Pipeline.interpolate

    def short_of_memory(self, tokens, *rest, **options):
        if len(tokens) > 1:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] not enough memory: you tried to allocate 9 bytes."
            )
        return interpolate(self, tokens, *rest, **options)

    monkeypatch.setattr(Pipeline, "interpolate", short_of_memory)
    with pytest.warns(UserWarning, match="3 clips at once: going on with 1"):
        halves = pipe(PROMPTS, seconds=0.5, seed=[5, 6, 7], enlarge=False, progress=False)
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(whole, halves, strict=True))


OPTIONS = ["--seconds", "0.5", "--no-enlarge", "--device", "cpu", "--seed", "3"]


def files(folder):
    """Names -> what the .json files say and what the clips show."""
    notes = {path.name: path.read_text("utf-8") for path in folder.glob("*.json")}
    clips = {path.name: read_video(path)[0].astype(int) for path in folder.glob("*.mp4")}
    return notes, clips


def same(one, other):
    """x264 does not make the same bytes of the same frames each time."""
    (notes, clips), (others, seen) = one, other
    assert notes == others and clips.keys() == seen.keys() and len(notes) == len(clips) == 5
    return all(np.abs(clips[name] - seen[name]).mean() < 0.3 for name in clips)


@pytest.fixture(scope="module")
def prompts_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join([*PROMPTS, "", "一只猫缓慢地喝茶", "a fox rings a bell"]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def by_one_process(prompts_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    command = [
        "-m",
        "cogvideo",
        "generate",
        "--prompts",
        prompts_file,
        "--out-dir",
        folder,
        "--at-once",
        "1",
        *OPTIONS,
    ]
    subprocess.run([sys.executable, *command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return files(folder)


def test_two_processes_of_torchrun_fill_one_folder_as_one_does(prompts_file, by_one_process, tmp_path):
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cogvideo", "generate"]
    command = [
        sys.executable,
        *run,
        "--prompts",
        prompts_file,
        "--out-dir",
        tmp_path,
        "--at-once",
        "1",
        *OPTIONS,
    ]
    subprocess.run(command, check=True)
    assert same(files(tmp_path), by_one_process)


def test_a_killed_run_goes_on_and_other_settings_are_not_taken_for_these(
    pipe, prompts_file, by_one_process, tmp_path
):
    command = [
        "-m",
        "cogvideo",
        "generate",
        "--prompts",
        prompts_file,
        "--out-dir",
        tmp_path,
        "--at-once",
        "1",
        *OPTIONS,
    ]
    process = subprocess.Popen([sys.executable, *command], env=os.environ | {"OMP_NUM_THREADS": "1"})
    while len(list(tmp_path.glob("*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(done) < 5
    subprocess.run([sys.executable, *command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert same(files(tmp_path), by_one_process)
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    settings = {"seconds": 0.5, "enlarge": False, "progress": False}
    fill_folder(pipe, PROMPTS[:1], tmp_path, seed=3, made_with={"weights": "others"}, **settings)
    assert all((path.stat().st_mtime_ns != done[path]) == path.name.startswith("0000") for path in done)


def test_files_of_prompts_that_cannot_be_used(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(CogVideoError, match="holds no prompts"):
        read_prompts(tmp_path / "empty.txt")
    with pytest.raises(CogVideoError, match="cannot be read"):
        read_prompts(tmp_path / "none.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(CogVideoError, match="cannot be made"):
        fill_folder(None, PROMPTS, tmp_path / "file")  # type: ignore[arg-type]


def test_weights_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("one")
    first = identity(tmp_path)
    (tmp_path / "a").write_text("two")
    second = identity(tmp_path)
    monkeypatch.setattr("cogvideo.sampling.batches.READ_BYTES", 1)
    large = identity(tmp_path)
    assert len({first, second, large}) == 3
    os.utime(tmp_path / "a", (1, 1))
    assert identity(tmp_path) != large
