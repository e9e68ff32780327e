"""Readers of files that come from anywhere, given damaged ones: an answer or a CogVideoError, nothing else.

COGVIDEO_FUZZ_SECONDS is how long each reader is tried, by default 0.7: 60 in CI, an hour by hand.
"""

import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from cogvideo.checkpoints.inspect import inspect
from cogvideo.checkpoints.unzip import unpack
from cogvideo.config import ModelConfig, from_dict, load_yaml
from cogvideo.data.sources import open_dataset, read_captions
from cogvideo.data.video import read_video, write_video
from cogvideo.errors import CogVideoError
from cogvideo.runtime.tensors import open_safetensors
from cogvideo.sweeps.spec import load

SECONDS = float(os.environ.get("COGVIDEO_FUZZ_SECONDS", 0.7))


def zip_bytes() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/model_config.json", json.dumps({"num_layers": 2, "hidden_size": 64}))
        archive.writestr("model/latest", "1")
    return content.getvalue()


def video_bytes(folder: Path, suffix: str) -> bytes:
    frames = np.arange(4 * 16 * 16 * 3, dtype=np.uint8).reshape(4, 16, 16, 3)
    return write_video(folder / f"seed{suffix}", frames, 8).read_bytes()


TENSORS = save({"gate": np.ones((2, 3), np.float32), "ids": np.arange(4)}, {"format": "pt"})
ROWS = b'{"path": "a.mp4", "caption": "a cat", "start": 0, "end": 1.5}\n{"video": "b.mp4", "caption": "c"}\n'
SETTINGS = yaml.safe_dump({
    "notebook": "x.ipynb", "grid": {"a": [1, 2]}, "seeds": 2, "resources": {"memory": "1GB", "minutes": 1},
}).encode()  # fmt: skip


def settings_of(file: Path) -> object:
    return from_dict(ModelConfig, load_yaml(file, ["num_layers=2"]), str(file))


# name: (file name, its bytes when whole, what reads it)
READERS: dict[str, tuple[str, bytes | None, Callable[[Path], object]]] = {
    "captions jsonl": ("captions.jsonl", ROWS, read_captions),
    "captions csv": ("captions.csv", b'path,caption,start\na.mp4,"a cat, here",1\nb.mp4,c,\n', read_captions),
    "data set": ("captions.jsonl", ROWS, lambda file: open_dataset(str(file))),
    "yaml": ("settings.yaml", SETTINGS, settings_of),
    "sweep": ("sweep.yaml", SETTINGS, load),
    "zip": ("cogvideo-stage1.zip", zip_bytes(), inspect),
    "unzip": ("cogvideo-stage1.zip", zip_bytes(), lambda file: unpack(file, file.with_suffix(""))),
    "safetensors": ("model.safetensors", TENSORS, open_safetensors),
    "weights": ("model.safetensors", TENSORS, inspect),
    "torch file": ("ice_image.pt", zip_bytes(), inspect),
    "mp4": ("clip.mp4", None, read_video),
    "gif": ("clip.gif", None, read_video),
}


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """The file cut off, with bytes exchanged, parts taken out or put in, or something else altogether."""
    at = st.integers(0, len(whole))
    part = st.binary(max_size=12) | st.sampled_from(
        [b"\xff" * 8, b"NaN", b"1e999", b"[" * 2000, b"\x00", b"-1"]
    )
    edits = st.lists(st.tuples(at, st.integers(0, 8), part), min_size=1, max_size=6)

    def edited(changes: list[tuple[int, int, bytes]]) -> bytes:
        content = whole
        for start, length, new in changes:
            content = content[:start] + new + content[start + length :]
        return content

    return edits.map(edited) | at.map(lambda end: whole[:end]) | st.binary(max_size=200)


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_answered_or_one_sentence(tmp_path, name):
    filename, whole, read = READERS[name]
    content = whole if whole is not None else video_bytes(tmp_path, Path(filename).suffix)
    folder = tmp_path / "fuzzed"
    (tmp_path / filename).write_bytes(content)
    with suppress(CogVideoError):
        read(tmp_path / filename)  # what is imported at the first use is not part of the time
    count, end = 0, time.thread_time() + SECONDS

    @settings(
        max_examples=int(1000 * SECONDS) or 1, deadline=None, derandomize=SECONDS <= 1, database=None,
        phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow],
    )  # fmt: skip
    @given(damaged(content))
    def reading(case: bytes) -> None:
        nonlocal count
        if count >= 5 and time.thread_time() > end:  # a slow machine tries these few, too
            return
        folder.mkdir()
        (folder / filename).write_bytes(case)
        try:
            read(folder / filename)
        except CogVideoError as error:
            assert "\n" not in str(error) and len(str(error)) < 2000
        finally:
            shutil.rmtree(folder)
            count += 1

    reading()
    assert count >= 5
