"""The one call by which results leave a notebook."""

import json

import numpy as np
import pytest
import torch

from cogvideo.errors import CogVideoError
from cogvideo.sweeps import RESULT_FILE, record


@pytest.fixture(autouse=True)
def by_hand(monkeypatch):
    monkeypatch.delenv(RESULT_FILE, raising=False)


def test_by_hand_into_the_output_folder(tmp_path, capsys):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"x")
    place = record(
        {"fvd": np.float32(1.5), "n": torch.tensor(3), "name": "x", "loss": float("nan"), "none": None},
        {"clips": [str(tmp_path / "clips" / "a.mp4")], "first": tmp_path / "clips" / "a.mp4"},
        output_dir=tmp_path,
    )
    assert (
        place is not None
        and place == tmp_path / "result.json"
        and [p.name for p in tmp_path.iterdir() if p.is_file()] == ["result.json"]
    )
    assert json.loads(place.read_text()) == {
        "metrics": {"fvd": 1.5, "n": 3, "name": "x", "loss": None, "none": None},
        "files": {"clips": ["clips/a.mp4"], "first": "clips/a.mp4"},
    }
    assert "fvd: 1.5\nn: 3\n" in capsys.readouterr().out


def test_a_sweep_says_where(tmp_path, monkeypatch):
    monkeypatch.setenv(RESULT_FILE, str(tmp_path / "point" / "result.json"))
    record({"a": 1}, output_dir=tmp_path / "elsewhere")
    record({"b": 2})
    assert json.loads((tmp_path / "point" / "result.json").read_text())["metrics"] == {"b": 2}
    assert not (tmp_path / "elsewhere").exists()


def test_by_hand_without_a_folder_it_only_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        record({"a": True}) is None
        and capsys.readouterr().out == "a: True\n"
        and not list(tmp_path.iterdir())
    )


@pytest.mark.parametrize("value", [[1, 2], np.zeros(3), torch.zeros(2, 2), {"a": 1}, np.zeros(0)])
def test_a_metric_is_one_value(value, tmp_path):
    with pytest.raises(CogVideoError, match="'a' must be one number"):
        record({"a": value}, output_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_files_and_places(tmp_path):
    with pytest.raises(CogVideoError, match=r"none\.mp4 to record does not exist"):
        record({}, {"clip": tmp_path / "none.mp4"}, output_dir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(CogVideoError, match="cannot be written"):
        record({}, output_dir=tmp_path / "file")
