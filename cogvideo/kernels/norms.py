"""Layer norms of few rows with the sums around them: in decoding they are launches, not work.

A program takes a row: it normalises an update, adds it to the stream, and normalises the sum for what comes
next, in fp32 until it is stored. Under TRITON_INTERPRET=1 it runs on CPU tensors, which is how its arithmetic
is tested.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 8  # a row of 3,072 numbers: 16 for each of their threads


@triton.jit
def _normed(row, there, weight, bias, d, size, eps):
    """row fp32 [D], 0 where not `there`."""
    apart = tl.where(there, row - tl.sum(row, 0) / size, 0.0)
    apart *= tl.rsqrt(tl.sum(apart * apart, 0) / size + eps)
    scale = tl.load(weight + d, mask=there, other=0.0).to(tl.float32)
    return apart * scale + tl.load(bias + d, mask=there, other=0.0).to(tl.float32)


@triton.jit
def _add_norm(
    x, update, weight, bias, then_weight, then_bias, out, then, eps, size,
    D: tl.constexpr, THEN: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * size
    d = tl.arange(0, D)
    there = d < size
    row = tl.load(update + start + d, mask=there, other=0.0).to(tl.float32)
    stream = tl.load(x + start + d, mask=there, other=0.0).to(tl.float32)
    stream = (stream + _normed(row, there, weight, bias, d, size, eps)).to(out.dtype.element_ty)
    tl.store(out + start + d, stream, mask=there)
    if THEN:
        made = _normed(stream.to(tl.float32), there, then_weight, then_bias, d, size, eps)
        tl.store(then + start + d, made.to(then.dtype.element_ty), mask=there)


def add_norm(
    x: Tensor, update: Tensor, norm: tuple[Tensor, Tensor], eps: float, then: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """x + norm(update) and, if asked for, `then` of it; x, update [*,D]; norms: weight [D] and bias [D]."""
    x, update = x.contiguous(), update.contiguous()
    size = x.shape[-1]
    out, made = torch.empty_like(x), None if then is None else torch.empty_like(x)
    with torch.cuda.device_of(x):  # Triton launches on the current GPU, whatever GPU the tensors are on
        _add_norm[(x.numel() // size,)](
            x, update, *norm, *(then or norm), out, out if made is None else made, eps, size,
            D=triton.next_power_of_2(size), THEN=made is not None, num_warps=WARPS,
        )  # fmt: skip
    return out, made


def try_out(device: torch.device) -> None:
    """Compile and run on this device."""
    x = torch.ones(2, 64, dtype=torch.float16, device=device)
    add_norm(x, x, (x[0], x[1]), 1e-5, (x[0], x[1]))
