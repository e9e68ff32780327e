"""What the judge's readings say about a clip and its sentence: each score, its meaning and its target."""

import numpy as np
from torch import Tensor

from cogvideo.theatre.judge import Judge
from cogvideo.theatre.scenes import LAST_STATE, STATES, Clips, states

PART_TOLERANCE = 0.15
LABELS = {
    "actor": "actor",
    "object": "object",
    "background": "background steady",
    "same": "same throughout",
    "order": "order of phases",
    "part": "part (frame rate)",
    "whole clip": "whole clip",
    "frames": "frames of whole clips",
    "forward": "never backwards",
    "readable": "no torn frame",
    "same, whole clip": "same, whole clip",
}
MEANINGS = {
    "actor": "The first and most of the five key frames show the animal of the sentence.",
    "object": "The first and most of the five key frames show the object of the sentence; eaten food "
    "counts as shown.",
    "background": "All key frames are readable and have the same wall; the sentence names none.",
    "same": "All key frames are readable and show one animal, one object and one wall, whichever they are.",
    "order": "Every key frame shows the sentence's action, with any of its objects, within one of the "
    "16 steps of where it should be at that time, and none runs backwards.",
    "part": "Under a frame-rate text of 4, 2, 1 or 0.5 s, the last of five frames shows the part of "
    "the action that fits into that time, within 0.15 of the action.",
    "whole clip": "In the interpolated clip at 8 frames a second, every frame is readable and within one "
    "step of where the action should be, and none runs backwards.",
    "frames": "Single frames of the interpolated clips that are readable and within one step of where "
    "the action should be.",
    "forward": "The interpolated clip shows the action and never runs backwards, at whatever pace; "
    "unreadable frames are skipped, but most must be readable.",
    "readable": "Every frame of the interpolated clip is near one of the theatre's pictures in each of "
    "its 64 patches.",
    "same, whole clip": "As 'same', for all frames of the interpolated clip.",
}
TARGETS = {
    "seen": {"actor": 0.99, "object": 0.97, "same": 0.93, "order": 0.90, "part": 0.90, "whole clip": 0.85},
    "unseen": {"order": 0.85},
    "picture-only": {"actor": 0.90, "order": 0.75},
}


def score_key_frames(
    frames: np.ndarray | Tensor, clips: Clips, spans: float | np.ndarray, *, judge: Judge | None = None
) -> dict[str, np.ndarray]:
    """Score clips [n, T, H, W, 3] (uint8, or floats in 0..1) whose T frames span `spans` seconds.

    spans: a number or n.
    Returns arrays [n]: booleans "actor", "object", "background", "same", "order" and "part" (see MEANINGS),
    and "shown" and "expected", the parts of the action that the last frame shows (NaN where it shows none)
    and that it should show.
    Raises: CogVideoError for frames of another form.
    """
    seen = (judge or Judge()).read(frames)
    n, length = seen.look.shape
    spans = np.broadcast_to(spans, n)
    shown = seen.states(clips.action)
    at_place = near(shown, states(clips, np.linspace(0, spans, length, axis=1)))
    ratio = spans / clips.duration
    expected, part = np.minimum(1, ratio), part_shown(shown, ratio)
    actor = (seen.actor == clips.actor[:, None]) & seen.readable
    thing = seen.objects[np.arange(n), :, clips.object]
    return {
        "actor": _first_and_most(actor),
        "object": _first_and_most(thing),
        "background": _steady(seen.background) & seen.readable.all(1),
        "same": _steady(seen.background) & _steady(seen.actor) & seen.objects.all(1).any(-1),
        "order": forward(at_place),
        "part": abs(part - expected) <= PART_TOLERANCE,
        "shown": part,
        "expected": expected,
    }


def score_whole_clips(
    frames: np.ndarray | Tensor, clips: Clips, seconds: float, *, judge: Judge | None = None
) -> dict[str, np.ndarray]:
    """Score interpolated clips [n, T, H, W, 3] of `seconds`: booleans [n], but "frames" is [n, T]."""
    seen = (judge or Judge()).read(frames)
    n, length = seen.look.shape
    shown = seen.states(clips.action)
    at_place = near(shown, states(clips, np.tile(np.linspace(0, seconds, length), (n, 1))))
    return {
        "whole clip": forward(at_place),
        "frames": np.any(at_place, axis=-1),
        "forward": forward(shown | ~seen.readable[..., None]) & (seen.readable.mean(1) > 0.5),
        "readable": np.all(seen.readable, axis=1),
        "same, whole clip": _steady(seen.background) & _steady(seen.actor) & seen.objects.all(1).any(-1),
    }


def _first_and_most(right: np.ndarray) -> np.ndarray:
    return right[:, 0] & (right.mean(1) > 0.5)


def _steady(values: np.ndarray) -> np.ndarray:
    return np.all(values == values[:, :1], axis=1)


def forward(shown: np.ndarray) -> np.ndarray:
    """Bool [n]: of the states that frames can show, [n, T, 17], some can be chosen that never run back."""
    reached = np.zeros(len(shown), int)  # the least state that is possible so far
    ahead = np.arange(STATES)
    for t in range(shown.shape[1]):
        possible = shown[:, t] & (ahead >= reached[:, None])
        reached = np.where(possible.any(1), possible.argmax(1), STATES)
    return reached < STATES


def near(shown: np.ndarray, truth: np.ndarray, steps: int = 1) -> np.ndarray:
    """Of the states that frames can show, bool [n, T, 17], those within `steps` of the truth [n, T]."""
    return shown & (abs(np.arange(STATES) - truth[..., None]) <= steps)


def part_shown(shown: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The part 0..1 of the action that the last frame shows [n]; NaN where it shows nothing of the action.

    shown: bool [n, T, 17], the states that frames at even times can show. expected [n]: span / duration.
    States that look alike are told apart by the frames before: the part counts at which an even pace agrees
    with most frames (within one state), of equal ones that nearest to what is expected. Beyond the whole
    action only the expected pace is tried.
    """
    part = np.full(len(shown), np.nan)
    for i, (seen, ratio) in enumerate(zip(shown, expected, strict=True)):
        paces = np.append(np.arange(STATES) / LAST_STATE, ratio if ratio > 1 else [])
        path = np.minimum(1, paces[:, None] * np.linspace(0, 1, len(seen)))
        truth = np.floor(LAST_STATE * path + 1e-6).astype(int)  # [paces, T]
        agrees = near(seen[None], truth).any(-1).sum(1)
        ends = seen[-1, truth[:, -1]]
        if ends.any():
            reached = np.minimum(1, paces)
            best = np.lexsort((abs(reached - min(1, ratio)), -agrees, ~ends))[0]
            part[i] = reached[best]
    return part
