"""The demo world: captioned bouncing digits, endless by seed, with the exact truth of every clip.

A clip is one or two coloured glyphs on black. Each does one action that has a beginning, a natural duration told by its
adverb, and an end; then it rests. Five frames that span S seconds show the part min(1, S / duration) of the action.

Lengths are in pixels of the 64 x 64 frame. States are quantised (motion in steps of 4 px, growing, turning and fading in
STAGES) so that a patch tokenizer and a small transformer can learn them; frames are rendered at 192 x 192 and averaged
down: both sizes show the same scene.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from cogvideo.errors import CogVideoError

FRAME_SIZE = 64
FPS = 8
SUPERSAMPLING = 3  # the enlarged frame is 192 x 192
GLYPH_SIZE = 24  # box of an object at scale 1: three by three tokens of 8 px
TRAVEL = 32  # how far a crossing or a fall goes
SPANS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds that five frames may span: 8, 4, 2, 1 and 0.5 fps

COLORS = {
    "red": ("红色", (235, 60, 50)),
    "green": ("绿色", (60, 200, 80)),
    "blue": ("蓝色", (70, 110, 250)),
    "yellow": ("黄色", (245, 215, 60)),
    "purple": ("紫色", (190, 80, 220)),
    "white": ("白色", (240, 240, 240)),
}
ACTIONS = {
    "moves left": "向左移动",
    "moves right": "向右移动",
    "moves up": "向上移动",
    "moves down": "向下移动",
    "bounces": "弹跳",
    "grows": "变大",
    "shrinks": "缩小",
    "turns": "旋转",
    "fades in": "渐渐出现",
}
ADVERBS = {
    1.0: ("quickly", "快速地"),
    2.0: ("", ""),
    4.0: ("slowly", "缓慢地"),
    8.0: ("very slowly", "非常缓慢地"),
}
SHAPES = {
    "circle": "圆",
    "square": "方块",
    "triangle": "三角",
    "ring": "圆环",
    "cross": "十字",
    "diamond": "菱形",
}

COLOR_NAMES, ACTION_NAMES, DURATIONS = list(COLORS), list(ACTIONS), list(ADVERBS)
STAGES = np.array(
    [0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1]
)  # of growing, shrinking, turning, fading: what key frames meet
FADE_START = 0.5
SMALL, LARGE = 2 / 3, 4 / 3  # scales between which objects grow and shrink
TURN_DEGREES = 90.0


@dataclass(frozen=True)
class World:
    """Which glyphs there are and how many objects a clip holds.

    glyphs: "clean" (a bold font), "handwriting" (scikit-learn's scans; those of test are never in train), "shapes".
    """

    glyphs: str = "clean"
    objects: int = 1
    scans_per_digit: int = 20  # handwriting only: how many scans of each digit a split uses

    def __post_init__(self):
        if self.glyphs not in ("clean", "handwriting", "shapes"):
            raise CogVideoError(
                f"World glyphs {self.glyphs!r} are unknown: choose clean, handwriting or shapes."
            )
        if self.objects not in (1, 2):
            raise CogVideoError(f"A world has 1 or 2 objects in a clip, not {self.objects}.")

    @property
    def names(self) -> list[str]:
        return list(SHAPES) if self.glyphs == "shapes" else [str(digit) for digit in range(10)]


@dataclass(frozen=True)
class Clips:
    """The truth of n clips with O objects each; every field is an array [n, O]."""

    kind: np.ndarray  # index of the digit or shape
    color: np.ndarray  # index into COLOR_NAMES
    action: np.ndarray  # index into ACTION_NAMES
    duration: np.ndarray  # seconds that the whole action takes
    x: np.ndarray  # centre at the beginning, pixels
    y: np.ndarray
    scan: np.ndarray  # which of the split's glyphs of that kind is drawn
    world: World
    split: str

    def __len__(self) -> int:
        return len(self.kind)

    def caption(self, index: int, language: str = "en", *, told: bool = True) -> str:
        """What happens in clip `index`, in English ("en") or Chinese ("zh"); not `told`: what is there, without the action."""
        parts = []
        for o in range(self.world.objects):
            color, action = COLOR_NAMES[self.color[index, o]], ACTION_NAMES[self.action[index, o]]
            name, adverb = self.world.names[self.kind[index, o]], ADVERBS[float(self.duration[index, o])]
            if language == "zh":
                does = f"{adverb[1]}{ACTIONS[action]}" if told else ""
                parts.append(f"一个{COLORS[color][0]}的{SHAPES.get(name, name)}{does}")
            else:
                parts.append(f"a {color} {name} {f'{action} {adverb[0]}' if told else ''}".strip())
        return ("，" if language == "zh" else " and ").join(parts)

    def span(self, index: int) -> float:
        """The multi-frame-rate rule (paper section 3.1): the shortest trained span that holds every action whole."""
        return min(span for span in SPANS if span >= self.duration[index].max())


def is_held_out(kind, color, action):
    """True for the combinations (one in eleven) whose action is never told in training; works on ints and on arrays.

    No clip of them is trained; the image model sees their looks under captions that tell no action (training.data).
    """
    return (kind * 7 + color * 5 + action * 3) % 11 == 0


def sample_clips(
    n: int,
    rng: np.random.Generator,
    *,
    split: str = "train",
    world: World = World(),
    all_combinations: bool = False,
) -> Clips:
    """Draw n clips. split "test" draws from all combinations, "train" leaves the held-out ones out unless all are asked for.

    Train and test use disjoint scans of handwriting; clean glyphs and shapes have one drawing each.
    """
    if split not in ("train", "test"):
        raise CogVideoError(f"Split {split!r} is unknown: choose train or test.")
    shape = (n, world.objects)
    kind, color, action = (rng.integers(k, size=shape) for k in (len(world.names), len(COLORS), len(ACTIONS)))
    while split == "train" and not all_combinations and (bad := is_held_out(kind, color, action)).any():
        kind[bad] = rng.integers(len(world.names), size=bad.sum())
        action[bad] = rng.integers(len(ACTIONS), size=bad.sum())
    duration = np.array(DURATIONS)[rng.integers(len(DURATIONS), size=shape)]
    x, y = _start(action, rng)
    while world.objects == 2 and (near := _overlaps(action, x, y)).any():
        fresh_x, fresh_y = _start(action, rng)
        x, y = np.where(near[:, None], fresh_x, x), np.where(near[:, None], fresh_y, y)
    scan = rng.integers(len(_glyphs(world.glyphs, split, world.scans_per_digit)), size=shape)
    return Clips(kind, color, action, duration, x, y, scan, world, split)


def _start(action: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Centres at the beginning, such that boxes begin on the 8 px token grid and actions stay inside the frame."""

    def grid(low, high):
        return low + 8 * rng.integers((high - low) // 8 + 1, size=action.shape)

    free_x, free_y, near_x, near_y = grid(12, 52), grid(12, 52), grid(12, 20), grid(12, 20)
    size_x, size_y, turn_x, turn_y = grid(16, 48), grid(16, 48), grid(20, 44), grid(20, 44)
    name = np.array(ACTION_NAMES)[action]
    x = np.select(
        [name == "moves left", name == "moves right", np.isin(name, ["grows", "shrinks"]), name == "turns"],
        [FRAME_SIZE - near_x, near_x, size_x, turn_x],
        free_x,
    )
    y = np.select(
        [
            name == "moves up",
            np.isin(name, ["moves down", "bounces"]),
            np.isin(name, ["grows", "shrinks"]),
            name == "turns",
        ],
        [FRAME_SIZE - near_y, near_y, size_y, turn_y],
        free_y,
    )
    return x, y


def _overlaps(action: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """True [n] where the boxes of the two objects overlap at the beginning; objects that shrink begin large."""
    half = GLYPH_SIZE / 2 * np.where(action == ACTION_NAMES.index("shrinks"), LARGE, 1.0)
    return np.maximum(abs(x[:, 0] - x[:, 1]), abs(y[:, 0] - y[:, 1])) < half.sum(1)


def object_states(clips: Clips, times: np.ndarray) -> dict[str, np.ndarray]:
    """Where and how every object is at `times` [n, T] seconds.

    Returns arrays [n, T, O]: x, y (centre, px), scale, degrees (clockwise), brightness, part (of the action done).
    """
    part = np.minimum(1.0, times[:, :, None] / clips.duration[:, None, :])
    name = np.broadcast_to(np.array(ACTION_NAMES)[clips.action][:, None, :], part.shape)
    eighth = np.floor(part * 8 + 1e-6) / 8
    stage = STAGES[np.searchsorted(STAGES, part + 1e-6, side="right") - 1]  # the last one that was reached
    fall = 1 - np.abs(1 - 2 * np.floor(part * 16 + 1e-6) / 16)  # down and up again
    dx = np.select([name == "moves left", name == "moves right"], [-eighth, eighth], 0.0)
    dy = np.select(
        [name == "moves up", name == "moves down", name == "bounces"], [-eighth, eighth, fall], 0.0
    )
    growing = SMALL + (LARGE - SMALL) * stage
    return {
        "x": clips.x[:, None] + TRAVEL * dx,
        "y": clips.y[:, None] + TRAVEL * dy,
        "scale": np.select([name == "grows", name == "shrinks"], [growing, SMALL + LARGE - growing], 1.0),
        "degrees": np.where(name == "turns", TURN_DEGREES * stage, 0.0),
        "brightness": np.where(name == "fades in", FADE_START + (1 - FADE_START) * stage, 1.0),
        "part": part,
    }


def render(clips: Clips, times: np.ndarray, size: int = FRAME_SIZE) -> Tensor:
    """Frames of all clips at `times` [n, T] seconds -> float [n, T, 3, size, size] in 0..1; size 64 or 192."""
    if size not in (FRAME_SIZE, FRAME_SIZE * SUPERSAMPLING):
        raise CogVideoError(f"The digits world is drawn at 64 or 192 pixels, not {size}.")
    states = {
        key: torch.from_numpy(np.ascontiguousarray(value)).float()
        for key, value in object_states(clips, times).items()
    }
    glyphs = torch.from_numpy(_glyphs(clips.world.glyphs, clips.split, clips.world.scans_per_digit))
    colors = torch.tensor([COLORS[name][1] for name in COLOR_NAMES]).float() / 255
    n, steps = times.shape
    canvas = torch.zeros(n * steps, 3, size, size)
    for o in range(clips.world.objects):
        flat = {key: value[..., o].reshape(-1) for key, value in states.items()}
        kind, scan = (
            torch.from_numpy(repeat(a[:, o], "n -> (n t)", t=steps)) for a in (clips.kind, clips.scan)
        )
        alpha = _place(glyphs[scan, kind][:, None], flat)
        if size == FRAME_SIZE:
            alpha = F.avg_pool2d(alpha, SUPERSAMPLING)
        color = (
            colors[torch.from_numpy(repeat(clips.color[:, o], "n -> (n t)", t=steps))]
            * flat["brightness"][:, None]
        )
        canvas = canvas * (1 - alpha) + alpha * rearrange(color, "m c -> m c 1 1")
    # Whole grey levels, as in a video file; this also makes equal scenes equal to the bit wherever they stand.
    return rearrange((canvas * 255).round() / 255, "(n t) c h w -> n t c h w", n=n)


def _place(masks: Tensor, states: dict[str, Tensor]) -> Tensor:
    """Glyph masks [m,1,g,g] -> coverage [m,1,192,192] after scaling, turning and moving."""
    angle, half = states["degrees"].deg2rad(), FRAME_SIZE / 2
    zoom = FRAME_SIZE / (GLYPH_SIZE * states["scale"])  # frame coordinates -1..1 to glyph coordinates -1..1
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    cx, cy = states["x"] / half - 1, states["y"] / half - 1
    theta = torch.stack(
        [
            torch.stack([cos, sin, -cos * cx - sin * cy], -1),
            torch.stack([-sin, cos, sin * cx - cos * cy], -1),
        ],
        1,
    )
    side = FRAME_SIZE * SUPERSAMPLING
    grid = F.affine_grid(theta, [len(masks), 1, side, side], align_corners=False)
    return F.grid_sample(masks, grid, align_corners=False)


@lru_cache
def _glyphs(glyphs: str, split: str, scans_per_digit: int) -> np.ndarray:
    """Masks float32 [scans, kinds, 96, 96] in 0..1 of the glyphs that a split may draw."""
    if glyphs == "handwriting":
        return _handwriting(split, scans_per_digit)
    if glyphs == "shapes":
        return np.stack([_shape(name) for name in SHAPES])[None]
    return np.stack([_font_digit(str(digit)) for digit in range(10)])[None]


def _font_digit(text: str, side: int = 4 * GLYPH_SIZE) -> np.ndarray:
    from matplotlib import font_manager  # ships DejaVu Sans, so that every machine draws the same digits
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans:bold"), 120)
    image = Image.new("L", (2 * side, 2 * side))
    ImageDraw.Draw(image).text((side, side), text, fill=255, font=font, anchor="mm")
    box = image.getbbox()
    assert box is not None
    # Centre what is inked, so that every digit begins at the same place of its box.
    left, top = (box[0] + box[2] - side) // 2, (box[1] + box[3] - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)), np.float32) / 255


def _shape(name: str, side: int = 4 * GLYPH_SIZE) -> np.ndarray:
    y, x = (np.mgrid[:side, :side] + 0.5) / side * 2 - 1
    radius = np.hypot(x, y)
    inside = {
        "circle": 0.9 - radius,
        "square": 0.8 - np.maximum(abs(x), abs(y)),
        "triangle": np.minimum(0.8 - y, y + 0.9 - 2 * abs(x)) / 1.5,
        "ring": 0.25 - abs(radius - 0.65),
        "cross": np.maximum(np.minimum(0.3 - abs(x), 0.9 - abs(y)), np.minimum(0.3 - abs(y), 0.9 - abs(x))),
        "diamond": (0.95 - abs(x) - abs(y)) / 1.4,
    }[name]
    return np.clip(inside * side / 2 + 0.5, 0, 1).astype(np.float32)


def _handwriting(split: str, scans_per_digit: int, side: int = 4 * GLYPH_SIZE) -> np.ndarray:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    keep = slice(0, 1500) if split == "train" else slice(1500, None)
    images, labels = images[keep].reshape(-1, 8, 8) / 16, labels[keep]
    counts = [np.flatnonzero(labels == digit) for digit in range(10)]
    available = min(scans_per_digit, *(len(found) for found in counts))
    chosen = np.stack([found[:available] for found in counts], 1)  # [scans, 10]
    small = F.pad(torch.from_numpy(images[chosen].reshape(-1, 1, 8, 8)).float(), (1, 1, 1, 1))
    smooth = F.interpolate(small, size=(side, side), mode="bicubic", align_corners=False)
    sharp = ((smooth - 0.4) * 6 + 0.5).clamp(0, 1)  # an 8 x 8 scan is blurred; a steeper edge makes it ink
    return rearrange(sharp.numpy(), "(s k) 1 h w -> s k h w", k=10).astype(np.float32)


def random_frames(
    seed: int, n: int, size: int = FRAME_SIZE, *, world: World = World(), split: str = "train"
) -> Tensor:
    """n single frames, each at a random moment of its own clip -> float [n, 3, size, size] in 0..1."""
    rng = np.random.default_rng(seed)
    clips = sample_clips(n, rng, split=split, world=world)
    times = rng.uniform(0, 1, (n, 1)) * clips.duration.max(1, keepdims=True)
    return render(clips, times, size)[:, 0]
