"""cogvideo.io: files that are whole or not there, whatever happens; JSON and hashes."""

import hashlib
import os

import pytest
from safetensors import SafetensorError

from cogvideo import io
from cogvideo.errors import CogVideoError
from cogvideo.io import disk_errors, file_hash, output_folder, read_json, replacing, write_json, write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_or_a_folder_takes_its_name_when_it_is_whole(tmp_path):
    write_whole(tmp_path / "text", "Größe\n")
    write_whole(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "text").read_text("utf-8") == "Größe\n"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    with replacing(tmp_path / "folder") as part:
        part.mkdir()
        (part / "x").touch()
        assert part.parent == tmp_path and part.name.startswith("folder.") and part.suffix == ".part"
        assert not (tmp_path / "folder").exists()
    assert names(tmp_path / "folder") == ["x"] and names(tmp_path) == ["bytes", "folder", "text"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), RuntimeError("CUDA out of memory")])
def test_what_breaks_off_leaves_the_old_file_and_no_other(tmp_path, error):
    path = write_whole(tmp_path / "file", "old")
    with pytest.raises(type(error)), replacing(path) as part:
        part.write_text("half")
        raise error
    with pytest.raises(KeyError), replacing(tmp_path / "folder") as part:
        part.mkdir()
        (part / "half").touch()
        raise KeyError
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data.pkl: file write failed\nmore"),
        SafetensorError("Error while serializing: I/O error"),
    ],
)
def test_what_the_disk_raises_is_one_sentence(tmp_path, error):
    path = tmp_path / "file"
    sentence = r"file cannot be written \(.*\): make room\.$"
    with pytest.raises(CogVideoError, match=sentence), replacing(path, advice="make room"):
        raise error
    with pytest.raises(type(error)), replacing(path, advice=None):
        raise error
    with (
        pytest.raises(CogVideoError, match=r"file cannot be written \(.*\): choose another"),
        disk_errors(path),
    ):
        raise error
    assert not names(tmp_path)


def test_missing_folders_are_made_if_asked_for(tmp_path):
    with pytest.raises(CogVideoError, match="cannot be written .*No such file"):
        write_whole(tmp_path / "a/b/file", "x")
    assert not names(tmp_path)
    assert write_whole(tmp_path / "a/b/file", "x", parents=True).read_text() == "x"


def test_two_writers_do_not_meet_and_a_single_one_starts_anew(tmp_path):
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert (tmp_path / "file").read_text() == "1"  # the last to finish
    (tmp_path / "model.part").mkdir()
    (tmp_path / "model.part" / "killed").touch()
    with replacing(tmp_path / "model", one_writer=True) as part:
        assert part == tmp_path / "model.part" and not part.exists()
        part.touch()
    assert names(tmp_path) == ["file", "model"]


def test_new_files_have_the_permissions_of_any(tmp_path):
    (tmp_path / "other").touch()
    assert os.stat(write_whole(tmp_path / "file", "")).st_mode == os.stat(tmp_path / "other").st_mode


def test_json_comes_back_and_what_is_no_such_file_is_named(tmp_path):
    path = tmp_path / "values.json"
    with pytest.raises(CogVideoError, match=r"values\.json is missing: run it again\.$"):
        read_json(path, advice="run it again")
    assert read_json(path, default={}) == {} and read_json(path, list, default=[1]) == [1]
    assert read_json(write_json(path, {"größe": [1.5, None]})) == {"größe": [1.5, None]}
    with pytest.raises(CogVideoError, match=r"values\.json should hold a list, not dict"):
        read_json(path, list)
    write_json(path, [1])
    assert read_json(path, list) == [1]
    with pytest.raises(CogVideoError, match=r"values\.json should hold an object, not list"):
        read_json(path)
    for content in (b"{", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(CogVideoError, match=r"values\.json is damaged .*: make or copy it again"):
            read_json(path, default={})
    with pytest.raises(CogVideoError, match=r"is damaged \(Is a directory\)"):
        read_json(tmp_path)


def test_a_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    content = bytes(range(256)) * 10_000
    assert file_hash(write_whole(tmp_path / "file", content)) == hashlib.sha256(content).hexdigest()


def test_notebooks_write_inside_the_repository_from_anywhere(tmp_path, monkeypatch):
    for folder in ("clone/cogvideo", "site-packages/cogvideo", "here"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "clone" / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "here")
    for home, root in {"clone": "clone", "site-packages": "here"}.items():
        monkeypatch.setattr(io, "__file__", str(tmp_path / home / "cogvideo" / "io.py"))
        assert output_folder("reports/runs/x") == tmp_path / root / "reports/runs/x"
        assert names(tmp_path / root / "reports/runs") == ["x"]
    assert output_folder(tmp_path / "absolute") == tmp_path / "absolute"
    (tmp_path / "file").touch()
    with pytest.raises(CogVideoError, match=r"Cannot write to output_dir .*file/x: .*; set another one\.$"):
        output_folder(tmp_path / "file" / "x")
