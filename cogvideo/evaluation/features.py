"""Clips to I3D features, kept on disk by what the clips hold; CHUNK clips are in memory at a time."""

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cogvideo.checkpoints.registry import cache_dir
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.i3d import I3D
from cogvideo.evaluation.recipes import Recipe, check_frames, choose_clip, prepare
from cogvideo.evaluation.sides import Side
from cogvideo.io import replacing

CHUNK = 16  # clips that are written together; what a killed run loses at most
MAX_SKIPPED = 0.01  # of the videos of a side that may be unreadable


class Features(NamedTuple):
    values: np.ndarray  # float32 [n,D], in the order of the videos
    skipped: list[str]  # sentences about videos that could not be read
    size: tuple[int, int]  # height and width of the first clip


def features_of(
    side: Side,
    recipe: Recipe,
    network: I3D,
    *,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    change: Callable[[np.ndarray, int], np.ndarray] = lambda clip, number: clip,
    **shown: Any,
) -> Features:
    """Features of one clip of each video of a side; at least two videos must be readable.

    size: as in clips_of. change(clip, number among the readable ones): applied to clips before they are
    prepared. shown: title and progress of rows_of.
    """
    clips, skipped = clips_of(side, recipe, seed, size=size)
    first, values = next(clips, None), ()
    if first is not None:
        changed = (change(clip, number) for number, clip in enumerate(chain([first], clips)))
        key = f"{network.digest} {network.batch_norm_eps} fp32"
        values = extract(changed, recipe, network, key=key, total=len(side.names), **shown)
        if len(values) >= 2:
            return Features(values, skipped, first.shape[1:3])
    raise CogVideoError(f"{side.label} has only {len(values)} readable video: FVD needs at least 2.")


def readable(side: Side, skipped: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """Number and frames uint8 [T,H,W,3] of each readable video; `skipped` gathers sentences about the others.

    CogVideoError as soon as more than MAX_SKIPPED of the videos are unreadable.
    """
    side.make()
    for number, name in enumerate(side.names):
        try:
            frames = side.read(name)
        except (CogVideoError, OSError, ValueError, zipfile.BadZipFile) as error:
            skipped.append(f"{name}: {error}")
            if len(skipped) > MAX_SKIPPED * len(side.names):
                raise CogVideoError(
                    f"{len(skipped)} of the {len(side.names)} videos of {side.label} cannot be read (first "
                    f"{skipped[0]}), but at most {MAX_SKIPPED:.0%} may be skipped: mend or remove them."
                ) from None
            continue
        yield number, check_frames(frames, f"{side.label}, {name}")


def clips_of(
    side: Side, recipe: Recipe, seed: int = 0, *, size: tuple[int, int] | None = None
) -> tuple[Iterator[np.ndarray], list[str]]:
    """The recipe's clip uint8 [frames,H,W,3] of every readable video, read on demand; and the list `skipped`.

    Which frames are taken depends on seed and the number of the video alone. size: height and width that all
    clips must have if the recipe does not bring them to one; by default the first clip's.
    """
    skipped: list[str] = []

    def clips() -> Iterator[np.ndarray]:
        expected = size
        for number, frames in readable(side, skipped):
            where = f"{side.label}, {side.names[number]}"
            clip = choose_clip(frames, recipe, np.random.default_rng([seed, number]), where)
            expected = expected or clip.shape[1:3]
            if recipe.side is None and clip.shape[1:3] != expected:
                (h, w), (height, width) = clip.shape[1:3], expected
                raise CogVideoError(
                    f"{where} has {w} x {h} pixels, videos before it {width} x {height}, and preset "
                    f"{recipe.name} takes both sides in one size: resize all videos to one first."
                )
            yield clip.copy()  # a view would keep the whole video in memory

    return clips(), skipped


def extract(
    clips: Iterable[np.ndarray],
    recipe: Recipe,
    network: Callable[[Tensor], Tensor],
    *,
    key: str,
    **options: Any,
) -> np.ndarray:
    """Features float32 [n,D] of clips; options: see rows_of. network: [B,3,T,224,224] in -1..1 -> [B,D]."""

    def compute(some: list[np.ndarray]) -> np.ndarray:
        return network(torch.stack([prepare(clip, recipe) for clip in some])).float().cpu().numpy()

    key = repr((key, recipe.side, recipe.antialias, recipe.crop))
    return rows_of(clips, compute, key=key, batch=2, **options)


def rows_of(
    clips: Iterable[np.ndarray],
    compute: Callable[[list[np.ndarray]], np.ndarray],
    *,
    key: str,
    folder: Path | None = None,
    batch: int = 4,
    title: str = "features",
    total: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Rows [n,D] that compute(some clips) gives, one for each clip; those computed before come from `folder`.

    key: unique for a network and its settings. folder: by default `features` in the cache. total: how many
    clips there will be, for the progress bar. Without clips the result is [0,0].
    """
    folder = (folder or cache_dir() / "features") / hashlib.sha256(key.encode()).hexdigest()[:16]
    known = _load(folder)
    hashes: list[str] = []
    waiting: dict[str, np.ndarray] = {}  # new clips of this chunk

    with tqdm(total=total, desc=title, unit="clip", mininterval=1, disable=not progress) as bar:

        def flush() -> None:
            digests, fresh = list(waiting), {}
            for some in (digests[at : at + batch] for at in range(0, len(digests), batch)):
                with torch.inference_mode():
                    fresh |= dict(zip(some, compute([waiting[digest] for digest in some]), strict=True))
                bar.update(len(some))
            if fresh:
                _store(folder, fresh)
            known.update(fresh)
            waiting.clear()

        for clip in clips:
            hashes.append(hashlib.sha256(repr(clip.shape).encode() + clip.tobytes()).hexdigest())
            if hashes[-1] in known or hashes[-1] in waiting:
                bar.update()
                continue
            waiting[hashes[-1]] = clip
            if len(waiting) == CHUNK:
                flush()
        flush()
    return np.stack([known[digest] for digest in hashes]) if hashes else np.zeros((0, 0), np.float32)


def _load(folder: Path) -> dict[str, np.ndarray]:
    known = {}
    for file in sorted(folder.glob("*.npz")):
        try:
            with np.load(file, allow_pickle=False) as stored:
                known |= dict(zip(stored["hashes"].tolist(), stored["features"], strict=True))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            continue  # damaged: its clips are computed anew
    return known


def _store(folder: Path, fresh: dict[str, np.ndarray]) -> None:
    name = hashlib.sha256("".join(fresh).encode()).hexdigest()[:16]
    with replacing(folder / f"{name}.npz", parents=True) as part, part.open("wb") as file:
        np.savez(file, hashes=np.array(list(fresh)), features=np.stack(list(fresh.values())))
