"""The geometry of a sequence: positions, who attends to whom, in which order tokens are computed.

A sequence is `text | frame 0 | frame 1 | ...`. Frame positions are numbered p = time * N + row * W + column.
The input at a frame's first position is begin-of-image and position j holds token j-1, so every frame
predicts its own N tokens. Source: paper section 3 and the released model (reference page "Sequence",
"Dual-channel attention").
"""

import torch
from einops import rearrange
from torch import Tensor

from cogvideo.config import ModelConfig


def is_given(c: ModelConfig) -> Tensor:
    """[T] bool: given frames, in interpolation every second (0, 2, 4), in sequential order none."""
    times = torch.arange(c.num_frames)
    return times % 2 == 0 if c.order == "interpolation" else torch.zeros_like(times, dtype=torch.bool)


def frame_order(c: ModelConfig) -> list[int]:
    """Times in the order in which frames are computed: given ones first, the others after them."""
    given = is_given(c).tolist()
    return sorted(range(c.num_frames), key=lambda time: (not given[time], time))


def trained_frames(c: ModelConfig) -> list[int]:
    """Times whose tokens are in the loss: an image model's frame, else all generated frames but frame 0."""
    given = is_given(c).tolist()
    return [0] if c.num_frames == 1 else [time for time in range(1, c.num_frames) if not given[time]]


def text_positions(text_mask: Tensor) -> Tensor:
    """Position ids [B,L] of left-padded text: 0, 1, 2, ... from the first real token; padding has 0."""
    return (text_mask.long().cumsum(-1) - 1).clamp(min=0)


def first_position(c: ModelConfig, time: int) -> tuple[bool, int]:
    """Where a frame's N position vectors begin: (in the base table?, row). Later frames use the extra table.

    Position p of the frames has position id first_frame_position + p; the extra table begins where frame 0
    ends.
    """
    return (True, c.first_frame_position) if time == 0 else (False, (time - 1) * c.frame_tokens)


def place(c: ModelConfig, round_: int | Tensor, number: int | Tensor) -> int | Tensor:
    """Row of the table of places: frame `number` (0, 1, ..) of a clip after `round_` (1, 2, ..) rounds of
    interpolation, which has (T-1) * 2**round_ + 1 frames.
    """
    return (c.num_frames - 1) * (2**round_ - 2) + round_ - 1 + number


def spatial_visible(c: ModelConfig) -> Tensor:
    """[T,N,N] bool (time, query, key): a frame sees itself, causally when generated, both ways when given."""
    causal = torch.ones(c.frame_tokens, c.frame_tokens, dtype=torch.bool).tril()
    return is_given(c)[:, None, None] | causal


def windows(c: ModelConfig, layer: int, *, wrap: bool = False) -> Tensor:
    """[N] int: the temporal channel's window of every position of a frame; equal numbers see each other.

    Even layers cut the frame from position 0, odd layers half a window earlier, so that the first and last
    windows are smaller. `wrap` joins those two (the frame is rolled): the released stage 2 sampler does so
    for given frames.
    """
    window = c.window
    if window is None:
        return torch.zeros(c.frame_tokens, dtype=torch.long)
    shift = window // 2 if layer % 2 else 0

    def along(length: int) -> Tensor:
        position = torch.arange(length) - shift
        # The shifted cut begins inside the first window: what lies before `shift` is window 0.
        return (position % length) // window if wrap else position // window + (1 if shift else 0)

    rows, columns = along(c.frame_height), along(c.frame_width)
    return rearrange(rows[:, None] * (c.frame_width + 2) + columns[None, :], "h w -> (h w)")


def temporal_visible(c: ModelConfig, layer: int, *, release_quirks: bool = False) -> Tensor:
    """[T*N, T*N] bool (query, key), positions in the order of time.

    Sequential: every earlier position and itself. Interpolation: given frames see each other both ways and
    nothing else; a generated frame sees all given ones, earlier generated ones, and itself causally. All of
    it inside the window.
    """
    n = c.frame_tokens
    given = is_given(c).repeat_interleave(n)
    position = torch.arange(c.num_frames * n)
    earlier = position[:, None] >= position[None, :]
    visible = given[None, :] | (~given[:, None] & ~given[None, :] & earlier)
    window = windows(c, layer).repeat(c.num_frames)
    same = window[:, None] == window[None, :]
    if release_quirks:
        wrapped = windows(c, layer, wrap=True).repeat(c.num_frames)
        same = torch.where(given[:, None], wrapped[:, None] == wrapped[None, :], same)
    return visible & same


def decoding_steps(c: ModelConfig, times: list[int]) -> Tensor:
    """[len(times), N]: the earliest step (from 1) at which each token of the frames at `times` can come.

    The other frames are known. Position j of a frame takes token j-1 as its input, so it comes at least one
    step after position j-1; and in no layer may it see a position that comes later than itself. Positions of
    one step are computed together, layer by layer, so they may see each other. With full attention frames
    follow one another, with windows they overlap (paper section 3.3, whose bound is a little above what the
    masks allow).
    """
    n = c.frame_tokens
    visible = temporal_visible(c, 0) | temporal_visible(c, 1)
    visible = rearrange(visible, "(t n) (s m) -> t n s m", n=n, m=n)[times][:, :, times]
    steps = torch.zeros(len(times), n, dtype=torch.long)
    for frame in range(len(times)):
        seen = (visible[frame, :, :frame] * steps[:frame]).flatten(1)  # [N, frame*N]
        earliest = seen.amax(-1).tolist() if frame else [1] * n
        step = 0
        for position in range(n):
            step = max(step + 1, earliest[position])
            steps[frame, position] = step
    return steps


def one_by_one_steps(frames: int, n: int) -> Tensor:
    """[frames, N]: the same schedule with one position a step, one frame after another."""
    return torch.arange(1, frames * n + 1).view(frames, n)
