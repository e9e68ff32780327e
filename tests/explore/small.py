"""Small models of every kind with attention far from even, and clips for them."""

import torch

from cogvideo.config import ModelConfig
from cogvideo.model.transformer import CogVideoTransformer

IMAGE = ModelConfig(
    num_layers=2, hidden_size=16, num_heads=2, frame_height=3, frame_width=4, num_frames=1, text_length=6,
    first_frame_position=6, image_tokens=10, vocab_size=20, begin_of_image=19, base_positions=18,
    temporal=False,
)  # fmt: skip
CONFIGS = {
    "stage 1": IMAGE.video(),
    "windowed stage 1": IMAGE.video(window=2),
    "stage 2": IMAGE.video(order="interpolation"),
    "windowed stage 2": IMAGE.video(order="interpolation", window=3),
    "image model": IMAGE,
}
TEXT, MASK = torch.tensor([0, 0, 12, 13, 14]), torch.tensor([0, 0, 1, 1, 1])


def small_model(config: ModelConfig) -> CogVideoTransformer:
    """Weights and gates large enough for attention far from even."""
    model = CogVideoTransformer(config).initialize(1)
    generator = torch.Generator().manual_seed(2)
    for block in model.blocks:
        for channel in (block.spatial, block.temporal):
            if channel is not None:
                channel.qkv.weight.data.mul_(40)
        if block.gate is not None:
            block.gate.data.normal_(generator=generator)
    return model


def clip(config: ModelConfig, seed: int = 3) -> torch.Tensor:
    size = (config.num_frames, config.frame_tokens)
    return torch.randint(config.image_tokens, size, generator=torch.Generator().manual_seed(seed))
