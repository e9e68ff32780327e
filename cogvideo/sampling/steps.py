"""A step of decoding: its schedule, what it reads and writes, and the plain way to make it.

One frame after another is the schedule with one position a step; the wavefront (frame-parallel steps) has one
position in each of several frames. Other backends make the same step: cpu.py with packed weights, cuda.py as
a captured graph.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from cogvideo.model.attention import additive_bias
from cogvideo.model.cache import CacheWrite
from cogvideo.model.transformer import CogVideoTransformer, EncodedText


@dataclass(frozen=True)
class Step:
    """Positions that are decoded together, one in each of `frames` (neighbours, numbered from 0).

    index [5,F] on the device: where each finds its input (in `Decoding.tokens`), its position in the frame,
    its number through the generated frames, where it goes in the spatial and in the temporal cache.
    spatial_end, temporal_end: how much of the caches is read.
    """

    frames: list[int]
    positions: list[int]
    index: Tensor
    cache_frames: slice
    spatial_end: int
    temporal_end: int
    static: bool = False  # more of the caches is read than is live, and all that changes is on the device


def schedule(steps: Tensor, *, wavefront: bool, length: int, known: int, device: torch.device) -> list[Step]:
    """The steps of masks.decoding_steps [F,N], after `length` text tokens and `known` frame positions."""
    n = steps.shape[1]
    order = steps.flatten().argsort(stable=True)
    frames, positions = order // n, order % n
    counts = torch.bincount(steps.flatten())[1:].tolist()
    index = torch.stack([order + frames, positions, order, length + positions, length + known + order]).to(
        device
    )
    made = []
    parts = (index, order, frames, positions)
    for on_device, numbers, where, inside in zip(*(p.split(counts, -1) for p in parts), strict=True):
        own = where.tolist()
        rows = slice(own[0], own[-1] + 1) if wavefront else slice(0, 1)
        ends = length + int(inside.max()) + 1, length + known + int(numbers.max()) + 1
        made.append(Step(own, inside.tolist(), on_device, rows, *ends))
    return made


@dataclass
class Decoding:
    """The tensors that the steps of one call read and write.

    Caches with room for the frames, and tables of their rows.
    """

    text: EncodedText  # its layers hold the caches
    tokens: Tensor  # [B,F*(N+1)]: of every frame begin-of-image, then its tokens
    position_vectors: Tensor  # [F*N,D]
    spatial_bias: Tensor  # [B,N,1,1,L+N]
    temporal_bias: (
        list[Tensor] | None
    )  # [B,1,F*N,L+T*N] of even and odd layers, or one for all; None: image model

    @classmethod
    def begin(
        cls,
        model: CogVideoTransformer,
        text: EncodedText,
        times: list[int],
        temporal: list[Tensor] | None,
        bonus: float,
    ) -> "Decoding":
        """Without room in the caches yet.

        times: the frames to decode; temporal: what they see, `seen_in_order`.
        """
        n, rows, device = model.config.frame_tokens, len(text.bias), text.bias.device
        causal = torch.ones(n, n, dtype=torch.bool, device=device).tril()[:, None, None]
        return cls(
            text,
            torch.full((rows, len(times) * (n + 1)), model.config.begin_of_image, device=device),
            torch.cat([model.position_vectors(time) for time in times]),
            additive_bias(causal, text.bias[:, None], bonus),
            None if temporal is None else [additive_bias(visible, text.bias, bonus) for visible in temporal],
        )

    def tables(self) -> list[Tensor]:
        return [
            self.text.bias,
            self.tokens,
            self.position_vectors,
            self.spatial_bias,
            *(self.temporal_bias or []),
        ]

    def allocate(self, frames: int, temporal: int) -> "Decoding":
        """Make room in the caches for so many frames at a time, and positions of the temporal channel."""
        for memory in self.text.layers:
            memory.spatial = memory.spatial.allocate(self.spatial_bias.shape[1], frames)
            if memory.temporal is not None and self.temporal_bias is not None:
                memory.temporal = memory.temporal.allocate(temporal)
        return self

    def logits(self, model: CogVideoTransformer, step: Step) -> Tensor:
        """Logits [B,F,V] of a step's positions."""
        inputs, positions, numbers, spatial, temporal = step.index.unbind(0)
        x = model.word_embedding(self.tokens.index_select(1, inputs)) + self.position_vectors.index_select(
            0, numbers
        )
        bias, later = (
            self.spatial_bias.index_select(1, positions)[..., : step.spatial_end],
            self.temporal_bias,
        )
        if later is not None:
            later = [table.index_select(2, numbers)[..., : step.temporal_end] for table in later]
        if len(step.frames) == 1 and not step.static:  # it is the end of both caches, and slices are quicker
            spatial, temporal = (slice(end - 1, end) for end in (step.spatial_end, step.temporal_end))
        write = (
            CacheWrite(spatial, step.spatial_end, step.cache_frames),
            CacheWrite(temporal, step.temporal_end),
        )
        return model.head(model.run(x[:, :, None], self.text.layers, bias, later, write)[:, :, 0])


def seen_in_order(
    model: CogVideoTransformer,
    times: list[int],
    order: list[int],
    device: torch.device,
    *,
    quirks: bool = False,
) -> list[Tensor]:
    """Temporal masks [len(times)*N, len(order)*N] of even and odd layers (or one for all)."""
    made = []
    for parity in range(2 if model.config.window else 1):
        mask = model.mask(f"temporal_{parity}" + "_quirks" * quirks, device)
        mask = rearrange(
            mask, "(t n) (s m) -> t n s m", n=model.config.frame_tokens, m=model.config.frame_tokens
        )
        made.append(rearrange(mask[times][:, :, order], "t n s m -> (t n) (s m)"))
    return made


def prefill(
    model: CogVideoTransformer, text: EncodedText, frames: Tensor, times: list[int], seen: list[Tensor],
    bonus: tuple[float, float],
) -> None:  # fmt: skip
    """Put known frames [B,F,N] into the temporal caches.

    Seen: `seen_in_order`; bonus towards text: of both channels.
    """
    length = text.bias.shape[-1]
    spatial = model.mask("spatial", frames.device)[times][:, None]
    biases = [additive_bias(visible, text.bias, bonus[1]) for visible in seen]
    # Nobody looks at known frames in the spatial channel later, so its cache does not keep them.
    end = length + seen[0].shape[1]
    write = None, CacheWrite(slice(length, end), end)
    x = model.embed_frames(frames, times)
    model.run(x, text.layers, additive_bias(spatial, text.bias[:, None], bonus[0]), biases, write)
