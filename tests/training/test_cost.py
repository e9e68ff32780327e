"""The cost of a training: by steps that are typical, not by the first, and by few where steps are slow."""

import time

import pytest
import torch
from torch import nn

from cogvideo.training.cost import MOST, measure
from cogvideo.training.optimizer import OptimizerConfig


@pytest.mark.parametrize("seconds, calls", [([0.3, 0.2, 0.02, 0.02], MOST), ([1.1, 1.0], 2)])
def test_slow_first_steps_do_not_count(seconds, calls):
    model, asked = nn.Linear(2, 1), []

    def loss() -> torch.Tensor:
        time.sleep(seconds[min(len(asked), len(seconds) - 1)])
        asked.append(1)
        return model(torch.ones(1, 2)).sum()

    optimizer = OptimizerConfig(steps=50, batch_size=2, accumulate=2)
    cost = measure(model, loss, 7, optimizer=optimizer, device=torch.device("cpu"), dtype="fp32")
    assert len(asked) == calls
    assert 1 <= cost.seconds / (100 * seconds[-1]) < 3  # a second as it may be on a busy machine
    assert (cost.steps, cost.tokens, cost.parameters) == (50, 700, 3)
