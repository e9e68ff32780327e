"""The quick linear layers against the plain ones."""

import pytest
import torch
from sampling.test_decode import FixtureDraw, fixture, released, tiny
from torch import nn

from cogvideo.offload import StreamedBlocks
from cogvideo.sampling import decode
from cogvideo.sampling.fast import FusedBlock, SmallBatchLinear, prepare_for_decoding


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 17, 65])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("outputs", [130, 20])
def test_small_batch_linear_equals_the_plain_one(rows, bias, copies, outputs):
    torch.manual_seed(rows)
    linear, x = nn.Linear(96, outputs, bias=bias), torch.randn(rows, 1, 96)
    fast = SmallBatchLinear(linear.weight.detach(), linear.bias.detach() if bias else None, copies)
    torch.testing.assert_close(fast(x), linear(x), atol=1e-5, rtol=1e-5)


def test_the_fast_clip_is_that_of_the_plain_path(monkeypatch):
    model, io = released("interpolation"), fixture("interpolation_sampling")
    seen = []
    for prepare in (prepare_for_decoding, lambda model: model):
        monkeypatch.setattr(decode, "prepare_for_decoding", prepare)
        draw = FixtureDraw()
        tokens = decode.interpolate_frames(model, io["text_ids"], io["given_frames"].long(), strategy=draw)
        seen.append((tokens, draw.seen()))
    assert torch.equal(seen[0][0], seen[1][0])
    torch.testing.assert_close(seen[0][1], seen[1][1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("places", [1, 3])
@torch.no_grad()
def test_fused_channels_are_those_of_the_block(places):
    block = tiny("sequential", None).blocks[0]
    block.gate.copy_(torch.linspace(-3, 3, len(block.gate)))
    fused, h = FusedBlock(block), torch.randn(2, 2, places, len(block.gate))
    for ours, theirs in zip(fused.project(h, True), block.project(h, True), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused.merge(h, -h), block.merge(h, -h), atol=1e-5, rtol=1e-5)


def test_large_models_are_not_copied(monkeypatch):
    model = tiny("sequential", None)
    assert isinstance(prepare_for_decoding(model).blocks[0], FusedBlock)
    monkeypatch.setattr("cogvideo.sampling.fast.MOST_COPIED", 1000)
    view = prepare_for_decoding(model)
    layers = [layer for layer in view.modules() if isinstance(layer, SmallBatchLinear)]
    assert len(layers) == 6 * len(model.blocks) + 1 and not any(layer.packing for layer in layers)
    assert not any(isinstance(block, FusedBlock) for block in view.blocks)


def test_the_model_keeps_its_layers_and_the_view_its_weights():
    model = tiny("sequential", None)
    before = list(map(id, model.modules()))
    view = prepare_for_decoding(model)
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
    assert prepare_for_decoding(model) is model
