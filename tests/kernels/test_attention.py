"""The attention kernel in Triton's interpreter against the plain path, and compiled ahead of time."""

import pytest
from kernels import compiled

pytest.importorskip("triton", reason="Triton runs on Linux: pip install triton")

INTERPRETED = """
import itertools, torch
import torch.nn.functional as F
from cogvideo.kernels import attention

# Few keys are read by one program, more by several whose parts are added.
cases = itertools.product((1, 3), (None, 2), (70, 300), (torch.float32, torch.float16))
attention.WHOLE, attention.PROGRAMS = 128, 24
for rows, frames, keys, dtype in cases:
    g = torch.Generator().manual_seed(rows + keys)
    b, h, d, n = 2, 3, 16, frames or 1
    kv = torch.randn(2, n, b, h, keys + 9, d, generator=g).to(dtype).transpose(1, 2)  # a cache: more room
    q = torch.randn(b, n, rows, h, d, generator=g).to(dtype).transpose(2, 3)
    bias = torch.zeros(b, n, 1, rows, keys + 9)
    bias[..., :8] = 1.4  # text
    bias[1, ..., :5] = -torch.inf  # its padding, on the left
    visible = torch.rand(bias[..., 8:].shape, generator=g) < 0.4
    visible[..., 60:] = False  # a cache's places that nothing is in yet, and those of other windows
    visible[..., 0] = True
    bias[..., 8:].masked_fill_(~visible, -torch.inf)
    kv[:, :, :, :, 69:] = torch.nan  # never read
    q, k, v, bias = q, kv[0].narrow(-2, 0, keys), kv[1].narrow(-2, 0, keys), bias[..., :keys].to(dtype)
    if frames is None:
        q, k, v, bias = (t[:, 0] for t in (q, k, v, bias))
    clean = (t.nan_to_num().double() for t in (k, v))
    wanted = F.scaled_dot_product_attention(q.double(), *clean, attn_mask=bias.double())
    out = attention.attend(q, k, v, bias)
    assert out.shape == q.shape and out.dtype == dtype and out.transpose(-3, -2).is_contiguous()
    off = (out - wanted).abs().max()
    assert off < (1e-5 if dtype == torch.float32 else 2e-3), (rows, frames, keys, dtype, off)
"""


@pytest.mark.gpu
def test_it_is_the_plain_attention_and_never_reads_what_is_hidden():
    compiled.interpret(INTERPRETED)


def test_keys_are_shared_as_far_as_the_gpu_has_room():
    from cogvideo.kernels import attention

    assert attention.shares(464, 96) == (1, 8)  # stage 1, spatial: 2 rows of 48 heads, one program each
    for heads, programs in ((96, 864), (384, 768), (48, 816)):  # temporal: 1, 2 and 8 rows
        splits, steps = attention.shares(2064, heads)
        assert splits * steps * attention.BLOCK >= 2064 and splits * heads == programs


@pytest.mark.gpu
@pytest.mark.parametrize(
    "arch, rows, steps, alone", [(80, 1, 3, False), (89, 1, 3, False), (90, 1, 3, False), (90, 2, 8, True)]
)
def test_it_compiles_without_spills_and_reads_16_bytes_at_a_time(arch, rows, steps, alone):
    from cogvideo.kernels import attention

    constants = {
        "R": rows, "M": attention.ROWS, "D": 64, "B": attention.BLOCK, "STEPS": steps, "ALONE": alone,
    }  # fmt: skip
    types = {"q": "*bf16", "k": "*bf16", "v": "*bf16", "bias": "*bf16", "stats": "*fp32", "scale": "fp32"}
    types["out"] = "*bf16" if alone else "*fp32"
    made = compiled.build(
        attention._attend, arch, types, constants, warps=attention.WARPS, stages=attention.STAGES
    )
    assert made.spilled == 0 and made.shared <= 99 * 1024
    # Keys and values by copies of 16 bytes that run ahead, the query by one load.
    assert set(made.copied) == {16} and "mma.sync" in made.ptx and "ld.global.v4" in made.ptx
