"""How near decoding is to the time of moving its weights and caches: random weights, any size, CPU or GPU.

A step moves the weights once, whatever the number of rows, and every row's live keys and values; the time for
that at the device's own read bandwidth is the limit. Early steps read shorter caches than late ones, so bytes
are counted step by step.
"""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cogvideo.benchmarks.measuring import random_weights, step_bytes
from cogvideo.benchmarks.memory_plan import released_geometry
from cogvideo.benchmarks.step_plan import gpu_of, step_plan, where_they_part
from cogvideo.checkpoints.pipeline_folder import Loader
from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model import masks
from cogvideo.model.strategies import TopKStrategy
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.device import choose_device
from cogvideo.runtime.machine import copy_bandwidth, describe, peak_bytes, read_bandwidth, wait
from cogvideo.runtime.memory import GB
from cogvideo.sampling.decode import generate_key_frames, interpolate_frames

TEXT_SLOTS = 16
KINDS = {  # order, whether windowed, wavefront
    "stage 1": ("sequential", False, False),
    "stage 1, windows": ("sequential", True, False),
    "stage 1, windows, wavefront": ("sequential", True, True),
    "stage 2": ("interpolation", True, False),
    "stage 2, wavefront": ("interpolation", True, True),
}


@dataclass(frozen=True)
class Settings:
    """What is measured; the defaults are the case that the project has a target for."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    side: int = 20  # tokens along a side of a frame
    frames: int = 5
    window: int = 10  # of stage 2, and of the windowed stage 1
    clips: int = 1
    guided: bool = True
    dtype: str = "fp32"
    device: str = "cpu"
    threads: int = 2  # on a CPU; 0: as many as torch takes by itself
    most_steps: int = 0  # of each stage; 0: all of them
    seed: int = 0

    def __post_init__(self):
        sizes = (self.width, self.layers, self.heads, self.side, self.window, self.clips)
        frames = self.frames >= 3 and self.frames % 2
        if not frames or min(sizes) < 1 or min(self.threads, self.most_steps) < 0:
            wanted = "positive sizes, an odd number of frames (3 or more), 0 or more steps and threads"
            raise CogVideoError(f"bench sampler takes {wanted}.")
        if self.width % (2 * self.heads):
            raise CogVideoError(f"A width of {self.width} cannot be shared by {self.heads} heads.")


def run(settings: Settings, *, progress: bool = True) -> dict[str, Any]:
    """All kinds of decoding, then what an extra frame, clip and batch row cost."""
    settings, device = _on_device(settings)
    limits = {"read": read_bandwidth(device), "copy": copy_bandwidth(device)}
    few = replace(settings, most_steps=min(settings.most_steps or 48, 48))
    variants = {
        "one clip": replace(few, clips=1, guided=True),
        "one clip without guidance": replace(few, clips=1, guided=False),
        "two clips": replace(few, clips=2, guided=True),
        "four clips": replace(few, clips=4, guided=True),
    }
    bar = tqdm(total=len(KINDS) + len(variants), desc="measuring", disable=not progress)
    stages, tokens = {}, {}
    for kind in KINDS:
        stages[kind], tokens[kind] = measure(settings, kind, limits["read"])
        bar.update()
    rows = {}
    for name, case in variants.items():
        rows[name] = measure(case, "stage 1", limits["read"])[0]["median_ms_per_step"]
        bar.update()
    bar.close()
    for kind in ("stage 1, windows", "stage 2"):
        one, other = tokens[kind], tokens[f"{kind}, wavefront"]
        same = None if one is None or other is None else float((one == other).float().mean())
        stages[f"{kind}, wavefront"]["same_tokens"] = same
    machine = describe(device)
    return {
        "settings": asdict(settings),
        "machine": machine,
        "expected": expected(settings, machine["device"], stages),
        "bandwidth_bytes_per_second": limits,
        "stages": stages,
        "costs": {
            "ms_per_step": rows,
            "extra_row_ms": rows["one clip"] - rows["one clip without guidance"],
            "extra_clip_ms": (rows["four clips"] - rows["one clip"]) / 3,
            "seconds_of_each_frame": stages["stage 1"]["seconds_of_each_frame"],
        },
    }


def expected(settings: Settings, device: str, stages: dict[str, dict[str, Any]]) -> list[str]:
    """Measured beside planned, one line for each stage; none if there is no plan for this device."""
    gpu, lines = gpu_of(device), []
    if gpu is None:
        return lines
    for kind in ("stage 1", "stage 2, wavefront"):
        order, windowed, wavefront = KINDS[kind]
        config = model_config(settings, order, settings.window if windowed else None)
        rows = settings.clips * (1 + settings.guided)
        plan = step_plan(gpu, config, settings.dtype, rows, TEXT_SLOTS, wavefront=wavefront)
        lines.append(where_they_part(replace(plan, what=kind), stages[kind]["places_and_ms"]))
    return lines


class _Enough(Exception):
    """Raised to leave a call after the steps that were asked for."""


def measure(settings: Settings, kind: str, read: float) -> tuple[dict[str, Any], Tensor | None]:
    """One kind of decoding -> its figures, and the tokens drawn (None if it was left before the end).

    read: bytes a second that the device reads. The first step, which pays for layouts and captures, is in no
    figure.
    """
    order, windowed, wavefront = KINDS[kind]
    config = model_config(settings, order, settings.window if windowed else None)
    device = torch.device(settings.device)
    load = Loader(settings.dtype, settings.device, settings.device, torch.float32)
    model: CogVideoTransformer = load(random_weights(partial(CogVideoTransformer, config), settings.seed))
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (settings.clips, (settings.frames + 1) // 2, config.frame_tokens)
    known = torch.randint(config.image_tokens, shape, generator=generator).to(device)
    text = torch.full((1, TEXT_SLOTS), config.image_tokens, device=device)
    ticks, memory = [], []

    def tick(_: int) -> None:
        wait(device)
        ticks.append(time.perf_counter())
        memory.append(_held(device))
        if len(ticks) == settings.most_steps:
            raise _Enough

    options = {
        "guidance_ids": text if settings.guided else None, "strategy": TopKStrategy(top_k=1),
        "wavefront": wavefront, "progress": tick,
    }  # fmt: skip
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        if order == "sequential":
            tokens = generate_key_frames(model, text, known[:, 0], num_frames=settings.frames, **options)
        else:
            tokens = interpolate_frames(model, text, known, **options)
    except _Enough:
        tokens = None
    times = [t for t in range(1, settings.frames) if order == "sequential" or t % 2]
    generated = len(times) * config.frame_tokens
    steps = int(masks.decoding_steps(config, times).max()) if wavefront else generated
    seconds = [b - a for a, b in pairwise(ticks)]
    weights = step_bytes(model)
    positions = attended_positions(config, times, wavefront)[1 : len(ticks)]
    # Of the keys and values of one position in all rows, which have the type of the norms.
    itemsize = next(model.blocks[0].parameters()).itemsize
    size = settings.clips * (1 + settings.guided) * 2 * config.num_layers * config.hidden_size * itemsize
    caches = [count * size for count in positions]
    total = sum(seconds)
    done = len(ticks) / steps
    figures = {
        "steps": steps,
        "measured_steps": len(seconds),
        "sequential_steps": generated,
        "tokens": generated * settings.clips,
        "median_ms_per_step": 1e3 * statistics.median(seconds),
        "least_ms_per_step": 1e3 * min(seconds),
        "seconds": total / len(seconds) * steps,
        "tokens_per_second": generated * settings.clips * done / total,
        "weight_bytes_per_step": weights,
        "bytes_per_place": size,
        "cache_bytes_per_step": statistics.fmean(caches),
        "weights_share_of_read": weights * len(seconds) / total / read,
        "share_of_limit": (weights * len(seconds) + sum(caches)) / total / read,
        "peak_bytes": peak_bytes(device),
        "held_bytes_growth": memory[-1] - memory[len(memory) // 10],
        "places_and_ms": _thinned(positions, seconds),
        "seconds_of_each_frame": None,
    }
    if not (wavefront or settings.most_steps):  # less a frame's first step: the first of all has no beginning
        n = config.frame_tokens
        figures["seconds_of_each_frame"] = [ticks[i + n - 1] - ticks[i] for i in range(0, len(ticks), n)]
    return figures, None if tokens is None else tokens.cpu()


def wavefront_bound(settings: Settings, frames: int) -> int:
    """Steps for `frames` generated frames by the paper's bound (section 3.3): w * side + w for each more."""
    return settings.side**2 + (frames - 1) * (settings.window * settings.side + settings.window)


def attended_positions(config: ModelConfig, times: Sequence[int], wavefront: bool) -> list[float]:
    """How many positions' keys and values a row reads in every step, in both channels together.

    Text and the frame so far; text and what a position sees of all frames so far, on average of even and odd
    layers: with windows only its own. In a wavefront each of its frames reads that.
    """
    n = config.frame_tokens
    steps = masks.decoding_steps(config, list(times)) if wavefront else masks.one_by_one_steps(len(times), n)
    parities = range(2 if config.window else 1)
    seen = torch.stack([masks.temporal_visible(config, i).sum(-1).double() for i in parities]).mean(0)
    seen = seen.view(-1, n)[list(times)]
    counts = []
    for step in range(1, int(steps.max()) + 1):
        frames, own = (steps == step).nonzero(as_tuple=True)
        spatial = len(frames) * (TEXT_SLOTS + int(own.max()) + 1)
        counts.append(spatial + len(frames) * TEXT_SLOTS + float(seen[frames, own].sum()))
    return counts


def _on_device(settings: Settings) -> tuple[Settings, torch.device]:
    """The settings with the device that was chosen, and this device, with as many threads as they ask for."""
    settings = replace(settings, device=choose_device(settings.device))
    device = torch.device(settings.device)
    if device.type == "cpu" and settings.threads:
        torch.set_num_threads(settings.threads)
    return settings, device


def growth(
    settings: Settings, name: str, sizes: Sequence[int], *, kind: str = "stage 1", progress: bool = True
) -> list[dict]:
    """The figures of `measure` for several sizes of one setting, each with that size under its name."""
    settings, device = _on_device(settings)
    read = read_bandwidth(device)
    rows = []
    for size in tqdm(sizes, desc=name, disable=not progress):
        figures, _ = measure(replace(settings, **{name: size}), kind, read)
        rows.append({"kind": kind, name: size} | figures)
    return rows


def render(report: dict[str, Any]) -> str:
    """The report as a table for people."""
    s, machine, limits = report["settings"], report["machine"], report["bandwidth_bytes_per_second"]
    lines = [
        f"{s['layers']} layers, width {s['width']}, {s['side']} x {s['side']} tokens, {s['frames']} frames, "
        f"window {s['window']}, {s['clips']} clip(s), {s['dtype']}, "
        f"on {machine['device']} ({machine['processor']})",
        f"it reads {limits['read'] / GB:.1f} and copies {limits['copy'] / GB:.1f} GB/s",
        "",
        "| decoding | steps | ms a step (median, least) | tokens a second | weights + caches a step "
        "| weights' share of reading | share of the limit | peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, f in report["stages"].items():
        lines.append(
            f"| {name} | {f['steps']} | {f['median_ms_per_step']:.2f}, {f['least_ms_per_step']:.2f} "
            f"| {f['tokens_per_second']:.1f} | {f['weight_bytes_per_step'] / 1e6:.0f} + "
            f"{f['cache_bytes_per_step'] / 1e6:.0f} MB "
            f"| {f['weights_share_of_read']:.0%} | {f['share_of_limit']:.0%} "
            f"| {f['peak_bytes'] / GB:.2f} GB |"
        )
    costs = report["costs"]
    lines += [
        "",
        *report["expected"],
        f"a batch row more: {costs['extra_row_ms']:.2f} ms a step; "
        f"a guided clip more: {costs['extra_clip_ms']:.2f} ms a step",
    ]
    if costs["seconds_of_each_frame"]:
        seconds = ", ".join(f"{t:.2f} s" for t in costs["seconds_of_each_frame"])
        lines.append(f"frames one after another: {seconds}")
    for kind in ("stage 1, windows", "stage 2"):
        one, both = report["stages"][kind], report["stages"][f"{kind}, wavefront"]
        same = "" if both["same_tokens"] is None else f", {both['same_tokens']:.2%} of the tokens the same"
        lines.append(
            f"{kind}: the wavefront takes {both['steps']} steps instead of {one['steps']} and "
            f"{both['seconds'] / one['seconds']:.0%} of the time{same}; the paper's bound is "
            f"{wavefront_bound(Settings(**s), one['sequential_steps'] // s['side'] ** 2)} steps"
        )
    return "\n".join(lines)


def model_config(s: Settings, order: str, window: int | None) -> ModelConfig:
    n = s.side**2
    return replace(
        released_geometry(s.layers, s.width, s.heads, s.side).stage1, num_frames=s.frames, order=order,
        window=window, vocab_size=20010, begin_of_image=20001, extra_positions=s.frames * n,
    )  # fmt: skip


def _held(device: torch.device) -> int:
    """Bytes in use now: of torch on a GPU, of the process elsewhere (0 where that is unknown)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _thinned(
    positions: Sequence[float], seconds: Sequence[float], points: int = 64
) -> list[tuple[float, ...]]:
    """At most `points` pairs (mean of positions, median ms) of steps that read about as much."""
    ordered = sorted(zip(positions, seconds, strict=True))
    size = -(-len(ordered) // points)
    groups = [ordered[i : i + size] for i in range(0, len(ordered), size)]
    split = (zip(*group, strict=True) for group in groups)
    return [(statistics.fmean(counts), 1e3 * statistics.median(times)) for counts, times in split]
