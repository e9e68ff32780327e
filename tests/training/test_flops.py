"""Counted operations against torch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cogvideo.config import ModelConfig
from cogvideo.model import masks
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.training.flops import PEAKS, peak_flops, step_flops

CONFIG = ModelConfig(
    num_layers=2, hidden_size=16, num_heads=2, frame_height=4, frame_width=4, num_frames=5, text_length=6,
    first_frame_position=6, image_tokens=40, vocab_size=60, begin_of_image=50, base_positions=22,
    extra_positions=80,
)  # fmt: skip


def attention_flops(c: ModelConfig, clips: int) -> float:
    """Six products of the size of the visible scores, forward and backward together, in both channels."""
    text = c.num_frames * c.frame_tokens * c.text_length
    temporal = sum(int(masks.temporal_visible(c, layer).sum()) + text for layer in range(c.num_layers))
    spatial = c.num_layers * (int(masks.spatial_visible(c).sum()) + text)
    return 3 * clips * 4 * c.hidden_size * (temporal + spatial)


@pytest.mark.parametrize("changes", [{}, {"order": "interpolation", "window": 2}])
@pytest.mark.parametrize("everything", [False, True])
def test_linear_products_are_those_that_torch_counts(changes, everything):
    c, clips = replace(CONFIG, **changes), 3
    model = CogVideoTransformer(c).initialize(0)
    trained = {id(p) for p in (model.parameters() if everything else model.temporal_parameters().values())}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    counter = FlopCounterMode(display=False)
    with counter:
        text, frames = torch.full((clips, 6), 45), torch.zeros(clips, 5, 16, dtype=torch.long)
        model.frame_losses(text, frames).mean().backward()
    counts = counter.get_flop_counts()["Global"]
    linear = sum(count for name, count in counts.items() if name in (torch.ops.aten.mm, torch.ops.aten.addmm))
    ours = step_flops(c, clips, 6, everything=everything) - attention_flops(c, clips)
    text = 4 * 6**2 * 16 * c.num_layers * clips * (3 if everything else 1)  # the text's attention to itself
    assert ours - text == pytest.approx(linear, rel=0.02)


def test_full_size_step_is_of_the_size_that_parameters_foretell():
    """Two operations a weight and token forward, as much for activations, for the trained quarter again."""
    from cogvideo.config import COGVIDEO_9B

    model_part = 48 * 16 * 3072**2 * 2 * 2000 * (2 + 0.25)
    assert model_part < step_flops(COGVIDEO_9B, 1, 64) < 1.35 * model_part


def test_a_cpu_is_measured():
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e14 and PEAKS["H200"] == 989e12
