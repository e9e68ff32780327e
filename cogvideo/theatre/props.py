"""The sixteen objects and their stages: levels of a drink, bites, the swing of a bell.

Lengths are in pixels of the 64 x 64 frame. An object fills a box of 16 x 16 around (0, 0): two by two tokens.
"""

from collections.abc import Callable

import numpy as np

from cogvideo.theatre.canvas import Canvas, Sprite

HALF = 14  # half a canvas: straws, brims and tilted things stick out of the box of 16
WHITE, DARK = (255, 252, 245), (52, 40, 42)
GLASS, RIM = (156, 200, 226), (98, 152, 192)
RED, YELLOW, BLUE, GREEN = (222, 56, 48), (250, 200, 46), (52, 104, 196), (66, 150, 84)
GOLD, AMBER, BROWN = (250, 190, 40), (206, 138, 24), (120, 72, 44)
TILT = -50.0  # degrees of a glass that is drunk from; one angle, so that only the level changes
# Half width at the top and at the bottom, top, bottom, what is in it, thickness of the wall.
VESSELS = {
    "milk": (5.2, 4.2, -5.4, 7.8, WHITE, 1.1),
    "tea": (5.6, 4.4, -3, 7.8, (158, 84, 36), 1.4),
    "juice": (4.2, 3.7, -4.6, 7.8, (250, 148, 30), 1.0),
}
SWING = {"": 0.0, "left 1": 16.0, "left 2": 34.0, "right 1": -16.0, "right 2": -34.0}


def object_sprite(drawing: str) -> Sprite:
    """The sprite of a drawing as `motion.Look` names it: an object, and its level, bites, tilt or swing."""
    thing, _, stage = drawing.partition(" ")
    if thing in VESSELS:
        return _vessel(thing, int(stage[0]), stage.endswith("tilted"))
    if thing in FOOD:
        canvas = Canvas(HALF)
        FOOD[thing](canvas)
        _bite(canvas, int(stage))
        return canvas.sprite()
    if thing == "bell":
        return _bell(stage)
    canvas = Canvas(HALF)
    THINGS[thing](canvas)
    return canvas.sprite()


def _vessel(thing: str, quarters: int, tilted: bool) -> Sprite:
    """A glass or cup filled to so many quarters; tilted, it pours to the left and its level stays flat."""
    wide, narrow, top, bottom, liquid, wall = VESSELS[thing]
    degrees = TILT if tilted else 0.0
    middle = (top + bottom) / 2
    canvas = Canvas(HALF, degrees=degrees, pivot=(0, middle), shift=(0, -middle if tilted else 0))
    outside, inside = (WHITE, (226, 214, 204)) if thing == "tea" else (RIM, GLASS)
    if thing == "tea":
        canvas.ellipse(5.4, 2, 2.6, 3.2, outside)
        canvas.ellipse(5.4, 2, 1.2, 1.8, inside)
    if thing == "juice":
        canvas.line([(0, 4), (2, -6.6), (4.2, -6.8)], 1.4, RED)
    canvas.polygon([(-wide, top), (wide, top), (narrow, bottom), (-narrow, bottom)], outside)
    hollow = [
        (-wide + wall, top),
        (wide - wall, top),
        (narrow - wall, bottom - wall),
        (-narrow + wall, bottom - wall),
    ]
    canvas.polygon(hollow, inside)
    if quarters:
        part = _below_level(np.array(hollow), quarters / 4 * 0.86, degrees)
        canvas.polygon(part, liquid)
    return canvas.sprite()


def _below_level(outline: np.ndarray, share: float, degrees: float) -> np.ndarray:
    """The lower part [m, 2] of a convex outline [n, 2] that holds `share` of its area when turned."""
    angle = np.deg2rad(degrees)
    down = np.array([np.sin(angle), np.cos(angle)])  # of the turned vessel, in its own coordinates
    low, high = (outline @ down).min(), (outline @ down).max()
    for _ in range(30):
        level = (low + high) / 2
        if _area(_clip(outline, down, level)) > share * _area(outline):
            low = level
        else:
            high = level
    return _clip(outline, down, low)


def _clip(outline: np.ndarray, down: np.ndarray, level: float) -> np.ndarray:
    """The part [m, 2] of a convex outline [n, 2] that lies at or below `level` along `down` [2]."""
    points = []
    for a, b in zip(outline, np.roll(outline, -1, 0), strict=True):
        da, db = a @ down - level, b @ down - level
        if da >= 0:
            points.append(a)
        if da * db < 0:
            points.append(a + (b - a) * da / (da - db))
    return np.array(points)


def _area(points: np.ndarray) -> float:
    """Area inside an outline [n, 2]."""
    if len(points) < 3:
        return 0.0
    x, y = points.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _bite(canvas: Canvas, bites: int) -> None:
    """Bite from the left, with the marks of teeth: one third is gone after one bite, two thirds after two."""
    if bites:
        edge = -2.6 if bites == 1 else 2.4
        marks = ((-2, -14), (-1, -7), (1.6, -4.4), (-0.6, -1.6), (1.6, 1.6), (-0.6, 4.4), (1, 8), (-2, 13))
        canvas.erase([(-14, -14), *((edge + x, y) for x, y in marks), (-14, 13)])


def _apple(c: Canvas) -> None:
    c.blob([(0, -4.8), (4.6, -6), (7.3, -1.6), (5.5, 4.8), (2.4, 7.5), (0, 7), (-2.4, 7.5),
        (-5.5, 4.8), (-7.3, -1.6), (-4.6, -6)], RED)  # fmt: skip
    c.curve([(0, -4.4), (0.4, -6), (1.2, -7)], 1.3, BROWN)
    c.ellipse(3.6, -6.2, 2.5, 1.3, GREEN, -16)
    c.ellipse(-4, -2, 1.2, 2, (246, 132, 116), 18)


def _banana(c: Canvas) -> None:
    c.blob([(-7, -1.6), (-4, 2), (0, 3), (4, 1), (5.6, -5), (7, -5), (7.4, 1), (3.8, 6.8),
        (-2, 7.8), (-6.4, 4.4), (-7.8, -0.6)], YELLOW)  # fmt: skip
    c.curve([(-5.6, 3.4), (-1, 5.6), (3.4, 4), (6.4, -1)], 0.8, (226, 164, 24))
    c.line([(6.3, -4.8), (6.6, -7)], 1.6, BROWN)
    c.circle(-7, -1, 0.9, BROWN)


def _cake(c: Canvas) -> None:
    c.polygon([(-7.7, 1.6), (7.7, 1.6), (7.7, 7.9), (-7.7, 7.9)], (250, 220, 160))
    c.box(-7.7, 4, 7.7, 5.6, 0, (206, 74, 104))
    c.polygon([(-7.7, 2.4), (-7.7, 0), (7.7, -5), (7.7, 2.4)], (250, 150, 178))
    for x in (-5.6, -1.8, 2, 5.8):
        c.ellipse(x, 2.2, 1.9, 1.7, (250, 150, 178))
    c.circle(3.2, -5.4, 2.4, RED)


def _ball(c: Canvas) -> None:
    c.circle(0, 0.4, 7.3, BLUE)
    c.blob([(-1.6, -6.6), (1.6, -6.6), (3.2, 0.4), (1.6, 7.4), (-1.6, 7.4), (-3.2, 0.4)], WHITE)
    c.blob([(-7, -1.2), (-3, -1.2), (3, -1.2), (7, -1.2), (7.1, 0.4), (7, 2), (3, 2), (-3, 2),
        (-7, 2), (-7.1, 0.4)], WHITE)  # fmt: skip
    c.circle(0, 0.4, 2, RED)


def _orange(c: Canvas) -> None:
    c.circle(0, 0.8, 7, (246, 132, 26))
    c.ellipse(-3, -2.4, 1.8, 1.3, (255, 186, 96), -35)
    c.ellipse(2.6, -6, 3, 1.5, GREEN, -18)
    c.circle(0, -5.4, 0.9, BROWN)


def _teddy(c: Canvas) -> None:
    fur, light = (178, 122, 76), (240, 208, 160)
    for side in (-1, 1):
        c.circle(3.9 * side, -5.8, 2.1, fur)
        c.ellipse(5 * side, 2, 1.9, 2.6, fur, -30 * side)
        c.ellipse(3.6 * side, 6.1, 2.4, 1.7, fur)
    c.ellipse(0, 3.2, 4.4, 4.4, fur)
    c.ellipse(0, -3.2, 5.2, 4.6, fur)
    c.ellipse(0, -1.6, 2.4, 1.9, light)
    c.circle(0, -2.4, 0.8, DARK)
    for side in (-1, 1):
        c.circle(2.3 * side, -4.2, 0.75, DARK)
    c.ellipse(0, 4.2, 2.4, 2.6, light)
    c.box(-4, 0.6, 4, 2.2, 0.8, RED)


def _hat(c: Canvas) -> None:
    c.box(-5, -6, 5, 8, 2.2, (204, 52, 62))
    c.box(-5, 2, 5, 5, 0, (255, 224, 150))
    c.box(-7.8, 5, 7.8, 7.9, 1.4, (168, 34, 50))


def _crown(c: Canvas) -> None:
    c.polygon([(-6.6, 8), (-7, -2.4), (-3.6, 1.6), (0, -5.6), (3.6, 1.6), (7, -2.4), (6.6, 7.9)], GOLD)
    for x, y in ((-6.4, -3), (0, -6.2), (6.4, -3)):
        c.circle(x, y, 1.4, RED)
    c.box(-6.8, 5.2, 6.8, 7.9, 0.4, AMBER)
    for x, color in ((-4.4, BLUE), (0, RED), (4.4, BLUE)):
        c.circle(x, 6.6, 1, color)


def _glasses(c: Canvas) -> None:
    frame, lens = (38, 34, 44), (84, 66, 120)
    for side in (-1, 1):
        c.blob([(0.8 * side, 2.6), (4.6 * side, 2.1), (7.7 * side, 2.8), (7.4 * side, 6.4),
            (4.8 * side, 8), (1.8 * side, 6.6)], frame)  # fmt: skip
        c.blob([(2.1 * side, 4), (4.6 * side, 3.5), (6.6 * side, 4), (6.2 * side, 5.8),
            (4.8 * side, 6.6), (2.8 * side, 5.8)], lens)  # fmt: skip
    c.box(-3, 2.8, 3, 4.4, 0.6, frame)


def _car(c: Canvas) -> None:
    c.blob([(-5, 1), (-3.4, -4), (3, -4.2), (5.6, 1), (2, 3), (-2, 3)], RED)
    c.polygon([(-3.6, 0.8), (-2.4, -2.6), (-0.5, -2.6), (-0.5, 0.8)], GLASS)
    c.polygon([(0.6, 0.8), (0.6, -2.6), (2.4, -2.6), (4, 0.8)], GLASS)
    c.box(-7.6, 0.4, 7.6, 5.8, 1.8, RED)
    c.circle(6.7, 2.6, 0.9, YELLOW)
    for x in (-4.2, 4.2):
        c.circle(x, 5.6, 2.4, DARK)
        c.circle(x, 5.6, 1, WHITE)


def _train(c: Canvas) -> None:
    dark = (40, 104, 66)
    c.box(3.4, -4, 5.6, 0, 0, dark)
    c.box(2.6, -5, 6.4, -3.2, 0.4, YELLOW)
    c.box(-2, -1, 7.4, 5, 1.4, GREEN)
    c.box(-7.4, -6, -0.6, 5, 0.6, GREEN)
    c.box(-7.8, -7.2, 0, -5.4, 0.4, dark)
    c.box(-6, -4, -2, -0.4, 0.3, GLASS)
    c.box(-7.6, 3.4, 7.6, 5.4, 0.4, RED)
    for x, r in ((-4.6, 2.6), (1.2, 2), (5.4, 2)):
        c.circle(x, 8 - r, r, DARK)
        c.circle(x, 8 - r, r * 0.42, YELLOW)


def _boat(c: Canvas) -> None:
    c.box(-0.7, -7.8, 0.7, 4, 0, BROWN)
    c.polygon([(1.2, -7.6), (7.4, 2), (1.2, 2)], WHITE)
    c.polygon([(-1.2, -5), (-6, 2), (-1.2, 2)], (70, 138, 224))
    c.blob([(-7.6, 3.2), (0, 3.4), (7.6, 3.2), (5.4, 7.2), (0, 7.8), (-5.4, 7.2)], BLUE)
    c.line([(-6.6, 4.6), (6.6, 4.6)], 0.9, WHITE)


def _bell(stage: str) -> Sprite:
    """A hand bell; it swings around its handle, and the clapper lags behind."""
    degrees = SWING[stage]
    c = Canvas(HALF, degrees=degrees, pivot=(0, -8))
    lag = np.sign(degrees) * 2.2
    c.circle(lag, 6.3, 1.5, AMBER)
    c.blob([(-3.4, -2.6), (0, -4), (3.4, -2.6), (4.6, 2), (7, 5.8), (0, 6.6), (-7, 5.8), (-4.6, 2)], GOLD)
    c.box(-7.4, 4.8, 7.4, 6.6, 0.8, AMBER)
    c.ellipse(-2.2, 0.4, 0.9, 2.4, (255, 230, 140), 12)
    c.box(-1.5, -7.8, 1.5, -3, 1.2, BROWN)
    return c.sprite()


FOOD: dict[str, Callable[[Canvas], None]] = {"apple": _apple, "banana": _banana, "cake": _cake}
THINGS: dict[str, Callable[[Canvas], None]] = {
    "ball": _ball,
    "orange": _orange,
    "teddy": _teddy,
    "hat": _hat,
    "crown": _crown,
    "glasses": _glasses,
    "car": _car,
    "train": _train,
    "boat": _boat,
}
