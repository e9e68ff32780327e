"""Attention: over everything with a bias, or in pieces that leave out most of what a mask hides.

Training computes all frames at once, and each of them sees a part of the others. Within the places of one window, in the
order in which frames are computed, a frame sees a prefix: the frames before it and itself. So the queries are cut by window
and by frame, and every piece goes through torch's fused kernels with its own window and prefix as keys: exact, without a
score for a hidden frame or window, and no kernel stores scores.

Shapes: B clips, H heads, L text slots, T frames, N places a frame, P = T * N, d numbers a head.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.model import masks

DIRECT_QUERIES = 4


@dataclass(frozen=True)
class Piece:
    """Queries first..last-1 of every window, which see keys 0..last-1 of theirs, under a bias [B*windows,1,Q,L+last]."""

    first: int
    last: int
    bias: Tensor


@dataclass(frozen=True)
class Group:
    """`windows` neighbouring windows of the same size; `size` places each."""

    windows: int
    size: int
    pieces: list[Piece]


@dataclass(frozen=True)
class Pieces:
    """The temporal channel of one layer. order [P]: frame places sorted by window, then as frames are computed."""

    order: Tensor | None  # None: they are so already
    groups: list[Group]

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
                    queries[:, :, p.first : p.last],
                    keys[:, :, : length + p.last],
                    values[:, :, : length + p.last],
                    attn_mask=p.bias,
                )
                for p in group.pieces
            ]
            outs.append(rearrange(torch.cat(made, 2), "(b g) h p d -> b h (g p) d", g=g))
            start = end
        out = torch.cat(outs, 2)
        return out if self.order is None else out.index_select(2, self.order.argsort())


def _windows_of(t: Tensor, length: int, start: int, end: int, windows: int) -> Tensor:
    """[B,H,L+P,d] -> the text and the own places of every window, [B*windows,H,L+size,d]."""
    if windows == 1 and start == 0:
        return t[:, :, : length + end]
    text = repeat(t[:, :, :length], "b h l d -> (b g) h l d", g=windows)
    own = rearrange(t[:, :, length + start : length + end], "b h (g p) d -> (b g) h p d", g=windows)
    return torch.cat([text, own], 2)


def temporal_pieces(c: ModelConfig, layer: int, visible: Tensor, text_bias: Tensor) -> Pieces:
    """How the temporal channel of a layer is cut. visible: masks.temporal_visible; text_bias [B,1,1,L]."""
    n, b = c.frame_tokens, len(text_bias)
    windows = masks.windows(c, layer)
    sizes = torch.bincount(windows)
    frames = torch.tensor(masks.frame_order(c))
    rank = frames.argsort()  # of a time among the frames as they are computed
    # Windows of one size stand together, so that one call computes them.
    key = (sizes[windows] * (windows.max() + 1) + windows).repeat(
        c.num_frames
    ) * c.num_frames + rank.repeat_interleave(n)
    order = key.argsort(stable=True).to(visible.device)
    given = int(masks.is_given(c).sum())
    ends = [given] * (given > 0) + list(range(given + 1, c.num_frames + 1))
    groups, start = [], 0
    for size in sizes[sizes > 0].unique().tolist():
        count = int((sizes == size).sum())
        places = rearrange(order[start : start + count * size * c.num_frames], "(g p) -> g p", g=count)
        start += places.numel()
        pieces = []
        for begin, end in zip([0, *ends], ends, strict=False):
            seen = visible[places[:, begin * size : end * size, None], places[:, None, : end * size]]
            own = repeat(hidden_bias(seen, text_bias.dtype), "g q k -> (b g) 1 q k", b=b)
            text = repeat(text_bias, "b 1 1 l -> (b g) 1 q l", g=count, q=own.shape[2])
            pieces.append(Piece(begin * size, end * size, torch.cat([text, own], -1)))
        groups.append(Group(count, size * c.num_frames, pieces))
    return Pieces(None if bool((order.diff() > 0).all()) else order, groups)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | Pieces | None) -> Tensor:
    """Softmax attention q [*,H,Q,d] over k, v [*,H,K,d]; bias [*,1,Q,K] is added to the scaled scores (-inf hides)."""
    if isinstance(bias, Pieces):
        return bias.attend(q, k, v)
    if q.shape[-2] > DIRECT_QUERIES or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    # With a few queries on a CPU, torch would first copy all keys to scale them: as costly as the attention itself.
    # flatten and view instead of einops, whose bookkeeping would cost as much again.
    shape = q.shape
    q, k, v = (
        t.flatten(0, -3) for t in (q, k, v)
    )  # no copy where heads and rows follow each other in memory
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=shape[-1] ** -0.5)
    if bias is not None:
        scores = (scores.view(*shape[:-1], k.shape[1]) + bias).flatten(0, -3)
    return torch.bmm(scores.softmax(-1), v).view(shape)


def hidden_bias(visible: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scores to add: 0 where visible, -inf elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, float("-inf")
    )


def compute_dtype(x: Tensor) -> torch.dtype:
    """In which type products are computed of a stream x: autocast's, or its own."""
    return torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
