"""Many clips: batches that are halved when memory runs out, and folders of clips that several processes fill."""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tqdm import tqdm

from cogvideo.config import to_dict
from cogvideo.data.video import check_writable
from cogvideo.errors import CogVideoError
from cogvideo.io import write_whole

if TYPE_CHECKING:
    from cogvideo.sampling.pipeline import Pipeline

Result = TypeVar("Result")
READ_BYTES = 10**9


def out_of_memory(error: BaseException) -> bool:
    """Whether an error tells that memory ran out, on CUDA, in Python or in torch's CPU allocator."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "not enough memory: you tried to allocate" in str(error)


def halving(make: Callable[[slice], list[Result]], clips: int) -> list[Result]:
    """`make(slice)` for all clips at once, or in halves, quarters, .. of them where memory does not suffice.

    Rows do not depend on each other, so the results are those of the whole batch. Raises what `make` raises, and its
    out-of-memory error where even one clip is too much.
    """
    done: list[Result] = []
    size = clips
    while len(done) < clips:
        part = slice(len(done), min(len(done) + size, clips))
        try:
            done += make(part)
            continue
        except (MemoryError, RuntimeError) as error:
            tried = part.stop - part.start
            if not out_of_memory(error) or tried == 1:
                raise
            size = tried // 2
        if torch.cuda.is_available():  # outside of `except`: there the error's frames still hold the tensors
            torch.cuda.empty_cache()
        warnings.warn(
            f"Memory does not suffice for {tried} clips at once: going on with {size}.", stacklevel=3
        )
    return done


def slug(prompt: str) -> str:
    """Letters and digits of a prompt, joined by dashes: safe in a file name on any system."""
    return re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:40].rstrip("-") or "clip"


def read_prompts(path: str | Path) -> list[str]:
    """The lines of a UTF-8 file, without empty ones. Raises CogVideoError for a file that cannot be read or has none."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CogVideoError(
            f"The prompts {path} cannot be read ({error}): give a text file, one prompt a line."
        ) from None
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise CogVideoError(f"{path} holds no prompts: write one on each line.")
    return prompts


def identity(folder: str | Path) -> str:
    """What tells weights from others: 16 digits over the names and contents of their files.

    Of more than READ_BYTES, sizes and times stand for the contents: reading the release takes longer than a sample.
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
    pipe: "Pipeline",
    prompts: Sequence[str],
    folder: str | Path,
    *,
    seed: int = 0,
    at_once: int = 8,
    made_with: Mapping[str, Any] | None = None,
    progress: bool = True,
    **settings: Any,
) -> list[Path]:
    """Make this process's share of the prompts' clips, as torchrun's RANK and WORLD_SIZE tell it -> the clips' files.

    Clip i has seed `seed + i`, whoever makes it. Beside every NNNN-slug.mp4 lies a .json of how it was made; a clip whose
    .json tells the same is not made again, so that a stopped run goes on; what was not finished are at most at_once clips.
    made_with: what else belongs to a clip (weights, precision). settings: those of `Pipeline.__call__`. Raises CogVideoError
    for a folder that cannot be written.
    """
    folder = Path(folder)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CogVideoError(
            f"The folder {folder} cannot be made ({error.strerror}): choose another."
        ) from None
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
                note.unlink(missing_ok=True)  # it tells of an older clip
                video.save(part)
                os.replace(part, paths[i])
                write_whole(note, _text(records[i]))
            bar.update(len(some))
    return list(paths.values())


def _text(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _made(path: Path, record: dict[str, Any]) -> bool:
    try:
        return path.is_file() and path.with_suffix(".json").read_text(encoding="utf-8") == _text(record)
    except (OSError, UnicodeDecodeError):
        return False
