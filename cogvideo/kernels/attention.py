"""Attention of a few queries, as in decoding: keys and values are read once, hidden ones not at all.

A program reads the bias of its keys first, then the keys and values that a query sees; the others are masked
loads, which move nothing. So padding on the left, what a cache does not hold yet, and other windows cost no
bandwidth, and how much is live is a matter of the bias, which lies on the device: one captured graph serves
all lengths. Keys are shared between programs (split K); a second kernel adds what they found, in a fixed
order. Under TRITON_INTERPRET=1 it runs on CPU tensors, which is how its arithmetic is tested.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # queries of a tile of the tensor cores, most of them empty
BLOCK, WARPS, STAGES = 64, 4, 3  # keys a program reads at a time; so many blocks are on their way
WHOLE = 512  # keys that one program reads alone: sharing them would cost another launch, as long as it saves
PROGRAMS = 1024  # at most, if keys are shared: about eight for each multiprocessor of an H100
SIZES = (16, 32, 64, 128)  # numbers a head


@triton.jit(do_not_specialize=["keys", "splits", "bias_b", "bias_f", "bias_r"])
def _attend(
    q, k, v, bias, out, stats, scale, keys, splits, frames, heads,
    q_b, q_f, q_h, q_r, kv_b, kv_f, kv_h, bias_b, bias_f, bias_r,
    R: tl.constexpr, M: tl.constexpr, D: tl.constexpr, B: tl.constexpr, STEPS: tl.constexpr,
    ALONE: tl.constexpr,
):  # fmt: skip
    split, head, one = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b, f = (one // frames).to(tl.int64), (one % frames).to(tl.int64)
    r, d = tl.arange(0, M), tl.arange(0, D)
    bias += b * bias_b + f * bias_f
    kv = b * kv_b + f * kv_f + head * kv_h
    real = (r < R)[:, None]
    queries = tl.load(
        q + b * q_b + f * q_f + head * q_h + r[:, None] * q_r + d[None, :], mask=real, other=0.0
    )
    top = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    sums = tl.zeros((M, D), tl.float32)
    for step in range(STEPS):
        at = (split * STEPS + step) * B + tl.arange(0, B)
        added = tl.load(
            bias + r[:, None] * bias_r + at[None, :], mask=real & (at < keys)[None, :], other=float("-inf")
        ).to(tl.float32)
        seen = tl.max(added, 0) > float("-inf")
        key = tl.load(k + kv + at[None, :] * D + d[:, None], mask=seen[None, :], other=0.0)
        value = tl.load(v + kv + at[:, None] * D + d[None, :], mask=seen[:, None], other=0.0)
        scores = tl.dot(queries, key, input_precision="ieee") * scale + added
        new = tl.maximum(top, tl.max(scores, 1))
        least = tl.where(new == float("-inf"), 0.0, new)  # where nothing is seen yet
        weights = tl.exp(scores - least[:, None])
        shrink = tl.exp(top - least)
        total = total * shrink + tl.sum(weights, 1)
        sums = sums * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        top = new
    if ALONE:  # out [B*F,R,H,D]
        to = out + ((one * R + r) * heads + head)[:, None] * D + d[None, :]
        tl.store(to, (sums / total[:, None]).to(out.dtype.element_ty), mask=real)
    else:  # out [B*F,H,splits,R,D], stats [2,B*F*H*splits*R]: highest score, sum of weights
        at = ((one * heads + head) * splits + split) * R + r
        tl.store(out + at[:, None] * D + d[None, :], sums, mask=real)
        tl.store(stats + at, top, mask=r < R)
        tl.store(stats + tl.num_programs(2) * heads * splits * R + at, total, mask=r < R)


@triton.jit(do_not_specialize=["splits"])
def _combine(parts, stats, out, splits, heads, R: tl.constexpr, D: tl.constexpr, S: tl.constexpr):
    """One program a head and query: out [B*F,R,H,D]."""
    row, head, one = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    s, d = tl.arange(0, S), tl.arange(0, D)
    there = s < splits
    at = ((one * heads + head) * splits + s) * R + row
    top = tl.load(stats + at, mask=there, other=float("-inf"))
    total = tl.load(stats + tl.num_programs(2) * heads * splits * R + at, mask=there, other=0.0)
    sums = tl.load(parts + at[:, None] * D + d[None, :], mask=there[:, None], other=0.0)
    weight = tl.exp(top - tl.max(top, 0))
    made = tl.sum(sums * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(out + ((one * R + row) * heads + head) * D + d, made.to(out.dtype.element_ty))


def shares(keys: int, heads: int) -> tuple[int, int]:
    """(programs that share the keys of a head, blocks that each reads); heads: of all rows."""
    blocks = -(-keys // BLOCK)
    if keys <= WHOLE:
        return 1, blocks
    steps = 2
    while heads * -(-blocks // steps) > PROGRAMS and steps < blocks:
        steps *= 2
    return -(-blocks // steps), steps


def serves(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> bool:
    """Is this an attention that `attend` computes?"""
    size = q.shape[-1]
    return (
        q.itemsize == 2
        and size in SIZES
        and q.shape[-2] <= ROWS
        and bias is not None
        and q.stride(-1) == bias.stride(-1) == 1
        and k.stride() == v.stride()
        and k.stride()[-2:] == (size, 1)
        and not q.requires_grad
    )


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """q [B,H,R,d] or [B,F,H,R,d] over k, v [..,H,K,d]; bias [..,1,R,K], -inf where hidden -> like q.

    In memory the result has heads and numbers last, so that joining the heads copies nothing.
    """
    *lead, heads, rows, size = q.shape
    if rows > ROWS:
        raise ValueError(f"at most {ROWS} queries, not {rows}")
    bias = bias.expand(*lead, 1, rows, k.shape[-2])
    frames, keys, ones = (lead[1] if len(lead) == 2 else 1), k.shape[-2], q.shape[:-3].numel()
    splits, steps = shares(keys, ones * heads)
    out = q.new_empty(*lead, rows, heads, size)
    parts = q.new_empty(ones * heads * splits * rows * size * (splits > 1), dtype=torch.float32)
    stats = q.new_empty(2 * ones * heads * splits * rows * (splits > 1), dtype=torch.float32)

    def strides(t: Tensor) -> tuple[int, int]:
        return t.stride(0), t.stride(1) if len(lead) == 2 else 0

    with torch.cuda.device_of(q):  # Triton launches on the current GPU, whatever GPU the tensors are on
        _attend[(splits, heads, ones)](
            q, k, v, bias, out if splits == 1 else parts, stats, size**-0.5, keys, splits, frames, heads,
            *strides(q), *q.stride()[-3:-1], *strides(k), k.stride(-3), *strides(bias), bias.stride(-2),
            R=rows, M=ROWS, D=size, B=BLOCK, STEPS=steps, ALONE=splits == 1,
            num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
        if splits > 1:
            _combine[(rows, heads, ones)](
                parts,
                stats,
                out,
                splits,
                heads,
                R=rows,
                D=size,
                S=triton.next_power_of_2(splits),
                num_warps=1,
            )
    return out.transpose(-3, -2)


def try_out(device: torch.device) -> None:
    """Compile and run on this device."""
    kv = torch.ones(2, 1, 2, 2 * WHOLE, 64, dtype=torch.float16, device=device)
    attend(kv[0, :, :, :1], *kv.unbind(0), kv.new_zeros(1, 1, 1, 2 * WHOLE))
