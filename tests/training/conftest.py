"""Trainings set how many threads torch takes and what these do with tiny numbers; the tests after them get what they had."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="module")
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)
