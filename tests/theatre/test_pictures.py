"""The README's pictures, of real clips instead of generated ones."""

from pathlib import Path

import numpy as np
from PIL import Image

from cogvideo.data.video import Video
from cogvideo.theatre.drawing import draw
from cogvideo.theatre.pictures import (
    COLUMNS,
    GAP,
    LINE,
    SCENES,
    SECONDS,
    front_end_hash,
    grid,
    save_loop,
    sheet,
)
from cogvideo.theatre.scenes import ACTIONS, LAST_STATE, caption


def videos() -> list[Video]:
    made = []
    for actor, action, thing, *_ in SCENES:
        frames = [draw(actor, action, thing, min(i, LAST_STATE), "sky", 192) for i in range(33)]
        made.append(Video(np.stack(frames), 8.0))
    return made


def test_all_actions_are_shown_and_every_sentence_can_be_said():
    assert {action for _, action, *_ in SCENES} == set(ACTIONS)
    assert len({caption(*scene) for scene in SCENES}) == 8
    assert any(scene[4] == "zh" for scene in SCENES) and {scene[3] for scene in SCENES} == {SECONDS}


def test_the_sheet_has_a_row_of_six_moments_for_each_clip():
    page = np.array(sheet([("a label", video) for video in videos()]))
    assert page.shape == (8 * (192 + LINE + GAP), 6 * 192 + 5 * GAP, 3)
    second = page[192 + LINE + GAP :][LINE : LINE + 192]
    frames = videos()[1].frames
    assert (second[:, :192] == frames[0]).all() and (second[:, -192:] == frames[-1]).all()


def test_the_loop_plays_all_clips_within_three_megabytes(tmp_path):
    frames = grid(videos())
    assert frames.shape == (33, 2 * 192 + GAP, COLUMNS * 192 + (COLUMNS - 1) * GAP, 3)
    assert (frames[5, -192:, -192:] == videos()[-1].frames[5]).all()
    path = save_loop(tmp_path / "demo.webp", frames, 8.0)
    assert path.stat().st_size < 3e6
    with Image.open(path) as loop:
        assert loop.n_frames >= 17 and loop.info["loop"] == 0 and loop.size == frames.shape[2:0:-1]


def test_the_picture_of_the_explorer_is_of_its_present_front_end():
    """Otherwise: make pictures."""
    with Image.open(Path(__file__).parents[2] / "docs" / "explorer.png") as picture:
        assert picture.info["front end"] == front_end_hash()
        assert picture.width >= 1280
