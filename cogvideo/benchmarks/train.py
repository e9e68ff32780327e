"""Speed of training steps, how much of the device they use, and their memory: random weights of any size.

On a CPU the same step is also measured as a plain loop makes it: one sequence of text and frames, fp32
attention of all positions to all positions under a dense mask of ones and zeros, logits of all positions.
That loop freezes the image model, too (no gradients), so the difference does not come from that.
"""

import math
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cogvideo.benchmarks.measuring import random_weights
from cogvideo.benchmarks.memory_plan import released_geometry
from cogvideo.config import COGVIDEO_9B, ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model import masks
from cogvideo.model.transformer import Channel, CogVideoTransformer
from cogvideo.runtime.device import choose_device
from cogvideo.runtime.machine import describe, least_seconds, peak_bytes
from cogvideo.runtime.memory import GB
from cogvideo.runtime.tensors import DTYPES, without_memory
from cogvideo.training.flops import peak_flops, step_flops
from cogvideo.training.loop import use_threads
from cogvideo.training.run import compile_blocks, set_types

TEXT_SLOTS = COGVIDEO_9B.text_length
HIDDEN_SCORE = 10000.0  # what the plain loop takes from the scores of hidden positions


@dataclass(frozen=True)
class Settings:
    """What is measured: steps of both stages on random tokens, 5 frames and 64 text slots a clip."""

    width: int = 256
    layers: int = 2
    heads: int = 4
    side: int = 20  # tokens along a side of a frame
    window: int = 10  # of stage 2's temporal channel
    clips: int = 1  # a step
    dtype: str = "fp32"
    device: str = "cpu"
    threads: int = 2
    recompute: bool = False
    compile: bool = False
    steps: int = 3  # that are timed, after one that is not
    compare: bool = True  # on a CPU, with the plain loop
    seed: int = 0

    def __post_init__(self):
        sizes = (self.width, self.layers, self.heads, self.side, self.window, self.clips)
        if min(*sizes, self.threads, self.steps) < 1 or self.width % self.heads:
            raise CogVideoError("Sizes must be 1 or more, and the width a multiple of heads.")
        if self.dtype not in ("fp32", "bf16"):
            raise CogVideoError(f"Training is measured in fp32 or bf16, not {self.dtype}.")


def run(settings: Settings) -> dict[str, Any]:
    """Measure both stages, each case in a process of its own, so that the peak of its memory is its own."""
    settings = replace(settings, device=choose_device(settings.device))
    device = torch.device(settings.device)
    loops = ["lean", "plain"] if settings.compare and device.type == "cpu" else ["lean"]
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
    machine, peak = describe(device), peak_flops(device, DTYPES[settings.dtype])

    def alone(stage: str, loop: str) -> dict[str, Any]:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(measure, settings, stage, loop, peak).result()

    stages = {stage: {loop: alone(stage, loop) for loop in loops} for stage in ("stage 1", "stage 2")}
    return {"settings": asdict(settings), "machine": machine, "peak_flops": peak, "stages": stages}


def model_config(s: Settings, stage: str) -> ModelConfig:
    """The release's geometry at another size."""
    geometry = released_geometry(s.layers, s.width, s.heads, s.side)
    return geometry.stage1 if stage == "stage 1" else replace(geometry.stage2, window=s.window)


def measure(s: Settings, stage: str, loop: str, peak: float) -> dict[str, Any]:
    """Time and memory of whole steps: forward, backward, clipping, Adam. peak: the device's FLOP a second."""
    device = torch.device(s.device)
    if device.type == "cpu":
        use_threads(s.threads)
    config = model_config(s, stage)
    model, trained = _model(s, config)
    optimizer = torch.optim.AdamW(trained.values(), 2e-4, (0.9, 0.95), weight_decay=0.0, fused=True)
    text, tokens, mask = (tensor.to(device) for tensor in _batch(s, config))
    before, losses = peak_bytes(device), []

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=s.dtype == "bf16"):
            if loop == "lean":
                loss = model.frame_losses(text, tokens, mask, recompute=s.recompute).mean()
            else:
                loss = plain_loss(model, text, tokens, mask)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())

    seconds, cpu_seconds = least_seconds(step, device, s.steps)
    return {
        "seconds_per_step": seconds,
        "cpu_seconds_per_step": cpu_seconds,
        "tokens_per_second": s.clips * (TEXT_SLOTS + tokens[0].numel()) / seconds,
        "mfu": step_flops(config, s.clips, TEXT_SLOTS) / seconds / peak,
        "peak_bytes": peak_bytes(device),
        "peak_bytes_before_steps": before,
        "losses": losses,
    }


def _model(s: Settings, config: ModelConfig) -> tuple[CogVideoTransformer, dict[str, nn.Parameter]]:
    """A model with random weights and those of them that are trained."""
    load = random_weights(partial(CogVideoTransformer, config), s.seed)
    model: CogVideoTransformer = load(device=torch.device(s.device), dtype=DTYPES[s.dtype])
    trained = model.temporal_parameters()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    set_types(model, list(trained), DTYPES[s.dtype])
    if s.compile:
        compile_blocks(model)
    return model, trained


def _batch(s: Settings, config: ModelConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Random text ids [B,L], frames [B,5,N], and the text mask [B,L]: a quarter is padding."""
    generator = torch.Generator().manual_seed(s.seed)
    frames = torch.randint(config.image_tokens, (s.clips, 5, config.frame_tokens), generator=generator)
    first, end = config.image_tokens, config.begin_of_image
    text = torch.randint(first, end, (s.clips, TEXT_SLOTS), generator=generator)
    return text, frames, (torch.arange(TEXT_SLOTS) >= TEXT_SLOTS // 4).expand(s.clips, -1)


def plain_loss(model: CogVideoTransformer, text_ids: Tensor, frames: Tensor, text_mask: Tensor) -> Tensor:
    """The loss of a stage as a plain loop computes it: text_ids [B,L], frames [B,T,N], text_mask [B,L]."""
    c, length = model.config, text_ids.shape[1]
    (text, _), x = model.embed_text(text_ids, text_mask), model.embed_frames(frames)
    x = torch.cat([text, rearrange(x, "b t n d -> b (t n) d")], 1)
    spatial = torch.block_diag(*masks.spatial_visible(c)).to(x.device)
    visible = [spatial, *(masks.temporal_visible(c, parity).to(x.device) for parity in range(2))]
    spatial, *temporal = (_whole_mask(mask, text_mask) for mask in visible)
    for index, block in enumerate(model.blocks):
        assert block.temporal is not None  # of a stage of video
        h = block.attention_norm(x)
        own = _dense_attention(block.spatial, h, spatial)
        later = _dense_attention(block.temporal, h, temporal[index % 2])
        merged = block.merge(own[:, length:], later[:, length:])
        x = block.add_attention(x, torch.cat([block.spatial.dense(own[:, :length]), merged], 1))
    logits = rearrange(model.head(x)[:, length:], "b p v -> (b p) v").float()
    losses = F.cross_entropy(logits, frames.flatten(), reduction="none")
    return losses.view(frames.shape)[:, masks.trained_frames(c)].mean()


def _whole_mask(frames: Tensor, text: Tensor) -> Tensor:
    """[P,P] of the frames and [B,L] of the text -> ones and zeros [B,1,L+P,L+P]; text sees text only."""
    (b, length), p = text.shape, len(frames)
    mask = torch.zeros(b, 1, length + p, length + p, device=text.device)
    mask[..., :length] = text[:, None, None].float()
    mask[..., length:, length:] = frames.float()
    return mask


def _dense_attention(channel: Channel, h: Tensor, mask: Tensor) -> Tensor:
    """[B,S,D] -> the output of the heads [B,S,D], by fp32 scores of all positions for all positions."""
    q, k, v = channel.project(h)
    scores = (q / math.sqrt(q.shape[-1])).float() @ k.float().mT
    scores = scores * mask - HIDDEN_SCORE * (1 - mask)
    return rearrange(scores.softmax(-1).to(v.dtype) @ v, "b h s d -> b s (h d)")


def memory(s: Settings) -> dict[str, int]:
    """Bytes that training a stage keeps: frozen and trained weights, gradients, Adam's state."""
    with without_memory():
        model = CogVideoTransformer(model_config(s, "stage 1"))
    trained = sum(p.numel() for p in model.temporal_parameters().values())
    frozen = {name: p for name, p in model.named_parameters() if name not in model.temporal_parameters()}
    matrices = sum(p.numel() for name, p in frozen.items() if p.ndim == 2 and name.startswith("blocks."))
    others = sum(p.numel() for p in frozen.values()) - matrices
    return {
        "frozen": matrices * DTYPES[s.dtype].itemsize + 4 * others,
        "trained": 4 * trained,
        "gradients": 4 * trained,
        "adam": 8 * trained,
    }


def render(report: dict[str, Any]) -> str:
    """The report for people."""
    s, machine = Settings(**report["settings"]), report["machine"]
    kept = ", ".join(f"{name} {size / GB:.3g}" for name, size in memory(s).items())
    lines = [
        f"{s.layers} layers, width {s.width}, {s.side} x {s.side} tokens, 5 frames, {TEXT_SLOTS} text slots, "
        f"{s.clips} clip(s), {s.dtype}, on {machine['device']} ({machine['processor']}), "
        f"{report['peak_flops'] / 1e12:.3g} TFLOP/s",
        f"kept all through: {kept} GB",
        "",
        "| stage | loop | seconds a step (CPU) | tokens a second | MFU | peak memory (of it by steps) |",
        "|---|---|---|---|---|---|",
    ]
    compared = []
    for stage, loops in report["stages"].items():
        for loop, f in loops.items():
            lines.append(
                f"| {stage} | {loop} | {f['seconds_per_step']:.3f} ({f['cpu_seconds_per_step']:.3f}) "
                f"| {f['tokens_per_second']:.0f} | {f['mfu']:.1%} | {f['peak_bytes'] / GB:.2f} GB "
                f"({(f['peak_bytes'] - f['peak_bytes_before_steps']) / GB:.2f}) |"
            )
        if "plain" in loops:
            times, cpu, peak = (
                loops["plain"][name] / loops["lean"][name]
                for name in ("seconds_per_step", "cpu_seconds_per_step", "peak_bytes")
            )
            compared.append(
                f"{stage}: {times:.2f} times as fast as the plain loop ({cpu:.2f} by CPU time), with "
                f"{1 / peak:.0%} of its memory"
            )
    return "\n".join(lines + compared)
