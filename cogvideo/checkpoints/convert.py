"""Weights in another type: released or native folders -> native folders, streamed tensor by tensor.

The model is never built and no file is held whole: the peak memory is that of one shard
(native.write_weights).
"""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from cogvideo.checkpoints import released, sat
from cogvideo.checkpoints.frames import read_frame_tokenizer
from cogvideo.checkpoints.native import ADVICE, new_folder, read_folder, write_weights
from cogvideo.checkpoints.superres import our_superres_name, released_config
from cogvideo.config import ModelConfig, to_dict
from cogvideo.errors import CogVideoError
from cogvideo.io import read_json, write_json
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.memory import GB, peak_memory
from cogvideo.runtime.tensors import DTYPES, Weights, tensor_bytes
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.superres.iterative import IterativeConfig, IterativeSuperResolution

KEEP = "keep"


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str = "bf16",
    image_tokens: int = 20000,
    begin_of_image: int = 150000,
) -> str:
    """Write the weights in `source` as the native folder `target` -> a line with size, time and peak memory.

    source: a released folder or zip of any kind (image model, stage 1, stage 2, direct or iterative
    super-resolution); a native folder; the file ice_image.pt, which becomes `target`/frames.safetensors; or
    the folder with all of the release's files, which becomes a pipeline folder. dtype: fp32, bf16, fp16, or
    keep. image_tokens and begin_of_image belong to released folders.
    """
    source, target, kind = Path(source), Path(target), file_dtype(dtype)
    start = time.perf_counter()
    if source.is_dir() and released.is_released(source):
        _convert_release(source, target, kind)
    elif source.is_file() and source.suffix != ".zip":
        tokenizer = read_frame_tokenizer(source)
        with new_folder(target, _size(tokenizer.state_dict(), kind)) as folder:
            tokenizer.save(folder / "frames.safetensors", kind)
    else:
        config, weights = _checked(source, {"image_tokens": image_tokens, "begin_of_image": begin_of_image})
        with new_folder(target, _size(weights.meta, kind)) as folder:
            _write(folder, config, weights, kind)
    files = [path for path in target.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return f"{target}: {size / GB:.2f} GB in {len(files)} files{_cost(start)}"


def file_dtype(name: str) -> torch.dtype | None:
    """None: the types of the files."""
    if name not in (*DTYPES, KEEP):
        raise CogVideoError(f"dtype {name!r} is unknown: choose {', '.join(DTYPES)} or {KEEP}.")
    return DTYPES.get(name)


def _convert_release(source: Path, target: Path, kind: torch.dtype | None) -> None:
    """The pipeline folder of the release's files, with a pipeline.json that says how the release samples."""
    frames, text = released.read_tokenizers(source)
    ids: sat.Ids = {"image_tokens": frames.num_codes, "begin_of_image": text.begin_of_image}
    names = {"stage1": released.STAGE1, "stage2": released.STAGE2, "superres": released.SUPERRES}
    parts = {part: _checked(source / name, ids) for part, name in names.items()}
    with new_folder(target, sum(_size(weights.meta, kind) for _, weights in parts.values())) as folder:
        for part, (config, weights) in parts.items():
            (folder / part).mkdir()
            _write(folder / part, config, weights, kind)
        tokenizers = folder / "tokenizers"
        tokenizers.mkdir()
        shutil.copyfile(source / released.TEXT, tokenizers / "text.model")
        frames.save(tokenizers / "frames.safetensors", kind)
        np.save(tokenizers / "clusters.npy", released.read_clusters(source, frames))
        write_json(folder / "pipeline.json", to_dict(released.SAMPLING))


def _checked(source: Path, ids: sat.Ids) -> tuple[Any, Weights]:
    """Configuration and weights; that they fit each other is checked now, not after an hour of writing."""
    model, config, weights = open_checkpoint(source, **ids)
    sat.empty_model(lambda: model(config), weights, str(source))
    return config, weights


def _size(weights: Mapping[str, Tensor], kind: torch.dtype | None) -> int:
    return sum(tensor_bytes(tensor, kind) for tensor in weights.values())


def _write(folder: Path, config: Any, weights: Weights, kind: torch.dtype | None) -> None:
    write_json(folder / "config.json", to_dict(config))
    write_weights(folder, weights, dtype=kind)


def measure_load(
    source: str | Path,
    *,
    device: str = "cpu",
    dtype: str = KEEP,
    image_tokens: int = 20000,
    begin_of_image: int = 150000,
) -> str:
    """Load the model in a released or native folder -> a line with its size, the time and the peak memory."""
    kind, start = file_dtype(dtype), time.perf_counter()
    build, config, weights = open_checkpoint(source, image_tokens=image_tokens, begin_of_image=begin_of_image)
    model = sat.fill_model(lambda: build(config), weights, where=str(source), device=device, dtype=kind)
    size = _size(model.state_dict(), None)
    return f"{source}: {size / GB:.2f} GB of weights on {device}{_cost(start)}"


def open_checkpoint(folder: str | Path, **ids: Unpack[sat.Ids]) -> tuple[type[nn.Module], Any, Weights]:
    """The model in a released or native folder: class, configuration, weights (our names, unread)."""
    folder = Path(folder)
    if (folder / "config.json").exists():
        settings = read_json(folder / "config.json", advice=ADVICE)
        if "low_window" in settings:
            return DirectSuperResolution, *read_folder(folder, SuperResolutionConfig)
        if "window_rows" in settings:
            return IterativeSuperResolution, *read_folder(folder, IterativeConfig)
        return CogVideoTransformer, *read_folder(folder, ModelConfig)
    if not folder.exists():
        raise CogVideoError(f"There are no weights at {folder}: give a folder, a zip or ice_image.pt.")
    weights, _ = sat.read_sat_folder(folder)
    kind = sat.released_kind(weights)
    if kind in ("image", "video"):
        return CogVideoTransformer, *sat.open_sat_checkpoint(folder, **ids)
    model = DirectSuperResolution if kind == "direct" else IterativeSuperResolution
    heads = released.superres_heads(folder)
    weights = weights.renamed(our_superres_name)
    with sat.invalid_release(folder):
        config = released_config(model, weights, num_heads=heads, **ids)
    return model, config, weights


def _cost(start: float) -> str:
    peak = peak_memory()
    memory = f", peak host memory {peak / GB:.2f} GB" if peak else ""
    return f", {time.perf_counter() - start:.1f} s{memory}"
