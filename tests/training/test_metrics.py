"""metrics.jsonl after a kill: what of it stays, and that taking rows away loses nothing."""

import resource

import pytest

from cogvideo.errors import CogVideoError
from cogvideo.training.metrics import Metrics


def test_late_and_damaged_rows_go_and_a_good_file_is_not_touched(tmp_path):
    path = tmp_path / "metrics.jsonl"
    good = '{"step": 1}\n{"step": 2}\n'
    path.write_bytes(good.encode() + b'{"st\xff}\n[3]\n{"step": null}\n{"step": 3}\n{"step": 4, "lo')
    Metrics(tmp_path, 2)
    assert path.read_text() == good
    before = path.stat()
    Metrics(tmp_path, 2)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_a_full_disk_loses_no_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(100)))
    whole = path.read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # no file may be longer: the disk is full
    try:
        with pytest.raises(CogVideoError, match="make room"):
            Metrics(tmp_path, 50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == whole and [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
