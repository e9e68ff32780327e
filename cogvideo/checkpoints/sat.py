"""Checkpoints in the layout of the 2022 release (SwissArmyTransformer): names, geometry, loading."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model import CogVideoTransformer

M = TypeVar("M", bound=nn.Module)

# A literal in the released code: text positions count from 0, the first frame's from here.
FIRST_FRAME_POSITION = 512

# Released name -> ours; {} is the layer.
LAYER_NAMES = {
    "transformer.layers.{}.input_layernorm": "blocks.{}.attention_norm",
    "transformer.layers.{}.third_layernorm": "blocks.{}.attention_out_norm",
    "transformer.layers.{}.post_attention_layernorm": "blocks.{}.mlp_norm",
    "transformer.layers.{}.fourth_layernorm": "blocks.{}.mlp_out_norm",
    "transformer.layers.{}.attention.query_key_value": "blocks.{}.spatial.qkv",
    "transformer.layers.{}.attention.dense": "blocks.{}.spatial.dense",
    "transformer.layers.{}.mlp.dense_h_to_4h": "blocks.{}.mlp.up",
    "transformer.layers.{}.mlp.dense_4h_to_h": "blocks.{}.mlp.down",
    "mixins.attention_plus.query_key_value.{}": "blocks.{}.temporal.qkv",
    "mixins.attention_plus.dense.{}": "blocks.{}.temporal.dense",
}
OTHER_NAMES = {
    "transformer.word_embeddings": "word_embedding",
    "transformer.position_embeddings": "base_position_embedding",
    "transformer.final_layernorm": "final_norm",
    "mixins.extra_position_embedding.position_embeddings": "extra_position_embedding",
}
GATE = re.compile(r"mixins\.attention_plus\.attn_distribution\.(\d+)$")


def our_name(released: str) -> str | None:
    """The name in CogVideoTransformer of a released weight, or None if it is not one of them."""
    if match := GATE.match(released):
        return f"blocks.{match[1]}.gate"
    module, _, kind = released.rpartition(".")
    if module in OTHER_NAMES:
        return f"{OTHER_NAMES[module]}.{kind}"
    numbers = re.findall(r"(?<=\.)\d+", module)
    pattern = re.sub(r"(?<=\.)\d+", "{}", module)
    if len(numbers) == 1 and pattern in LAYER_NAMES:
        return f"{LAYER_NAMES[pattern].format(numbers[0])}.{kind}"
    return None


def read_sat_folder(folder: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights (memory-mapped, released names) and model_config.json of a released folder.

    Raises CogVideoError when a file is missing, damaged or holds anything but tensors.
    """
    folder = Path(folder)
    try:
        settings = json.loads((folder / "model_config.json").read_text())
        iteration = (folder / "latest").read_text().strip()
    except FileNotFoundError as error:
        raise CogVideoError(
            f"{folder} is not a released checkpoint: {Path(str(error.filename)).name} is missing; "
            "it should hold latest, model_config.json and the weights."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, OSError) as error:
        raise CogVideoError(f"Cannot read {folder}: {error}; download or copy it again.") from None
    if not re.fullmatch(r"\w[\w.-]*", iteration):
        raise CogVideoError(f"{folder / 'latest'} should name a folder beside it, not {iteration!r}.")
    path = folder / iteration / "mp_rank_00_model_states.pt"
    if not path.is_file():
        raise CogVideoError(f"{path} is missing; download the checkpoint again.")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise CogVideoError(
            f"{path} is damaged or holds more than tensors ({type(error).__name__}); download it again."
        ) from None
    weights = weights.get("module", weights) if isinstance(weights, dict) else weights
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CogVideoError(f"{path} holds no table of weights under the key 'module'; download it again.")
    return weights, settings


def infer_config(
    weights: dict[str, Tensor], settings: dict[str, Any], *, image_tokens: int, begin_of_image: int
) -> ModelConfig:
    """Geometry from shapes, and from model_config.json what no shape tells (heads, layout, window, stage)."""
    vocab_size, hidden_size = weights["transformer.word_embeddings.weight"].shape
    layers = [int(m[1]) for name in weights if (m := re.match(r"transformer\.layers\.(\d+)\.", name))]
    extra = weights.get("mixins.extra_position_embedding.position_embeddings.weight")
    temporal = any(name.startswith("mixins.attention_plus.") for name in weights)
    text_length, first_end, end = settings.get("layout", (64, 464, 2064 if temporal else 464))
    frame_tokens = first_end - text_length
    side = math.isqrt(frame_tokens)
    window = settings.get("window_size", -1)
    return ModelConfig(
        num_layers=max(layers) + 1,
        hidden_size=hidden_size,
        num_heads=settings["num_attention_heads"],
        frame_height=side,
        frame_width=frame_tokens // side,
        num_frames=(end - text_length) // frame_tokens if temporal else 1,
        text_length=text_length,
        first_frame_position=FIRST_FRAME_POSITION,
        image_tokens=image_tokens,
        vocab_size=vocab_size,
        begin_of_image=begin_of_image,
        base_positions=len(weights["transformer.position_embeddings.weight"]),
        extra_positions=0 if extra is None else len(extra),
        temporal=temporal,
        order="interpolation" if settings.get("cogvideo_stage") == 2 else "sequential",
        window=window if window > 0 else None,
    )


def load_sat_checkpoint(
    folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    image_tokens: int = 20000,
    begin_of_image: int = 150000,
) -> CogVideoTransformer:
    """Load a released folder (stage 1, stage 2 or the image model) as a CogVideoTransformer in eval mode.

    dtype None keeps the type of the file. Raises CogVideoError for missing, damaged or wrong-shaped files.
    """
    weights, settings = read_sat_folder(folder)
    try:
        config = infer_config(weights, settings, image_tokens=image_tokens, begin_of_image=begin_of_image)
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise CogVideoError(
            f"{folder} is not a CogVideo checkpoint: its weights or model_config.json lack or spoil {error}; download it again."
        ) from None
    renamed = {ours: tensor for name, tensor in weights.items() if (ours := our_name(name))}
    return fill_model(lambda: CogVideoTransformer(config), renamed, where=str(folder), device=device, dtype=dtype)


def fill_model(
    build: Callable[[], M],
    weights: dict[str, Tensor],
    *,
    where: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> M:
    """The module that `build` makes, with `weights` (our names), never holding a second copy; checks names and shapes."""
    with torch.device("meta"):
        model = build()
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    if missing := expected.keys() - weights.keys():
        raise CogVideoError(
            f"{where} lacks {len(missing)} weights, {sorted(missing)[0]} among them; get a complete copy."
        )
    if surplus := weights.keys() - expected.keys():
        raise CogVideoError(
            f"{where} holds weights that its configuration has no place for, {sorted(surplus)[0]} among them."
        )
    for name, shape in expected.items():
        if weights[name].shape != shape:
            raise CogVideoError(
                f"{where}: {name} is {list(weights[name].shape)} where the configuration needs {list(shape)}; "
                "weights and configuration do not belong together."
            )
    model.load_state_dict({name: weights[name].to(device=device, dtype=dtype) for name in expected}, assign=True)
    return model.eval()
