"""Test sentences that are put to a model of the theatre, balanced over what may matter."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
from einops import rearrange
from torch import Tensor

from cogvideo.theatre.drawing import render
from cogvideo.theatre.scenes import (
    ACTION_NAMES,
    BACKGROUNDS,
    DURATIONS,
    PICTURE_ONLY_ACTORS,
    PICTURE_ONLY_OBJECTS,
    Clips,
    groups,
)

FRAMES = 5  # key frames
PART_SPANS = (4.0, 2.0, 1.0, 0.5)  # seconds
GROUPS = ("seen", "unseen", "picture-only")


@dataclass(frozen=True)
class Questions:
    """n clips of a group: what to ask for, and how the model's answers are told apart."""

    clips: Clips
    spans: np.ndarray  # [n] seconds that the key frames span
    languages: np.ndarray  # [n] "en" or "zh"
    seeds: np.ndarray  # [n] of the model's random numbers, so that answers are independent

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, rows) -> "Questions":
        return Questions(self.clips[rows], self.spans[rows], self.languages[rows], self.seeds[rows])

    def __add__(self, other: "Questions") -> "Questions":
        def joined(one: object, two: object, names: Iterable[str]) -> list[np.ndarray]:
            return [np.concatenate([getattr(one, name), getattr(two, name)]) for name in names]

        clips = Clips(*joined(self.clips, other.clips, (field.name for field in fields(Clips))))
        return Questions(clips, *joined(self, other, ("spans", "languages", "seeds")))

    @property
    def prompts(self) -> list[str]:
        return [self.clips.caption(i, language) for i, language in enumerate(self.languages)]

    def times(self, num_frames: int = FRAMES) -> np.ndarray:
        """Seconds [n, T] of the frames."""
        return np.linspace(0, self.spans, num_frames, axis=1)

    def real_frames(self, num_frames: int = FRAMES) -> Tensor:
        """The clips themselves as the theatre draws them, float [n, T, 64, 64, 3] in 0..1."""
        return rearrange(render(self.clips, self.times(num_frames)), "n t c h w -> n t h w c")

    @cached_property
    def kinds(self) -> dict[str, np.ndarray]:
        """Names [n] by which answers are told apart."""
        names = [self.clips.names(i) for i in range(len(self))]
        pictured = [
            (actor in PICTURE_ONLY_ACTORS, thing in PICTURE_ONLY_OBJECTS) for actor, _, thing in names
        ]
        which = {(0, 0): "neither", (1, 0): "actor", (0, 1): "object", (1, 1): "both"}
        return {
            "action": np.array([action for _, action, _ in names]),
            "actor": np.array([actor for actor, _, _ in names]),
            "object": np.array([thing for _, _, thing in names]),
            "duration": np.array([f"{d:g} s" for d in self.clips.duration]),
            "language": self.languages,
            "only in pictures": np.array([which[pair] for pair in pictured]),
            "part that fits": np.array([f"{min(1, r):.3g}" for r in self.spans / self.clips.duration]),
        }


def draw_questions(n: int, seed: int, *, parts: bool, group: str = "seen") -> Questions:
    """n questions of a group, balanced over actions, durations, languages and (if `parts`) spans."""
    rng = np.random.default_rng([seed, parts, GROUPS.index(group)])
    combinations = np.argwhere(groups() == group)
    actions = Clips(*combinations.T, *np.zeros((2, len(combinations)), int)).action
    wanted = rng.permutation(np.resize(rng.permutation(len(ACTION_NAMES)), n))
    chosen = np.zeros(n, int)
    for action in range(len(ACTION_NAMES)):
        rows, known = np.flatnonzero(wanted == action), rng.permutation(np.flatnonzero(actions == action))
        chosen[rows] = np.resize(known, len(rows))  # every combination as often as every other
    actor, pair = combinations[chosen].T
    background, duration, languages, spans = (
        rng.permutation(np.resize(values, n))
        for values in (range(len(BACKGROUNDS)), DURATIONS, ["en", "zh"], PART_SPANS)
    )
    clips = Clips(actor, pair, background, duration)
    whole = np.array([clips.span(i) for i in range(n)])
    return Questions(clips, spans if parts else whole, languages, rng.integers(2**31, size=n))
