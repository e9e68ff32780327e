"""CogVideo: text to video with an autoregressive transformer and dual-channel attention.

    import cogvideo
    pipe = cogvideo.Pipeline.from_pretrained("demo")
    pipe("a lion drinks milk slowly", seconds=4, seed=0).save("clip.mp4")

Names are loaded when they are first used, so that `import cogvideo` is quick and needs torch, einops, numpy
and safetensors alone.
"""

import importlib
from typing import TYPE_CHECKING

from cogvideo.errors import CogVideoError

if TYPE_CHECKING:
    from cogvideo.checkpoints.native import inherit_image_model, load_model, save_model
    from cogvideo.checkpoints.sat import load_sat_checkpoint
    from cogvideo.config import ModelConfig
    from cogvideo.data.video import Video
    from cogvideo.model.transformer import CogVideoTransformer
    from cogvideo.sampling.decode import generate_first_frame, generate_key_frames, interpolate_frames
    from cogvideo.sampling.pipeline import Pipeline
    from cogvideo.tokenizers.frames import FrameTokenizer
    from cogvideo.tokenizers.text import TextTokenizer

__version__ = "0.2.0"

_HOMES = {
    "CogVideoTransformer": "model.transformer",
    "FrameTokenizer": "tokenizers.frames",
    "ModelConfig": "config",
    "Pipeline": "sampling.pipeline",
    "TextTokenizer": "tokenizers.text",
    "Video": "data.video",
    "generate_first_frame": "sampling.decode",
    "generate_key_frames": "sampling.decode",
    "inherit_image_model": "checkpoints.native",
    "interpolate_frames": "sampling.decode",
    "load_model": "checkpoints.native",
    "load_sat_checkpoint": "checkpoints.sat",
    "save_model": "checkpoints.native",
}

_ROOMS = {"evaluation", "explore", "sampling", "superres"}

__all__ = [
    "CogVideoError",
    "CogVideoTransformer",
    "FrameTokenizer",
    "ModelConfig",
    "Pipeline",
    "TextTokenizer",
    "Video",
    "generate_first_frame",
    "generate_key_frames",
    "inherit_image_model",
    "interpolate_frames",
    "load_model",
    "load_sat_checkpoint",
    "save_model",
]


def __getattr__(name: str):
    if name in _ROOMS:
        return importlib.import_module(f"cogvideo.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"cogvideo.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'cogvideo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
