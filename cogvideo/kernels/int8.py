"""Few rows times an int8 matrix, bound by reading that matrix once: what Int8Linear runs in decoding.

Every warp multiplies its own part of the inputs, and their sums are added in the end: the matrix is split
over K inside of a program. Split over outputs, as Triton would do by itself, warps either repeat each other's
product or need programs so large that a matrix of 3,072 outputs leaves a third of an H100 idle. Under
TRITON_INTERPRET=1 it runs on CPU tensors, which is how its arithmetic is tested.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # of one tile of the tensor cores
# A program makes BLOCK_N outputs of all rows: 192 programs for the released width of 3,072. In a step each of
# SPLITS warps takes BLOCK_K inputs; STAGES steps are on their way from memory, 32 KB a program.
BLOCK_N, BLOCK_K, SPLITS, STAGES = 16, 128, 4, 4


@triton.jit(do_not_specialize=["rows"])
def _kernel(
    x, weight, scale, bias, out, rows, outputs, inputs,
    HAS_BIAS: tl.constexpr, GELU: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    m = tl.arange(0, M)
    n = tl.program_id(0) * N + tl.arange(0, N)
    part = tl.arange(0, S)[:, None] * K + tl.arange(0, K)[None, :]
    sums = tl.zeros((S, M, N), dtype=tl.float32)
    for start in range(0, inputs, S * K):
        k = start + part
        left = tl.load(
            x + m[None, :, None] * inputs + k[:, None, :],
            mask=(m < rows)[None, :, None] & (k < inputs)[:, None, :], other=0.0,
        )  # fmt: skip
        right = tl.load(  # [S,K,N], read along K
            weight + n[None, None, :] * inputs + k[:, :, None],
            mask=(n < outputs)[None, None, :] & (k < inputs)[:, :, None], other=0,
        )  # fmt: skip
        sums += tl.dot(left, right.to(left.dtype), input_precision="ieee")
    made = tl.sum(sums, 0) * tl.load(scale + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    if HAS_BIAS:
        made += tl.load(bias + n, mask=n < outputs, other=0.0).to(tl.float32)[None, :]
    if GELU:  # by tanh, as x * sigmoid(2 * ..)
        made *= tl.sigmoid(1.5957691216057308 * (made + 0.044715 * made * made * made))
    to = out + m[:, None] * outputs + n[None, :]
    tl.store(to, made.to(out.dtype.element_ty), mask=(m < rows)[:, None] & (n < outputs)[None, :])


def int8_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, *, gelu: bool = False
) -> Tensor:
    """x [*,K] with at most ROWS rows, int8 weight [N,K], scale [N], bias [N] or None -> [*,N] like x.

    gelu: of the sums (by tanh), in the same kernel.
    """
    outputs, inputs = weight.shape
    x = x.contiguous()
    rows = x.numel() // inputs
    if rows > ROWS:
        raise ValueError(f"at most {ROWS} rows, not {rows}")
    out = x.new_empty(*x.shape[:-1], outputs)
    with torch.cuda.device_of(x):  # Triton launches on the current GPU, whatever GPU the tensors are on
        _kernel[(triton.cdiv(outputs, BLOCK_N),)](
            x, weight, scale, scale if bias is None else bias, out, rows, outputs, inputs,
            HAS_BIAS=bias is not None, GELU=gelu, M=ROWS, N=BLOCK_N, K=BLOCK_K, S=SPLITS,
            num_warps=SPLITS, num_stages=STAGES,
        )  # fmt: skip
    return out


def try_out(device: torch.device) -> None:
    """Compile and run on this device, in both types."""
    weight = torch.ones(32, 64, dtype=torch.int8, device=device)
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.ones(2, 64, dtype=dtype, device=device)
        int8_linear(x, weight, x.new_ones(32), None)
