"""How much device memory the whole pipeline needs, from its geometry alone: for choosing precision and offloading.

Weights and caches are exact. Work space (activations, logits, pictures) is estimated: its factors were measured with torch's
profiler on the CPU; a GPU's own kernels may need somewhat less or more.
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
# Live tensors at the peak, in numbers of the size that each line of `_work` names.
PREFILL, PREFILL_BIAS, ENLARGING, DRAWING, DECODING = 18.5, 2.5, 20.5, 6, 3.2


@dataclass(frozen=True)
class Geometry:
    """The transformers of one pipeline; channels: of the frame tokenizer."""

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
    one = replace(COGVIDEO_9B, frame_height=side, frame_width=side, extra_positions=5 * frame, **own)
    ids = {
        "vocab_size": one.vocab_size,
        "image_tokens": one.image_tokens,
        "begin_of_image": one.begin_of_image,
    }
    return Geometry(
        stage1=one,
        stage2=replace(one, order="interpolation", window=max(1, side // 2)),
        superres=SuperResolutionConfig(**own, **ids, low_height=side, low_width=side),
    )


@dataclass(frozen=True)
class Need:
    """Bytes at the fullest moment: on the device, and of the host for weights that wait there."""

    weights: int
    caches: int
    work: int
    host: int

    @property
    def device(self) -> int:
        return self.weights + self.caches + self.work + CUDA_BYTES


def device_memory(g: Geometry, dtype: str, offload: str, clips: int = 1) -> Need:
    """What `clips` clips at once need with Pipeline's `dtype` and `offload`, on a CUDA device."""
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
        present, host = [total] * 4, 0
    else:
        present, host = [*map(load.room_of, weights), pictures], total
    most = max(range(4), key=lambda part: present[part] + caches[part] + work[part])
    return Need(present[most], caches[most], work[most], host)


@lru_cache(maxsize=1)
def _empty_models(g: Geometry) -> list[nn.Module]:
    """Stage 1, stage 2, super-resolution and the frame tokenizer's network without memory for their weights."""
    with without_memory():
        return [
            CogVideoTransformer(g.stage1),
            CogVideoTransformer(g.stage2),
            DirectSuperResolution(g.superres),
            HVQVAE(g.stage1.image_tokens, channels=g.channels),
        ]


def cache_bytes(c: ModelConfig, rows: int, itemsize: int) -> int:
    """Keys and values of text and frames in both channels, and the text's projections that they were copied from."""
    projections = 6 * c.num_layers * c.hidden_size * c.text_length
    return rows * (cache_numbers(c) + projections) * itemsize


def _work(g: Geometry, dtype: str, itemsize: int, rows: int, frames: int) -> list[int]:
    """Estimates for stage 1, stage 2, super-resolution and pictures."""
    c, s = g.stage2, g.superres
    # The logits' matrix in fp32; of int8 weights, the largest one widened.
    head = 0 if dtype == "fp32" else c.image_tokens * c.hidden_size * 4
    wide = 4 * c.hidden_size**2 * itemsize if dtype == "int8" else 0
    given = 3 * c.frame_tokens
    prefill = rows * given * (PREFILL * c.hidden_size + PREFILL_BIAS * (c.text_length + given)) * itemsize
    places = s.text_slots + s.low_tokens + s.high_tokens
    enlarging = frames * places * s.hidden_size * itemsize * ENLARGING
    drawing = s.high_tokens * s.image_tokens * 4 * DRAWING
    pixels = 64 * s.high_tokens
    large = int(max(enlarging, drawing) + frames * s.high_tokens * s.hidden_size * itemsize) + head + wide
    return [head + wide, int(prefill) + head + wide, large, int(frames * pixels * g.channels * 4 * DECODING)]


def plan_table(g: Geometry, clips: int = 1) -> str:
    """Markdown: device memory for each choice of precision and offloading."""
    lines = [
        "| dtype | offload | device memory | weights + caches + work there | host memory | moved to the device a step |",
        "|---|---|---|---|---|---|",
    ]
    for dtype in ("fp32", "bf16", "int8"):
        for offload in OFFLOADS:
            need = device_memory(g, dtype, offload, clips)
            parts = " + ".join(f"{size / GB:.1f}" for size in (need.weights, need.caches, need.work))
            moved = f"{_streamed(g, dtype) / GB:.1f} GB" if offload == "layers" else "-"
            host = f"{need.host / GB:.1f} GB" if need.host else "-"
            lines.append(
                f"| {dtype} | {offload} | **{need.device / GB:.1f} GB** | {parts} | {host} | {moved} |"
            )
    return "\n".join(lines)


def _streamed(g: Geometry, dtype: str) -> int:
    """Bytes of all blocks of a stage."""
    blocks = {name: p for name, p in _empty_models(g)[0].named_parameters() if name.startswith("blocks.")}
    return weight_bytes(blocks, dtype, "cuda")
