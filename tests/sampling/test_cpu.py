"""The quick linear layers against the plain ones."""

import pytest
import torch
from sampling.test_decode import FixtureDraw, fixture, released, tiny
from torch import nn

from cogvideo.model.attention import hidden_bias
from cogvideo.model.cache import KVCache
from cogvideo.model.transformer import LayerMemory
from cogvideo.runtime.offload import StreamedBlocks
from cogvideo.sampling import backends, decode
from cogvideo.sampling.backends import backend_of
from cogvideo.sampling.cpu import FusedBlock, SmallBatchLinear, packed_view


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 17, 65])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("copies", [False, True])
@torch.inference_mode()
def test_small_batch_linear_equals_the_plain_one(rows, bias, copies):
    torch.manual_seed(rows)
    linear, x = nn.Linear(96, 130, bias=bias), torch.randn(rows, 1, 96)
    fast = SmallBatchLinear(linear.weight.detach(), linear.bias.detach() if bias else None, copies)
    torch.testing.assert_close(fast(x), linear(x), atol=1e-5, rtol=1e-5)
    gelu = nn.functional.gelu(linear(x), approximate="tanh")
    torch.testing.assert_close(fast.gelu(x), gelu, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_weights_packed_once_serve_all_numbers_of_rows():
    torch.manual_seed(0)
    linear = nn.Linear(96, 130)
    fast = SmallBatchLinear(linear.weight.detach(), linear.bias.detach())
    for rows in (2, 64, 1, 9, 200, 3):
        x = torch.randn(96, rows).T  # not contiguous
        torch.testing.assert_close(fast(x), linear(x), atol=1e-5, rtol=1e-5)


def test_the_fast_clip_is_that_of_the_plain_path(monkeypatch):
    model, io = released("interpolation"), fixture("interpolation_sampling")
    seen = []
    for backend in ("cpu", "plain"):
        monkeypatch.setattr(backends, "backend_of", lambda model, backend=backend: backend)
        draw = FixtureDraw()
        tokens = decode.interpolate_frames(model, io["text_ids"], io["given_frames"].long(), strategy=draw)
        seen.append((tokens, draw.seen()))
    assert torch.equal(seen[0][0], seen[1][0])
    torch.testing.assert_close(seen[0][1], seen[1][1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("both", [False, True])
@torch.no_grad()
def test_a_fused_block_is_the_block(positions, frames, both):
    torch.manual_seed(0)
    block = tiny("sequential", None).blocks[0]
    for parameter in block.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    assert block.gate is not None
    size, heads, length = len(block.gate), block.spatial.num_heads, 4
    x = torch.randn(2, frames, positions, size)
    text = [torch.randn(2, heads, length, size // heads) for _ in range(4)]
    hidden = torch.rand(2, frames, 1, positions, length + positions) < 0.3
    spatial = hidden_bias(~hidden)
    temporal = (
        hidden_bias(torch.rand(2, 1, frames * positions, length + frames * positions) > 0.3) if both else None
    )
    memory = LayerMemory(KVCache((text[0], text[1])), KVCache((text[2], text[3])))
    ours, theirs = (b(x, memory, spatial, temporal) for b in (FusedBlock(block), block))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_blocks_with_other_layers_are_not_fused():
    model = tiny("sequential", None)
    model.blocks[0].add_module("mlp", nn.Identity())
    assert [type(block) is FusedBlock for block in packed_view(model).blocks][:2] == [False, True]


def test_large_models_are_not_copied(monkeypatch):
    model = tiny("sequential", None)
    assert isinstance(packed_view(model).blocks[0], FusedBlock)
    monkeypatch.setattr("cogvideo.sampling.cpu.MOST_COPIED", 1000)
    view = packed_view(model)
    layers = [layer for layer in view.modules() if isinstance(layer, SmallBatchLinear)]
    assert len(layers) == 6 * len(model.blocks) + 1 and not any(layer.packing for layer in layers)
    assert not any(isinstance(block, FusedBlock) for block in view.blocks)


def test_the_model_keeps_its_layers_and_the_view_its_weights():
    model = tiny("sequential", None)
    before = list(map(id, model.modules()))
    view = packed_view(model)
    assert list(map(id, model.modules())) == before and model.image_head is None
    assert view.blocks[0].mlp.up.weight.data_ptr() == model.blocks[0].mlp.up.weight.data_ptr()


def streamed(model):
    model.blocks = StreamedBlocks(model.blocks, torch.device("cpu"))
    return model


@pytest.mark.parametrize(
    "change", [lambda m: m.bfloat16(), lambda m: m.blocks[0].register_forward_hook(print) and m, streamed]
)
def test_other_precisions_and_hooked_models_stay_as_they_are(change):
    model = change(tiny("sequential", None))
    assert backend_of(model) == "plain"
