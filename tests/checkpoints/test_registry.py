"""The table of known weights, where they are looked for, and the commands that tell it."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DATA

from cogvideo.benchmarks.doctor import report
from cogvideo.checkpoints.registry import KNOWN, PACKAGED, cache_dir, find, known, size_text, table
from cogvideo.cli import app as cli
from cogvideo.config import COGVIDEO_9B
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.tokenizers.hvqvae import HVQVAE

FROM_THE_WEB = [item for item in KNOWN.values() if item.source.startswith("https://")]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def test_every_released_file_is_known():
    released = {"coglm", "cogvideo-stage1", "cogvideo-stage2", "cogview2-dsr", "cogview2-itersr"}
    files = {"ice_text.model", "ice_image.pt", "cluster_label2.npy"}
    assert KNOWN.keys() == released | files | {"i3d", "demo"}
    assert {item.name for item in FROM_THE_WEB} == released | files
    assert {item.name for item in KNOWN.values() if item.zipped} == released
    assert all(item.page and item.starts for item in FROM_THE_WEB)
    assert len({item.source for item in FROM_THE_WEB}) == len(FROM_THE_WEB)
    for item in FROM_THE_WEB:
        if item.zipped:
            assert item.source.endswith(f"/{item.name}.zip")


def test_sizes_follow_from_the_parameters():
    def numbers(build):
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in build().parameters())

    both = numbers(lambda: CogVideoTransformer(COGVIDEO_9B))
    one = numbers(lambda: HVQVAE())
    assert KNOWN["cogvideo-stage1"].size == KNOWN["cogvideo-stage2"].size == pytest.approx(2 * both, rel=0.01)
    assert KNOWN["coglm"].size == pytest.approx(2 * 5.90e9, rel=0.01)  # COGVIDEO.md: 5.90B inherited
    assert KNOWN["ice_image.pt"].size == pytest.approx(4 * one, rel=0.1)  # and the statistics of its training
    demo = find("demo")
    assert demo is not None
    files = [file for file in demo.rglob("*") if file.is_file()]
    assert KNOWN["demo"].size == pytest.approx(sum(file.stat().st_size for file in files), rel=0.15)


def test_first_bytes(tmp_path):
    np.save(tmp_path / "labels.npy", np.arange(3))
    torch.save({}, tmp_path / "new.pt")
    torch.save({}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    files = [
        ("cluster_label2.npy", tmp_path / "labels.npy"),
        ("ice_image.pt", tmp_path / "new.pt"),
        ("ice_image.pt", tmp_path / "old.pt"),
        ("ice_text.model", PACKAGED / "demo" / "tokenizers" / "text.model"),
    ]
    for name, file in files:
        assert file.read_bytes().startswith(known(name).starts), name
    for item in FROM_THE_WEB:
        assert not b"<!DOCTYPE html>".startswith(item.starts) and not b"<html>".startswith(item.starts)


def test_the_cache_is_where_the_system_keeps_caches(monkeypatch):
    monkeypatch.delenv("COGVIDEO_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_dir() == Path("/elsewhere/cogvideo")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "cogvideo"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_dir() == Path.home() / "Library" / "Caches" / "cogvideo"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_dir() == Path("/local/cogvideo")
    monkeypatch.setenv("COGVIDEO_CACHE", "~/mine")
    assert cache_dir() == Path.home() / "mine"


def test_find(cache):
    assert find("coglm") is None and find("ice_text.model") is None and find("i3d") is None
    (cache / "coglm.zip").touch()
    assert find("coglm") == cache / "coglm.zip"
    (cache / "coglm").mkdir()
    (cache / "ice_text.model").touch()
    (cache / "i3d.safetensors").touch()
    assert find("coglm") == cache / "coglm"
    assert find("ice_text.model") == cache / "ice_text.model" and find("i3d") == cache / "i3d.safetensors"
    assert find("demo") == PACKAGED / "demo"
    (cache / "ice_image.pt.part").touch()
    assert find("ice_image.pt") is None
    with pytest.raises(CogVideoError, match="called 'gpt': choose one of demo"):
        find("gpt")


def test_the_table_is_aligned_and_tells_what_to_do(cache, monkeypatch, capsys):
    (cache / "coglm").mkdir()
    monkeypatch.setattr(sys, "argv", ["cogvideo", "weights", "list"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out = capsys.readouterr().out
    assert not end.value.code and out == table() + "\n"
    head, *lines, hint = out.splitlines()
    assert hint.endswith(f"cogvideo generate PROMPT --weights {cache}")
    starts = [head.index(title) for title in ("name", "for", "size", "found", "from")]
    rows = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines]
    assert [row[0] for row in rows] == list(KNOWN) and all(len(row) == 5 and all(row) for row in rows)
    assert all(
        line[start - 1] == " " for line in lines for start in starts[1:]
    )  # nothing reaches into its neighbour
    found = {row[0]: row[3] for row in rows}
    assert found["coglm"] == str(cache / "coglm") and found["demo"] == str(PACKAGED / "demo")
    assert found["cogvideo-stage1"] == "not here: cogvideo weights get cogvideo-stage1"
    assert next(row for row in rows if row[0] == "cogvideo-stage1")[2] == "about 15.4 GB"


def test_doctor_tells_what_was_found(cache):
    def line():
        return next(line for line in report().splitlines() if line.startswith("other weights"))

    assert f"none in {cache}" in line()
    (cache / "cogvideo-stage1").mkdir()
    (cache / "ice_text.model").touch()
    assert f"cogvideo-stage1, ice_text.model in {cache}" in line() and "cogvideo weights list" in line()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["get", "gpt"], "choose one of demo, coglm"),
        (["get", "coglm", "--url", "file:///x"], "no address of the web"),
        (["get", "coglm", "--file", "absent.zip"], "absent.zip cannot be read"),
        (["inspect", "absent"], "nothing at absent"),
        (["inspect", str(DATA / "dsr" / "meta.json")], "no file of weights"),
    ],
)
def test_mistakes_are_one_sentence(cache, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", ["cogvideo", "weights", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    assert (
        end.value.code == 2
        and out == ""
        and err.startswith("Error: ")
        and err.count("\n") == 1
        and words in err
    )


def test_sizes_as_text():
    texts = [size_text(size) for size in (15.44e9, 3e12, 410e6, 2.7e6, 99_960, 12)]
    assert texts == ["15.4 GB", "3000 GB", "410 MB", "2.7 MB", "100 kB", "0 kB"]
