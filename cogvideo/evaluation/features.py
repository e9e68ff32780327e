"""Clips to I3D features, kept on disk by what the clips hold, so that they are computed once.

Clips are read, prepared and forgotten one after another: CHUNK of them are in memory at a time, whatever their number.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.evaluation.i3d import I3D
from cogvideo.evaluation.recipes import Recipe, check_frames, choose_clip, prepare
from cogvideo.evaluation.sources import Side

CHUNK = 16  # clips that are written together; what a killed run loses at most
MAX_SKIPPED = 0.01  # share of unreadable videos that is passed over


@dataclass(frozen=True)
class Features:
    """What is left of a side once it has gone through the network."""

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
    change: Callable[[np.ndarray, int], np.ndarray] | None = None,
    title: str = "features",
    progress: bool = True,
) -> Features:
    """Features of a side's videos, of one clip each.

    size: as in clips_of. change(clip, number among the readable ones): applied to clips before they are prepared. Raises
    CogVideoError as clips_of does, and for a side with fewer than two readable videos.
    """
    clips, skipped = clips_of(side, recipe, seed, size=size)
    first = next(clips, None)
    if first is not None:
        changed = (
            change(clip, number) if change else clip for number, clip in enumerate(chain([first], clips))
        )
        key = f"{network.digest} {network.batch_norm_eps} fp32"
        values = extract(
            changed, recipe, network, key=key, title=title, total=len(side.names), progress=progress
        )
        if len(values) >= 2:
            return Features(values, skipped, first.shape[1:3])
    raise CogVideoError(
        f"{side.label} has only {int(first is not None)} readable video: FVD needs at least 2."
    )


def clips_of(
    side: Side,
    recipe: Recipe,
    seed: int = 0,
    *,
    size: tuple[int, int] | None = None,
    max_skipped: float = MAX_SKIPPED,
) -> tuple[Iterator[np.ndarray], list[str]]:
    """The recipe's clip uint8 [frames,H,W,3] of every video, read as it is asked for, and a list that gathers sentences
    about videos that could not be read.

    The place of a clip in its video depends on seed and on the number of the video alone.
    size: height and width that a recipe which does not bring clips to one size first wants; by default the first clip's.
    The iterator raises CogVideoError as soon as more than `max_skipped` of the videos are unreadable, one is too short, or
    sizes differ.
    """
    skipped: list[str] = []
    return _read(side, recipe, seed, size, max_skipped, skipped), skipped


def _read(
    side: Side,
    recipe: Recipe,
    seed: int,
    size: tuple[int, int] | None,
    max_skipped: float,
    skipped: list[str],
) -> Iterator[np.ndarray]:
    side.make()
    for index, name in enumerate(side.names):
        try:
            frames = side.read(name)
        except (CogVideoError, OSError, ValueError, zipfile.BadZipFile) as error:
            skipped.append(f"{name}: {error}")
            if len(skipped) > max_skipped * len(side.names):
                raise CogVideoError(
                    f"{len(skipped)} of the {len(side.names)} videos of {side.label} cannot be read (first "
                    f"{skipped[0]}), but at most {max_skipped:.0%} may be skipped: mend or remove them."
                ) from None
            continue
        where = f"{side.label}, {name}"
        clip = choose_clip(check_frames(frames, where), recipe, np.random.default_rng([seed, index]), where)
        size = size or clip.shape[1:3]
        if recipe.side is None and clip.shape[1:3] != size:
            (h, w), (height, width) = clip.shape[1:3], size
            raise CogVideoError(
                f"{where} has {w} x {h} pixels, videos before it {width} x {height}, and preset {recipe.name} wants both "
                f"sides in one size: bring all videos to one first."
            )
        yield clip.copy()  # a view would keep the whole video in memory


def extract(
    clips: Iterable[np.ndarray],
    recipe: Recipe,
    network: Callable[[Tensor], Tensor],
    *,
    key: str,
    folder: Path | None = None,
    batch: int = 2,
    title: str = "features",
    total: int | None = None,
    progress: bool = True,
) -> np.ndarray:
    """Features float32 [n,D] of clips; those met before come from `folder`, new ones are added to it chunk by chunk.

    network: [B,3,T,224,224] in -1..1 -> [B,D]. key: what tells this network and its settings from others.
    folder: None for `features` in the cache. total: how many clips there will be, for the progress bar.
    """

    def compute(some: list[np.ndarray]) -> np.ndarray:
        return network(torch.stack([prepare(clip, recipe) for clip in some])).float().cpu().numpy()

    key = repr((key, recipe.side, recipe.antialias, recipe.crop))
    return rows_of(
        clips, compute, key=key, folder=folder, batch=batch, title=title, total=total, progress=progress
    )


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
    """compute(some clips) -> a row [D] for each, over all clips [n,D]; rows computed before come from `folder`.

    key: what tells this network and its settings from others. A run that is killed loses CHUNK rows at most; no more clips
    than that are held. Without clips the result is [0,0].
    """
    from tqdm import tqdm

    if folder is None:
        from cogvideo.checkpoints.registry import cache_dir

        folder = cache_dir() / "features"
    folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
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
        if waiting:
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
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256("".join(fresh).encode()).hexdigest()[:16]
    part = folder / f"{name}.{os.getpid()}.part"
    with part.open("wb") as file:
        np.savez(file, hashes=np.array(list(fresh)), features=np.stack(list(fresh.values())))
    os.replace(part, folder / f"{name}.npz")
