"""Which frames of a clip become a training sequence: the multi-frame-rate rule and its alternatives.

Paper section 3.1: of some trained frame rates the lowest is taken at which the clip still gives five frames,
so that the whole action is inside, and a text in front of the caption names the frame rate
(tokenizers.text.frame_rate_text): how many seconds the five frames span. Times are seconds from the clip's
beginning. A clip lasts until its last frame disappears, and at its very end still shows that frame: so five
frames at 1 a second (at 0, 1, 2, 3, 4 s) fit a clip of 4 s.
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
    """One training sequence: `count` frames from `start`, `rate` a second; None: one frame, no rate text."""

    start: float
    rate: float | None
    count: int = FRAMES

    @property
    def span(self) -> float | None:
        """Seconds from the first frame to the last, which the frame-rate text names."""
        return None if self.rate is None else (self.count - 1) / self.rate

    @property
    def times(self) -> np.ndarray:
        """[count] seconds."""
        return self.start + (np.arange(self.count) / self.rate if self.rate else np.zeros(1))


def check_rates(rates: Sequence[float], minimum: float = 0.0) -> tuple[float, ...]:
    """The rates that are at least `minimum`, each once, the lowest first; there must be one."""
    if not rates or min(rates) <= 0:
        raise CogVideoError("Frame rates must be numbers above 0, such as 0.25,0.5,1,2,4,8.")
    if not (chosen := tuple(sorted({float(rate) for rate in rates if rate >= minimum}))):
        raise CogVideoError(
            f"No frame rate is left: the minimum is {minimum:g} and the highest rate {max(rates):g}."
        )
    return chosen


def gives_five(seconds: float, rate: float, fps: float = np.inf) -> bool:
    """Whether a clip gives five frames at a rate: it lasts long enough and has as many frames a second.

    fps: the clip's own frame rate (mean); above it frames would be shown twice.
    """
    return (FRAMES - 1) / rate <= seconds + ROUNDING and rate <= 1.01 * fps


def choose_rate(seconds: float, rates: Sequence[float] = RATES, *, fps: float = np.inf) -> float | None:
    """The multi-frame-rate rule: the lowest rate at which the clip still gives five frames, or None."""
    return min((rate for rate in rates if gives_five(seconds, rate, fps)), default=None)


def plan(
    kind: str, seconds: float, *, rates: Sequence[float] = RATES, per_clip: int = 1, rate: float = 2.0,
    fps: float = np.inf,
) -> list[Window]:  # fmt: skip
    """The training sequences of a clip of `seconds`; none if it is too short or has too few frames a second.

    sequential (stage 1): `per_clip` sequences at the rate of the rule, spread evenly over the clip; a single
    one lies in the middle. interpolation (stage 2): the same at each higher trained rate, as many as fit one
    after another but at most `per_clip`: five neighbouring frames, as in the rounds of interpolation.
    fixed-rate (which the paper argues against): the clip cut into parts of five frames at `rate`, each with
    the whole caption; neighbours share a frame. one-stage-1, one-stage-2: five consecutive frames at the
    highest rate, each sequence beginning with the last one or two frames of the one before. image and
    superres: `per_clip` single frames, the caption without a frame-rate text.
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
        return [
            window
            for r in higher
            for window in _windows(seconds, r, min(per_clip, _sequences_in(seconds, r)))
        ]
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
    """`count` times from 0 to `slack`, both included; the middle if it is one."""
    slack = max(slack, 0.0)
    return [slack / 2] if count == 1 else np.linspace(0, slack, count).tolist()


def _sequences_in(seconds: float, rate: float) -> int:
    """How many sequences fit into a clip when each begins with the last frame of the one before."""
    return int((seconds + ROUNDING) * rate / (FRAMES - 1))


def _in_line(seconds: float, rate: float, stride: int) -> list[Window]:
    """All sequences from the clip's beginning on that fit, each `stride` frames after the one before."""
    last = int((seconds + ROUNDING) * rate) - (FRAMES - 1)
    return [Window(first / rate, rate) for first in range(0, last + 1, stride)]
