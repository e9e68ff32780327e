"""Pictures of the theatre: three layers (background and animal, object, arm), each drawn once and kept.

A scene is painted at 192 x 192 and averaged down by 3 x 3 to 64 x 64; both sizes show the same scene.
`python -m cogvideo.theatre.drawing OUT.png` writes a sheet of all actors, objects and actions.
"""

import sys
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.theatre.animals import ANIMALS, paint_animal, paint_arm
from cogvideo.theatre.canvas import ENLARGEMENT, FRAME_SIZE, Canvas, Sprite
from cogvideo.theatre.motion import TABLE_Y, Look, arm_path, looks
from cogvideo.theatre.props import object_sprite
from cogvideo.theatre.scenes import (
    ACTIONS,
    ACTOR_NAMES,
    ACTORS,
    BACKGROUNDS,
    LAST_STATE,
    OBJECT_NAMES,
    PAIRS,
    STATES,
    Clips,
    sample_clips,
    states,
)

LARGE_SIZE = FRAME_SIZE * ENLARGEMENT
SIZES = (FRAME_SIZE, LARGE_SIZE)
TABLE_EDGE = 56
BACKGROUND_COLORS = {
    "sky": (170, 212, 238),
    "mint": (178, 222, 190),
    "butter": (252, 226, 158),
    "lilac": (216, 196, 234),
}
# The wall is papered above a panel that is the same in every room: where arm and object move, tokens do not
# multiply by the number of backgrounds.
PANEL_EDGE, PANEL, PANEL_RAIL = 24, (236, 222, 202), (250, 243, 230)
TABLE, TABLE_TOP, TABLE_SHADOW = (164, 104, 62), (202, 142, 90), (176, 118, 72)
HEAD_X, HAT_Y = 16, 8


def draw(
    actor: str, action: str, thing: str, state: int, background: str, size: int = FRAME_SIZE
) -> np.ndarray:
    """The picture uint8 [size, size, 3] of one scene, given by English names; size 64 or 192.

    Raises: CogVideoError when the theatre has no such name, pair of action and object, state or size.
    """
    if actor not in ACTORS or background not in BACKGROUNDS or (action, thing) not in PAIRS:
        raise CogVideoError(
            f"No scene of the theatre: {actor!r} {action!r} {thing!r} before {background!r}. "
            f"Choose from scenes.ACTORS, scenes.PAIRS and scenes.BACKGROUNDS."
        )
    if not 0 <= state < STATES:
        raise CogVideoError(f"State {state} does not exist: choose 0 to {LAST_STATE}.")
    return _picture(size)(actor, background, looks(action, thing)[state]).copy()


def render(clips: Clips, times: np.ndarray, size: int = FRAME_SIZE) -> Tensor:
    """Frames of all clips at `times` [n, T] seconds -> float [n, T, 3, size, size] in 0..1; size 64 or 192.

    Raises: CogVideoError when the size is neither.
    """
    shown, picture = states(clips, times), _picture(size)
    frames = np.empty((*shown.shape, size, size, 3), np.uint8)
    for i, row in enumerate(shown):
        actor, background = ACTOR_NAMES[clips.actor[i]], BACKGROUNDS[clips.background[i]]
        path = looks(*PAIRS[clips.pair[i]])
        for t, state in enumerate(row):
            frames[i, t] = picture(actor, background, path[state])
    return rearrange(torch.from_numpy(frames), "n t h w c -> n t c h w").float() / 255


def random_frames(seed: int, n: int, size: int = FRAME_SIZE, *, split: str = "train") -> Tensor:
    """n single frames, each in a random state of its own clip -> float [n, 3, size, size] in 0..1."""
    rng = np.random.default_rng(seed)
    clips = sample_clips(n, rng, split=split)
    part = rng.integers(STATES, size=(n, 1)) / LAST_STATE
    return render(clips, part * clips.duration[:, None], size)[:, 0]


def _picture(size: int) -> Callable[[str, str, Look], np.ndarray]:
    if size not in SIZES:
        raise CogVideoError(f"The theatre is drawn at 64 or 192 pixels, not {size}: choose one of these.")
    return _small if size == FRAME_SIZE else _large


@lru_cache(maxsize=10_000)  # 12 KB each, 123 MB at most
def _small(actor: str, background: str, look: Look) -> np.ndarray:
    rows = _large(actor, background, look).astype(np.uint16)
    columns = rows[::3] + rows[1::3] + rows[2::3]  # several times faster than a reduction over two axes
    total = columns[:, ::3] + columns[:, 1::3] + columns[:, 2::3]
    return ((total + 4) // 9).astype(np.uint8)


@lru_cache(maxsize=500)  # 111 KB each, 55 MB at most
def _large(actor: str, background: str, look: Look) -> np.ndarray:
    frame = _stage(actor, background).copy()
    if look.drawing is not None:
        x, y = _place(actor, look)
        if y == TABLE_Y:
            _shadow().paint_on(frame, x * ENLARGEMENT)
        _object(look.drawing).paint_on(frame, x * ENLARGEMENT, y * ENLARGEMENT)
    _arm(actor, look.arm).paint_on(frame)
    return frame


def _place(actor: str, look: Look) -> tuple[int, int]:
    """Centre of the object; what is worn sits where this animal has its eyes or the top of its head."""
    if not isinstance(look.place, str):
        return look.place
    return HEAD_X, ANIMALS[actor].glasses_y if look.drawing == "glasses" else HAT_Y


@lru_cache
def _stage(actor: str, background: str) -> np.ndarray:
    """Background, animal and table: uint8 [192, 192, 3]."""
    frame = np.empty((LARGE_SIZE, LARGE_SIZE, 3), np.uint8)
    frame[...] = BACKGROUND_COLORS[background]
    canvas = Canvas()
    canvas.polygon([(0, PANEL_EDGE), (64, PANEL_EDGE), (64, 64), (0, 64)], PANEL)
    canvas.polygon([(0, PANEL_EDGE), (64, PANEL_EDGE), (64, PANEL_EDGE + 1), (0, PANEL_EDGE + 1)], PANEL_RAIL)
    paint_animal(canvas, actor)
    edge = TABLE_EDGE
    canvas.polygon([(0, edge), (64, edge), (64, 64), (0, 64)], TABLE)
    canvas.polygon([(0, edge), (64, edge), (64, edge + 2), (0, edge + 2)], TABLE_TOP)
    canvas.polygon([(8, edge), (24, edge), (23, edge + 1), (9, edge + 1)], TABLE_SHADOW)
    canvas.sprite().paint_on(frame)
    return frame


@lru_cache
def _shadow() -> Sprite:
    """Of an object on the table."""
    canvas = Canvas(14)
    canvas.polygon([(-7, 0), (7, 0), (6, 1), (-6, 1)], TABLE_SHADOW)
    return canvas.sprite()._replace(top=TABLE_EDGE * ENLARGEMENT)


@lru_cache
def _object(drawing: str) -> Sprite:
    return object_sprite(drawing)


@lru_cache(maxsize=500)
def _arm(actor: str, pose: int | str) -> Sprite:
    canvas = Canvas()
    paint_arm(canvas, actor, arm_path(pose))
    return canvas.sprite()


def contact_sheet(size: int = FRAME_SIZE, columns: int = 9) -> np.ndarray:
    """All actors and objects, then one row an action with 9 of its 17 states: uint8 [height, width, 3]."""
    walls = [BACKGROUNDS[i % len(BACKGROUNDS)] for i in range(len(OBJECT_NAMES))]
    tiles = [draw(actor, "rings", "bell", 0, walls[i], size) for i, actor in enumerate(ACTORS)]
    for i, thing in enumerate(OBJECT_NAMES[:-1]):  # the last, the bell, stands before every actor
        action = next(action for action, known in PAIRS if known == thing)
        tiles.append(draw(ACTOR_NAMES[i % len(ACTORS)], action, thing, 0, walls[i], size))
    for i, (action, (_, things)) in enumerate(ACTIONS.items()):
        actor, thing = ACTOR_NAMES[i * 5 % len(ACTORS)], things[i % len(things)]
        tiles += [draw(actor, action, thing, state, walls[i], size) for state in range(0, STATES, 2)]
    return rearrange(np.stack(tiles), "(r c) h w k -> (r h) (c w) k", c=columns)


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit("Say where the sheet goes: python -m cogvideo.theatre.drawing OUT.png")
    Image.fromarray(contact_sheet(LARGE_SIZE)).save(sys.argv[1])


if __name__ == "__main__":
    main()
