"""Shared by all tests: where the fixtures lie, and how many threads torch takes."""

from pathlib import Path

import pytest
import torch

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True, scope="session")
def _two_threads():
    torch.set_num_threads(2)
