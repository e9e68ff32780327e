"""Shared by all tests: where the fixtures lie, and how many threads torch takes."""

import os
from pathlib import Path

import pytest
import torch

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def i3d_file() -> Path:
    """The real weights of I3D, fetched into the cache if they are not there."""
    from cogvideo.checkpoints.released import cache_dir
    from cogvideo.evaluation.i3d_weights import fetch_i3d

    return fetch_i3d(cache_dir())


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
