"""How often could a perfectly trained variant get the phases right? What no budget mends.

A model that goes on from the last frames of a clip knows the sentence and what these frames show. Trained
perfectly, it draws the next frames from the moments of the action that look so: states look alike (a ball
that goes up, or comes down), a slow action holds a state for several frames, and an action that is over may
look as before it began. What cannot be known from the frames is drawn by chance. No weights are involved:
the theatre's drawings decide what looks alike.
"""

from functools import partial

import numpy as np

from cogvideo.theatre.batches import FIXED_SPAN, FRAMES
from cogvideo.theatre.motion import looks
from cogvideo.theatre.questions import draw_questions
from cogvideo.theatre.scenes import FPS, STATES, Clips, states
from cogvideo.theatre.scores import forward, near
from cogvideo.theatre.variants import find_variant, pieces


def order_at_best(name: str, duration: float, n: int = 400, seed: int = 0) -> float:
    """Part (0..1) of n clips of actions of `duration` seconds whose five key moments are in order.

    As `score_clips` scores it, for a variant whose models have nothing left to learn.
    """
    clips = draw_questions(4 * n, seed, parts=False).clips
    clips = clips[np.flatnonzero(clips.duration == duration)[:n]]
    rng = np.random.default_rng(seed)
    shown = np.array([_shown(name, clips[[i]], rng) for i in range(len(clips))])
    truth = states(clips, np.linspace(0, clips.duration, FRAMES, axis=1))
    return float(forward(near(shown, truth)).mean())


def _shown(name: str, clip: Clips, rng: np.random.Generator) -> np.ndarray:
    """The states that the five key frames of one ideal clip can show: bool [5, 17]."""
    make, last = find_variant(name).make, round(float(clip.duration[0]) * FPS)
    _, action, thing = clip.names(0)
    kinds = {look: number for number, look in enumerate(dict.fromkeys(looks(action, thing)))}
    by_state = np.array([kinds[look] for look in looks(action, thing)])
    # What each frame shows if all goes well; windows of training reach beyond the end of the action.
    right = by_state[states(clip, np.arange(last + FRAMES)[None] / FPS)[0]]
    if isinstance(make, partial):
        drawn = _go_on(right, np.arange(last + 1), make.keywords["overlap"], FRAMES - 1, last, rng)
    elif make is pieces:
        step = round(FIXED_SPAN * FPS)
        drawn = _go_on(right, np.arange(0, last, step), 1, step, last, rng)
    else:
        drawn = right  # the key frames span the action, and their numbers say when they are
    keys = drawn[np.linspace(0, last, FRAMES).round().astype(int)]
    return keys[:, None] == by_state[None, :STATES]


def _go_on(
    right: np.ndarray, starts: np.ndarray, overlap: int, length: int, last: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw looks up to frame `last`, in windows of length + 1 frames that begin at any of `starts` that fits.

    Where none fits, the action seems to be over: the last look stays.
    """
    drawn = list(right[:1])
    while len(drawn) <= last:
        given = drawn[-overlap:]
        fits = [s for s in starts if list(right[s : s + len(given)]) == given]
        if fits:
            start = rng.choice(fits)
            drawn += list(right[start + len(given) : start + length + 1])
        else:
            drawn += drawn[-1:] * length
    return np.array(drawn)
