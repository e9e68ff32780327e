"""Memory: what is free on a device, whether weights fit, how much this process has taken."""

import os
import re
import sys
from pathlib import Path

import torch

from cogvideo.errors import CogVideoError

GB = 10**9
TOLD_BYTES = GB  # loads above this are announced


def free_memory(device: str | torch.device = "cpu") -> int:
    """Bytes that this process could still take on a CPU or CUDA device.

    CPU: what Linux calls available, bounded by the control groups (containers) that the process is in; elsewhere all the
    memory there is. CUDA: what the driver has free and what torch keeps for reuse. Raises CogVideoError for a CUDA device
    that is not there.
    """
    device = torch.device(device)
    if device.type == "cuda":
        try:
            kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            return torch.cuda.mem_get_info(device)[0] + kept
        except (RuntimeError, AssertionError):  # torch raises either, by how it was built
            raise CogVideoError(f"There is no device {device} here: choose cpu or another device.") from None
    try:
        available = _number(Path("/proc/meminfo"), r"MemAvailable:\s+(\d+) kB") * 1024
    except (OSError, ValueError):
        return (
            os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
            if hasattr(os, "sysconf")
            else sys.maxsize
        )
    return min([available, *_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


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
        # In a container the path may be the host's, which does not exist inside; the mount itself then has the limit.
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
        raise ValueError(f"{path} does not tell {pattern}")
    return int(found[1])


def check_fits(need: int, device: str | torch.device, what: str) -> None:
    """Compare the bytes that loading `what` needs with those free on the device; tell so on stderr when they are many.

    Raises CogVideoError when they do not fit. Devices other than the CPU and CUDA are not known and not checked.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        return
    free = free_memory(device)
    if need > free:
        raise CogVideoError(
            f"{what} needs {need / GB:.2f} GB on {device} and {free / GB:.2f} GB are free: load it in 16 bits or as int8, "
            "offload its layers, choose another device, or close other programs."
        )
    if need > TOLD_BYTES:
        print(f"{what} needs {need / GB:.1f} GB on {device}; {free / GB:.1f} GB are free.", file=sys.stderr)


def peak_memory() -> int:
    """The most host memory in bytes that this process has held so far, mapped files included; 0 where unknown."""
    try:  # what getrusage tells begins with the size of the program that started this one
        return _number(Path("/proc/self/status"), r"VmHWM:\s+(\d+) kB") * 1024
    except (OSError, ValueError):
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes but on macOS
