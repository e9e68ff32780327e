"""Pictures of what a model has learned: test clips, and below each what the model makes of its text."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn

from cogvideo.checkpoints.sat import fill_model
from cogvideo.data.tokenized import Batch
from cogvideo.io import replacing
from cogvideo.model import masks
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.sampling import TopKStrategy, generate_first_frame, generate_key_frames, interpolate_frames
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.training.checkpoints import disk_advice


def draw(
    model: CogVideoTransformer,
    frames: FrameTokenizer,
    batch: Batch,
    folder: Path,
    dtype: torch.dtype,
    step: int,
) -> np.ndarray:
    """Write the picture of a step into the folder -> uint8 [H,W,3]: below each test clip, the model's.

    dtype: that of products, in which the model samples throughout.
    """
    c, real = model.config, batch.frames
    if dtype != torch.float32:
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        make = partial(CogVideoTransformer, c)
        model = fill_model(make, weights, where="The model", device=real.device, dtype=dtype)
    made = sample_frames(model, batch.text_ids, batch.text_mask, real)
    rows = rearrange(torch.stack([real, made], 1), "b two t (h w) -> (b two t) h w", h=c.frame_height)
    with torch.no_grad():
        pictures = (frames.decode(rows).float().clamp(0, 1) * 255).round()
    pixels = nn.functional.pad(pictures, (0, 2, 0, 2), value=255).byte().cpu().numpy()
    sheet = rearrange(pixels, "(row t) c h w -> (row h) (t w) c", t=real.shape[1])
    with replacing(folder / f"step-{step:09}.png", parents=True, advice=disk_advice(folder.parent)) as part:
        Image.fromarray(sheet).save(part, "PNG")
    return sheet


def sample_frames(model: CogVideoTransformer, text_ids: Tensor, text_mask: Tensor, frames: Tensor) -> Tensor:
    """Frames [B,T,N] with those that the stage is given kept and the others drawn, by seed 0."""
    c, strategy = model.config, TopKStrategy(top_k=5, temperature=1.0)
    generator = torch.Generator(frames.device).manual_seed(0)
    options = {"text_mask": text_mask, "strategy": strategy, "generator": generator}
    if c.num_frames == 1:
        return generate_first_frame(model, text_ids, text_bonus=0.0, **options)[:, None]
    if c.order == "sequential":
        return generate_key_frames(model, text_ids, frames[:, 0], num_frames=c.num_frames, **options)
    made, given = frames.clone(), masks.is_given(c).to(frames.device)
    made[:, ~given] = interpolate_frames(model, text_ids, frames[:, given], text_bonus=0.0, **options)
    return made
