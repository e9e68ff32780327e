"""Attention with an additive bias, or block-sparse: then most of what a mask hides is left out.

Training computes all frames at once, and each of them sees a part of the others. Within one window, in the
order in which frames are computed, a frame sees a prefix: the frames before it and itself. So the queries are
cut by window and by frame, and every block goes through torch's fused kernels with its own window and prefix
as keys: exact, without a score for a hidden frame or window, and no kernel stores scores.

Shapes: B clips, H heads, L text tokens, T frames, N tokens a frame, P = T * N positions, d numbers a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from cogvideo import kernels
from cogvideo.config import ModelConfig
from cogvideo.model import masks

DIRECT_QUERIES = 4  # decoding has no more: up to here a path of its own is quicker than torch's kernels


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """For attention with biases on CUDA, which cuDNN takes first on newer GPUs.

    It makes a plan for every shape of keys, of which decoding has hundreds, and its gradients with masks have
    been wrong at some lengths.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@dataclass(frozen=True)
class BiasBlock:
    """Queries first..last-1 of every window, which see keys 0..last-1; bias [B*windows,1,Q,L+last]."""

    first: int
    last: int
    bias: Tensor


@dataclass(frozen=True)
class WindowGroup:
    """`windows` neighbouring windows of the same size; `size` positions each."""

    windows: int
    size: int
    blocks: list[BiasBlock]


@dataclass(frozen=True)
class BlockSparseBias:
    """The bias of the temporal channel in one layer."""

    order: Tensor | None  # [P] positions by window, then as frames are computed; None: they are so already
    back: Tensor | None  # [P] where each position stands in that order
    groups: list[WindowGroup]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B,H,P,d], k and v [B,H,L+P,d], the text first -> [B,H,P,d]."""
        length = k.shape[2] - q.shape[2]
        if self.order is not None:
            q = q.index_select(2, self.order)
            rows = torch.cat([torch.arange(length, device=q.device), self.order + length])
            k, v = k.index_select(2, rows), v.index_select(2, rows)
        outs, start = [], 0
        for group in self.groups:
            end, g = start + group.windows * group.size, group.windows
            queries = rearrange(q[:, :, start:end], "b h (g p) d -> (b g) h p d", g=g)
            keys, values = (_windows_of(t, length, start, end, g) for t in (k, v))
            made = [
                F.scaled_dot_product_attention(
                    queries[:, :, block.first : block.last],
                    keys[:, :, : length + block.last],
                    values[:, :, : length + block.last],
                    attn_mask=block.bias,
                )
                for block in group.blocks
            ]
            outs.append(rearrange(torch.cat(made, 2), "(b g) h p d -> b h (g p) d", g=g))
            start = end
        out = torch.cat(outs, 2)
        return out if self.back is None else out.index_select(2, self.back)


def _windows_of(t: Tensor, length: int, start: int, end: int, windows: int) -> Tensor:
    """[B,H,L+P,d] -> the text and each window's own positions, [B*windows,H,L+size,d]."""
    if windows == 1 and start == 0:
        return t[:, :, : length + end]
    text = repeat(t[:, :, :length], "b h l d -> (b g) h l d", g=windows)
    own = rearrange(t[:, :, length + start : length + end], "b h (g p) d -> (b g) h p d", g=windows)
    return torch.cat([text, own], 2)


Bias = Tensor | BlockSparseBias


def block_sparse_bias(c: ModelConfig, layer: int, visible: Tensor, text_bias: Tensor) -> BlockSparseBias:
    """The bias of a layer's temporal channel. visible: masks.temporal_visible; text_bias [B,1,1,L]."""
    n = c.frame_tokens
    windows = masks.windows(c, layer)
    sizes = torch.bincount(windows)
    rank = torch.tensor(masks.frame_order(c)).argsort()  # of a time among the frames as they are computed
    # Windows of one size stand together, so that one call computes them.
    by_window = (sizes[windows] * (windows.max() + 1) + windows).repeat(c.num_frames)
    order = (by_window * c.num_frames + rank.repeat_interleave(n)).argsort(stable=True)
    sorted_already = bool((order.diff() > 0).all())  # asked on the host, where nothing waits
    order = order.to(visible.device)
    given = int(masks.is_given(c).sum())
    ends = [given] * (given > 0) + list(range(given + 1, c.num_frames + 1))
    groups, start = [], 0
    for size in sizes[sizes > 0].unique().tolist():
        count = int((sizes == size).sum())
        positions = rearrange(order[start : start + count * size * c.num_frames], "(g p) -> g p", g=count)
        start += positions.numel()
        blocks = []
        for begin, end in zip([0, *ends], ends, strict=False):
            seen = visible[positions[:, begin * size : end * size, None], positions[:, None, : end * size]]
            bias = additive_bias(seen[:, None], text_bias[:, None])  # [B,g,1,Q,L+end]
            blocks.append(BiasBlock(begin * size, end * size, bias.flatten(0, 1)))
        groups.append(WindowGroup(count, size * c.num_frames, blocks))
    if sorted_already:
        return BlockSparseBias(None, None, groups)
    return BlockSparseBias(order, order.argsort(), groups)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Bias | None) -> Tensor:
    """Softmax attention q [*,H,Q,d] over k, v [*,H,K,d]; bias [*,1,Q,K] is added (-inf hides)."""
    if isinstance(bias, BlockSparseBias):
        return bias.attend(q, k, v)
    if (kernel := kernel_for(q, k, v, bias)) is not None:
        return kernel.attend(q, k, v, bias)
    if q.ndim == 5 and bias is not None and q.shape[1] > 1 and k.stride(0) < k.stride(1):
        # A cache of several frames has them first in memory, and is read where it lies.
        q, k, v, bias = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), bias.transpose(0, 1)
        return attend(q, k, v, bias).transpose(0, 1)
    shape = q.shape
    if q.shape[-2] > DIRECT_QUERIES or q.device.type != "cpu":
        if q.ndim == 5:  # the fused kernels take four axes
            q, k, v = (t.flatten(0, 1) for t in (q, k, v))
            bias = None if bias is None else bias.expand(*shape[:2], *bias.shape[2:]).flatten(0, 1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).view(shape)
    # With a few queries on a CPU, torch would first copy all keys to scale them: as costly as the attention.
    # Flattening copies nothing where heads and rows follow each other in memory.
    q, k, v = q.flatten(0, -3), k.flatten(0, -3), v.flatten(0, -3)
    # Keys times a column are read a third quicker than a row times transposed keys.
    one = q.shape[1] == 1
    left, right = (k, q.transpose(1, 2)) if one else (q, k.transpose(1, 2))
    scores = torch.baddbmm(q.new_empty(()), left, right, beta=0, alpha=shape[-1] ** -0.5)
    scores = scores.view(*shape[:-1], k.shape[1])
    weights = (scores if bias is None else scores + bias).softmax(-1).flatten(0, -3)
    return (_weighted_sum(weights, v) if one and _is_table(v) else torch.bmm(weights, v)).view(shape)


def kernel_for(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> ModuleType | None:
    """Our kernel where it serves: it reads only keys that are seen."""
    if not q.is_cuda or q.shape[-2] > DIRECT_QUERIES or bias is None:
        return None
    kernel = kernels.loaded("attention", q.device)
    return kernel if kernel is not None and kernel.serves(q, k, v, bias) else None


def _is_table(v: Tensor) -> bool:
    """Do values [n,K,d] lie as rows of a table? Only on x86 is summing them so known to be quicker."""
    rows = v.stride()[1:] == (v.shape[2], 1) and v.stride(0) % v.shape[2] == 0
    x86 = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return rows and x86 and v.dtype == torch.float32 and not torch.is_grad_enabled()


def _weighted_sum(weights: Tensor, v: Tensor) -> Tensor:
    """weights [n,1,K] of v [n,K,d] -> [n,d], as bags of embeddings: nearly twice as quick as a product."""
    n, keys, size = v.shape
    room = v.stride(0) // size
    table = v.as_strided(((n - 1) * room + keys, size), (size, 1))
    return torch.embedding_bag(table, *_bags(n, room, keys), False, 0, False, weights.flatten())[0]


@lru_cache(maxsize=16)  # layers of a step share them
def _bags(n: int, room: int, keys: int) -> tuple[Tensor, Tensor]:
    """Row numbers [n*keys] of n heads' keys in a table with room for `room` each; where each head begins."""
    heads, own = torch.arange(n, dtype=torch.int32), torch.arange(keys, dtype=torch.int32)
    return (heads[:, None] * room + own).flatten(), heads * keys


def hidden_bias(visible: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scores to add: 0 where visible, -inf elsewhere."""
    bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return bias.masked_fill_(~visible, float("-inf"))


def additive_bias(visible: Tensor, text_bias: Tensor, text_bonus: float = 0.0) -> Tensor:
    """What is added to scores towards text and frames: [..,Q,L+K], the text's keys first.

    visible bool [..,Q,K]: which frame positions a query sees; text_bias [..,1,L] hides padding; text_bonus is
    added to all scores towards text.
    """
    frames = hidden_bias(visible, text_bias.dtype)
    shape = torch.broadcast_shapes(text_bias.shape[:-1], frames.shape[:-1])
    return torch.cat([(text_bias + text_bonus).expand(*shape, -1), frames.expand(*shape, -1)], -1)


def compute_dtype(x: Tensor) -> torch.dtype:
    """In which type products of a stream x are computed: autocast's, or its own."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
