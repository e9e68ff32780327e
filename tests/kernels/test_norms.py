"""The kernel of norms and sums in Triton's interpreter against torch's norms, and compiled ahead of time."""

import pytest
from kernels import compiled

pytest.importorskip("triton", reason="Triton runs on Linux: pip install triton")

INTERPRETED = """
import torch
from torch.nn.functional import layer_norm
from cogvideo.kernels import norms

for rows, size, dtype in ((1, 48, torch.float32), (5, 64, torch.float32), (3, 96, torch.float16)):
    g = torch.Generator().manual_seed(size)
    x, update = (torch.randn(rows, 1, size, generator=g).mul(3).add(1).to(dtype) for _ in range(2))
    one, two = ([torch.randn(size, generator=g).to(dtype) for _ in range(2)] for _ in range(2))

    def norm(t, of):
        return layer_norm(t.double(), (size,), of[0].double(), of[1].double(), 1e-5)

    wanted = x + norm(update, one)
    out, then = norms.add_norm(x, update, one, 1e-5, two)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 5e-3, "rtol": 1e-3}
    torch.testing.assert_close(out.double(), wanted, **tolerance)
    torch.testing.assert_close(then.double(), norm(out, two), **tolerance)
    alone, none = norms.add_norm(x, update, one, 1e-5, None)
    assert torch.equal(alone, out) and none is None and out.dtype == dtype
"""


@pytest.mark.gpu
def test_it_is_the_sum_and_the_norms_of_torch():
    compiled.interpret(INTERPRETED)


@pytest.mark.gpu
@pytest.mark.parametrize("arch", [80, 89, 90])
def test_it_compiles_without_spills_and_reads_16_bytes_at_a_time(arch):
    from cogvideo.kernels import norms

    pointers = ("x", "update", "weight", "bias", "then_weight", "then_bias", "out", "then")
    types = dict.fromkeys(pointers, "*bf16") | {"eps": "fp32"}
    made = compiled.build(
        norms._add_norm, arch, types, {"D": 4096, "THEN": True}, warps=norms.WARPS, stages=1
    )
    assert made.spilled == 0 and made.shared <= 99 * 1024
    assert "ld.global.v4" in made.ptx and "ld.global.b16" not in made.ptx
