"""A judge of theatre clips that reads pixels: who is there, with what, before which wall, in which state?

Every frame is compared with all pictures that the theatre can show: first actor and background from the
parts of the frame that nothing moves over, then the nearest of the 220 looks (arm and object) of that actor
before that wall. A frame that is far from its nearest picture in any 8 x 8 block is unreadable. Scenes that
look alike are one picture: which state a frame shows is therefore a set, and order is found from the
sequence.
"""

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np
import torch
from einops import rearrange, reduce
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.theatre.canvas import FRAME_SIZE
from cogvideo.theatre.drawing import draw, render
from cogvideo.theatre.motion import Look, looks
from cogvideo.theatre.scenes import ACTION_NAMES, ACTOR_NAMES, BACKGROUNDS, OBJECT_NAMES, PAIRS, STATES, Clips

BLOCK = 8  # pixels
# Root mean square error of a frame's worst block: the frame tokenizer leaves at most 0.17 and 0.05 in
# half of the frames; one patch exchanged for another makes 0.28 in half of the cases.
UNREADABLE = 0.2
AT_ONCE = 512  # frames that are compared together


def _still() -> np.ndarray:
    """The pixels bool [64, 64] that neither arm nor object ever covers: ear, shoulder, walls and table."""
    y, x = np.mgrid[:FRAME_SIZE, :FRAME_SIZE]
    return (x < 8) | ((y >= 24) & (x < 14)) | ((x >= 57) & (y < 36)) | (y >= 58)


def _distinct_looks() -> tuple[list[Look], np.ndarray]:
    """All looks that differ, and which scenes show each: bool [looks, pairs, states]."""
    scenes: dict[Look, list[tuple[int, int]]] = {}
    for pair, names in enumerate(PAIRS):
        for state, look in enumerate(looks(*names)):
            scenes.setdefault(look, []).append((pair, state))
    shows = np.zeros((len(scenes), len(PAIRS), STATES), bool)
    for number, where in enumerate(scenes.values()):
        shows[(number, *np.array(where).T)] = True
    return list(scenes), shows


STILL = _still()
LOOKS, SHOWS = _distinct_looks()
# bool [looks, actions, states] and [looks, objects]: what a look can be of.
SHOWS_ACTION = np.stack([SHOWS[:, [a == name for a, _ in PAIRS]].any(1) for name in ACTION_NAMES], 1)
SHOWS_OBJECT = np.stack([SHOWS[:, [o == name for _, o in PAIRS]].any((1, 2)) for name in OBJECT_NAMES], 1)


@dataclass(frozen=True)
class Reading:
    """What is seen in n clips of T frames, arrays [n, T]."""

    actor: np.ndarray  # index into ACTOR_NAMES
    background: np.ndarray  # index into BACKGROUNDS
    look: np.ndarray  # index into LOOKS
    damage: np.ndarray  # error of the worst block, 0..1

    @cached_property
    def readable(self) -> np.ndarray:
        """Bool [n, T]: the frame is close to one of the theatre's pictures everywhere."""
        return self.damage <= UNREADABLE

    @cached_property
    def objects(self) -> np.ndarray:
        """Bool [n, T, 16]: what each frame can show (once eaten, any food); nothing if unreadable."""
        return SHOWS_OBJECT[self.look] & self.readable[..., None]

    def states(self, action: np.ndarray) -> np.ndarray:
        """Bool [n, T, 17]: the states of `action` [n], with any of its objects, that each frame can show."""
        return SHOWS_ACTION[self.look, action[:, None]] & self.readable[..., None]


class Judge:
    """Reads clips; its pictures of an actor before a background are drawn when they are first met."""

    def read(self, frames: np.ndarray | Tensor) -> Reading:
        """Look at clips [n, T, H, W, 3], uint8 or floats in 0..1, square and 64 px or a multiple of it wide.

        Raises: CogVideoError for frames of another form.
        """
        video = _check(frames)
        parts = [_read(_small(some)) for some in rearrange(video, "n t h w c -> (n t) h w c").split(AT_ONCE)]
        fields = (np.concatenate(field).reshape(video.shape[:2]) for field in zip(*parts, strict=True))
        return Reading(*fields)


def _check(frames: np.ndarray | Tensor) -> Tensor:
    video = torch.as_tensor(frames)
    height, width = video.shape[2:4] if video.ndim == 5 and video.shape[-1] == 3 else (0, 1)
    if height != width or height % FRAME_SIZE or not len(video) or not video.shape[1]:
        raise CogVideoError(
            f"The judge cannot read frames of shape {list(video.shape)}: give [n, T, H, W, 3] with "
            f"H = W = {FRAME_SIZE} or a multiple of it."
        )
    return video


def _small(frames: Tensor) -> Tensor:
    """[m, H, W, 3], uint8 or float -> float [m, 64, 64, 3] in 0..1."""
    frames = frames.cpu().float() / (255 if frames.dtype == torch.uint8 else 1)
    factor = frames.shape[1] // FRAME_SIZE
    return frames if factor == 1 else reduce(frames, "m (h a) (w b) c -> m h w c", "mean", a=factor, b=factor)


def _read(frames: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Frames float [m, 64, 64, 3] -> actor, background, look and damage [m]."""
    where = nearest(frames[:, torch.from_numpy(STILL)].flatten(1), _still_pictures())
    look = torch.zeros_like(where)
    damage = torch.zeros(len(frames))
    for number in where.unique().tolist():
        rows = (where == number).nonzero()[:, 0]
        pictures = _pictures(number).float() / 255
        look[rows] = nearest(frames[rows].flatten(1), pictures.flatten(1))
        error = (frames[rows] - pictures[look[rows]]).square()
        blocks = reduce(error, "m (h a) (w b) c -> m (h w)", "mean", a=BLOCK, b=BLOCK)
        damage[rows] = blocks.amax(1).sqrt()
    actor, background = np.divmod(where.numpy(), len(BACKGROUNDS))
    return actor, background, look.numpy(), damage.numpy()


def nearest(rows: Tensor, pictures: Tensor) -> Tensor:
    """[m, d], [k, d] -> index [m] of the picture at the least squared distance."""
    return (pictures.square().sum(1) - 2 * rows @ pictures.T).argmin(1)


@lru_cache
def _still_pictures() -> Tensor:
    """The still parts of every actor before every background: float [48, 3 * pixels] in 0..1."""
    pictures = [
        draw(actor, *PAIRS[0], 0, background)[STILL] for actor in ACTOR_NAMES for background in BACKGROUNDS
    ]
    return torch.from_numpy(np.stack(pictures)).flatten(1).float() / 255


@cache  # 2.7 MB each, 130 MB in all
def _pictures(number: int) -> Tensor:
    """All looks of one actor before one background: uint8 [looks, 64, 64, 3]."""
    actor, background = divmod(number, len(BACKGROUNDS))
    scenes = [np.argwhere(shown)[0] for shown in SHOWS]
    drawn = [
        draw(ACTOR_NAMES[actor], *PAIRS[pair], state=int(state), background=BACKGROUNDS[background])
        for pair, state in scenes
    ]
    return torch.from_numpy(np.stack(drawn))


DAMAGES = {  # what is done to a real clip: the scores that must feel it
    "shuffled": ("order", "whole clip"),
    "reversed": ("order", "whole clip"),
    "frozen": ("order", "whole clip"),
    "twice as fast": ("order", "whole clip"),
    "actor exchanged": ("same",),
    "object exchanged": ("same",),
    "background exchanged": ("same", "background"),
    "torn": ("whole clip",),
}


def damage(clips: Clips, times: np.ndarray, kind: str, seed: int = 0) -> Tensor:
    """Real clips at `times` [n, T], damaged on purpose -> float [n, T, 64, 64, 3] in 0..1.

    kind: one of DAMAGES. Exchanged things change half-way, an object for another of the same action (a bell
    has none); torn: the patches of the middle frame change places.
    """
    rng, half = np.random.default_rng(seed), times.shape[1] // 2
    if kind == "twice as fast":
        times = 2 * times
    frames = rearrange(render(clips, times), "n t c h w -> n t h w c")
    if kind == "shuffled":
        order = rng.permuted(np.tile(np.arange(times.shape[1]), (len(clips), 1)), axis=1)
        frames = frames[torch.arange(len(clips))[:, None], torch.from_numpy(order)]
    elif kind == "reversed":
        frames = frames.flip(1)
    elif kind == "frozen":
        frames = frames[:, :1].expand_as(frames)
    elif kind == "torn":
        blocks = rearrange(frames[:, half], "n (h a) (w b) c -> n (h w) a b c", a=BLOCK, b=BLOCK)
        mixed = blocks[:, torch.from_numpy(rng.permutation(blocks.shape[1]))]
        frames[:, half] = rearrange(mixed, "n (h w) a b c -> n (h a) (w b) c", h=FRAME_SIZE // BLOCK)
    elif kind.endswith("exchanged"):
        frames[:, half:] = rearrange(render(_exchanged(clips, kind), times), "n t c h w -> n t h w c")[
            :, half:
        ]
    return frames


def _exchanged(clips: Clips, kind: str) -> Clips:
    actor, background, pair = clips.actor, clips.background, clips.pair
    if kind == "actor exchanged":
        actor = (actor + 1) % len(ACTOR_NAMES)
    elif kind == "background exchanged":
        background = (background + 1) % len(BACKGROUNDS)
    else:
        same = [[p for p, other in enumerate(PAIRS) if other[0] == names[0]] for names in PAIRS]
        pair = np.array([same[p][(same[p].index(p) + 1) % len(same[p])] for p in pair])
    return Clips(actor, pair, background, clips.duration)
