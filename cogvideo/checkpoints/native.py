"""Native model folders (config.json + model.safetensors) and inheriting an image model."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from einops import repeat
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cogvideo.checkpoints.sat import fill_model, load_sat_checkpoint
from cogvideo.config import COGVIDEO_9B, ModelConfig, from_dict, to_dict
from cogvideo.errors import CogVideoError
from cogvideo.model import CogVideoTransformer

C = TypeVar("C")


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file that is either whole or not there."""
    temporary = path.with_name(path.name + ".part")
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary)
    os.replace(temporary, path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; raises CogVideoError when it is missing or damaged."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CogVideoError(f"{path} is missing; copy the whole weights folder again.") from None
    except (SafetensorError, OSError) as error:
        raise CogVideoError(f"{path} is damaged ({error}); copy or download it again.") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises CogVideoError when it is missing or damaged."""
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise CogVideoError(f"{path} is missing; copy the whole weights folder again.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise CogVideoError(f"{path} is damaged ({error}); copy it again.") from None
    if not isinstance(values, dict):
        raise CogVideoError(f"{path} should hold a JSON object; copy it again.")
    return values


def save_model(model: nn.Module, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json (`model.config`) and model.safetensors (in `dtype`, or as the model is)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_dict(model.config), indent=2) + "\n")
    save_tensors(folder / "model.safetensors", {name: p.to(dtype) for name, p in model.state_dict().items()})


def read_folder(folder: str | Path, config_class: type[C]) -> tuple[C, dict[str, Tensor]]:
    """Configuration and weights of a folder written by save_model; raises CogVideoError for missing or damaged files."""
    folder = Path(folder)
    config = from_dict(config_class, read_json(folder / "config.json"), str(folder / "config.json"))
    return config, read_tensors(folder / "model.safetensors")


def load_model(
    folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = torch.float32
) -> CogVideoTransformer:
    """Read a folder written by save_model, in eval mode. Raises CogVideoError for missing, damaged or wrong-shaped files."""
    config, weights = read_folder(folder, ModelConfig)
    return fill_model(lambda: CogVideoTransformer(config), weights, where=str(folder), device=device, dtype=dtype)


def inherit_image_model(
    source: str | Path | CogVideoTransformer, *, config: ModelConfig | None = None, seed: int = 0
) -> CogVideoTransformer:
    """A video model that starts from an image model (CogView2 -> CogVideo, paper section 3.2).

    The image model gives every weight it has. New: temporal qkv copied from the layer's own, temporal dense normal(0, 0.02)
    with zero bias, gate 0 (both channels count half), extra positions repeated from frame 0's. `source` is a model, a native
    folder or a released one; `config` defaults to five sequential frames. Raises CogVideoError if it does not fit the image
    model.
    """
    if isinstance(source, CogVideoTransformer):
        image = source
    else:
        folder = Path(source)
        if (folder / "config.json").exists():
            image = load_model(folder, dtype=None)
        else:
            ids = config or COGVIDEO_9B
            image = load_sat_checkpoint(folder, image_tokens=ids.image_tokens, begin_of_image=ids.begin_of_image)
    if image.config.temporal:
        raise CogVideoError(
            "A video model cannot be inherited from: give an image model (one frame, no temporal channel)."
        )
    config = image.config.video() if config is None else config
    if (differing := _differences(image.config, config)) or not config.temporal:
        raise CogVideoError(
            f"The configuration does not fit the image model: {', '.join(differing) or 'temporal'} differs."
        )
    like = image.word_embedding.weight
    generator = torch.Generator().manual_seed(seed)
    weights = {name: p.detach().clone() for name, p in image.named_parameters() if not _is_temporal(name)}
    for layer in range(config.num_layers):
        new = f"blocks.{layer}.temporal."
        for kind in ("weight", "bias"):
            weights[new + f"qkv.{kind}"] = weights[f"blocks.{layer}.spatial.qkv.{kind}"].clone()
        size = config.hidden_size
        weights[new + "dense.weight"] = (torch.randn(size, size, generator=generator) * 0.02).to(like)
        weights[new + "dense.bias"] = like.new_zeros(size)
        weights[f"blocks.{layer}.gate"] = like.new_zeros(size)
    first = config.first_frame_position
    frame = weights["base_position_embedding.weight"][first : first + config.frame_tokens]
    repeats = -(-config.extra_positions // config.frame_tokens)
    weights["extra_position_embedding.weight"] = repeat(frame, "n d -> (t n) d", t=repeats)[
        : config.extra_positions
    ].clone()
    return fill_model(lambda: CogVideoTransformer(config), weights, where="the image model")


def _is_temporal(name: str) -> bool:
    return ".temporal." in name or name.endswith(".gate") or name.startswith("extra_position_embedding")


def _differences(image: ModelConfig, video: ModelConfig) -> list[str]:
    """Settings that an inheriting model must share with its image model, and does not."""
    free = {"num_frames", "extra_positions", "temporal", "order", "window", "text_length"}
    matched = replace(video, **{name: getattr(image, name) for name in free})
    return [name for name, value in to_dict(matched).items() if value != getattr(image, name)]
