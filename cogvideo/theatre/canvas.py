"""A small vector canvas: flat shapes, drawn large and averaged down to the 192 x 192 frame.

Lengths are in pixels of the 64 x 64 frame, angles in degrees clockwise.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

FRAME_SIZE = 64
ENLARGEMENT = 3  # the large frame is 192 x 192
SUPERSAMPLING = 4  # every pixel of the large frame averages 4 x 4 points

Color = tuple[int, int, int]
Point = tuple[float, float]


class Sprite(NamedTuple):
    """A picture with transparency, cut to what is painted; lengths in pixels of the large frame."""

    color: np.ndarray  # uint16 [h, w, 3], multiplied by its own opacity
    clear: np.ndarray  # uint16 [h, w, 1]: 255 minus opacity
    left: int
    top: int

    def paint_on(self, frame: np.ndarray, x: int = 0, y: int = 0) -> None:
        """Paint onto a frame uint8 [192, 192, 3] in place, moved by x, y; what lies outside is cut off."""
        left, top = self.left + x, self.top + y
        x0, y0 = max(0, left), max(0, top)
        x1, y1 = (
            min(frame.shape[1], left + self.color.shape[1]),
            min(frame.shape[0], top + self.color.shape[0]),
        )
        if x0 >= x1 or y0 >= y1:
            return
        cut = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        part = frame[y0:y1, x0:x1]
        part[...] = (part * self.clear[cut] + 127) // 255 + self.color[cut]


class Canvas:
    """Shapes painted one over another, turned by `degrees` around `pivot`, then moved by `shift`."""

    def __init__(
        self,
        half: float | None = None,
        *,
        degrees: float = 0.0,
        pivot: Point = (0.0, 0.0),
        shift: Point = (0.0, 0.0),
    ):
        """half: the canvas spans -half..half around an object's centre; None: the whole frame, 0..64."""
        self.origin = 0.0 if half is None else half
        self.scale = ENLARGEMENT * SUPERSAMPLING
        side = round((FRAME_SIZE if half is None else 2 * half) * self.scale)
        self.image = Image.new("RGBA", (side, side))
        self.pen = ImageDraw.Draw(self.image)
        angle = np.deg2rad(degrees)
        self.turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self.pivot, self.target = np.array(pivot), np.add(pivot, shift) + self.origin

    def polygon(self, points, color: Color) -> None:
        """A filled polygon from points [n, 2]."""
        self._fill(points, (*color, 255))

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color, degrees: float = 0.0) -> None:
        """A filled ellipse, turned clockwise by `degrees` around its centre."""
        t, a = np.linspace(0, 2 * np.pi, 73)[:-1], np.deg2rad(degrees)
        u, v = rx * np.cos(t), ry * np.sin(t)
        self.polygon(
            np.stack([x + u * np.cos(a) - v * np.sin(a), y + u * np.sin(a) + v * np.cos(a)], 1), color
        )

    def circle(self, x: float, y: float, r: float, color: Color) -> None:
        self.ellipse(x, y, r, r, color)

    def line(self, points, width: float, color: Color) -> None:
        """A line through points [n, 2] with round ends and joints."""
        points = np.asarray(points, float)
        for a, b in pairwise(points):
            along = b - a
            across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-9) * width / 2
            self.polygon([a + across, b + across, b - across, a - across], color)
        for x, y in points:
            self.circle(x, y, width / 2, color)

    def bent(self, corners, width: float, radius: float, color: Color) -> None:
        """A line through corners [n, 2] that rounds the inner ones off."""
        p = np.asarray(corners, float)
        path = [p[:1]]
        for before, corner, after in zip(p[:-2], p[1:-1], p[2:], strict=True):
            ends = []
            for other in (before, after):
                length = float(np.hypot(*(other - corner)))
                ends.append(corner + (other - corner) * min(radius, length / 2) / max(length, 1e-9))
            t = np.linspace(0, 1, 9)[:, None]
            path.append((1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * corner + t**2 * ends[1])
        self.line(np.concatenate([*path, p[-1:]]), width, color)

    def curve(self, points, width: float, color: Color) -> None:
        """A smooth line through points [n, 2]."""
        self.line(_smooth(points, closed=False), width, color)

    def blob(self, points, color: Color) -> None:
        """A filled smooth closed outline through points [n, 2]."""
        self.polygon(_smooth(points, closed=True), color)

    def box(self, left: float, top: float, right: float, bottom: float, r: float, color: Color) -> None:
        """A filled rectangle with corners of radius r."""
        turn = np.linspace(0, np.pi / 2, 9)
        corners = ((right - r, bottom - r), (left + r, bottom - r), (left + r, top + r), (right - r, top + r))
        self.polygon(
            [
                (x + r * np.cos(t + k * np.pi / 2), y + r * np.sin(t + k * np.pi / 2))
                for k, (x, y) in enumerate(corners)
                for t in turn
            ],
            color,
        )

    def erase(self, points) -> None:
        """Make the inside of a closed smooth outline through points [n, 2] transparent again."""
        self._fill(_smooth(points, closed=True), (0, 0, 0, 0))

    def _fill(self, points, fill: tuple[int, int, int, int]) -> None:
        turned = (np.asarray(points, float) - self.pivot) @ self.turn.T + self.target
        # A pixel's centre is half a pixel in.
        self.pen.polygon([tuple(p) for p in turned * self.scale - 0.5], fill=fill)

    def sprite(self) -> Sprite:
        """What was painted, averaged down to the large frame's pixels."""
        small = self.image.convert("RGBa").reduce(SUPERSAMPLING)  # RGBa: colours multiplied by opacity
        box = small.getbbox() or (0, 0, 1, 1)
        pixels = np.asarray(small, np.uint16)[box[1] : box[3], box[0] : box[2]]
        offset = round(self.origin * ENLARGEMENT)
        return Sprite(pixels[..., :3], 255 - pixels[..., 3:], box[0] - offset, box[1] - offset)


def _smooth(points, closed: bool, steps: int = 8) -> np.ndarray:
    """Catmull-Rom curve through points [n, 2] -> [m, 2]."""
    p = np.asarray(points, float)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    a, b, c, d = p[:-3, None], p[1:-2, None], p[2:-1, None], p[3:, None]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2) if closed else np.concatenate([curve.reshape(-1, 2), p[-2:-1]])
