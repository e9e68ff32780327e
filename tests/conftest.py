"""Shared by all tests: where the fixtures lie, how many threads torch takes, and the command line."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

DATA = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="session")
def i3d_file() -> Path:
    """The real weights of I3D, fetched into the cache if they are not there."""
    from cogvideo.checkpoints.i3d_weights import fetch_i3d
    from cogvideo.checkpoints.registry import cache_dir

    return fetch_i3d(cache_dir())


@pytest.fixture(autouse=True, scope="session")
def _listen_to_ctrl_c():
    """A runner in the background hands down a SIGINT that is ignored; tests send it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture(autouse=True, scope="module")
def _as_before_training():
    """Trainings set how many threads torch takes and what these do with tiny numbers; later tests get what they had."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.fixture
def run(monkeypatch, capsys):
    """run("generate", ...) -> (exit code, stdout, stderr), in this process: importing torch anew takes seconds."""
    from cogvideo.cli import app as cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cogvideo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run
