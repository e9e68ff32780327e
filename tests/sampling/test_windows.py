"""Caches by window: the plain path's tokens, and no key outside of a window is read."""

import pytest
import torch

from cogvideo.config import ModelConfig
from cogvideo.model.strategies import TopKStrategy
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.sampling import windows
from cogvideo.sampling.decode import generate_key_frames, interpolate_frames

CONFIG = {
    "num_layers": 3, "hidden_size": 16, "num_heads": 2, "frame_height": 5, "frame_width": 4, "num_frames": 5,
    "text_length": 8, "first_frame_position": 8, "image_tokens": 24, "vocab_size": 40, "begin_of_image": 39,
    "base_positions": 28, "extra_positions": 80, "temporal": True,
}  # fmt: skip


def decode(order, window, wavefront, quirks=False, frames=4):
    """Tokens of two clips with guidance, one of whose texts is padded."""
    model = CogVideoTransformer(ModelConfig(**CONFIG, order=order, window=window)).initialize(0)
    with torch.no_grad():
        for block in model.blocks:
            assert block.gate is not None and block.temporal is not None
            block.gate.fill_(-2.0)  # mostly the temporal channel
            block.temporal.qkv.weight.mul_(20)
    known = torch.randint(24, (2, 3, 20), generator=torch.Generator().manual_seed(1))
    text = torch.arange(24, 29).expand(2, -1)
    options = {
        "text_mask": torch.tensor([[0, 0, 1, 1, 1], [1] * 5]), "guidance_ids": text[:1, :3],
        "wavefront": wavefront, "generator": torch.Generator().manual_seed(2), "text_bonus": 0.7,
        "strategy": TopKStrategy(top_k=5),
    }  # fmt: skip
    if order == "sequential":
        return generate_key_frames(model, text, known[:, :2], num_frames=frames, **options)
    return interpolate_frames(model, text, known, release_quirks=quirks, **options)


CASES = [
    ("sequential", 2, False, False), ("sequential", 3, True, False), ("interpolation", 2, False, False),
    ("interpolation", 3, True, False), ("interpolation", 2, True, True),
]  # fmt: skip


@pytest.mark.parametrize(("order", "window", "wavefront", "quirks"), CASES)
def test_tokens_are_the_plain_ones_and_only_windows_are_read(monkeypatch, order, window, wavefront, quirks):
    read, attend = [], windows.attend

    def counting(q, k, v, bias):
        read.append(k.shape[-2])
        return attend(q, k, v, bias)

    monkeypatch.setattr(windows, "attend", counting)
    made = decode(order, window, wavefront, quirks)
    assert read and max(read) <= 5 + window**2 * 5
    monkeypatch.setattr("cogvideo.sampling.decode.backends.backend_of", lambda model: "plain")
    assert torch.equal(made, decode(order, window, wavefront, quirks))


@pytest.mark.parametrize("order", ["sequential", "interpolation"])
def test_a_wrong_window_would_be_seen(monkeypatch, order):
    right = decode(order, 2, False)
    layout, columns = windows.Layout.of, torch.arange(20) // 4
    monkeypatch.setattr(windows.Layout, "of", lambda _, frames, bias: layout(columns, frames, bias))
    assert not torch.equal(right, decode(order, 2, False))
