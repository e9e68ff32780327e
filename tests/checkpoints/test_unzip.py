"""Hostile zips: every way out of the folder is refused, and nothing is left behind."""

import zipfile

import numpy as np
import pytest

from cogvideo.checkpoints import unzip
from cogvideo.errors import CogVideoError


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def hostile(path, members) -> None:
    """members: (name or ZipInfo, content)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model_config.json", "{}")
        for name, content in members:
            archive.writestr(name, content)


def member(name, **attributes):
    info = zipfile.ZipInfo("placeholder")
    info.filename = info.orig_filename = name
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info


@pytest.mark.parametrize(
    "member, reason",
    [
        (member("../evil"), "leaves its folder"),
        (member("a/../../evil"), "leaves its folder"),
        (member("..\\evil"), "leaves its folder"),
        (member("/tmp/evil"), "absolute"),
        (member("\\evil"), "absolute"),
        (member("C:\\evil"), "absolute"),
        (member("c:evil"), "absolute"),
        (member("a\\b"), "not plain"),
        (member("a\x00b"), "not plain"),
        (member("ab:stream"), "not plain"),
        (member("link", external_attr=0o120777 << 16), "link or a device"),
        (member("pipe", external_attr=0o010644 << 16), "link or a device"),
        (member("Model_Config.json"), "comes twice"),
    ],
)
def test_hostile_members_are_refused(tmp_path, member, reason):
    hostile(tmp_path / "a.zip", [(member, "/etc/passwd")])
    with pytest.raises(CogVideoError, match=rf"is not unpacked because .* in it .*{reason}"):
        unzip.unpack(tmp_path / "a.zip", tmp_path / "inside" / "a")
    assert names(tmp_path) == ["a.zip"] and not (tmp_path / "inside").exists()


def test_the_same_name_twice(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate name"):
        hostile(tmp_path / "a.zip", [("a", "1"), ("a", "2")])
    with pytest.raises(CogVideoError, match="'a' in it comes twice"):
        unzip.unpack(tmp_path / "a.zip", tmp_path / "a")


def test_a_file_that_is_also_a_folder(tmp_path):
    hostile(tmp_path / "a.zip", [("a", "1"), ("a/b", "2")])
    with pytest.raises(CogVideoError, match="cannot be unpacked"):
        unzip.unpack(tmp_path / "a.zip", tmp_path / "a")
    assert names(tmp_path) == ["a.zip"]


def test_a_bomb_of_zeros(tmp_path):
    hostile(tmp_path / "a.zip", [("zeros", bytes(50_000_000))])
    assert (tmp_path / "a.zip").stat().st_size < 100_000
    with pytest.raises(CogVideoError, match="bomb"):
        unzip.unpack(tmp_path / "a.zip", tmp_path / "a")


@pytest.mark.parametrize("limit, value", [("MAX_BYTES", 10_000), ("MAX_FILES", 3)])
def test_other_bounds(tmp_path, monkeypatch, limit, value):
    noise = np.random.default_rng(0).bytes(5_000)
    hostile(tmp_path / "a.zip", [(str(i), noise) for i in range(3)])
    unzip.unpack(tmp_path / "a.zip", tmp_path / "a")
    monkeypatch.setattr(unzip, limit, value)
    with pytest.raises(CogVideoError, match="bomb"):
        unzip.unpack(tmp_path / "a.zip", tmp_path / "b")


def test_a_bomb_that_lies_about_its_size(tmp_path):
    """The stated sizes, in both headers, are changed to 10 bytes: no more than that is ever written."""
    hostile(tmp_path / "a.zip", [("zeros", bytes(50_000_000))])
    content = (tmp_path / "a.zip").read_bytes()
    true, stated = (50_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    assert content.count(true) == 2
    (tmp_path / "a.zip").write_bytes(content.replace(true, stated))
    with pytest.raises(CogVideoError, match="damaged"):
        unzip.unpack(tmp_path / "a.zip", tmp_path / "a")
    assert names(tmp_path) == ["a.zip"]


def test_an_encrypted_member(tmp_path):
    hostile(tmp_path / "a.zip", [("secret", "1")])
    content = bytearray((tmp_path / "a.zip").read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 8] |= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(CogVideoError, match="'secret' in it is encrypted"):
        unzip.unpack(tmp_path / "a.zip", tmp_path / "a")


def test_one_wrong_byte(tmp_path):
    hostile(tmp_path / "a.zip", [("weights", np.random.default_rng(0).bytes(5_000))])
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[2_000] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(CogVideoError, match="damaged"):
        unzip.unpack(tmp_path / "a.zip", tmp_path / "a")
    assert names(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("members", [[], ["a/model_config.json", "b/model_config.json"]])
def test_a_zip_that_is_no_model(tmp_path, members):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ["readme", *members]:
            archive.writestr(name, "{}")
    with pytest.raises(CogVideoError, match="should hold one model_config.json, not"):
        unzip.unpack(tmp_path / "a.zip", tmp_path / "a")
