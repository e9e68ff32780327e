"""Memory: how much weights and caches need, what is free on a device, how much this process has taken."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.runtime.device import wide_type
from cogvideo.runtime.tensors import DTYPES, tensor_bytes

GB = 10**9
TOLD_BYTES = GB  # loads above this are announced
CUDA_BYTES = 500 * 10**6  # that CUDA itself takes on a GPU, about
MEMINFO, CGROUP, CGROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def weight_bytes(
    weights: Mapping[str, Tensor], dtype: str | None, device: str, default: torch.dtype | None = None
) -> int:
    """Bytes of a transformer's weights (the release's names or ours) once loaded as one of DTYPES or int8.

    dtype None: in `default`; if that is None as well, in the types that they have.
    """
    if dtype != "int8":
        return sum(tensor_bytes(tensor, DTYPES.get(dtype or "", default)) for tensor in weights.values())
    matrices = [t for name, t in weights.items() if t.ndim == 2 and "embedding" not in name]
    numbers, shrunk = (sum(t.numel() for t in some) for some in (weights.values(), matrices))
    return int8_bytes(numbers, shrunk, device) + sum(map(len, matrices)) * wide_type(device).itemsize


def int8_bytes(numbers: int, shrunk: int, device: str) -> int:
    """Bytes of so many weights as int8, `shrunk` of them in large matrices; without the rows' scales."""
    return shrunk + (numbers - shrunk) * wide_type(device).itemsize


def cache_numbers(c: ModelConfig) -> int:
    """Numbers in the caches of one sequence: keys and values of text and frames, in both channels."""
    positions = c.text_length + c.frame_tokens
    if c.temporal:
        positions += c.text_length + c.num_frames * c.frame_tokens
    return 2 * c.num_layers * c.hidden_size * positions


def free_memory(device: str | torch.device = "cpu") -> int:
    """Bytes that this process could still take on a CPU or CUDA device.

    CPU: what Linux calls available, bounded by the control groups (containers) of the process; elsewhere all
    the memory there is. CUDA: what the driver has free and what torch keeps for reuse.
    """
    device = torch.device(device)
    if device.type == "cuda":
        try:
            kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            return torch.cuda.mem_get_info(device)[0] + kept
        except (RuntimeError, AssertionError):  # torch raises either, by how it was built
            raise CogVideoError(f"There is no device {device} here: choose cpu or another device.") from None
    try:
        available = _number(MEMINFO, r"MemAvailable:\s+(\d+) kB") * 1024
    except (OSError, ValueError):
        if not hasattr(os, "sysconf"):
            return sys.maxsize
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([available, *_group_limits(CGROUP, CGROUPS)])


def _group_limits(groups: Path, root: Path) -> list[int]:
    """Bytes that each limited control group of the process, and each group above it, still allows."""
    free = []
    try:
        lines = [line.split(":", 2) for line in groups.read_text().splitlines()]
    except OSError:
        return []
    for _, controllers, path in lines:
        if controllers == "":  # version 2
            mount, limit, usage, cache = root, "memory.max", "memory.current", r"^inactive_file (\d+)"
        elif "memory" in controllers.split(","):  # version 1
            mount, cache = root / "memory", r"^total_inactive_file (\d+)"
            limit, usage = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        group = mount / path.strip("/")
        # In a container the path may be the host's, which does not exist inside; the mount itself then has
        # the limit.
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mount):
                break
            try:
                used = _number(folder / usage, r"(\d+)") - _number(folder / "memory.stat", cache)
                free.append(max(0, _number(folder / limit, r"(\d+)") - used))
            except (OSError, ValueError):  # no such folder, or no limit ("max")
                continue
    return free


def _number(path: Path, pattern: str) -> int:
    found = re.search(pattern, path.read_text(), re.MULTILINE)
    if not found:
        raise ValueError(f"{path} has no {pattern}")
    return int(found[1])


def check_fits(need: int, device: str | torch.device, what: str) -> None:
    """Raise CogVideoError unless the bytes that `what` needs are free on the device; announce large loads.

    Devices other than the CPU and CUDA are not checked.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        return
    free = free_memory(device)
    if need > free:
        raise CogVideoError(
            f"{what} needs {need / GB:.2f} GB on {device} and {free / GB:.2f} GB are free: load it in 16 "
            "bits or as "
            "int8, offload its layers, choose another device, or close other programs."
        )
    if need > TOLD_BYTES:
        print(f"{what} needs {need / GB:.1f} GB on {device}; {free / GB:.1f} GB are free.", file=sys.stderr)


def peak_memory() -> int:
    """The most host memory in bytes that this process has held, mapped files included; 0 where unknown."""
    try:  # getrusage counts from the size of the program that started this one
        return _number(Path("/proc/self/status"), r"VmHWM:\s+(\d+) kB") * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes but on macOS
