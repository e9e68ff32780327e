"""Device memory of the whole pipeline from its geometry alone, for choosing precision and offloading.

Weights and caches are exact. Work space (activations, logits, pictures) is estimated by factors measured with
torch's profiler on the CPU; the kernels of a GPU may need somewhat less or more.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import nn

from cogvideo.checkpoints.pipeline_folder import OFFLOADS, Loader
from cogvideo.config import COGVIDEO_9B, ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.memory import CUDA_BYTES, GB, cache_numbers, weight_bytes
from cogvideo.runtime.tensors import DTYPES, without_memory
from cogvideo.sampling.pipeline import AT_ONCE
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.tokenizers.hvqvae import HVQVAE

SEQUENCES = 8  # of stage 2 in the last round of a clip of 33 frames
# Live tensors at the peak, in multiples of the size in the line of `_work` that uses the factor.
PREFILL, PREFILL_BIAS, UPSAMPLING, DRAWING, DECODING = 18.5, 2.5, 20.5, 6, 3.2


@dataclass(frozen=True)
class Geometry:
    """The transformers of one pipeline, and the channels of its frame tokenizer."""

    stage1: ModelConfig
    stage2: ModelConfig
    superres: SuperResolutionConfig
    channels: int = 128


def released_geometry(layers: int = 48, hidden: int = 3072, heads: int = 48, side: int = 20) -> Geometry:
    """The release's pipeline, or one of other depth, width and tokens along a frame's side."""
    frame = side * side
    if side < 1:
        raise CogVideoError(f"A frame needs at least one token along its side, not {side}.")
    own = {"num_layers": layers, "hidden_size": hidden, "num_heads": heads}
    own_positions = {"base_positions": 512 + frame, "extra_positions": 5 * frame}
    one = replace(COGVIDEO_9B, frame_height=side, frame_width=side, **own_positions, **own)
    ids = {name: getattr(one, name) for name in ("vocab_size", "image_tokens", "begin_of_image")}
    two = replace(one, order="interpolation", window=max(1, side // 2))
    return Geometry(one, two, SuperResolutionConfig(**own, **ids, low_height=side, low_width=side))


@dataclass(frozen=True)
class Need:
    """Bytes at the peak: on the device, and in host memory for offloaded weights."""

    weights: int
    caches: int
    work: int
    host: int

    @property
    def device(self) -> int:
        return self.weights + self.caches + self.work + CUDA_BYTES


def device_memory(g: Geometry, dtype: str, offload: str, clips: int = 1) -> Need:
    """What a batch of `clips` needs on a CUDA device with Pipeline's `dtype` and `offload`."""
    load = Loader(dtype, "cuda", "cuda", None, offload)
    itemsize = DTYPES.get(dtype, torch.bfloat16).itemsize
    *models, pictures_model = _empty_models(g)
    pictures = sum(p.numel() * 4 for p in pictures_model.parameters())
    weights = [dict(model.named_parameters()) for model in models]
    sequences, frames = AT_ONCE[offload]
    rows = min(SEQUENCES * clips, sequences or SEQUENCES * clips)
    caches = [cache_bytes(g.stage1, 2 * clips, itemsize), cache_bytes(g.stage2, rows, itemsize), 0, 0]
    work = _work(g, dtype, itemsize, rows, frames)
    total = sum(map(load.bytes_of, weights)) + pictures
    if offload == "none":
        if dtype != "int8":  # closing matrices with the gate in them (sampling.cuda)
            total += sum(2 * c.num_layers * c.hidden_size**2 * itemsize for c in (g.stage1, g.stage2))
        present, host = [total] * 4, 0
    else:
        present, host = [*map(load.room_of, weights), pictures], total
    most = max(range(4), key=lambda part: present[part] + caches[part] + work[part])
    return Need(present[most], caches[most], work[most], host)


@lru_cache(maxsize=1)
def _empty_models(g: Geometry) -> list[nn.Module]:
    """Stage 1, stage 2, super-resolution and the frame tokenizer's network, without memory."""
    with without_memory():
        return [
            CogVideoTransformer(g.stage1),
            CogVideoTransformer(g.stage2),
            DirectSuperResolution(g.superres),
            HVQVAE(g.stage1.image_tokens, channels=g.channels),
        ]


def cache_bytes(c: ModelConfig, rows: int, itemsize: int) -> int:
    """Keys and values of text and frames in both channels, and the text's projections."""
    projections = 6 * c.num_layers * c.hidden_size * c.text_length
    return rows * (cache_numbers(c) + projections) * itemsize


def _work(g: Geometry, dtype: str, itemsize: int, rows: int, frames: int) -> list[int]:
    """Estimates for stage 1, stage 2, super-resolution and pictures."""
    c, s = g.stage2, g.superres
    # With int8 weights, the largest matrix in its wide type.
    wide = 4 * c.hidden_size**2 * itemsize if dtype == "int8" else 0
    given = 3 * c.frame_tokens
    prefill = rows * given * (PREFILL * c.hidden_size + PREFILL_BIAS * (c.text_length + given)) * itemsize
    positions = s.text_slots + s.low_tokens + s.high_tokens
    upsampling = frames * positions * s.hidden_size * itemsize * UPSAMPLING
    drawing = s.high_tokens * s.image_tokens * 4 * DRAWING
    pixels = 64 * s.high_tokens
    large = int(max(upsampling, drawing) + frames * s.high_tokens * s.hidden_size * itemsize) + wide
    return [wide, int(prefill) + wide, large, int(frames * pixels * g.channels * 4 * DECODING)]


def plan_table(g: Geometry, clips: int = 1) -> str:
    """Markdown: device memory for each choice of precision and offloading."""
    lines = [
        "| dtype | offload | device memory | weights + caches + work there | host memory | moved a step |",
        "|---|---|---|---|---|---|",
    ]
    blocks = {name: p for name, p in _empty_models(g)[0].named_parameters() if name.startswith("blocks.")}
    for dtype in ("fp32", "bf16", "int8"):
        streamed = weight_bytes(blocks, dtype, "cuda")
        for offload in OFFLOADS:
            need = device_memory(g, dtype, offload, clips)
            parts = " + ".join(f"{size / GB:.1f}" for size in (need.weights, need.caches, need.work))
            moved = f"{streamed / GB:.1f} GB" if offload == "layers" else "-"
            host = f"{need.host / GB:.1f} GB" if need.host else "-"
            device = f"**{need.device / GB:.1f} GB**"
            lines.append(f"| {dtype} | {offload} | {device} | {parts} | {host} | {moved} |")
    return "\n".join(lines)
