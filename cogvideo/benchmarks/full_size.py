"""The whole released pipeline with random weights, timed: `cogvideo bench full-size`.

Weights are drawn on the device in the released geometry and loaded by the code for files; then a Pipeline
makes a clip stage by stage. The pictures are noise; time and memory are those of the real weights.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cogvideo.benchmarks.measuring import random_weights
from cogvideo.benchmarks.memory_plan import Geometry, device_memory, released_geometry
from cogvideo.checkpoints import released
from cogvideo.checkpoints.pipeline_folder import Loader, check_offload
from cogvideo.checkpoints.registry import DEMO
from cogvideo.checkpoints.sat import load_sat_checkpoint
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.device import choose_device
from cogvideo.runtime.machine import COPIED, bytes_of, copy_bandwidth, describe, peak_bytes, quickest, wait
from cogvideo.runtime.memory import GB, peak_memory
from cogvideo.runtime.offload import HostWeights, StreamedBlocks
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.superres.direct import DirectSuperResolution
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.hvqvae import HVQVAE
from cogvideo.tokenizers.text import TextTokenizer

PROMPT = (
    "a lion drinks milk"  # words of the demo's text model, which is used: the released one is not at hand
)


@dataclass(frozen=True)
class Settings:
    """What is run; the defaults are the release's size."""

    layers: int = 48
    hidden: int = 3072
    heads: int = 48
    side: int = 20  # tokens along a side of a frame: 24 pixels each in the end
    dtype: str = "bf16"
    device: str = "cuda"
    offload: str = "none"
    clips: int = 1
    seconds: float = 4.0
    seed: int = 0

    def geometry(self) -> Geometry:
        return released_geometry(self.layers, self.hidden, self.heads, self.side)


def run(settings: Settings, *, source: Path | None = None, progress: bool = True) -> dict[str, Any]:
    """Build the pipeline, make the clips, return the report (see `render`).

    source: a folder of released checkpoints (as `bench make-checkpoint` writes) instead of random weights.
    """
    settings = replace(settings, device=choose_device(settings.device))
    device = torch.device(settings.device)
    if settings.clips < 1:
        raise CogVideoError(f"There must be at least one clip, not {settings.clips}.")
    clock = time.perf_counter()
    pipe = build(settings, source)
    wait(device)
    loading = time.perf_counter() - clock
    bandwidth = _host_bandwidth(device) if settings.offload == "layers" else copy_bandwidth(device)
    if device.type == "cuda":  # kernels are chosen and compiled when they first run
        pipe.first_frame_tokens([PROMPT] * settings.clips, progress=progress)
    stages = measure(pipe, settings, bandwidth, progress=progress)
    need = device_memory(settings.geometry(), settings.dtype, settings.offload, settings.clips)
    random = "the released pipeline with random weights"
    return {
        "what": random if source is None else f"checkpoints in {source.name}",
        "settings": asdict(settings),
        "machine": describe(device),
        "loading_seconds": loading,
        "stages": stages,
        "total_seconds": sum(stage["seconds"] for stage in stages),
        "peak_device_bytes": max(stage["peak_bytes"] for stage in stages),
        "peak_host_bytes": peak_memory(),
        "planned_device_bytes": need.device,
        "bandwidth_bytes_per_second": bandwidth,
    }


def build(settings: Settings, source: Path | None = None) -> Pipeline:
    """A Pipeline of the released sizes with random weights, or with the transformers in `source`."""
    device = settings.device
    home = device if check_offload(settings.offload) == "none" else "cpu"
    geometry = settings.geometry()
    codes = geometry.stage1.image_tokens
    load = Loader(settings.dtype, device, home, torch.float32)
    text = TextTokenizer(DEMO / "tokenizers" / "text.model", codes)
    # Begin-of-image is where this text model puts it; with random weights one id is as good as another.
    own = {"begin_of_image": text.begin_of_image}
    if source is None:
        models = (
            partial(CogVideoTransformer, replace(geometry.stage1, **own)),
            partial(CogVideoTransformer, replace(geometry.stage2, **own)),
            partial(DirectSuperResolution, replace(geometry.superres, **own)),
        )
        readers = [random_weights(model, settings.seed + number) for number, model in enumerate(models)]
    else:
        ids = {"image_tokens": codes, **own}
        released.check_there(source, (released.STAGE1, released.STAGE2, released.SUPERRES))
        folder = source / released.SUPERRES
        heads = released.superres_heads(folder)
        readers = [
            partial(load_sat_checkpoint, source / released.STAGE1, **ids),
            partial(load_sat_checkpoint, source / released.STAGE2, **ids),
            partial(DirectSuperResolution.from_sat, folder, num_heads=heads, **ids),
        ]
    stage1, stage2, superres = map(load, readers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        frames = FrameTokenizer(HVQVAE(codes, channels=geometry.channels)).to(home).eval()
    return Pipeline(
        text=text, frames=frames, stage1=stage1, stage2=stage2, superres=superres, sampling=released.SAMPLING,
        cluster_labels=np.arange(codes) % released.NUM_CLUSTERS, device=device, offload=settings.offload,
    )  # fmt: skip


class _Stages:
    """Times stages and keeps a record of each; bandwidth: bytes a second, the limit of a decoding step."""

    def __init__(self, device: torch.device, bandwidth: float):
        self.device, self.bandwidth, self.records = device, bandwidth, []

    def time(
        self, stage: str, work: Callable[[], Any], *, steps: int = 0, tokens: int = 0, moved: int = 0
    ) -> Any:
        """Do the work of a stage; moved: bytes that each of its steps has to move."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        wait(self.device)
        clock = time.perf_counter()
        result = work()
        wait(self.device)
        seconds = time.perf_counter() - clock
        record = {"stage": stage, "seconds": seconds, "peak_bytes": peak_bytes(self.device)}
        if steps:
            record |= {"steps": steps, "ms_per_step": 1000 * seconds / steps, "bytes_per_step": moved}
            record["share_of_limit"] = moved / self.bandwidth / (seconds / steps)
        if tokens:
            record |= {"tokens": tokens, "tokens_per_second": tokens / seconds}
        self.records.append(record)
        return result


def measure(pipe: Pipeline, settings: Settings, bandwidth: float, *, progress: bool) -> list[dict[str, Any]]:
    """Make the clips stage by stage -> a record of each; its time includes the copies of offloading."""
    n, key_frames = pipe.stage1.config.frame_tokens, pipe.stage1.config.num_frames
    prompts = [PROMPT] * settings.clips
    seeds = [settings.seed + clip for clip in range(settings.clips)]
    stages, steps = _Stages(pipe.device, bandwidth), (key_frames - 1) * n
    first = stages.time(
        "first frame", lambda: pipe.first_frame_tokens(prompts, seeds, progress=progress), steps=n,
        tokens=n * len(prompts), moved=_step_bytes(pipe.stage1, temporal=False),
    )  # fmt: skip
    tokens = stages.time(
        "key frames",
        lambda: pipe.later_key_frame_tokens(first, prompts, settings.seconds, seeds, progress=progress),
        steps=steps, tokens=steps * len(prompts), moved=_step_bytes(pipe.stage1),
    )  # fmt: skip
    for number in range(1, pipe.rounds(tokens.shape[1], settings.seconds) + 1):
        sequences = len(prompts) * (tokens.shape[1] - 1) // 2
        batches = -(-sequences // (pipe.sequences_at_once or sequences))
        tokens = stages.time(
            f"between, round {number}",
            partial(pipe.interpolate_once, tokens, prompts, settings.seconds, number, seeds, progress=progress),
            steps=2 * n * batches, tokens=2 * n * sequences, moved=_step_bytes(pipe.stage2),
        )  # fmt: skip
    high = tokens.shape[0] * tokens.shape[1] * pipe.superres.config.high_tokens
    large = stages.time(
        "enlarging", lambda: pipe.upsample(tokens, prompts, seeds, progress=progress), tokens=high
    )
    pixels = stages.time("pixels", lambda: pipe.pixels(large))
    stages.records[-1] |= {"frames": list(pixels.shape)}
    return stages.records


def _step_bytes(model: CogVideoTransformer, *, temporal: bool = True) -> int:
    """Bytes that a decoding step moves: the blocks that it uses, and the head's part for image tokens."""
    blocks = model.blocks
    named = {**dict(blocks.named_parameters()), **dict(blocks.named_buffers())}
    if isinstance(blocks, StreamedBlocks):  # copied whole; the head stays
        return bytes_of(named.values())
    used = [tensor for name, tensor in named.items() if temporal or ".temporal." not in name]
    return bytes_of([*used, model.word_embedding.weight[: model.config.image_tokens]])


def render(report: dict[str, Any]) -> str:
    """The report as a table for people."""
    s, machine = report["settings"], report["machine"]
    lines = [
        f"{report['what']}: {s['layers']} layers, width {s['hidden']}, {s['dtype']}, offload {s['offload']}, "
        f"{s['clips']} clip(s) of {s['seconds']:g} s, on {machine['device']}",
        "",
        "| stage | seconds | steps | ms a step | tokens a second | share of the limit | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for stage in report["stages"]:
        steps = f"{stage['steps']} | {stage['ms_per_step']:.2f}" if "steps" in stage else "- | -"
        speed = f"{stage['tokens_per_second']:.0f}" if "tokens" in stage else "-"
        share = f"{100 * stage['share_of_limit']:.0f} %" if "steps" in stage else "-"
        peak = f"{stage['peak_bytes'] / GB:.2f} GB"
        lines.append(f"| {stage['stage']} | {stage['seconds']:.2f} | {steps} | {speed} | {share} | {peak} |")
    frames = "x".join(map(str, report["stages"][-1]["frames"]))
    where = "to the device" if s["offload"] == "layers" else "in its memory"
    return "\n".join([
        *lines,
        "",
        f"{report['total_seconds']:.1f} s in all for frames {frames}, after "
        f"{report['loading_seconds']:.1f} s of building; peak {report['peak_device_bytes'] / GB:.2f} GB "
        f"on the computing device (planned on CUDA: {report['planned_device_bytes'] / GB:.2f} GB).",
        "The limit is the time to move the weights of a step once at "
        f"{report['bandwidth_bytes_per_second'] / GB:.1f} GB/s, the speed of a copy {where} here.",
    ])  # fmt: skip


def _host_bandwidth(device: torch.device) -> float:
    """Bytes a second of a copy from host memory to the device, as offload.py makes it."""
    weights = HostWeights([torch.ones(COPIED // 4, dtype=torch.uint8)])
    room = torch.empty(COPIED // 4, dtype=torch.uint8, device=device)
    return len(weights.bytes) / quickest(lambda: weights.load(room), device)
