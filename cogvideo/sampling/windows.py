"""Temporal caches that are ordered by window: a decoding step on a CPU reads only the window that it sees."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.model import masks
from cogvideo.model.attention import Bias, attend
from cogvideo.model.cache import CacheWrite, KVCache
from cogvideo.sampling.steps import Decoding


@dataclass(frozen=True)
class Layout:
    """Where positions lie: each window's one after another, behind a copy of the text.

    Inside a window they are in the order of decoding, so that a position sees its window up to itself.
    """

    texts: list[int]  # where each window begins
    begins: list[int]  # [P] where the window of each position begins
    slots: list[int]  # [P] where each position lies
    size: int  # of the whole
    bias: Tensor  # [B,1,1,L+longest window]: of the text, then 0

    @classmethod
    def of(cls, windows: Tensor, frames: int, text_bias: Tensor) -> "Layout":
        """windows [N]: of the positions of a frame, masks.windows; text_bias [B,1,1,L]."""
        own = windows.unique(return_inverse=True)[1].repeat(frames)
        length, sizes = text_bias.shape[-1], own.bincount()
        texts = (sizes + length).cumsum(0) - (sizes + length)
        rank = F.one_hot(own).cumsum(0).gather(1, own[:, None])[:, 0] - 1
        begins = texts[own]
        bias = F.pad(text_bias, (0, int(sizes.max())))
        size = len(own) + length * len(sizes)
        return cls(texts.tolist(), begins.tolist(), (begins + length + rank).tolist(), size, bias)


@dataclass
class WindowCache(KVCache):
    """A temporal cache [2,B,H,layout.size,d] in the order of a layout."""

    layout: Layout | None = None

    @classmethod
    def of(cls, text: Tensor, layout: Layout) -> "WindowCache":
        """text [2,B,H,L,d]."""
        made = cls(text, text.new_zeros(*text.shape[:3], layout.size, text.shape[-1]), layout)
        for start in layout.texts:
            made.update(text, CacheWrite(start, start + text.shape[-2]))
        return made

    def attend(self, q: Tensor, kv: Tensor, bias: Bias, write: CacheWrite | None = None) -> Tensor:
        """As KVCache.attend. `write` counts positions as they are decoded, after the text."""
        assert write is not None and self.layout is not None
        layout, length, count = self.layout, self.text.shape[-2], kv.shape[-2]
        if isinstance(write.position, int) and count > 1:  # known frames, which attend to each other
            slots = torch.tensor(layout.slots[write.position - length :][:count])
            self.update(kv, CacheWrite(slots, layout.size))
            return super().attend(q, kv, bias)
        at = [write.position] if isinstance(write.position, int) else write.position.tolist()
        slots = [layout.slots[position - length] for position in at]
        for i, slot in enumerate(slots):  # all of them before any is read: they may see each other
            self.update(kv[..., i : i + 1, :], CacheWrite(slot, slot + 1))
        made = []
        for i, (position, slot) in enumerate(zip(at, slots, strict=True)):
            begin = layout.begins[position - length]
            seen = slot + 1 - begin
            assert self.buffer is not None
            k, v = self.buffer.narrow(-2, begin, seen).unbind(0)
            made.append(attend(q[..., i : i + 1, :], k, v, layout.bias[..., :seen]))
        return made[0] if len(made) == 1 else torch.cat(made, -2)


def order_by_window(c: ModelConfig, decoding: Decoding, positions: int) -> None:
    """Give a windowed model's decoding temporal caches by window, for so many positions of whole frames."""
    if decoding.temporal_bias is None:
        return
    text = decoding.temporal_bias[0][:, :, :1, : decoding.text.bias.shape[-1]]
    layouts = [Layout.of(masks.windows(c, parity), positions // c.frame_tokens, text) for parity in range(2)]
    for index, memory in enumerate(decoding.text.layers):
        if memory.temporal is not None:
            memory.temporal = WindowCache.of(memory.temporal.text, layouts[index % 2])
