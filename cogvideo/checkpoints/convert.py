"""Weights in another type: released or native folders -> native folders, streamed tensor by tensor.

The model is never built and no file is held whole: the memory taken is that of one shard being written (native.write_weights).
"""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cogvideo.checkpoints.native import new_folder, read_folder, read_json, write_weights
from cogvideo.checkpoints.sat import empty_model, fill_model, open_sat_checkpoint, read_sat_folder
from cogvideo.config import ModelConfig, to_dict
from cogvideo.errors import CogVideoError
from cogvideo.io import write_json
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.memory import GB, peak_memory
from cogvideo.runtime.tensors import DTYPES, Weights, tensor_bytes
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.superres.iterative import IterativeConfig, IterativeSuperResolution
from cogvideo.superres.layers import our_superres_name

KEEP = "keep"


def convert(
    source: str | Path,
    target: str | Path,
    *,
    dtype: str = "bf16",
    image_tokens: int = 20000,
    begin_of_image: int = 150000,
) -> str:
    """Write the weights in `source` as the native folder `target`; returns a line that tells what was done.

    source: a released folder, or its zip, of any kind (image model, stage 1, stage 2, direct or iterative super-resolution), a native one,
    the file ice_image.pt, from which `target`/frames.safetensors is made, or the folder with all of the release's files, which
    becomes a pipeline folder. dtype: fp32, bf16, fp16, or keep. image_tokens
    and begin_of_image belong to released folders. Raises CogVideoError for weights that are missing, damaged or do not fit
    each other, a target that is there already and a full disk.
    """
    if dtype not in (*DTYPES, KEEP):
        raise CogVideoError(f"dtype {dtype!r} is unknown: choose {', '.join(DTYPES)} or {KEEP}.")
    from cogvideo.checkpoints.released import is_released, read_frame_tokenizer  # reads checkpoints itself

    source, target, kind = Path(source), Path(target), DTYPES.get(dtype)
    start = time.perf_counter()
    if source.is_dir() and is_released(source):
        _convert_release(source, target, kind)
    elif source.is_file() and source.suffix != ".zip":
        tokenizer = read_frame_tokenizer(source)
        with new_folder(
            target, sum(tensor_bytes(t, kind) for t in tokenizer.state_dict().values())
        ) as folder:
            tokenizer.save(folder / "frames.safetensors", kind)
    else:
        config, weights = _checked(source, image_tokens=image_tokens, begin_of_image=begin_of_image)
        with new_folder(target, _size(weights, kind)) as folder:
            _write(folder, config, weights, kind)
    files = [path for path in target.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return f"{target}: {size / GB:.2f} GB in {len(files)} files{_cost(start)}"


def _convert_release(source: Path, target: Path, kind: torch.dtype | None) -> None:
    """stage1/, stage2/, superres/, tokenizers/ and pipeline.json (how the release draws) from the release's files."""
    from cogvideo.checkpoints import released

    frames, text = released.read_tokenizers(source)
    ids = {"image_tokens": frames.num_codes, "begin_of_image": text.begin_of_image}
    names = {"stage1": released.STAGE1, "stage2": released.STAGE2, "superres": released.SUPERRES}
    parts = {part: _checked(source / name, **ids) for part, name in names.items()}
    with new_folder(target, sum(_size(weights, kind) for _, weights in parts.values())) as folder:
        for part, (config, weights) in parts.items():
            (folder / part).mkdir()
            _write(folder / part, config, weights, kind)
        tokenizers = folder / "tokenizers"
        tokenizers.mkdir()
        shutil.copyfile(source / released.TEXT, tokenizers / "text.model")
        frames.save(tokenizers / "frames.safetensors", kind)
        np.save(tokenizers / "clusters.npy", released.read_clusters(source, frames))
        write_json(folder / "pipeline.json", to_dict(released.SAMPLING))


def _checked(source: Path, *, image_tokens: int, begin_of_image: int) -> tuple[Any, Weights]:
    """Configuration and weights that fit each other: found out now, not after an hour of writing."""
    model, config, weights = open_checkpoint(source, image_tokens=image_tokens, begin_of_image=begin_of_image)
    empty_model(lambda: model(config), weights, str(source))
    return config, weights


def _size(weights: Weights, kind: torch.dtype | None) -> int:
    return sum(tensor_bytes(tensor, kind) for tensor in weights.meta.values())


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
    """Load the model in a released or native folder; returns a line that tells its size, the time and the peak memory."""
    if dtype not in (*DTYPES, KEEP):
        raise CogVideoError(f"dtype {dtype!r} is unknown: choose {', '.join(DTYPES)} or {KEEP}.")
    start = time.perf_counter()
    build, config, weights = open_checkpoint(source, image_tokens=image_tokens, begin_of_image=begin_of_image)
    model = fill_model(
        lambda: build(config), weights, where=str(source), device=device, dtype=DTYPES.get(dtype)
    )
    size = sum(map(tensor_bytes, model.state_dict().values()))
    return f"{source}: {size / GB:.2f} GB of weights on {device}{_cost(start)}"


def open_checkpoint(
    folder: str | Path, *, image_tokens: int, begin_of_image: int
) -> tuple[type[nn.Module], Any, Weights]:
    """What model a released or native folder holds: its class, its configuration, its weights (our names, unread).

    Raises CogVideoError for a folder that is neither and for missing or damaged files.
    """
    folder, ids = Path(folder), {"image_tokens": image_tokens, "begin_of_image": begin_of_image}
    if (folder / "config.json").exists():
        settings = read_json(folder / "config.json")
        if "low_window" in settings:
            return DirectSuperResolution, *read_folder(folder, SuperResolutionConfig)
        if "window_rows" in settings:
            return IterativeSuperResolution, *read_folder(folder, IterativeConfig)
        return CogVideoTransformer, *read_folder(folder, ModelConfig)
    if not folder.exists():
        raise CogVideoError(
            f"There are no weights at {folder}: give a released folder or zip, a native folder, or ice_image.pt."
        )
    weights, settings = read_sat_folder(folder)
    kind = released_kind(weights)
    if kind in ("image", "video"):
        return CogVideoTransformer, *open_sat_checkpoint(folder, **ids)
    model = DirectSuperResolution if kind == "direct" else IterativeSuperResolution
    heads = settings.get("num_attention_heads")
    if not isinstance(heads, int) or heads < 1:
        raise CogVideoError(
            f"{folder / 'model_config.json'} does not tell num_attention_heads; download it again."
        )
    weights = weights.renamed(our_superres_name)
    try:
        config = model.released_config(weights, num_heads=heads, **ids)
    except (KeyError, ValueError) as error:
        raise CogVideoError(
            f"{folder} is no checkpoint of the release: it lacks {error}; download it again."
        ) from None
    except CogVideoError as error:
        raise CogVideoError(f"{folder} is damaged or put together of several: {error}") from None
    return model, config, weights


def released_kind(names: Weights) -> str:
    """What a released table of weights is: image, video (stage 1 or 2), direct or iterative (super-resolution)."""
    if any(name.startswith("mixins.attention_plus.attn_distribution.") for name in names):
        return "video"
    if any(name.startswith("mixins.attention_plus.") for name in names):
        return "direct"
    return "iterative" if any(name.startswith("mixins.") for name in names) else "image"


def _cost(start: float) -> str:
    peak = peak_memory()
    return f", {time.perf_counter() - start:.1f} s" + (
        f", peak host memory {peak / GB:.2f} GB" if peak else ""
    )
