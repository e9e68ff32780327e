"""The keys and values that a chunk of frame positions attends to."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cogvideo.model.attention import Bias, attend


class CacheWrite(NamedTuple):
    """Where a chunk goes in a cache, and how many of the cache's positions are read with it.

    position: of the chunk's first, or a tensor of positions; with several frames, one for each.
    frames: the first and the number of them; they are neighbours, so that reading them copies nothing.
    """

    position: int | Tensor
    end: int
    frames: tuple[int, int] | None = None  # None: the cache's only one


@dataclass
class KVCache:
    """Keys and values of one channel of one layer: the text's [2,B,H,L,d], and room for more.

    buffer: [2,B,H,L+P,d] of the temporal channel, [2,B,F,H,L+N,d] of the spatial one, whose memory has the
    frames before the clips, if not told otherwise. The first L positions are the text. Only `update` writes
    to it.
    """

    text: Tensor
    buffer: Tensor | None = None

    def allocate(self, positions: int, frames: int | None = None, clips_first: bool = False) -> "KVCache":
        """The same text, with room for more positions (of each of so many frames).

        clips_first: in memory, which suits reading all frames; else some of them are read without a copy.
        """
        both, b, heads, length, size = self.text.shape
        shape = [b, heads, length + positions, size]
        if frames is None:
            buffer = self.text.new_zeros([both, *shape])
        elif clips_first:
            buffer = self.text.new_zeros([both, b, frames, *shape[1:]])
        else:
            buffer = self.text.new_zeros([both, frames, *shape]).transpose(1, 2)
        return KVCache(self.text, buffer).set_text(self.text)

    def set_text(self, text: Tensor) -> "KVCache":
        """Begin again with another text of the same length."""
        self.text = text
        if self.buffer is not None:
            self.update(text if self.buffer.ndim == 5 else text[:, :, None], CacheWrite(0, text.shape[-2]))
        return self

    def update(self, kv: Tensor, write: CacheWrite | None = None) -> tuple[Tensor, Tensor]:
        """Add a chunk [2,B,H,P,d] or [2,B,F,H,P,d] -> the keys and values it attends to, the text first.

        Without `write` nothing is kept: the text and the chunk itself are returned.
        """
        if write is None or self.buffer is None:
            text = (
                self.text if kv.ndim == 5 else self.text[:, :, None].expand(-1, -1, kv.shape[2], -1, -1, -1)
            )
            k, v = torch.cat([text, kv], -2).unbind(0)
            return k, v
        position, end, frames = write
        live = self.buffer if frames is None else self.buffer.narrow(2, *frames)
        if isinstance(position, int):
            live.narrow(-2, position, kv.shape[-2]).copy_(kv)
        elif kv.ndim == 5 or len(position) == 1:
            live.index_copy_(-2, position, kv)
        else:
            live.scatter_(-2, position[:, None, None, None].expand_as(kv), kv)
        k, v = live.narrow(-2, 0, end).unbind(0)
        return k, v

    def attend(self, q: Tensor, kv: Tensor, bias: Bias, write: CacheWrite | None = None) -> Tensor:
        """Add a chunk, see `update`, whose queries then attend to what there is -> like q."""
        return attend(q, *self.update(kv, write), bias)
