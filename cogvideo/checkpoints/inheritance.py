"""Which weights of a video model came from its image model, and that image model back."""

from dataclasses import replace

from cogvideo.checkpoints.sat import fill_model
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer


def origin(name: str) -> str:
    """How a video model starts the weight: "inherited", "copied" or "new" (see inherit_image_model)."""
    if ".temporal.qkv." in name or name.startswith("extra_position_embedding"):
        return "copied"
    return "new" if ".temporal." in name or name.endswith(".gate") else "inherited"


def image_model_of(model: CogVideoTransformer) -> CogVideoTransformer:
    """The image model inside a stage 1 or 2, which shares the weights' memory."""
    if not model.config.temporal:
        raise CogVideoError("This is an image model already: give a stage 1 or stage 2 model.")
    config = replace(
        model.config, num_frames=1, temporal=False, extra_positions=0, order="sequential", window=None
    )
    base = {name: weight for name, weight in model.state_dict().items() if origin(name) == "inherited"}
    return fill_model(lambda: CogVideoTransformer(config), base, where="the stage")
