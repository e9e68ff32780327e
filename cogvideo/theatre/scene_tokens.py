"""Tokens of every scene: the theatre is finite, so each picture is drawn and encoded once."""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cogvideo.theatre.drawing import draw
from cogvideo.theatre.motion import looks
from cogvideo.theatre.scenes import ACTOR_NAMES, BACKGROUNDS, PAIRS, STATES, Clips
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.patches import SIDE


class ScenePatches:
    """The distinct patches of all scenes at one size, and which of them stand where.

    patches: uint8 [patches, 3, 8, 8]; counts [patches]: in how many places of distinct pictures each stands;
    table int32 [actors, pairs, backgrounds, states, N]: the patch at every token position of every scene.
    """

    def __init__(self, size: int):
        found: dict[bytes, int] = {}
        counts: list[int] = []
        table = np.empty(
            (len(ACTOR_NAMES), len(PAIRS), len(BACKGROUNDS), STATES, (size // SIDE) ** 2), np.int32
        )
        for where, again, picture in _scenes(size):
            if picture is None:
                table[where] = table[again]
                continue
            cut = rearrange(picture, "(h a) (w b) c -> (h w) (c a b)", a=SIDE, b=SIDE)
            for position, patch in enumerate(np.ascontiguousarray(cut)):
                number = found.setdefault(patch.tobytes(), len(found))
                if number == len(counts):
                    counts.append(0)
                counts[number] += 1
                table[where][position] = number
        flat = np.frombuffer(b"".join(found), np.uint8)
        self.patches = torch.from_numpy(flat.reshape(-1, 3, SIDE, SIDE).copy())
        self.counts, self.table = torch.tensor(counts), torch.from_numpy(table)

    def tokens(self, frames: FrameTokenizer) -> Tensor:
        """Tokens int16 [actors, pairs, backgrounds, states, N] of every scene."""
        device = frames.codebook.device
        ids = torch.cat([frames.encode(some.to(device).float() / 255) for some in self.patches.split(4096)])
        return ids.flatten().to("cpu", torch.int16)[self.table.long()]


@cache
def scene_patches(size: int) -> ScenePatches:
    """The patches of all scenes at one size, found once in a process."""
    return ScenePatches(size)


class SceneTokens:
    """Tokens of clips at given states, looked up in a table that is made when first asked for."""

    def __init__(self, frames: FrameTokenizer):
        self.frames = frames
        self._tables: dict[int, Tensor] = {}

    def __call__(self, clips: Clips, states: np.ndarray, size: int) -> Tensor:
        """Tokens int64 [n, T, N] of clips at `states` [n, T], drawn at `size` pixels."""
        if size not in self._tables:
            self._tables[size] = scene_patches(size).tokens(self.frames)
        rows = (torch.from_numpy(np.asarray(x)[:, None]) for x in (clips.actor, clips.pair, clips.background))
        return self._tables[size][(*rows, torch.from_numpy(states))].long()


def _scenes(size: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], np.ndarray | None]]:
    """(indices, indices of the first scene that looks the same, picture or None if it is not the first)."""
    for a, actor in enumerate(ACTOR_NAMES):
        for b, background in enumerate(BACKGROUNDS):
            first: dict[object, tuple[int, ...]] = {}
            for p, (action, thing) in enumerate(PAIRS):
                for s, look in enumerate(looks(action, thing)):
                    again = first.setdefault(look, (a, p, b, s))
                    fresh = again == (a, p, b, s)
                    yield (
                        (a, p, b, s),
                        again,
                        draw(actor, action, thing, s, background, size) if fresh else None,
                    )
