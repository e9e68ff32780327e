"""What local attention saves in super-resolution: one frame by local attention and by dense attention."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.device import choose_device
from cogvideo.runtime.machine import describe, least_seconds
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig

TEXT = 16  # tokens of the prompt


@dataclass(frozen=True)
class Settings:
    """The two models; side: tokens along a side of the given frame, a third of the upsampled one's."""

    width: int = 512
    layers: int = 4
    heads: int = 8
    side: int = 20
    device: str = "cpu"
    threads: int = 1
    repeats: int = 3
    seed: int = 0


def run(settings: Settings) -> dict[str, Any]:
    """Time and memory of direct super-resolution and of a dense image model of its width, in fp32.

    Both have random weights and run to the last block, without the head, which is the same. Dense attention
    is torch's fused kernel, and again with its scores written out. On a CPU, seconds are processor time,
    which other programs disturb little; memory is what a call takes beyond the weights.
    """
    s, device = settings, torch.device(choose_device(settings.device))
    if min(s.width, s.layers, s.heads, s.side, s.threads, s.repeats) < 1:
        raise CogVideoError("Width, layers, heads, side, threads and repeats must be 1 or more.")
    torch.set_num_threads(s.threads)
    own: dict[str, Any] = {"num_layers": s.layers, "hidden_size": s.width, "num_heads": s.heads}
    own |= {"vocab_size": 1100, "image_tokens": 1000, "begin_of_image": 1050}
    geometry = SuperResolutionConfig(**own, low_height=s.side, low_width=s.side)
    local = DirectSuperResolution.from_config(geometry, s.seed).to(device)
    large = 3 * s.side
    config = ModelConfig(
        **own, frame_height=large, frame_width=large, num_frames=1, text_length=TEXT, temporal=False,
        first_frame_position=TEXT, base_positions=TEXT + large**2, extra_positions=0,
    )  # fmt: skip
    dense = CogVideoTransformer(config).initialize(s.seed).to(device)
    generator = torch.Generator().manual_seed(s.seed)
    text = torch.randint(1000, 1050, (1, TEXT), generator=generator).to(device)
    given, tokens = (
        torch.randint(1000, (1, n), generator=generator).to(device) for n in (s.side**2, large**2)
    )

    def fused() -> None:
        x, encoded, spatial, temporal = dense.prepare(text, tokens[:, None])
        dense.run(x, encoded.layers, spatial, temporal)

    def written_out() -> None:
        with sdpa_kernel(SDPBackend.MATH):
            fused()

    ways = {
        "local attention": lambda: local.hidden_states(text, given),
        "dense attention, fused": fused,
        "dense attention, scores written out": written_out,
    }
    found = {}
    with torch.inference_mode():
        for name, work in ways.items():
            wall, cpu = least_seconds(work, device, s.repeats)
            found[name] = {"seconds": cpu if device.type == "cpu" else wall, "bytes": _peak(work, device)}
    return {"settings": asdict(s), "machine": describe(device), "places": large**2, "ways": found}


def _peak(work: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors that a call has at once beyond what there was before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    # Not the peak of the process: the system's allocator keeps freed memory for the next call.
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    results: Any = profile.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def render(report: dict[str, Any]) -> str:
    """The report as a table for people."""
    s, ways = report["settings"], report["ways"]
    dense = ways["dense attention, fused"]["seconds"]
    lines = [
        f"{s['side']} x {s['side']} tokens -> {report['places']}; width {s['width']}, {s['layers']} layers, "
        f"fp32, {s['threads']} thread(s), {report['machine']['device']} ({report['machine']['processor']})",
        "",
        "| forward | seconds | of the dense one | memory |",
        "|---|---|---|---|",
    ]
    for name, cost in ways.items():
        share = cost["seconds"] / dense
        lines.append(f"| {name} | {cost['seconds']:.2f} | {share:.2f} | {cost['bytes'] / 1e6:.0f} MB |")
    return "\n".join(lines)
