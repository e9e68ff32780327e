"""How fast a training step is, how near to what the device could do, and what memory it takes: random weights, any size.

On a CPU the same step is also measured as a plain loop makes it: one sequence of text and frames, attention as a product of
all places with all places in fp32 under a dense mask of ones and zeros, scores of all places. That loop freezes the image
model too (its weights get no gradients), so the difference is not due to that.
"""

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cogvideo.runtime.device import choose_device
from cogvideo.config import COGVIDEO_9B, ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model import masks
from cogvideo.model.transformer import Block, Channel, CogVideoTransformer
from cogvideo.runtime.machine import describe, peak_bytes, random_weights, wait
from cogvideo.runtime.memory import GB
from cogvideo.runtime.tensors import DTYPES, without_memory
from cogvideo.training.flops import peak_flops, step_flops
from cogvideo.training.loop import use_threads
from cogvideo.training.run import set_types

TEXT_SLOTS = COGVIDEO_9B.text_length
HIDDEN_SCORE = 10000.0  # what the plain loop takes from the scores of hidden places


@dataclass(frozen=True)
class Settings:
    """What is measured: steps of stage 1 and of stage 2 on random tokens, five frames and 64 text slots a clip."""

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
        numbers = (
            self.width,
            self.layers,
            self.heads,
            self.side,
            self.window,
            self.clips,
            self.threads,
            self.steps,
        )
        if min(numbers) < 1 or self.width % self.heads:
            raise CogVideoError(
                "bench train takes sizes of 1 or more, and a width that the heads share evenly."
            )
        if self.dtype not in ("fp32", "bf16"):
            raise CogVideoError(f"Training is measured in fp32 or bf16, not {self.dtype}.")


def run(settings: Settings) -> dict[str, Any]:
    """Both stages; raises CogVideoError for a device that is not there.

    Every case runs in a process of its own, so that the peak of its memory is its own.
    """
    settings = replace(settings, device=choose_device(settings.device))
    loops = ["lean"] + ["plain"] * (settings.compare and torch.device(settings.device).type == "cpu")
    device = torch.device(settings.device)
    if device.type == "cpu":
        torch.set_num_threads(settings.threads)
    machine, peak = describe(device), peak_flops(device, DTYPES[settings.dtype])
    cases: dict[str, dict[str, Any]] = {}
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for stage in ("stage 1", "stage 2"):
            cases[stage] = {loop: pool.apply(measure, (settings, stage, loop, peak)) for loop in loops}
    return {"settings": asdict(settings), "machine": machine, "peak_flops": peak, "stages": cases}


def model_config(s: Settings, stage: str) -> ModelConfig:
    """The release's geometry at another size."""
    n = s.side**2
    own = {"order": "interpolation", "window": s.window} if stage == "stage 2" else {}
    return replace(
        COGVIDEO_9B, num_layers=s.layers, hidden_size=s.width, num_heads=s.heads, frame_height=s.side, frame_width=s.side,
        base_positions=512 + n, extra_positions=5 * n, **own,
    )  # fmt: skip


def measure(s: Settings, stage: str, loop: str, peak: float) -> dict[str, Any]:
    """Time and memory of whole steps: forward, backward, clipping, Adam."""
    device = torch.device(s.device)
    if device.type == "cpu":
        use_threads(s.threads)
    config = model_config(s, stage)
    load = random_weights(partial(CogVideoTransformer, config), s.seed)
    model: CogVideoTransformer = load(device=device, dtype=DTYPES[s.dtype])
    trained = model.temporal_parameters()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    set_types(model, list(trained), DTYPES[s.dtype])
    if s.compile:
        for block in model.blocks:
            block.both = torch.compile(block.both)  # type: ignore[union-attr,method-assign]
    optimizer = torch.optim.AdamW(trained.values(), 2e-4, (0.9, 0.95), weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(s.seed)
    tokens = torch.randint(config.image_tokens, (s.clips, 5, config.frame_tokens), generator=generator).to(
        device
    )
    text = torch.randint(
        config.image_tokens, config.begin_of_image, (s.clips, TEXT_SLOTS), generator=generator
    ).to(device)
    mask = (torch.arange(TEXT_SLOTS) >= TEXT_SLOTS // 4).expand(s.clips, -1).to(device)
    before = peak_bytes(device)
    seconds, cpu_seconds, losses = [], [], []
    for _ in range(s.steps + 1):
        wait(device)
        clock, cpu = time.perf_counter(), time.process_time()
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
        wait(device)
        seconds.append(time.perf_counter() - clock)
        cpu_seconds.append(time.process_time() - cpu)
    best = min(seconds[1:])
    return {
        "seconds_per_step": best,
        "cpu_seconds_per_step": min(cpu_seconds[1:]),
        "tokens_per_second": s.clips * (TEXT_SLOTS + tokens[0].numel()) / best,
        "mfu": step_flops(config, s.clips, TEXT_SLOTS) / best / peak,
        "peak_bytes": peak_bytes(device),
        "peak_bytes_before_steps": before,
        "losses": losses,
    }


def plain_loss(model: CogVideoTransformer, text_ids: Tensor, frames: Tensor, text_mask: Tensor) -> Tensor:
    """The loss of a stage as a plain loop computes it: text_ids [B,L], frames [B,T,N], text_mask [B,L]."""
    c, length = model.config, text_ids.shape[1]
    (text, _), x = model.embed_text(text_ids, text_mask), model.embed_frames(frames)
    x = torch.cat([text, rearrange(x, "b t n d -> b (t n) d")], 1)
    spatial = torch.block_diag(*masks.spatial_visible(c)).to(x.device)
    visible = [spatial, *(masks.temporal_visible(c, parity).to(x.device) for parity in range(2))]
    spatial, *temporal = (_whole_mask(mask, text_mask) for mask in visible)
    for index, block in enumerate(model.blocks):
        assert isinstance(block, Block) and block.temporal is not None
        h = block.attention_norm(x)
        own = _dense_attention(block.spatial, h, spatial)
        later = _dense_attention(block.temporal, h, temporal[index % 2])
        out = torch.cat(
            [block.spatial.dense(own[:, :length]), block.merge(own[:, length:], later[:, length:])], 1
        )
        x = block.add_attention(x, out)
    scores = model.head(x)[:, length:]
    losses = F.cross_entropy(
        rearrange(scores, "b p v -> (b p) v").float(), frames.flatten(), reduction="none"
    )
    return losses.view(frames.shape)[:, masks.trained_frames(c)].mean()


def _whole_mask(frames: Tensor, text: Tensor) -> Tensor:
    """[P,P] of the frames and [B,L] of the text -> ones and zeros [B,1,L+P,L+P]; the text sees itself alone."""
    (b, length), p = text.shape, len(frames)
    mask = torch.zeros(b, 1, length + p, length + p, device=text.device)
    mask[..., :length] = text[:, None, None].float()
    mask[..., length:, length:] = frames.float()
    return mask


def _dense_attention(channel: Channel, h: Tensor, mask: Tensor) -> Tensor:
    """[B,S,D] -> what the heads read [B,S,D], by fp32 scores of all places for all places."""
    q, k, v = channel.project(h)
    scores = (q / math.sqrt(q.shape[-1])).float() @ k.float().mT
    scores = scores * mask - HIDDEN_SCORE * (1 - mask)
    return rearrange(scores.softmax(-1).to(v.dtype) @ v, "b h s d -> b s (h d)")


def memory(s: Settings) -> dict[str, int]:
    """Bytes that a stage keeps all through training, from its geometry: frozen and trained weights, gradients, Adam's state."""
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
    kept = memory(s)
    lines = [
        f"{s.layers} layers, width {s.width}, {s.side} x {s.side} tokens, 5 frames, {TEXT_SLOTS} text slots, {s.clips} "
        f"clip(s), {s.dtype}, on {machine['device']} ({machine['processor']}), {report['peak_flops'] / 1e12:.3g} TFLOP/s",
        "kept all through: " + ", ".join(f"{name} {size / GB:.3g}" for name, size in kept.items()) + " GB",
        "",
        "| stage | loop | seconds a step (CPU seconds) | tokens a second | MFU | peak memory (of it by steps) |",
        "|---|---|---|---|---|---|",
    ]
    for stage, loops in report["stages"].items():
        for loop, f in loops.items():
            lines.append(
                f"| {stage} | {loop} | {f['seconds_per_step']:.3f} ({f['cpu_seconds_per_step']:.3f}) "
                f"| {f['tokens_per_second']:.0f} | {f['mfu']:.1%} | {f['peak_bytes'] / GB:.2f} GB "
                f"({(f['peak_bytes'] - f['peak_bytes_before_steps']) / GB:.2f}) |"
            )
    for stage, loops in report["stages"].items():
        if "plain" in loops:
            lean, plain = loops["lean"], loops["plain"]
            lines.append(
                f"{stage}: {plain['seconds_per_step'] / lean['seconds_per_step']:.2f} times as fast as the plain loop "
                f"({plain['cpu_seconds_per_step'] / lean['cpu_seconds_per_step']:.2f} by CPU time), with "
                f"{lean['peak_bytes'] / plain['peak_bytes']:.0%} of its memory"
            )
    return "\n".join(lines)
