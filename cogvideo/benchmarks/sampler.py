"""How near a decode step is to the time of moving its weights and caches: random weights, any size, on the CPU."""

import json
import resource
import statistics
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from cogvideo import sequence
from cogvideo.config import COGVIDEO_9B, ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model import CogVideoTransformer
from cogvideo.sampling.decode import generate_key_frames, interpolate_frames
from cogvideo.sampling.strategies import TopKStrategy

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEXT_SLOTS = 16
READ_BYTES = 2**28  # more than any cache holds


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
    threads: int = 2
    repeats: int = 1

    def __post_init__(self):
        numbers = (self.width, self.layers, self.heads, self.side, self.window, self.clips, self.threads, self.repeats)
        if self.dtype not in DTYPES or min(numbers) < 1 or self.frames < 3 or self.frames % 2 == 0:
            raise CogVideoError(
                "bench sampler takes positive sizes, an odd number of frames (3 or more), fp32 or bf16."
            )


def run(settings: Settings) -> dict:
    """Stage 1 with full attention, with windows, and stage 2, the latter two sequential and as a wavefront."""
    torch.set_num_threads(settings.threads)
    bandwidth = {f"{n} threads": measure_bandwidth(n) for n in sorted({1, settings.threads})}
    torch.set_num_threads(settings.threads)
    limit = bandwidth[f"{settings.threads} threads"]["read_gb_s"]
    stages = {
        "stage 1": measure(settings, "sequential", None, False, limit),
        "stage 1, windows": measure(settings, "sequential", settings.window, False, limit),
        "stage 1, windows, wavefront": measure(settings, "sequential", settings.window, True, limit),
        "stage 2": measure(settings, "interpolation", settings.window, False, limit),
        "stage 2, wavefront": measure(settings, "interpolation", settings.window, True, limit),
    }
    return {"settings": asdict(settings), "torch": torch.__version__, "bandwidth": bandwidth, "stages": stages}


def measure_bandwidth(threads: int) -> dict[str, float]:
    """GB/s of reading and of copying memory (bytes read plus bytes written); the best of five."""
    torch.set_num_threads(threads)
    source = torch.ones(READ_BYTES // 4)
    target = torch.empty_like(source)
    read = min(_seconds(source.sum) for _ in range(5))
    copy = min(_seconds(partial(target.copy_, source)) for _ in range(5))
    return {"read_gb_s": READ_BYTES / read / 1e9, "copy_gb_s": 2 * READ_BYTES / copy / 1e9}


def measure(
    settings: Settings, order: str, window: int | None, wavefront: bool, limit: float
) -> dict[str, float | int]:
    """Time whole calls; a step's time is their mean, without the prefill."""
    config = _config(settings, order, window)
    model = CogVideoTransformer(config).initialize(0).to(DTYPES[settings.dtype]).eval()
    times = [t for t in range(1, settings.frames) if order == "sequential" or t % 2]
    known = torch.randint(config.image_tokens, (settings.clips, (settings.frames + 1) // 2, config.frame_tokens))
    text = torch.full((1, TEXT_SLOTS), config.image_tokens)
    ticks: list[float] = []
    options = {
        "guidance_ids": text if settings.guided else None, "strategy": TopKStrategy(top_k=12), "wavefront": wavefront,
        "generator": torch.Generator().manual_seed(0), "progress": lambda _: ticks.append(time.perf_counter()),
    }  # fmt: skip
    runs = []
    for _ in range(settings.repeats):
        ticks.clear()
        if order == "sequential":
            generate_key_frames(model, text, known[:, 0], num_frames=settings.frames, **options)
        else:
            interpolate_frames(model, text, known, **options)
        runs.append(ticks[-1] - ticks[0])
    steps = int(sequence.decoding_steps(config, times).max()) if wavefront else len(times) * config.frame_tokens
    seconds = statistics.median(runs)
    rows = settings.clips * (1 + settings.guided)
    tokens = len(times) * config.frame_tokens
    itemsize = DTYPES[settings.dtype].itemsize
    matrices = [p for name, p in model.named_parameters() if "embedding" not in name]
    weights = sum(p.numel() for p in matrices) * itemsize + config.image_tokens * config.hidden_size * 4
    # Half of what is generated is there on average; keys and values of both channels, every row has its own.
    places = TEXT_SLOTS + config.frame_tokens / 2 + TEXT_SLOTS + config.num_frames * config.frame_tokens - tokens / 2
    caches = 2 * config.num_layers * rows * places * config.hidden_size * itemsize
    step = seconds / (steps - 1)
    return {
        "tokens": tokens * settings.clips,
        "steps": steps,
        "ms_per_step": 1e3 * step,
        "ms_per_token": 1e3 * seconds / tokens,
        "tokens_per_second": tokens * settings.clips / seconds,
        "seconds_per_frame": seconds / len(times),
        "weight_bytes_per_step": weights,
        "cache_bytes_per_step": round(caches),
        "weight_gb_s": weights / step / 1e9,
        "weight_share_of_read": weights / step / 1e9 / limit,
        "share_of_limit": (weights + caches) / step / 1e9 / limit,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def write(report: dict, path: Path) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def render(report: dict) -> str:
    """The report as lines for the terminal."""
    lines = [
        f"{name}: read {b['read_gb_s']:.1f} GB/s, copy {b['copy_gb_s']:.1f} GB/s"
        for name, b in report["bandwidth"].items()
    ]
    for name, s in report["stages"].items():
        lines.append(
            f"{name:>28}: {s['steps']} steps of {s['ms_per_step']:.1f} ms, {s['ms_per_token']:.1f} ms a token, "
            f"{s['tokens_per_second']:.1f} tokens/s, weights at {s['weight_share_of_read']:.0%} of the read bandwidth"
        )
    return "\n".join(lines)


def _config(s: Settings, order: str, window: int | None) -> ModelConfig:
    n = s.side**2
    return replace(
        COGVIDEO_9B, num_layers=s.layers, hidden_size=s.width, num_heads=s.heads, frame_height=s.side, frame_width=s.side,
        num_frames=s.frames, order=order, window=window, vocab_size=20010, begin_of_image=20001,
        first_frame_position=64, base_positions=64 + n, extra_positions=s.frames * n,
    )  # fmt: skip


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
