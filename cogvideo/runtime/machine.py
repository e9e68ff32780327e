"""What a benchmark needs of a machine: its name, bandwidth, waiting for it, memory taken, random weights."""

import platform
import time
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cogvideo.checkpoints.sat import fill_model
from cogvideo.io import commit
from cogvideo.runtime.memory import peak_memory
from cogvideo.runtime.tensors import Weights, without_memory

COPIED = 2**30  # bytes, to measure bandwidth on a GPU; a quarter of it on a CPU, more than caches hold


def describe(device: torch.device) -> dict[str, Any]:
    """Device, processor, system, versions and commit, for reports."""
    cpu = device.type == "cpu"
    return {
        "device": f"CPU, {torch.get_num_threads()} threads" if cpu else torch.cuda.get_device_name(device),
        "processor": _processor(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second, read and written, of a large copy within the device's memory."""
    source = _large(device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / quickest(lambda: target.copy_(source), device)


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second of reading a large tensor of the device's memory."""
    source = _large(device)
    return source.nbytes / quickest(source.sum, device)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large product."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / quickest(lambda: a @ b, device)


def _large(device: torch.device) -> Tensor:
    return torch.ones((COPIED if device.type == "cuda" else COPIED // 4) // 4, device=device)


def quickest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the quickest of five calls."""
    times = []
    for _ in range(5):
        wait(device)
        clock = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - clock)
    return min(times)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """On a GPU the most since the last reset; on the CPU the most so far."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def random_weights(make: Callable[[], nn.Module], seed: int) -> Callable[..., Any]:
    """A reader for checkpoints.pipeline_folder.Loader that draws each weight where it belongs, on demand."""
    with without_memory():
        meta = {name: tensor.detach().half() for name, tensor in make().named_parameters()}

    def draw(name: str, out: Tensor) -> None:
        generator = torch.Generator(out.device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        out.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.02, generator=generator)

    return partial(fill_model, make, Weights(meta, draw), where="The model with random weights")
