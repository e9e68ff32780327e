"""Attention of every token of a map to windows around it, in tiles (reference SR_VQ_I3D, section 2).

The map is cut into tiles of queries; each gathers the rectangle of keys that its windows can reach, moved
inwards at the border, and attends to it densely with everything outside a query's own window hidden.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from einops import rearrange, repeat
from torch import Tensor

from cogvideo.model.attention import attend, hidden_bias

TILE = 8  # the longest side of a tile in tokens; smaller ones gather more, larger ones hide more


@dataclass(frozen=True)
class Window:
    """Keys around (y, x) // scale for query (y, x): their map is `scale` times smaller than the queries'."""

    scale: int
    rows: int
    columns: int


@dataclass(frozen=True)
class Tiles:
    """Where each of the `down` x `across` tiles of `height` x `width` queries finds its keys.

    keys [T,K]: indices into the keys given to local_attention; bias [T,1,Q,K], or [B*T,1,Q,K] if it depends
    on the sample.
    """

    down: int
    across: int
    height: int
    width: int
    keys: Tensor
    bias: Tensor

    def to(self, like: Tensor) -> "Tiles":
        """On the device of `like`, with the bias in its type."""
        return replace(self, keys=self.keys.to(like.device), bias=self.bias.to(like))


@lru_cache
@torch.inference_mode(False)  # what is kept must serve training as well
def make_tiles(
    height: int, width: int, windows: tuple[Window, ...], always: int = 0, tile: int = TILE
) -> Tiles:
    """Tiles for a height x width map of queries.

    The keys: `always` tokens that every query sees, then (height // scale) x (width // scale) of each window.
    """
    high, wide = _tile_side(height, tile), _tile_side(width, tile)
    down, across = height // high, width // wide
    keys = [repeat(torch.arange(always), "k -> t k", t=down * across)]
    visible = [torch.ones(down * across, high * wide, always, dtype=torch.bool)]
    offset = always
    for window in windows:
        key_rows, seen_rows = _axis(height, high, window.scale, window.rows)
        key_columns, seen_columns = _axis(width, wide, window.scale, window.columns)
        columns = width // window.scale
        indices = offset + key_rows[:, None, :, None] * columns + key_columns[None, :, None, :]
        seen = seen_rows[:, None, :, None, :, None] & seen_columns[None, :, None, :, None, :]
        keys.append(rearrange(indices, "down across r c -> (down across) (r c)"))
        visible.append(rearrange(seen, "down across y x r c -> (down across) (y x) (r c)"))
        offset += (height // window.scale) * columns
    bias = hidden_bias(torch.cat(visible, -1)[:, None])
    return Tiles(down, across, high, wide, torch.cat(keys, -1), bias)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def tiles_on(
    device: torch.device,
    dtype: torch.dtype,
    height: int,
    width: int,
    windows: tuple[Window, ...],
    always: int = 0,
) -> Tiles:
    """Those tiles on a device, the bias in `dtype`; kept there, so that copying them is waited for once."""
    tiles = make_tiles(height, width, windows, always)
    return replace(tiles, keys=tiles.keys.to(device), bias=tiles.bias.to(device, dtype))


def _tile_side(length: int, longest: int) -> int:
    """The largest divisor of `length` up to `longest`."""
    return max(side for side in range(1, longest + 1) if length % side == 0)


def _axis(length: int, side: int, scale: int, window: int) -> tuple[Tensor, Tensor]:
    """Along one axis: keys [A,S] of the A tiles, and which of them each query of a tile sees [A,side,S]."""
    centres = rearrange(torch.arange(length) // scale, "(a y) -> a y", y=side)
    before, after = window // 2, window - 1 - window // 2
    span = min(length // scale, int((centres[:, -1] - centres[:, 0]).max()) + window)
    first = (centres[:, 0] - before).clamp(0, length // scale - span)
    keys = first[:, None] + torch.arange(span)
    distance = keys[:, None, :] - centres[:, :, None]
    return keys, (distance >= -before) & (distance <= after)


def local_attention(q: Tensor, k: Tensor, v: Tensor, tiles: Tiles) -> Tensor:
    """Queries [B,H,N,d] of a row-major map over windows of keys and values [B,H,P,d] -> [B,H,N,d]."""
    split = dict(down=tiles.down, across=tiles.across, y=tiles.height, x=tiles.width)
    q = rearrange(q, "b h (down y across x) d -> (b down across) h (y x) d", **split)
    k, v = (_gather(t, tiles.keys) for t in (k, v))
    bias = tiles.bias.repeat(len(q) // len(tiles.bias), 1, 1, 1)
    return rearrange(attend(q, k, v, bias), "(b down across) h (y x) d -> b h (down y across x) d", **split)


def _gather(tokens: Tensor, keys: Tensor) -> Tensor:
    """[B,H,P,d] -> [B*T,H,K,d]."""
    picked = tokens.index_select(2, keys.flatten())
    return rearrange(picked, "b h (t k) d -> (b t) h k d", t=len(keys))
