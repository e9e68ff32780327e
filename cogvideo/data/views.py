"""More views of few clips: of a handful alone a model learns the frames by heart, and nothing that holds.

A view is the same clip through a smaller window that stands still: anywhere in the frame, what lies outside
the centred square as well. Its tokens are others in nearly every place.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from cogvideo.data.reading import Decoded, Size, Timeline
from cogvideo.data.sources import Clip, Dataset
from cogvideo.data.tokenized import group_of, split_groups

ZOOM = 1.5  # at most: a window is as high as the centred one divided by 1 to ZOOM


@dataclass(frozen=True)
class View:
    """A clip through one window, which its name and number choose; see Clip."""

    clip: Clip
    number: int

    @property
    def source(self) -> str:
        return f"{self.clip.source}, view {self.number}"

    @property
    def caption(self) -> str:
        return self.clip.caption

    @property
    def group(self) -> str:
        return self.clip.group

    def timeline(self) -> Timeline:
        return self.clip.timeline()

    def frames(self, timeline: Timeline, wanted: Collection[int], sizes: Sequence[Size]) -> Decoded:
        """As Clip.frames; the window lies in the same place of the frame in every size of one shape."""
        drawn, *at = np.random.default_rng(group_of(self.source)).random(3)
        whole = []
        for height, width in sizes:
            scale = ZOOM**drawn * max(height / timeline.size[0], width / timeline.size[1])
            whole.append((ceil(timeline.size[0] * scale), ceil(timeline.size[1] * scale)))
        found, last = self.clip.frames(timeline, wanted, whole)

        def window(frame: np.ndarray, size: Size) -> np.ndarray:
            top, left = (
                int(x * (side - part + 1)) for x, side, part in zip(at, frame.shape, size, strict=False)
            )
            return frame[top : top + size[0], left : left + size[1]]

        cut = {number: list(map(window, frames, sizes)) for number, frames in found.items()}
        return cut, last


def with_views(dataset: Dataset, views: int, test_share: float) -> Dataset:
    """Each clip that is trained on in `views` ways, the first as it is; those held out as they are.

    test_share: of the groups, divided as training divides their tokens (tokenized.split_groups).
    """
    group = np.array([group_of(clip.group) for clip in dataset.clips])
    trained = set(split_groups(group, test_share)["train"].tolist()) if len(set(group)) > 1 else set()
    clips = []
    for number, clip in enumerate(dataset.clips):
        more = range(1, views) if number in trained else ()
        clips += [clip, *(View(clip, view) for view in more)]
    return replace(dataset, clips=clips)
