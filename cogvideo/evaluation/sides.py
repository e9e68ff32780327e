"""A side of a comparison: videos out of files, of a world that is drawn, or of a folder of samples."""

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from cogvideo.data.classes import VIDEOS, class_videos, videos_below
from cogvideo.data.sources import read_captions, world
from cogvideo.data.video import read_video
from cogvideo.errors import CogVideoError, first_sentence
from cogvideo.io import replacing

ARRAYS = (".npy", ".npz")  # frames without a codec, whose artefacts would change a score
AT_ONCE = 8  # prompts that are sampled together, and what a killed run loses at most


@dataclass(frozen=True)
class Side:
    """Videos that are read one at a time: read(name) -> uint8 [T,H,W,3] or CogVideoError.

    prompts: by name, of videos whose prompt is known. make(): sample what is missing; its errors do not count
    as those of a single video. The first read calls it if nobody has.
    """

    label: str
    names: list[str]
    read: Callable[[str], np.ndarray]
    prompts: dict[str, str] = field(default_factory=dict)
    make: Callable[[], None] = lambda: None


def folder_side(folder: Path, n: int, seed: int) -> Side:
    """Videos and arrays in a folder and below it; their prompts are the captions in its captions.jsonl."""
    side = _of_files(str(folder), videos_below(folder, VIDEOS + ARRAYS), n, seed)
    captions = folder / "captions.jsonl"
    if captions.is_file():
        rows = [row for row in read_captions(captions) if row["caption"]]
        side.prompts.update({str(folder / row["path"]): row["caption"] for row in rows})
    return side


def dataset(kind: str, folder: Path, split: str | None, n: int, seed: int) -> Side:
    """Videos of UCF-101 or Kinetics-600 in the layout of the data set; see data.classes for split files."""
    label = f"{kind}:{folder}" + (f"?split={split}" if split else "")
    return _of_files(label, class_videos(kind, folder, split), n, seed)


def drawn_side(scheme: str, split: str, n: int, seed: int, seconds: float) -> Side:
    """n real clips of a world of data.sources.WORLDS, small; clip i depends on split, seed and i alone."""
    drawn = world(scheme)
    if not 0 < seconds <= 60:
        raise CogVideoError(f"Clips cannot last {seconds:g} seconds: choose more than 0 and at most 60.")
    times = np.arange(round(seconds * drawn.FPS) + 1) / drawn.FPS

    def read(name: str) -> np.ndarray:
        return drawn.pixels(drawn.one_clip(split, seed, int(name)), times)

    prompts = {str(i): prompt for i, prompt in enumerate(drawn_prompts(scheme, split, n, seed))}
    return Side(f"{scheme}:{split}?seed={seed}&seconds={seconds:g}", list(prompts), read, prompts)


def drawn_prompts(scheme: str, split: str, n: int, seed: int) -> list[str]:
    """English captions of the first n clips that drawn_side() gives."""
    return [world(scheme).one_clip(split, seed, i).caption(0) for i in range(n)]


def sampled_side(
    label: str,
    folder: Path,
    prompts: dict[str, str],
    make: Callable[[list[int]], Sequence[np.ndarray | None]],
    *,
    title: str = "sampling",
    progress: bool = True,
) -> Side:
    """Clips kept in the files folder/name, for the prompts by name: a later run samples only missing ones.

    make(numbers of clips) -> their frames, or None where there can be none: read(name) then raises
    FileNotFoundError.
    """
    names, count = list(prompts), len(prompts)

    @cache
    def make_missing() -> None:
        missing = [i for i, name in enumerate(names) if not (folder / name).exists()]
        quiet = not progress or not missing
        with tqdm(total=count, initial=count - len(missing), desc=title, unit="clip", disable=quiet) as bar:
            for some in (missing[at : at + AT_ONCE] for at in range(0, len(missing), AT_ONCE)):
                for i, frames in zip(some, make(some), strict=True):
                    if frames is not None:
                        with replacing(folder / names[i], parents=True) as part, part.open("wb") as file:
                            np.savez_compressed(file, frames=frames)  # exact: a codec would change the score
                bar.update(len(some))

    def read(name: str) -> np.ndarray:
        make_missing()
        with np.load(folder / name, allow_pickle=False) as stored:
            return stored["frames"]

    return Side(label, names, read, prompts, make_missing)


def _of_files(label: str, paths: list[Path], n: int, seed: int) -> Side:
    if not paths:
        raise CogVideoError(f"{label} holds no videos ({' '.join(VIDEOS)}): give a folder that does.")
    order = np.random.default_rng(seed).permutation(len(paths))[:n]
    return Side(label, [str(paths[i]) for i in order], _read_file)


def _read_file(name: str) -> np.ndarray:
    """The frames in a video file, or the array in an .npy or .npz file, whatever it is."""
    if Path(name).suffix.lower() not in ARRAYS:
        return read_video(name)[0]
    try:
        stored = np.load(name, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return stored
        with stored:
            return stored["frames" if "frames" in stored.files or len(stored.files) != 1 else stored.files[0]]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = first_sentence(error)
        raise CogVideoError(f"{name} cannot be read as frames ({reason}): write it again.") from None
