"""Which moments of a clip become a training sequence: the paper's multi-frame-rate rule and what it is compared with.

Paper section 3.1: of some trained frame rates the lowest is taken at which the clip still gives five frames,
so that the whole action is inside, and the frame rate is told by a text in front of the caption
(tokenizers.text.frame_rate_text): how many seconds the five frames span. Times are seconds from the clip's
beginning. A clip lasts until its last frame is no longer shown; the frame of that very moment is the last
one. So five frames at 1 a second (moments 0, 1, 2, 3, 4) fit a clip of 4 s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cogvideo.errors import CogVideoError

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # frames a second
FRAMES = 5
KINDS = ("sequential", "interpolation", "fixed-rate", "one-stage-1", "one-stage-2", "image", "superres")
ROUNDING = 0.01  # seconds that a clip may be too short by: files count in ticks, 1/30 s is 0.033 there


@dataclass(frozen=True)
class Window:
    """Frames of one training sequence: `count` of them from `start` on, `rate` a second; rate None: one frame, no such text."""

    start: float
    rate: float | None
    count: int = FRAMES

    @property
    def span(self) -> float | None:
        """Seconds from the first frame to the last, which the frame-rate text names."""
        return None if self.rate is None else (self.count - 1) / self.rate

    @property
    def moments(self) -> np.ndarray:
        """[count] seconds."""
        return self.start + (np.arange(self.count) / self.rate if self.rate else np.zeros(1))


def check_rates(rates: Sequence[float], minimum: float = 0.0) -> tuple[float, ...]:
    """The rates that are at least `minimum`, each once, the lowest first; CogVideoError where none is left."""
    if not rates or min(rates) <= 0:
        raise CogVideoError("Frame rates must be numbers above 0, such as 0.25,0.5,1,2,4,8.")
    if not (chosen := tuple(sorted({float(rate) for rate in rates if rate >= minimum}))):
        raise CogVideoError(
            f"No frame rate is left: the minimum is {minimum:g} and the highest rate {max(rates):g}."
        )
    return chosen


def gives_five(seconds: float, rate: float, fps: float = np.inf) -> bool:
    """Whether a clip gives five frames at a rate: they span no more than it lasts, and it has as many frames a second.

    fps: the clip's own frame rate (mean); above it frames would be shown twice.
    """
    return (FRAMES - 1) / rate <= seconds + ROUNDING and rate <= 1.01 * fps


def choose_rate(seconds: float, rates: Sequence[float] = RATES, *, fps: float = np.inf) -> float | None:
    """The multi-frame-rate rule: the lowest rate at which the clip still gives five frames; None if there is none."""
    return min((rate for rate in rates if gives_five(seconds, rate, fps)), default=None)


def plan(
    kind: str, seconds: float, *, rates: Sequence[float] = RATES, per_clip: int = 1, rate: float = 2.0, fps: float = np.inf
) -> list[Window]:  # fmt: skip
    """The training sequences that a clip of `seconds` gives; none if it is too short or has too few frames a second.

    sequential (stage 1): `per_clip` sequences at the rate of the rule, spread evenly over what the clip has
    beyond them; one lies in the middle. interpolation (stage 2): the same at each trained rate above that
    one, where sequences in line are as many as fit or `per_clip` of them: five neighbouring frames, as the
    rounds of interpolation meet them. The fixed rate that the paper argues against: the clip cut into pieces
    of five frames at `rate`, each with the whole caption; neighbours share a frame. one-stage-1, one-stage-2:
    five frames in line at the highest rate, each sequence beginning with the last one or two frames of the
    one before. image and superres: `per_clip` single moments, the caption without a frame-rate text. Raises
    CogVideoError for an unknown kind.
    """
    if kind in ("image", "superres"):
        return [Window(start, None, 1) for start in _spread(seconds, per_clip)]
    if kind == "sequential":
        chosen = choose_rate(seconds, rates, fps=fps)
        return [] if chosen is None else _windows(seconds, chosen, per_clip)
    if kind == "interpolation":
        lowest = choose_rate(seconds, rates, fps=fps)
        higher = [
            r for r in sorted(rates) if lowest is not None and r > lowest and gives_five(seconds, r, fps)
        ]
        return [window for r in higher for window in _windows(seconds, r, min(per_clip, _pieces(seconds, r)))]
    if kind == "fixed-rate":
        return _in_line(seconds, rate, FRAMES - 1) if gives_five(seconds, rate, fps) else []
    if kind in ("one-stage-1", "one-stage-2"):
        highest = max(rates)
        overlap = int(kind[-1])
        return _in_line(seconds, highest, FRAMES - overlap) if gives_five(seconds, highest, fps) else []
    raise CogVideoError(
        f"There are no training sequences of kind {kind!r}: choose one of {', '.join(KINDS)}."
    )


def _windows(seconds: float, rate: float, count: int) -> list[Window]:
    return [Window(start, rate) for start in _spread(seconds - (FRAMES - 1) / rate, count)]


def _spread(slack: float, count: int) -> list[float]:
    """`count` places from 0 to `slack`, both included; the middle if it is one."""
    slack = max(slack, 0.0)
    return [slack / 2] if count == 1 else np.linspace(0, slack, count).tolist()


def _pieces(seconds: float, rate: float) -> int:
    """How many sequences fit into a clip when each begins with the last frame of the one before."""
    return int((seconds + ROUNDING) * rate / (FRAMES - 1))


def _in_line(seconds: float, rate: float, stride: int) -> list[Window]:
    """All sequences from the clip's beginning on that fit, each `stride` frames after the one before."""
    last = int((seconds + ROUNDING) * rate) - (FRAMES - 1)
    return [Window(first / rate, rate) for first in range(0, last + 1, stride)]
