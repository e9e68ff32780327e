"""Which moments each variant of the ablation is shown in training, and which frames it makes from which."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from cogvideo.theatre.batches import FIXED_SPAN, FRAMES, clip_times
from cogvideo.theatre.scenes import FPS, sample_clips
from cogvideo.theatre.variants import find_variant, pieces


@dataclass(frozen=True)
class Window:
    """One sequence of five frames that a model completes; times are seconds of the clip."""

    stage: int  # 1 or 2: which of the variant's models
    given: tuple[float, ...]
    made: tuple[float, ...]


def windows(name: str, seconds: float) -> list[Window]:
    """The sequences by which a variant makes a clip of so many seconds at FPS, in the order of the models.

    Windows of one stage may reach beyond the clip's end, which is cut off.
    """
    make = find_variant(name).make
    if isinstance(make, partial):
        return _one_stage(seconds, make.keywords["overlap"])
    span = FIXED_SPAN if make is pieces else seconds
    return [window for begin in np.arange(0, seconds, span) for window in _hierarchy(float(begin), span)]


def _one_stage(seconds: float, overlap: int) -> list[Window]:
    found, frames = [], 1
    while frames < round(seconds * FPS) + 1:
        first = max(0, frames - overlap)
        times = tuple((first + i) / FPS for i in range(FRAMES))
        found.append(Window(1, times[: frames - first], times[frames - first :]))
        frames = first + FRAMES
    return found


def _hierarchy(begin: float, span: float) -> list[Window]:
    """Stage 1's five frames, then rounds of stage 2: from every other one of five frames the two between."""
    times = tuple(begin + np.linspace(0, span, FRAMES))
    found = [Window(1, times[:1], times[1:])]
    while (step := times[1] - times[0]) > 1 / FPS:
        found += [
            Window(2, times[i : i + 3], (times[i] + step / 2, times[i + 1] + step / 2))
            for i in range(0, len(times) - 2, 2)
        ]
        times = tuple(begin + np.linspace(0, span, 2 * len(times) - 1))
    return found


def shown_in_training(name: str, clips: int, duration: float, seed: int = 0) -> np.ndarray:
    """Timestamps [clips,5] (s) of a variant's first stage, for actions that last `duration` seconds."""
    rng = np.random.default_rng(seed)
    drawn = sample_clips(clips, rng)
    drawn.duration[:] = duration
    return clip_times(find_variant(name).stages[0], drawn, rng)[0]
