"""Weight-only int8 against the wide layer: error bounds, fixtures, memory."""

from functools import partial

import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file
from torch import nn

from cogvideo.checkpoints.sat import load_sat_checkpoint
from cogvideo.runtime.quantize import Int8Linear, load_int8, quantize_int8, quantize_rows

STAGE1 = partial(
    load_sat_checkpoint, DATA / "cogvideo" / "sequential_full", image_tokens=256, begin_of_image=310
)


def linear(inputs=96, outputs=40, bias=True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_weight_is_off_by_more_than_half_a_step(dtype):
    weight = torch.cat(
        [torch.randn(50, 64), torch.zeros(1, 64), 1e-3 * torch.randn(3, 64), 300 * torch.randn(2, 64)]
    )
    values, scale = quantize_rows(weight, dtype)
    assert values.dtype == torch.int8 and scale.dtype == dtype and scale.shape == (56,)
    assert values.abs().max() == 127 and not values[50].any()
    error = (weight - values.float() * scale.float()[:, None]).abs()
    assert (error <= scale.float()[:, None] * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("rows", [(1,), (2, 1), (2, 3, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_error_of_an_output_is_bounded(rows, bias):
    """|error| <= scale / 2 * sum |x|: each weight is off by at most half a step."""
    wide = linear(bias=bias)
    narrow = Int8Linear(wide)
    x = torch.randn(*rows, 96)
    with torch.no_grad():
        error = (narrow(x) - wide(x)).abs()
    bound = narrow.scale / 2 * x.abs().sum(-1, keepdim=True)
    assert (error <= bound + 1e-5).all() and error.max() > 0
    dequantised = x.double() @ (narrow.weight_int8.double() * narrow.scale.double()[:, None]).T
    dequantised = dequantised + (wide.bias.detach().double() if bias else 0)
    torch.testing.assert_close(narrow(x).double(), dequantised, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 4, 5, 300])  # both ways on the CPU
def test_bfloat16_rounds_once_more(rows):
    wide = linear().bfloat16()
    narrow, x = Int8Linear(wide), torch.randn(rows, 96).bfloat16()
    exact = (
        x.double() @ (narrow.weight_int8.double() * narrow.scale.double()[:, None]).T
        + wide.bias.detach().double()
    )
    out = narrow(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, atol=2e-2, rtol=2e-2)


def test_only_the_blocks_matrices_are_quantised_and_memory_halves():
    model = STAGE1(dtype=torch.bfloat16)
    before = {name: tensor.nbytes for name, tensor in model.state_dict().items()}
    matrices = {
        name
        for name in before
        if name.endswith((".qkv.weight", ".dense.weight", ".up.weight", ".down.weight"))
    }
    assert quantize_int8(model) is model and not [m for m in model.modules() if type(m) is nn.Linear]
    after = {name: tensor.nbytes for name, tensor in model.state_dict().items()}
    changed = {name.replace("weight_int8", "weight") for name in after if name.endswith("weight_int8")}
    assert changed == matrices and len(matrices) == 3 * 6
    # Half, and a scale of 2 bytes for every row.
    for name in matrices:
        stem = name.removesuffix("weight")
        rows = len(model.state_dict()[stem + "scale"])
        assert after[stem + "weight_int8"] + after[stem + "scale"] == before[name] / 2 + 2 * rows
    assert all(after[name] == size for name, size in before.items() if name not in matrices)


@torch.no_grad()
def test_logits_of_the_release_stay_close():
    """The fixture's random weights: off by 1.5 % of the logits' spread; 98.7 % of the top tokens stay so."""
    io = load_file(DATA / "cogvideo" / "sequential_full.io.safetensors")
    model = quantize_int8(STAGE1())
    logits = model(io["text_ids"].long(), io["frames"].long(), io["text_mask"])[
        :, io["logit_positions"].long()
    ]
    error = (logits - io["logits"]).std() / io["logits"].std()
    agreement = (logits.argmax(-1) == io["logits"].argmax(-1)).float().mean()
    assert error < 0.02 and agreement > 0.975, f"{error:.4f} of the spread, {agreement:.3f} agree"


@torch.no_grad()
def test_loading_quantises_block_by_block():
    """What fill_model hands out, and at no time more than one block of it wide."""
    wide_blocks = []

    def watched(*, block_done, **settings):
        def done(block):
            block_done(block)
            assert not [m for m in block.modules() if type(m) is nn.Linear]
            wide_blocks.append(block)

        return STAGE1(block_done=done, **settings)

    model = load_int8(watched, device="cpu", home="cpu", dtype=torch.bfloat16)
    assert len(wide_blocks) == len(model.blocks) == 3 and not model.training
    direct = quantize_int8(STAGE1(), torch.bfloat16).to(torch.bfloat16)
    assert all(torch.equal(tensor, direct.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert {t.dtype for t in model.state_dict().values()} == {torch.int8, torch.bfloat16}


def test_float16_sums_do_not_overflow():
    linear = nn.Linear(3072, 4, bias=False)
    nn.init.constant_(linear.weight, 0.02)
    x = torch.full((40, 3072), 100.0, dtype=torch.float16)
    out = Int8Linear(linear, torch.float16)(x)
    assert torch.isfinite(out).all() and torch.allclose(out.float(), torch.tensor(6144.0), rtol=0.01)
