"""Weights in another type: released or native folders -> native folders, streamed tensor by tensor.

The model is never built and no file is held whole: the memory taken is that of one shard being written (native.write_weights).
"""

import os
import time
from pathlib import Path
from typing import Any

from torch import nn

from cogvideo.checkpoints.memory import GB, peak_memory
from cogvideo.checkpoints.native import new_folder, read_folder, read_json, write_json, write_weights
from cogvideo.checkpoints.sat import empty_model, fill_model, open_sat_checkpoint, read_sat_folder
from cogvideo.checkpoints.tensors import DTYPES, Weights, tensor_bytes
from cogvideo.config import ModelConfig, to_dict
from cogvideo.errors import CogVideoError
from cogvideo.model import CogVideoTransformer
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

    source: a released folder of any kind (image model, stage 1, stage 2, direct or iterative super-resolution), a native one,
    or the file ice_image.pt, from which `target`/frames.safetensors is made. dtype: fp32, bf16, fp16, or keep. image_tokens
    and begin_of_image belong to released folders. Raises CogVideoError for weights that are missing, damaged or do not fit
    each other, a target that is there already and a full disk.
    """
    if dtype not in (*DTYPES, KEEP):
        raise CogVideoError(f"dtype {dtype!r} is unknown: choose {', '.join(DTYPES)} or {KEEP}.")
    source, target, kind = Path(source), Path(target), DTYPES.get(dtype)
    start = time.perf_counter()
    if source.is_file():
        from cogvideo.sampling.released import read_frame_tokenizer

        tokenizer = read_frame_tokenizer(source)
        with new_folder(target, sum(tensor_bytes(t, kind) for t in tokenizer.state_dict().values())) as folder:
            tokenizer.save(folder / "frames.safetensors", kind)
    else:
        model, config, weights = open_checkpoint(source, image_tokens=image_tokens, begin_of_image=begin_of_image)
        empty_model(lambda: model(config), weights, str(source))  # found out now, not after an hour of writing
        with new_folder(target, sum(tensor_bytes(tensor, kind) for tensor in weights.meta.values())) as folder:
            write_json(folder / "config.json", to_dict(config))
            write_weights(folder, weights, dtype=kind)
    size = sum(path.stat().st_size for path in target.iterdir())
    return f"{target}: {size / GB:.2f} GB in {len(os.listdir(target))} files{_cost(start)}"


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
    model = fill_model(lambda: build(config), weights, where=str(source), device=device, dtype=DTYPES.get(dtype))
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
    if not folder.is_dir():
        raise CogVideoError(f"There are no weights at {folder}: give a released or native folder, or ice_image.pt.")
    weights, settings = read_sat_folder(folder)
    kind = released_kind(weights)
    if kind in ("image", "video"):
        return CogVideoTransformer, *open_sat_checkpoint(folder, **ids)
    model = DirectSuperResolution if kind == "direct" else IterativeSuperResolution
    heads = settings.get("num_attention_heads")
    if not isinstance(heads, int) or heads < 1:
        raise CogVideoError(f"{folder / 'model_config.json'} does not tell num_attention_heads; download it again.")
    weights = weights.renamed(our_superres_name)
    try:
        config = model.released_config(weights, num_heads=heads, **ids)
    except (KeyError, ValueError) as error:
        raise CogVideoError(f"{folder} is no checkpoint of the release: it lacks {error}; download it again.") from None
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
    return f", {time.perf_counter() - start:.1f} s" + (f", peak host memory {peak / GB:.2f} GB" if peak else "")
