"""The keys and values that a chunk of frame positions attends to."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

KeysValues = tuple[Tensor, ...]  # two of [B,H,P,d]


class CacheWrite(NamedTuple):
    """Where a chunk goes in a cache, and how much of the cache is read with it.

    index: the chunk's positions in the cache; for a cache of several frames, one for each of `frames`, which
    follow each other so that reading them copies nothing.
    """

    index: Tensor | slice
    end: int
    frames: slice = slice(None)


@dataclass
class KVCache:
    """Keys and values of one channel of one layer: the text's [B,H,L,d], and room for more.

    buffers: [B,H,L+P,d] of the temporal channel, [B,F,H,L+N,d] of the spatial one, whose memory has the
    frames first. The first L positions are the text. Only `update` writes to them.
    """

    text: KeysValues
    buffers: KeysValues | None = None

    def allocate(self, positions: int, frames: int | None = None) -> "KVCache":
        """The same text, with room for more positions (of each of so many frames)."""
        b, heads, length, size = self.text[0].shape
        shape = [b, heads, length + positions, size]
        new = self.text[0].new_zeros
        if frames is None:
            return KVCache(self.text, (new(shape), new(shape))).set_text(self.text)
        buffers = (new([frames, *shape]).transpose(0, 1), new([frames, *shape]).transpose(0, 1))
        return KVCache(self.text, buffers).set_text(self.text)

    def set_text(self, text: KeysValues) -> "KVCache":
        """Begin again with another text of the same length."""
        self.text, length = text, text[0].shape[2]
        if self.buffers is not None:
            k, v = text if self.buffers[0].ndim == 4 else (t[:, None] for t in text)
            self.update(k, v, CacheWrite(slice(0, length), length))
        return self

    def update(self, k: Tensor, v: Tensor, write: CacheWrite | None = None) -> KeysValues:
        """Add a chunk [B,H,P,d] or [B,F,H,P,d] -> the keys and values it attends to, the text first.

        Without `write` nothing is kept: the text and the chunk itself are returned.
        """
        if write is None or self.buffers is None:
            text = (
                self.text
                if k.ndim == 4
                else (t[:, None].expand(-1, k.shape[1], -1, -1, -1) for t in self.text)
            )
            return tuple(torch.cat(pair, -2) for pair in zip(text, (k, v), strict=True))
        live, index = self.buffers, write.index
        if k.ndim == 5:
            live = tuple(buffer[:, write.frames] for buffer in live)
        for buffer, chunk in zip(live, (k, v), strict=True):
            if isinstance(index, slice):
                buffer[..., index, :] = chunk
            elif k.ndim == 4 or len(index) == 1:
                buffer.index_copy_(-2, index, chunk)
            else:
                buffer.scatter_(-2, index[:, None, None, None].expand_as(chunk), chunk)
        return tuple(buffer[..., : write.end, :] for buffer in live)
