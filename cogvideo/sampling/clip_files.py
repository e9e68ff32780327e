"""Clips of prompts as video files, for `cogvideo generate`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cogvideo.checkpoints.registry import DEMO
from cogvideo.data.video import check_writable
from cogvideo.sampling.batches import fill_folder, identity
from cogvideo.sampling.pipeline import Pipeline


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
    pipe = Pipeline.from_pretrained(**models)
    weights = models["weights"]
    made_with = {
        "weights": identity(DEMO if weights == "demo" else weights),
        "dtype": models["dtype"],
        "device": pipe.device.type,
    }
    return [str(path) for path in fill_folder(pipe, prompts, folder, made_with=made_with, **settings)]
