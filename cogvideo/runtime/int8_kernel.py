"""The Triton kernel behind Int8Linear: few rows times an int8 matrix, bound by reading that matrix once.

Imported only where there is a GPU. Under TRITON_INTERPRET=1 it runs on CPU tensors, which is how its
arithmetic is tested.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

# A program makes BLOCK_N outputs of all rows. 16 outputs give 192 programs for the released width of 3072,
# more than a GPU has multiprocessors; 512 inputs a step in four stages keep 32 KB a program on the way from
# memory.
BLOCK_M, BLOCK_N, BLOCK_K, STAGES, WARPS = 16, 16, 512, 4, 4


@triton.jit
def _kernel(
    x, weight, scale, bias, out, rows, outputs, inputs,
    HAS_BIAS: tl.constexpr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    m = tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    sums = tl.zeros((M, N), dtype=tl.float32)
    for start in range(0, inputs, K):
        k = start + tl.arange(0, K)
        left = tl.load(
            x + m[:, None] * inputs + k[None, :], mask=(m < rows)[:, None] & (k < inputs)[None, :], other=0.0
        )
        inside = (n < outputs)[None, :] & (k < inputs)[:, None]
        # [K,N], read along K
        right = tl.load(weight + n[None, :] * inputs + k[:, None], mask=inside, other=0)
        sums += tl.dot(left, right.to(left.dtype), input_precision="ieee")
    sums *= tl.load(scale + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        sums += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    tl.store(
        out + m[:, None] * outputs + n[None, :],
        sums.to(out.dtype.element_ty),
        mask=(m < rows)[:, None] & (n < outputs)[None, :],
    )


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x [*,K] with at most BLOCK_M rows, int8 weight [N,K], scale [N], bias [N] or None -> [*,N] like x."""
    outputs, inputs = weight.shape
    x = x.contiguous()
    rows = x.numel() // inputs
    out = x.new_empty(*x.shape[:-1], outputs)
    with torch.cuda.device_of(x):  # Triton launches on the current GPU, whatever GPU the tensors are on
        _kernel[(triton.cdiv(outputs, BLOCK_N),)](
            x, weight, scale, scale if bias is None else bias, out, rows, outputs, inputs,
            HAS_BIAS=bias is not None, M=BLOCK_M, N=BLOCK_N, K=BLOCK_K, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return out
