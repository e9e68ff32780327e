"""A step of decoding: its schedule, what it reads and writes, and the plain way to make it.

One frame after another is the schedule with one position a step; the wavefront (frame-parallel steps) has one
position in each of several frames. Other backends make the same step: cpu.py with packed weights, cuda.py as
a captured graph.
"""

from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from cogvideo.model.attention import additive_bias
from cogvideo.model.cache import CacheWrite
from cogvideo.model.transformer import CogVideoTransformer, EncodedText


@dataclass(frozen=True)
class Step:
    """Positions that are decoded together, one in each of `frames` (neighbours, numbered from 0).

    index [5,F] on the device: where each finds its input (in `Decoding.tokens`), its position in the frame,
    its number through the generated frames, where it goes in the spatial and in the temporal cache; of all
    generated frames, if `schedule` was asked for a fixed number. cache_frames: the first and the number of
    `frames`, in a wavefront. spatial_end, temporal_end: how much of the caches is read.
    """

    frames: list[int]
    positions: list[int]
    index: Tensor
    cache_frames: tuple[int, int] | None
    spatial_end: int
    temporal_end: int
    static: bool = False  # more of the caches is read than is live, and all that changes is on the device


def schedule(
    steps: Tensor, *, wavefront: bool, fixed: bool, length: int, known: int, device: torch.device
) -> list[Step]:
    """The steps of masks.decoding_steps [F,N], after `length` text tokens and `known` frame positions.

    fixed: a step of a wavefront has an entry for every frame; those of frames that wait or are done point
    behind the last position, to rows and cache slots that are for nobody.
    """
    n = steps.shape[1]
    order = steps.flatten().argsort(stable=True)
    counts = torch.bincount(steps.flatten())[1:].tolist()
    computed, widths = order, counts
    if wavefront and fixed:
        widths = [len(steps)] * len(counts)
        computed = torch.full((len(counts), len(steps)), steps.numel())
        computed[steps - 1, torch.arange(len(steps))[:, None]] = torch.arange(steps.numel()).view(steps.shape)
        computed = computed.flatten()
    frames, positions = computed // n, computed % n + n * (computed == steps.numel())
    inputs = (computed + frames).clamp(max=steps.numel() + len(steps) - 1)
    index = torch.stack([inputs, positions, computed, length + positions, length + known + computed])
    made, numbers = [], iter(order.tolist())
    for count, on_device in zip(counts, index.to(device).split(widths, -1), strict=True):
        own = list(islice(numbers, count))
        where, inside = [number // n for number in own], [number % n for number in own]
        rows = (where[0], count) if wavefront else None
        ends = length + max(inside) + 1, length + known + max(own) + 1
        made.append(Step(where, inside, on_device, rows, *ends))
    return made


@dataclass
class Decoding:
    """What the steps of one call read and write: caches with room for the frames, tables of rows."""

    text: EncodedText  # its layers hold the caches
    tokens: Tensor  # [B,F*(N+1)]: of every frame begin-of-image, then its tokens
    # With a last row for no position, which sees only the text's last token:
    position_vectors: Tensor  # [B or 1,F*N+1,D]
    spatial_bias: Tensor  # [B,N+1,1,1,L+N]
    temporal_bias: list[Tensor] | None  # [B,1,F*N+1,L+T*N] of even, odd layers or of all; None: image model

    @classmethod
    def begin(
        cls,
        model: CogVideoTransformer,
        text: EncodedText,
        times: list[int],
        temporal: list[Tensor] | None,
        bonus: float,
        conditioning: Tensor | None = None,
    ) -> "Decoding":
        """Without room in the caches yet. times: to decode; temporal: what they see, `seen_in_order`;
        conditioning: of these frames, `embed_frames`.
        """
        n, rows, device = model.config.frame_tokens, len(text.bias), text.bias.device
        causal = torch.ones(n, n, dtype=torch.bool, device=device).tril()[:, None, None]
        positions = torch.stack([model.position_vectors(time) for time in times])[None]
        positions = positions if conditioning is None else positions + conditioning
        seen = (
            None if temporal is None else [additive_bias(visible, text.bias, bonus) for visible in temporal]
        )
        length = text.bias.shape[-1]
        return cls(
            text,
            torch.full((rows, len(times) * (n + 1)), model.config.begin_of_image, device=device),
            F.pad(positions.flatten(1, 2), (0, 0, 0, 1)),
            _with_last_row(additive_bias(causal, text.bias[:, None], bonus), 1, length),
            None if seen is None else [_with_last_row(bias, 2, length) for bias in seen],
        )

    def tables(self) -> list[Tensor]:
        own = self.text.bias, self.tokens, self.position_vectors, self.spatial_bias
        return [*own, *(self.temporal_bias or [])]

    def allocate(self, frames: int, temporal: int, *, clips_first: bool = False) -> "Decoding":
        """Make room in the caches for so many frames at a time, and positions of the temporal channel.

        A last position of each is written by entries for no position, and not read.
        clips_first: of the spatial caches in memory, for steps that read all frames.
        """
        for memory in self.text.layers:
            memory.spatial = memory.spatial.allocate(self.spatial_bias.shape[1], frames, clips_first)
            if memory.temporal is not None and self.temporal_bias is not None:
                memory.temporal = memory.temporal.allocate(temporal + 1)
        return self

    def logits(self, model: CogVideoTransformer, step: Step) -> Tensor:
        """Logits [B,F,V] of a step's positions."""
        if len(step.frames) == 1 and not step.static:  # numbers instead of tensors: nothing is copied
            frame, position, n = step.frames[0], step.positions[0], self.spatial_bias.shape[1] - 1
            number, ends = frame * n + position, (step.spatial_end - 1, step.temporal_end - 1)
            inputs, positions, numbers, spatial, temporal = number + frame, position, number, *ends
        else:
            inputs, positions, numbers, spatial, temporal = step.index.unbind(0)
        x = model.word_embedding(_rows(self.tokens, 1, inputs)) + _rows(self.position_vectors, 1, numbers)
        bias = _rows(self.spatial_bias, 1, positions).narrow(-1, 0, step.spatial_end)
        later = self.temporal_bias
        if later is not None:
            later = [_rows(table, 2, numbers).narrow(-1, 0, step.temporal_end) for table in later]
        own = CacheWrite(spatial, step.spatial_end, step.cache_frames)
        write = own, CacheWrite(temporal, step.temporal_end)
        return model.head(model.run(x[:, :, None], self.text.layers, bias, later, write)[:, :, 0])


def _with_last_row(bias: Tensor, dim: int, length: int) -> Tensor:
    """bias [..,L+K] with a query more along `dim`, which sees only the last of `length` text tokens."""
    row = torch.full_like(bias.narrow(dim, 0, 1), float("-inf"))
    row[..., length - 1] = 0
    return torch.cat([bias, row], dim)


def _rows(table: Tensor, dim: int, at: int | Tensor) -> Tensor:
    return table.narrow(dim, at, 1) if isinstance(at, int) else table.index_select(dim, at)


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
        mask = rearrange(mask, "(t n) (s m) -> t n s m", t=model.config.num_frames, s=model.config.num_frames)
        made.append(rearrange(mask[times][:, :, order], "t n s m -> (t n) (s m)"))
    return made


def prefill(
    model: CogVideoTransformer, text: EncodedText, frames: Tensor, times: list[int], seen: list[Tensor],
    bonus: tuple[float, float], conditioning: Tensor | None = None,
) -> None:  # fmt: skip
    """Put known frames [B,F,N] into the temporal caches; bonus: towards text, of both channels."""
    length = text.bias.shape[-1]
    spatial = model.mask("spatial", frames.device)[times][:, None]
    biases = [additive_bias(visible, text.bias, bonus[1]) for visible in seen]
    # Nobody looks at known frames in the spatial channel later, so its cache does not keep them.
    end = length + seen[0].shape[1]
    write = None, CacheWrite(length, end)
    x = model.embed_frames(frames, times, conditioning)
    model.run(x, text.layers, additive_bias(spatial, text.bias[:, None], bonus[0]), biases, write)
