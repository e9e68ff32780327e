"""How published FVDs were prepared: which frames, how they become 224 x 224, which covariance."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from einops import rearrange
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.evaluation.i3d import SIZE


@dataclass(frozen=True)
class Recipe:
    """Everything between a video and a score that differs between tools."""

    name: str
    source: str  # whose recipe it is
    samples: int  # clips a side in published numbers
    unbiased: bool  # covariances divide by n - 1; else by n
    batch_norm_eps: float  # of its I3D: 1e-5 in VideoGPT's, TATS' and cd-fvd's, 1e-3 in the original
    side: int | None = None  # frames first become square at so many pixels (short side, then centre crop)
    antialias: bool = False  # of that first step; the last one to 224 never is
    crop: bool = False  # the last step: short side to 224, then centre crop; else both sides squeezed to 224
    clip: str = "random"  # first, centre or random: which frames of a longer video
    frames: int = 16
    stride: int = 1
    notes: str = ""  # what could not be established, or is left to the user


_RECIPES = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
_ALL = {fields["name"]: Recipe(**fields) for fields in _RECIPES}
KINETICS = _ALL["paper-kinetics"]
PRESETS = {name: recipe for name, recipe in _ALL.items() if recipe is not KINETICS}


def find_recipe(name: str) -> Recipe:
    """The preset of a name."""
    if name not in _ALL:
        raise CogVideoError(f"There is no FVD preset {name!r}: choose one of {', '.join(PRESETS)}.")
    return _ALL[name]


def check_frames(frames: np.ndarray, where: str) -> np.ndarray:
    """The frames if they are uint8 [T,H,W,3]; else CogVideoError, which names NaN."""
    frames = np.asarray(frames)
    if np.issubdtype(frames.dtype, np.floating) and not np.isfinite(frames).all():
        raise CogVideoError(f"{where} holds frames with NaN or infinity: find out where they come from.")
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise CogVideoError(f"{where} is {frames.dtype} {frames.shape}: clips must be uint8 [T, H, W, 3].")
    return frames


def choose_clip(
    frames: np.ndarray, recipe: Recipe, rng: np.random.Generator, where: str = "A video"
) -> np.ndarray:
    """The recipe's frames out of a video [T,H,W,3] -> [frames,H,W,3]."""
    needed = (recipe.frames - 1) * recipe.stride + 1
    spare = len(frames) - needed
    if spare < 0:
        raise CogVideoError(
            f"{where} has {len(frames)} frames and preset {recipe.name} takes {needed}: give longer videos."
        )
    begin = {"first": 0, "centre": spare // 2, "random": int(rng.integers(spare + 1))}[recipe.clip]
    return frames[begin : begin + needed : recipe.stride]


def prepare(frames: np.ndarray, recipe: Recipe) -> Tensor:
    """A clip uint8 [T,H,W,3] -> float32 [3,T,224,224] in -1..1 as the recipe resizes."""
    pixels = rearrange(torch.from_numpy(np.ascontiguousarray(frames)).float(), "t h w c -> t c h w")
    if recipe.side is not None:
        # These tools keep the resized clips as bytes, truncated and not rounded.
        pixels = _short_side(pixels, recipe.side, antialias=recipe.antialias).clamp(0, 255).floor()
    if recipe.crop:
        pixels = _short_side(pixels, SIZE)
    elif pixels.shape[2:] != (SIZE, SIZE):
        pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return rearrange(pixels / 127.5 - 1, "t c h w -> c t h w")


def _short_side(pixels: Tensor, side: int, *, antialias: bool = False) -> Tensor:
    """[T,C,H,W] -> [T,C,side,side]: the short side becomes `side`, the other in proportion and is cropped."""
    h, w = pixels.shape[2:]
    scale = side / min(h, w)
    size = (side, math.ceil(w * scale)) if h < w else (math.ceil(h * scale), side)
    pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=antialias)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return pixels[:, :, top : top + side, left : left + side]
