"""The twelve animals: head and body behind the table, and the arm in front of them.

Lengths are in pixels of the 64 x 64 frame. Every head is centred at x = 16 and has its mouth near (16, 31):
all animals drink, eat and wear in the same way.
"""

from collections.abc import Callable
from typing import NamedTuple

from cogvideo.theatre.canvas import Canvas, Color

DARK, WHITE, CREAM = (52, 40, 42), (255, 252, 245), (255, 238, 208)
PINK = (244, 150, 160)


class Animal(NamedTuple):
    """How an animal's head is drawn, its colours, and where glasses sit."""

    head: Callable[[Canvas], None]
    body: Color
    belly: Color
    arm: Color
    paw: Color
    glasses_y: int = 16  # centre of worn glasses


def _eyes(c: Canvas, y: float = 22, apart: float = 5) -> None:
    """Two dark eyes with a glint, so far from the middle."""
    for x in (16 - apart, 16 + apart):
        c.circle(x, y, 1.6, DARK)
        c.circle(x + 0.5, y - 0.55, 0.576, WHITE)


def _both(c: Canvas, x: float, y: float, rx: float, ry: float, color: Color, degrees: float = 0) -> None:
    """An ellipse at x right of the middle, and its mirror image."""
    c.ellipse(16 + x, y, rx, ry, color, degrees)
    c.ellipse(16 - x, y, rx, ry, color, -degrees)


def _mirror(c: Canvas, points, color: Color) -> None:
    """A smooth shape right of the middle (x counts from it), and its mirror image."""
    c.blob([(16 + x, y) for x, y in points], color)
    c.blob([(16 - x, y) for x, y in points], color)


def _ears(c: Canvas, points, color: Color) -> None:
    """Pointed ears: polygons right of the middle (x counts from it), and their mirror images."""
    c.polygon([(16 + x, y) for x, y in points], color)
    c.polygon([(16 - x, y) for x, y in points], color)


def _smile(c: Canvas, y: float, width: float = 2.4) -> None:
    """A mouth like a flat w."""
    for side in (-1, 1):
        c.curve([(16, y), (16 + side * width / 2, y + 1), (16 + side * width, y + 0.3)], 0.7, DARK)


def _whiskers(c: Canvas, y: float, color: Color) -> None:
    for side in (-1, 1):
        for dy in (-1, 1):
            c.line([(16 + side * 7, y + dy * 0.6), (16 + side * 13.2, y + dy * 2)], 0.5, color)


def _lion(c: Canvas) -> None:
    mane, face = (150, 78, 38), (250, 190, 66)
    _both(c, 9.6, 12.8, 3.6, 3.6, mane)
    for x, y in ((0, 11), (7, 13), (11.2, 19), (11.4, 26), (8.6, 32), (3.4, 35.4)):
        _both(c, x, y, 4.3, 4.3, mane)
    c.ellipse(16, 24, 13, 12.5, mane)
    _both(c, 8.4, 15.4, 2.7, 2.7, face)
    c.ellipse(16, 24.2, 10, 9.6, face)
    _both(c, 2.7, 29, 3.4, 3, CREAM)
    c.ellipse(16, 32, 2.6, 2, CREAM)
    c.blob([(13.6, 26), (18.4, 26), (16, 28.6)], (112, 52, 36))
    _smile(c, 29.4)
    _eyes(c, 22)


def _bear(c: Canvas) -> None:
    fur, light = (146, 94, 56), (226, 184, 138)
    _both(c, 9.6, 13.6, 4.4, 4.4, fur)
    _both(c, 9.6, 13.6, 2.4, 2.4, light)
    c.ellipse(16, 24, 12.8, 12, fur)
    c.ellipse(16, 29.4, 5.8, 4.8, light)
    c.ellipse(16, 26.9, 2.3, 1.7, DARK)
    _smile(c, 29.6)
    _eyes(c, 22, 5.4)


def _frog(c: Canvas) -> None:
    skin, light = (116, 190, 72), (206, 232, 130)
    _both(c, 7.6, 14.6, 5.2, 5.2, skin)
    c.ellipse(16, 26, 14, 10.4, skin)
    _both(c, 7.6, 14.4, 3.7, 3.7, WHITE)
    _both(c, 7.6, 14.6, 2, 2.2, DARK)
    c.ellipse(16, 31.8, 10, 4, light)
    c.curve([(6, 27.6), (10, 30.4), (16, 31.4), (22, 30.4), (26, 27.6)], 1.1, (60, 112, 44))
    _both(c, 1.5, 24.6, 0.55, 0.55, (60, 112, 44))
    _both(c, 10.4, 25.4, 1.7, 1.2, (240, 156, 120))


def _panda(c: Canvas) -> None:
    black = (48, 46, 54)
    _both(c, 9.8, 13.4, 4.4, 4.4, black)
    c.ellipse(16, 24.2, 13, 11.8, WHITE)
    _both(c, 5.6, 23, 3.2, 4.2, black, 32)
    for x in (11, 21):
        c.circle(x, 22.2, 1.15, WHITE)
    c.ellipse(16, 28.4, 2, 1.4, black)
    _smile(c, 30.2)
    _both(c, 8.8, 29, 1.6, 1.1, (250, 190, 186))


def _rabbit(c: Canvas) -> None:
    fur = (252, 246, 240)
    _mirror(c, [(2.2, 15), (2.4, 6), (5, 0.8), (8, 3), (8.4, 9), (7, 16)], fur)
    _mirror(c, [(4, 13), (4.2, 7), (5.4, 3.2), (6.6, 5), (6.6, 9), (5.6, 13)], PINK)
    c.ellipse(16, 25, 12, 11.2, fur)
    _both(c, 8, 28.6, 2.2, 1.5, (252, 204, 200))
    c.blob([(14.5, 26.4), (17.5, 26.4), (16, 28.2)], (232, 112, 128))
    _smile(c, 29)
    _eyes(c, 22.6, 5.2)


def _fox(c: Canvas) -> None:
    fur, tip = (238, 112, 40), (84, 44, 38)
    _ears(c, [(2.6, 15), (9.4, 3.6), (13, 18)], fur)
    _ears(c, [(7.1, 7.6), (9.4, 3.6), (10.5, 8)], tip)
    _ears(c, [(6, 14), (9, 8.6), (10.8, 15)], (255, 214, 170))
    c.blob([(16, 12.4), (25, 15), (29.4, 24), (25, 31), (19, 35.6), (16, 36.6), (13, 35.6),
        (7, 31), (2.6, 24), (7, 15)], fur)  # fmt: skip
    _mirror(c, [(0, 29), (6, 25.4), (13, 25), (9.6, 30.8), (3, 35.6), (0, 36.4)], WHITE)
    c.ellipse(16, 31, 2.2, 1.7, DARK)
    _smile(c, 33, 1.8)
    _eyes(c, 22, 5.6)


def _pig(c: Canvas) -> None:
    skin, deep = (250, 176, 184), (232, 124, 146)
    c.ellipse(16, 24, 12.8, 12, skin)
    _ears(c, [(4, 13.4), (12.4, 8.6), (13.2, 19)], deep)
    c.ellipse(16, 28.6, 5, 3.8, deep)
    _both(c, 1.8, 28.6, 0.9, 1.4, (150, 60, 86))
    c.curve([(13, 33.2), (16, 34.2), (19, 33.2)], 0.8, (150, 60, 86))
    _both(c, 9, 27.6, 1.8, 1.3, (246, 146, 160))
    _eyes(c, 21.6, 5.6)


def _cat(c: Canvas) -> None:
    fur = (92, 92, 116)
    _ears(c, [(1.6, 15), (10.6, 4.6), (12.6, 20)], fur)
    _ears(c, [(5.4, 14), (9.7, 8.6), (10.8, 16)], PINK)
    c.ellipse(16, 24.4, 13, 11.4, fur)
    _both(c, 5.4, 22.2, 2.7, 2.9, (226, 226, 96))
    _both(c, 5.4, 22.2, 1, 2.5, DARK)
    _both(c, 2.4, 29.6, 3, 2.5, WHITE)
    c.ellipse(16, 32, 2.4, 1.7, WHITE)
    c.blob([(14.4, 26.6), (17.6, 26.6), (16, 28.5)], PINK)
    _smile(c, 29.2)
    _whiskers(c, 29, WHITE)


def _elephant(c: Canvas) -> None:
    skin, deep = (150, 172, 200), (120, 142, 174)
    _mirror(c, [(7, 14), (12, 11), (15.4, 15), (15.4, 24), (12, 30), (7, 28)], deep)
    _mirror(c, [(8, 16.4), (11.6, 14), (13.6, 17), (13.4, 23.6), (11, 27.4), (8, 26)], (232, 176, 186))
    c.ellipse(16, 22.4, 10.8, 10.8, skin)
    _mirror(c, [(3, 30.4), (5.2, 30), (6.2, 33.6), (5, 36.2), (4, 34)], WHITE)
    trunk = [(16, 25), (16, 31), (16, 35.4), (18, 38), (21, 37.4)]
    c.curve(trunk, 6.2, deep)
    c.curve(trunk, 4.8, (166, 188, 214))
    c.ellipse(16, 23.6, 3.6, 3, skin)
    for y in (29, 32, 35):
        c.line([(14.4, y), (17.6, y)], 0.6, deep)
    _eyes(c, 22, 5.2)


def _monkey(c: Canvas) -> None:
    fur, skin = (118, 66, 46), (246, 204, 160)
    _both(c, 12.6, 23, 3.4, 4, fur)
    _both(c, 12.6, 23, 1.9, 2.4, skin)
    c.ellipse(16, 22.6, 11.4, 11.6, fur)
    c.curve([(13.4, 12), (16, 9.6), (18.6, 12)], 2.4, fur)
    _both(c, 4.3, 21.6, 4.9, 5, skin)
    c.ellipse(16, 29.4, 8.4, 6.4, skin)
    _both(c, 1.1, 26.6, 0.55, 0.7, fur)
    c.curve([(11.4, 30), (13.4, 31.8), (16, 32.4), (18.6, 31.8), (20.6, 30)], 0.9, (150, 66, 54))
    _eyes(c, 22, 4.4)


def _owl(c: Canvas) -> None:
    plume, disc = (46, 122, 128), (250, 230, 190)
    _ears(c, [(2, 14), (12, 6.4), (12.4, 20)], plume)
    c.ellipse(16, 24.4, 12.8, 12.2, plume)
    _both(c, 5.6, 22.6, 6.2, 6.4, disc)
    _both(c, 5.4, 22.4, 3.7, 3.7, (244, 170, 50))
    _both(c, 5.4, 22.4, 2.2, 2.2, DARK)
    _both(c, 4.7, 21.6, 0.7, 0.7, WHITE)
    c.blob([(13.6, 26), (16, 24.8), (18.4, 26), (16, 31.6)], (240, 140, 48))


def _mouse(c: Canvas) -> None:
    fur = (178, 172, 184)
    _both(c, 9.4, 11.6, 6.4, 6.4, fur)
    _both(c, 9.4, 11.6, 4, 4, PINK)
    c.blob(
        [(16, 14), (24, 16.4), (27, 23), (24, 30), (19, 35), (16, 36), (13, 35), (8, 30), (5, 23), (8, 16.4)],
        fur,
    )
    c.ellipse(16, 31.4, 4, 3.4, (226, 220, 226))
    c.circle(16, 29.4, 1.9, (232, 112, 128))
    _smile(c, 32.4, 1.6)
    _whiskers(c, 30.6, (110, 102, 116))
    _eyes(c, 22.6, 4.8)


ANIMALS = {
    "lion": Animal(_lion, (240, 172, 52), CREAM, (222, 146, 38), CREAM),
    "bear": Animal(_bear, (146, 94, 56), (226, 184, 138), (122, 74, 42), (226, 184, 138)),
    "frog": Animal(_frog, (116, 190, 72), (206, 232, 130), (90, 164, 58), (206, 232, 130), glasses_y=8),
    "panda": Animal(_panda, (48, 46, 54), WHITE, (72, 68, 80), WHITE),
    "rabbit": Animal(_rabbit, (252, 246, 240), (252, 214, 212), (234, 214, 208), PINK),
    "fox": Animal(_fox, (238, 112, 40), WHITE, (208, 86, 26), (84, 44, 38)),
    "pig": Animal(_pig, (250, 176, 184), (255, 214, 214), (236, 144, 160), (204, 92, 120)),
    "cat": Animal(_cat, (92, 92, 116), WHITE, (70, 70, 94), WHITE),
    "elephant": Animal(_elephant, (150, 172, 200), (196, 212, 230), (120, 142, 174), (232, 236, 242)),
    "monkey": Animal(_monkey, (118, 66, 46), (246, 204, 160), (94, 50, 34), (246, 204, 160)),
    "owl": Animal(_owl, (46, 122, 128), (250, 230, 190), (30, 94, 104), (240, 140, 48)),
    "mouse": Animal(_mouse, (178, 172, 184), (226, 220, 226), (148, 142, 156), PINK),
}


def paint_animal(c: Canvas, actor: str) -> None:
    """Body, head and face of an animal; its lower end hides behind the table."""
    animal = ANIMALS[actor]
    c.blob([(16, 33), (21, 35), (24.4, 41), (26, 50), (26.4, 58), (26, 64), (6, 64),
        (5.6, 58), (6, 50), (7.6, 41), (11, 35)], animal.body)  # fmt: skip
    c.ellipse(15, 52, 6, 9, animal.belly)
    animal.head(c)


def paint_arm(c: Canvas, actor: str, path) -> None:
    """The arm along a path of corners [n, 2] from the shoulder to the paw."""
    animal = ANIMALS[actor]
    c.bent(path, 6, 4, animal.arm)
    x, y = path[-1]
    c.circle(x, y, 3.6, animal.paw)
