"""Frames of a data set as pixels on disk, mapped into memory: what a frame tokenizer is trained on."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cogvideo.data.sources import Clip, Dataset
from cogvideo.data.tokenized import group_of, split_groups
from cogvideo.errors import CogVideoError
from cogvideo.io import read_json, replacing, write_json

NOTE = "frames.json"


def make_pool(
    dataset: Dataset, folder: Path, sides: Sequence[int], per_clip: int, *, progress: bool = True
) -> None:
    """Write frames of every clip, spread over it, as squares of each side; a folder that is there is kept.

    Clips that cannot be read are left out. Raises CogVideoError where none can, and for a folder of other
    clips.
    """
    facts = [(clip.source, clip.group, getattr(clip, "start", 0.0)) for clip in dataset.clips]
    digest = hashlib.sha256(repr((facts, list(sides), per_clip)).encode()).hexdigest()[:16]
    if (folder / NOTE).exists():
        if read_json(folder / NOTE)["digest"] != digest:
            raise CogVideoError(
                f"{folder} has frames of other clips or sizes: delete it, or choose another run_dir."
            )
        return
    groups: list[int] = []
    with replacing(folder, parents=True, one_writer=True) as part:
        part.mkdir()
        files = [(part / f"{side}.bin").open("wb") for side in sides]
        try:
            with ThreadPoolExecutor(
                min(8, os.cpu_count() or 1)
            ) as pool:  # FFmpeg works outside Python's lock
                read = pool.map(lambda clip: _frames(clip, sides, per_clip), dataset.clips)
                bar = tqdm(read, total=len(dataset.clips), desc="frames", unit="clip", disable=not progress)
                for clip, found in zip(dataset.clips, bar, strict=True):
                    groups += [group_of(clip.group)] * len(found)
                    for frame in found:
                        for file, pixels in zip(files, frame, strict=True):
                            file.write(pixels.tobytes())
        finally:
            for file in files:
                file.close()
        if not groups:
            raise CogVideoError(f"{dataset.label} has no clip that can be read: see `cogvideo data inspect`.")
        write_json(part / NOTE, {"digest": digest, "sides": list(sides), "groups": groups})


def _frames(clip: Clip, sides: Sequence[int], per_clip: int) -> list[list[np.ndarray]]:
    try:
        timeline = clip.timeline()
        middle = (np.arange(per_clip) + 0.5) / per_clip * timeline.end
        wanted = sorted(set(timeline.at(middle).tolist()))
        found, _ = clip.frames(timeline, wanted, [(side, side) for side in sides])
        return [found[number] for number in wanted if number in found]
    except (CogVideoError, ValueError):
        return []


class FramePool:
    """The frames that make_pool wrote, divided into train and test as the tokens of the same clips are."""

    def __init__(self, folder: Path, test_share: float):
        note = read_json(folder / NOTE)
        self.digest, count = note["digest"], len(note["groups"])
        self._pixels = {
            side: np.memmap(folder / f"{side}.bin", np.uint8, "r", shape=(count, side, side, 3))
            for side in note["sides"]
        }
        self._rows = split_groups(np.array(note["groups"]), test_share)

    def draw(
        self, rng: np.random.Generator, sides: Sequence[int], first_share: float, crop: int
    ) -> tuple[int, int, int, int, int, bool]:
        """Where a crop of training is: side, row, top, left, its size, mirrored."""
        rows = self._rows["train"]
        row, kind, mirrored, *corner = rng.random(5)
        side = sides[0] if len(sides) == 1 or kind < first_share else sides[1]
        top, left = (int(at * (side - crop + 1)) for at in corner)
        return side, int(rows[int(row * len(rows))]), top, left, crop, bool(mirrored < 0.5)

    def crop(self, side: int, row: int, top: int, left: int, size: int, mirrored: bool) -> Tensor:
        """[3,size,size] in 0..1."""
        part = np.array(self._pixels[side][row, top : top + size, left : left + size])
        part = part[:, ::-1] if mirrored else part
        return torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1).float() / 255

    def test(self, side: int, count: int) -> Tensor:
        """At most so many held-out frames [n,3,side,side] in 0..1, spread over all."""
        rows = self._rows["test"]
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, count).round().astype(int))]
        return torch.stack([self.crop(side, int(row), 0, 0, side, False) for row in chosen])
