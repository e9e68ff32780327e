"""Clips to I3D features, kept on disk by what the clips hold, so that they are computed once."""

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.evaluation.recipes import Recipe, check_frames, choose_clip, prepare
from cogvideo.evaluation.sources import Side

CHUNK = 16  # clips that are written together; what a killed run loses at most
MAX_SKIPPED = 0.01  # share of unreadable videos that is passed over


def clips_of(
    side: Side, recipe: Recipe, seed: int = 0, *, max_skipped: float = MAX_SKIPPED
) -> tuple[list[np.ndarray], list[str]]:
    """The recipe's clip uint8 [frames,H,W,3] of every video, and sentences about those that could not be read.

    Raises CogVideoError if more than `max_skipped` of the videos are unreadable, a video is too short, or sizes differ
    under a recipe that does not bring them to one size first.
    """
    clips, skipped = [], []
    for index, name in enumerate(side.names):
        try:
            frames = side.read(name)
        except (CogVideoError, OSError, ValueError, zipfile.BadZipFile) as error:
            skipped.append(f"{name}: {error}")
            continue
        where = f"{side.label}, {name}"
        frames = check_frames(frames, where)
        clips.append(choose_clip(frames, recipe, np.random.default_rng([seed, index]), where))
        if recipe.side is None and clips[0].shape != clips[-1].shape:
            sizes = " and ".join(f"{clip.shape[2]} x {clip.shape[1]}" for clip in (clips[0], clips[-1]))
            raise CogVideoError(f"{side.label} mixes sizes ({sizes} pixels): bring its videos to one size first.")
    if len(skipped) > max_skipped * len(side.names):
        raise CogVideoError(
            f"{len(skipped)} of {len(side.names)} videos of {side.label} cannot be read (first {skipped[0]}), "
            f"but at most {max_skipped:.0%} may be skipped: mend or remove them."
        )
    return clips, skipped


def extract(
    clips: list[np.ndarray],
    recipe: Recipe,
    network: Callable[[Tensor], Tensor],
    *,
    key: str,
    folder: Path | None = None,
    batch: int = 2,
    title: str = "features",
    progress: bool = True,
) -> np.ndarray:
    """Features float32 [n,D] of clips; those met before come from `folder`, new ones are added to it chunk by chunk.

    network: [B,3,T,224,224] in -1..1 -> [B,D]. key: what tells this network and its settings from others.
    folder: None for `features` in the cache.
    """
    from tqdm import tqdm

    if folder is None:
        from cogvideo.checkpoints.released import cache_dir

        folder = cache_dir() / "features"
    steps = (key, recipe.side, recipe.antialias, recipe.crop)
    folder = folder / hashlib.sha256(repr(steps).encode()).hexdigest()[:16]
    known = _load(folder)
    hashes = [hashlib.sha256(repr(clip.shape).encode() + clip.tobytes()).hexdigest() for clip in clips]
    missing = list({digest: i for i, digest in enumerate(hashes) if digest not in known}.values())
    with tqdm(total=len(missing), desc=title, unit="clip", disable=not progress or not missing) as bar:
        for chunk in (missing[at : at + CHUNK] for at in range(0, len(missing), CHUNK)):
            rows = []
            for some in (chunk[at : at + batch] for at in range(0, len(chunk), batch)):
                with torch.inference_mode():
                    video = torch.stack([prepare(clips[i], recipe) for i in some])
                    rows.append(network(video).float().cpu().numpy())
                bar.update(len(some))
            fresh = {hashes[i]: row for i, row in zip(chunk, np.concatenate(rows), strict=True)}
            _store(folder, fresh)
            known |= fresh
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
