"""Views of clips: the same clip through a window of its own, of clips that are trained on alone."""

from pathlib import Path

import numpy as np
import pytest

from cogvideo.data.reading import fit
from cogvideo.data.sources import Dataset, FileClip
from cogvideo.data.tokenized import group_of, split_groups
from cogvideo.data.video import write_video
from cogvideo.data.views import ZOOM, View, with_views


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> FileClip:
    """Nine frames of 96 x 160 whose red tells the column, green the row, and blue the time."""
    path = tmp_path_factory.mktemp("views") / "wide.mp4"
    pixels = np.zeros((9, 96, 160, 3), np.uint8)
    pixels[..., 0] = np.linspace(20, 230, 160)
    pixels[..., 1] = np.linspace(20, 230, 96)[:, None]
    pixels[..., 2] = np.linspace(60, 180, 9)[:, None, None]
    write_video(path, pixels, fps=8)
    return FileClip("wide.mp4", path, "colours", "wide")


def window(frame: np.ndarray) -> tuple[float, float, float]:
    """Where a frame's window lies by its colours: top and left in the whole frame's, and its height."""
    rows, columns = frame[..., 1].mean(1), frame[..., 0].mean(0)
    top, bottom = (float(x - 20) / 210 for x in (rows[0], rows[-1]))
    return top, float(columns[0] - 20) / 210, bottom - top


def test_a_window_stands_still_and_lies_within_the_frame(wide):
    timeline, found = wide.timeline(), []
    for number in range(1, 9):
        frames, last = View(wide, number).frames(timeline, [0, 4, 8], [(48, 48)])
        assert last == wide.frames(timeline, [0, 4, 8], [(48, 48)])[1]
        windows = [window(frames[time][0]) for time in (0, 4, 8)]
        assert np.ptp(windows, axis=0).max() < 0.03
        assert frames[8][0][..., 2].mean() > frames[0][0][..., 2].mean() + 60  # another moment each
        found.append(windows[0])
    tops, lefts, heights = np.array(found).T
    assert (heights > 1 / ZOOM - 0.05).all() and (heights < 1.01).all()
    assert np.ptp(heights) > 0.1 and np.ptp(tops) > 0.05
    # The centred square begins at a fifth of the width: views show what lies beside it, too.
    assert lefts.min() < 0.15 and lefts.max() > 0.25


def test_sizes_show_one_place_and_a_view_is_always_the_same(wide):
    timeline, view = wide.timeline(), View(wide, 3)
    small, large = view.frames(timeline, [2], [(32, 32), (96, 96)])[0][2]
    assert small.shape == (32, 32, 3) and large.shape == (96, 96, 3)
    assert np.abs(fit(large[None], 32, 32)[0].astype(int) - small).mean() < 3
    again = View(wide, 3).frames(timeline, [2], [(32, 32)])[0][2][0]
    assert (again == small).all()
    assert (view.caption, view.group, view.source) == ("colours", "wide", "wide.mp4, view 3")


def test_what_is_held_out_has_no_views():
    clips = [FileClip(f"{n}.mp4", Path(f"{n}.mp4"), "a clip", f"moment {n // 2}") for n in range(20)]
    given = with_views(Dataset("clips", clips, []), 3, 0.2)
    assert [clip for clip in given.clips if isinstance(clip, FileClip)] == clips
    # Divided as a training divides their tokens.
    groups = np.array([group_of(clip.group) for clip in given.clips])
    held = [given.clips[at] for at in split_groups(groups, 0.2)["test"]]
    assert len(held) == 4 and not any(isinstance(clip, View) for clip in held)
    assert len(given.clips) == 4 + 3 * 16
    alone = Dataset("one", clips[:2], [])  # of one group: it is trained on and tested with
    assert with_views(alone, 3, 0.2).clips == clips[:2]
