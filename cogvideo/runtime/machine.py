"""What a benchmark needs of a machine: its name, bandwidth, waiting for it, memory taken."""

import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideo.io import commit
from cogvideo.runtime.memory import peak_memory

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
    return 2 * source.nbytes / least_seconds(lambda: target.copy_(source), device)[0]


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second of reading a large tensor of the device's memory."""
    source = _large(device)
    return source.nbytes / least_seconds(source.sum, device)[0]


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large product."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / least_seconds(lambda: a @ b, device)[0]


def _large(device: torch.device) -> Tensor:
    return torch.ones((COPIED if device.type == "cuda" else COPIED // 4) // 4, device=device)


def least_seconds(work: Callable[[], Any], device: torch.device, repeats: int = 3) -> tuple[float, float]:
    """The least wall time and the least processor time of some calls, after one to warm up."""
    work()
    walls, cpus = [], []
    for _ in range(repeats):
        wait(device)
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        wait(device)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """On a GPU the most since the last reset; on the CPU the most so far."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()


def bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
