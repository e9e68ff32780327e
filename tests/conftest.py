"""Shared by all tests: where fixtures lie, markers, torch's threads, and the command line in this process."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

DATA = Path(__file__).parent / "fixtures"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("browser") and CHROMIUM is None:
        pytest.skip("needs Chromium on the PATH")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say last how to have the browser tests, where they were skipped."""
    skipped = [  # a module that was skipped whole has no keywords
        report
        for report in terminalreporter.stats.get("skipped", [])
        if "browser" in getattr(report, "keywords", ())
    ]
    if skipped and CHROMIUM is None:
        terminalreporter.section("browser tests")
        terminalreporter.write_line(
            f"Skipped for want of Chromium on the PATH: {len(skipped)}. To run them: apt install chromium"
        )


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
    """Undo what trainings set: how many threads torch takes, and what these do with the smallest numbers."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)


@pytest.fixture
def run(monkeypatch, capsys):
    """run("generate", ...) -> (exit code, stdout, stderr), in this process: importing torch takes seconds."""
    from cogvideo.cli import app as cli

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cogvideo", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run
