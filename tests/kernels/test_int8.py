"""The int8 kernel in Triton's interpreter against its own definition, and compiled ahead of time."""

import pytest
import torch
from kernels import compiled

from cogvideo import kernels

pytest.importorskip("triton", reason="Triton runs on Linux: pip install triton")

INTERPRETED = """
import torch
from cogvideo.kernels.int8 import int8_linear
for dtype, tolerance in ((torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)):
    for shape, inputs, outputs in (((1,), 96, 40), ((3,), 1024, 64), ((2, 8), 700, 33)):
        generator = torch.Generator().manual_seed(inputs)
        x = torch.randn(*shape, inputs, generator=generator).to(dtype)
        weight = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=generator)
        scale, bias = ((torch.rand(outputs, generator=generator) / 64).to(dtype) for _ in range(2))
        for b in (bias, None):
            exact = x.double() @ weight.double().T * scale.double() + (0 if b is None else b.double())
            out = int8_linear(x, weight, scale, b)
            assert out.shape == exact.shape and out.dtype == dtype
            assert (out - exact).abs().max() < tolerance * exact.abs().max(), (dtype, shape)
        exact = torch.nn.functional.gelu(exact, approximate="tanh")
        out = int8_linear(x, weight, scale, None, gelu=True)
        assert (out - exact).abs().max() < tolerance * exact.abs().max(), (dtype, shape)
"""


@pytest.mark.gpu
def test_it_is_the_product():
    compiled.interpret(INTERPRETED)


def test_too_many_rows_are_refused():
    from cogvideo.kernels.int8 import int8_linear

    with pytest.raises(ValueError, match="at most 16 rows, not 17"):
        int8_linear(torch.ones(17, 64), torch.ones(16, 64, dtype=torch.int8), torch.ones(16), None)


def test_it_is_taken_where_it_runs(monkeypatch):
    from cogvideo.kernels import int8

    def found(cuda, capability, try_out):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(int8, "try_out", try_out)
        kernels.loaded.cache_clear()
        return kernels.loaded("int8", torch.device("cuda:0"))

    def broken(device):
        raise RuntimeError("no C compiler\nand so on")

    assert found("13.0", (9, 0), lambda device: None) is int8
    assert found(None, (9, 0), broken) is None and found("13.0", (7, 5), broken) is None
    with pytest.warns(
        RuntimeWarning, match=r"int8 kernel fails here \(no C compiler\): decoding will be slower"
    ):
        assert found("13.0", (9, 0), broken) is None
    kernels.loaded.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize("arch, dtype", [(80, "bf16"), (80, "fp16"), (89, "bf16"), (90, "bf16")])
def test_it_compiles_without_spills_and_reads_16_bytes_at_a_time(arch, dtype):
    from cogvideo.kernels import int8

    types = {name: f"*{dtype}" for name in ("x", "scale", "bias", "out")} | {"weight": "*i8"}
    constants = {
        "HAS_BIAS": True,
        "GELU": True,
        "M": int8.ROWS,
        "N": int8.BLOCK_N,
        "K": int8.BLOCK_K,
        "S": int8.SPLITS,
    }
    made = compiled.build(int8._kernel, arch, types, constants, warps=int8.SPLITS, stages=int8.STAGES)
    assert made.spilled == 0 and made.shared <= 99 * 1024
    assert set(made.copied) == {16} and "mma.sync" in made.ptx
    # Two products a warp and 16 inputs, for 16 outputs: no warp repeats what another one does.
    assert made.ptx.count("mma.sync") == int8.BLOCK_K // 16 * int8.BLOCK_N // 8
