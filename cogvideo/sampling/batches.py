"""Clips of prompts as files, and folders of them that several processes fill and a stopped run resumes."""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cogvideo.checkpoints.registry import weights_folder
from cogvideo.config import to_dict
from cogvideo.data.video import check_writable
from cogvideo.errors import CogVideoError
from cogvideo.io import make_writable, write_whole
from cogvideo.sampling.pipeline import Pipeline

READ_BYTES = 10**9


def slug(prompt: str) -> str:
    """Letters and digits of a prompt, joined by dashes: safe in a file name on any system."""
    return re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "clip"


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file, without empty ones."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CogVideoError(
            f"The prompts {path} cannot be read ({error}): give a text file, one prompt a line."
        ) from None
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise CogVideoError(f"{path} holds no prompts: write one a line.")
    return prompts


def identity(folder: str | Path) -> str:
    """A fingerprint of weights: 16 digits over the names and contents of their files.

    Above READ_BYTES, sizes and times stand for the contents: reading the release takes longer than a sample.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    small = sum(path.stat().st_size for path in files) <= READ_BYTES
    digest = hashlib.sha256()
    for path in files:
        facts = path.stat()
        digest.update(repr((path.relative_to(folder).as_posix(), facts.st_size)).encode())
        digest.update(path.read_bytes() if small else str(facts.st_mtime_ns).encode())
    return digest.hexdigest()[:16]


def fill_folder(
    pipe: Pipeline,
    prompts: Sequence[str],
    folder: str | Path,
    *,
    seed: int = 0,
    at_once: int = 8,
    made_with: Mapping[str, Any] | None = None,
    progress: bool = True,
    **settings: Any,
) -> list[Path]:
    """Make this process's part of the prompts' clips (torchrun sets RANK and WORLD_SIZE) -> the clips' files.

    Clip i has seed `seed + i`, whichever process makes it. Beside every NNNN-slug.mp4 lies a .json with its
    settings; a clip whose .json says the same is not made again, so a stopped run resumes and repeats at most
    at_once clips. made_with: what else defines a clip (weights, precision). settings: those of
    `Pipeline.__call__`.
    """
    folder = Path(folder)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"The folder {folder} cannot be made ({error.strerror}): choose another."
        raise CogVideoError(message) from None
    paths = {i: folder / f"{i:04d}-{slug(prompts[i])}.mp4" for i in range(rank, len(prompts), world)}
    common = dict(made_with or {}) | settings | {"sampling": to_dict(pipe.sampling)}
    records = {i: {"prompt": prompts[i], "seed": seed + i} | common for i in paths}
    missing = [i for i, path in paths.items() if not _made(path, records[i])]
    if missing:
        check_writable(paths[missing[0]])
    with tqdm(total=len(paths), initial=len(paths) - len(missing), desc="clips", disable=not progress) as bar:
        for some in (missing[first : first + at_once] for first in range(0, len(missing), at_once)):
            videos = pipe(
                [prompts[i] for i in some], seed=[seed + i for i in some], progress=False, **settings
            )
            assert isinstance(videos, list)  # one for each prompt
            for i, video in zip(some, videos, strict=True):
                note, part = paths[i].with_suffix(".json"), paths[i].with_suffix(".part.mp4")
                note.unlink(missing_ok=True)  # it describes an older clip
                video.save(part)
                os.replace(part, paths[i])
                write_whole(note, _text(records[i]))
            bar.update(len(some))
    return list(paths.values())


def write_clips(
    prompts: Sequence[str], output: str | Path, models: Mapping[str, Any], **settings: Any
) -> list[str]:
    """Make a clip of every prompt -> a line about each file; several are numbered: clip-1.mp4, ..

    models: arguments of `Pipeline.from_pretrained`; settings: those of `Pipeline.__call__`.
    """
    path = Path(output)
    several = [path.with_stem(f"{path.stem}-{i + 1}") for i in range(len(prompts))]
    paths = [path] if len(prompts) == 1 else several
    for path in paths:
        check_writable(path)  # now, not after the work
    videos = Pipeline.from_pretrained(**models)(prompts, **settings)
    assert isinstance(videos, list)  # one for each prompt
    return [f"{video.save(path)}: {video}" for video, path in zip(videos, paths, strict=True)]


def write_folder(
    prompts: Sequence[str], folder: str | Path, models: Mapping[str, Any], **settings: Any
) -> list[str]:
    """Fill a folder with a clip of every prompt (see `fill_folder`) -> the files of this process."""
    make_writable("--out-dir", Path(folder))  # now, not after loading
    pipe = Pipeline.from_pretrained(**models)
    weights = models["weights"]
    made_with = {
        "weights": identity(weights_folder(weights)),
        "dtype": models["dtype"],
        "device": pipe.device.type,
    }
    return [str(path) for path in fill_folder(pipe, prompts, folder, made_with=made_with, **settings)]


def _text(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _made(path: Path, record: dict[str, Any]) -> bool:
    try:
        return path.is_file() and path.with_suffix(".json").read_text(encoding="utf-8") == _text(record)
    except (OSError, UnicodeDecodeError):
        return False
