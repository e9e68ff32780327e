"""Conversion of every kind of weights, what breaks it off, and what it leaves then."""

import os
import shutil
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch
from checkpoints.test_sat import fixture, rank_path, share_out, write
from conftest import DATA
from safetensors.torch import load_file

from cogvideo.checkpoints import native
from cogvideo.checkpoints.convert import convert, measure_load, open_checkpoint
from cogvideo.checkpoints.frames import read_frame_tokenizer
from cogvideo.checkpoints.native import load_model
from cogvideo.checkpoints.sat import load_sat_checkpoint
from cogvideo.errors import CogVideoError
from cogvideo.superres import DirectSuperResolution, IterativeSuperResolution
from cogvideo.tokenizers.frames import FrameTokenizer

IDS: dict[str, Any] = {"image_tokens": 256, "begin_of_image": 310}
SUPERRES_IDS: dict[str, Any] = {"image_tokens": 256, "begin_of_image": 290}
STAGE1 = DATA / "cogvideo" / "sequential_full"


def equal(model, wanted, dtype):
    assert model.config == wanted.config
    assert model.state_dict().keys() == wanted.state_dict().keys()
    for name, weight in wanted.state_dict().items():
        found = model.state_dict()[name]
        assert found.dtype == dtype and torch.equal(found, weight.to(dtype)), name


@pytest.mark.parametrize("name", ["sequential_full", "interpolation"])
@pytest.mark.parametrize(
    ("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("keep", torch.float32)]
)
def test_stages(name, dtype, kind, tmp_path):
    convert(DATA / "cogvideo" / name, tmp_path / "new", dtype=dtype, **IDS)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"config.json", "model.safetensors"}
    equal(
        load_model(tmp_path / "new", dtype=None), load_sat_checkpoint(DATA / "cogvideo" / name, **IDS), kind
    )


def test_image_model(tmp_path):
    weights = {name: weight.half() for name, weight in fixture().items() if not name.startswith("mixins.")}
    folder = write(tmp_path / "coglm", *share_out(weights, 2))
    convert(folder, tmp_path / "new", dtype="fp32", **IDS)
    model = load_model(tmp_path / "new", dtype=None)
    assert not model.config.temporal and model.config.num_frames == 1
    equal(model, load_sat_checkpoint(folder, **IDS), torch.float32)


@pytest.mark.parametrize(
    ("model", "name"), [(DirectSuperResolution, "dsr"), (IterativeSuperResolution, "itersr")]
)
def test_super_resolution(model, name, tmp_path):
    weights = load_file(DATA / name / "checkpoint.safetensors")
    folder = write(tmp_path / "released", weights, num_attention_heads=2)
    convert(folder, tmp_path / "new", **SUPERRES_IDS)
    found = model.from_pretrained(tmp_path / "new", dtype=None)
    equal(found, model.from_sat(weights, num_heads=2, **SUPERRES_IDS), torch.bfloat16)
    convert(tmp_path / "new", tmp_path / "again", dtype="keep")
    equal(model.from_pretrained(tmp_path / "again", dtype=None), found, torch.bfloat16)


def test_frame_tokenizer(tmp_path):
    torch.save({"module": load_file(DATA / "vqvae" / "checkpoint.safetensors")}, tmp_path / "ice_image.pt")
    convert(tmp_path / "ice_image.pt", tmp_path / "new", dtype="keep")
    frames = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted, found = (
        read_frame_tokenizer(tmp_path / "ice_image.pt"),
        FrameTokenizer.load(tmp_path / "new" / "frames.safetensors"),
    )
    ids = wanted.encode(frames)
    assert torch.equal(found.encode(frames), ids) and torch.equal(found.decode(ids), wanted.decode(ids))


def test_native_folder_in_shards(tmp_path, monkeypatch):
    convert(STAGE1, tmp_path / "one", dtype="keep", **IDS)
    monkeypatch.setattr(native, "SINGLE_FILE_BYTES", 200_000)
    monkeypatch.setattr(native, "SHARD_BYTES", 150_000)
    told = convert(tmp_path / "one", tmp_path / "several", dtype="bf16")
    shards = list((tmp_path / "several").glob("model-*"))
    assert len(shards) > 2 and f"in {len(shards) + 2} files" in told
    equal(load_model(tmp_path / "several", dtype=None), load_model(tmp_path / "one"), torch.bfloat16)
    assert "of weights on cpu" in measure_load(tmp_path / "several")


def test_what_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("x")
    with pytest.raises(CogVideoError, match="there already"):
        convert(STAGE1, tmp_path / "new", **IDS)
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "mine"]


def test_a_full_disk_is_told_before(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CogVideoError, match="GB free"):
        convert(STAGE1, tmp_path / "new", **IDS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("wrong ids", "image_tokens"), ("lacking", "1 weights are missing"), ("no folder", "no weights at"),
        ("no heads", "num_attention_heads"),
        ("bad type", "dtype"), ("not weights", "not a released checkpoint"),
    ],
)  # fmt: skip
def test_wrong_sources_are_refused_and_leave_nothing(what, message, tmp_path):
    source, ids, dtype = STAGE1, IDS, "bf16"
    if what == "wrong ids":
        ids = {"image_tokens": 256, "begin_of_image": 5000}
    elif what == "lacking":
        weights = fixture()
        del weights["transformer.final_layernorm.bias"]
        source = write(tmp_path / "source", weights)
    elif what == "no folder":
        source = tmp_path / "nowhere"
    elif what == "no heads":
        source = write(
            tmp_path / "source", load_file(DATA / "dsr" / "checkpoint.safetensors"), num_attention_heads=None
        )
    elif what == "bad type":
        dtype = "int3"
    else:
        source = tmp_path
    with pytest.raises(CogVideoError, match=message):
        convert(source, tmp_path / "new", dtype=dtype, **ids)
    assert not list(tmp_path.glob("new*"))


KILLED = """
import os, signal, sys
from cogvideo.checkpoints import native
from cogvideo.runtime import tensors
from cogvideo.checkpoints.convert import convert
native.SINGLE_FILE_BYTES, native.SHARD_BYTES = 200_000, 150_000
write, calls = tensors.save_file, []
def save_file(table, path, metadata):
    calls.append(path)
    write(table, path, metadata)
    if len(calls) == 2:
        path.write_bytes(path.read_bytes()[:1000])
        os.kill(os.getpid(), signal.SIGKILL)
tensors.save_file = save_file
convert(sys.argv[1], sys.argv[2], image_tokens=256, begin_of_image=310)
"""


def test_a_killed_conversion_leaves_nothing_under_the_name_and_is_started_anew(tmp_path):
    target = tmp_path / "new"
    run = subprocess.run(
        [sys.executable, "-c", KILLED, str(STAGE1), str(target)], capture_output=True, text=True
    )
    assert run.returncode == -signal.SIGKILL and not target.exists()
    assert len(list((tmp_path / "new.part").glob("*.safetensors"))) == 1
    convert(STAGE1, target, **IDS)
    assert os.listdir(tmp_path) == ["new"]
    equal(load_model(target, dtype=None), load_sat_checkpoint(STAGE1, **IDS), torch.bfloat16)


def test_the_kinds_of_folders(tmp_path):
    build, config, weights = open_checkpoint(STAGE1, **IDS)
    assert build.__name__ == "CogVideoTransformer" and config.num_layers == 3 and "blocks.2.gate" in weights
    rank_path(write(tmp_path / "bad", fixture())).write_bytes(b"x")
    with pytest.raises(CogVideoError, match="damaged"):
        open_checkpoint(tmp_path / "bad", **IDS)
