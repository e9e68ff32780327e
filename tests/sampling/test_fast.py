"""The quick linear layers against the plain ones."""

import pytest
import torch
from sampling.test_decode import FixtureDraw, fixture, released, tiny
from torch import nn

from cogvideo.sampling import decode
from cogvideo.sampling.fast import SmallBatchLinear, prepare_for_decoding


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 8, 17, 65])
@pytest.mark.parametrize("bias", [False, True])
def test_small_batch_linear_equals_the_plain_one(rows, bias):
    torch.manual_seed(rows)
    linear, x = nn.Linear(96, 130, bias=bias), torch.randn(rows, 1, 96)
    fast = SmallBatchLinear(linear.weight.detach(), linear.bias.detach() if bias else None)
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


def test_the_model_keeps_its_layers_and_the_view_its_weights():
    model = tiny("sequential", None)
    before = list(map(id, model.modules()))
    view = prepare_for_decoding(model)
    assert list(map(id, model.modules())) == before and model.image_head is None
    assert view.blocks[0].mlp.up.weight.data_ptr() == model.blocks[0].mlp.up.weight.data_ptr()


@pytest.mark.parametrize("change", [lambda m: m.bfloat16(), lambda m: m.blocks[0].register_forward_hook(print) and m])
def test_other_precisions_and_hooked_models_stay_as_they_are(change):
    model = change(tiny("sequential", None))
    assert prepare_for_decoding(model) is model
