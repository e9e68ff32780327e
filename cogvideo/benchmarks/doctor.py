"""What this machine has for the project: `cogvideo doctor`."""

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch

from cogvideo.checkpoints.registry import DEMO, KNOWN, cache_dir, find
from cogvideo.runtime.memory import free_memory


def report() -> str:
    """Versions, devices, memory, weights and video codecs as aligned plain text, one fact a line."""
    facts = [("python", f"{platform.python_version()} on {platform.platform()}"), *_libraries(), *_devices()]
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    others = [name for name, item in KNOWN.items() if not item.packaged and find(name) is not None]
    facts += [
        ("memory", f"{total / 2**30:.1f} GiB, {free_memory() / 2**30:.1f} GiB available"),
        ("demo weights", _weights(DEMO)),
        ("other weights", f"{', '.join(others) or 'none'} in {cache_dir()}; see `cogvideo weights list`"),
        ("video", _codecs()),
    ]
    width = max(len(name) for name, _ in facts)
    return "\n".join(f"{name:<{width}}  {fact}" for name, fact in facts)


def _libraries() -> list[tuple[str, str]]:
    """The installed versions of this package and of its direct dependencies, with those of extras."""
    try:
        wanted = requires("cogvideo") or []
    except PackageNotFoundError:
        return [
            ("cogvideo", "not installed, only found in this folder: pip install -e ."),
            ("torch", torch.__version__),
        ]
    names = ["cogvideo", *(re.split(r"[^\w.-]", requirement)[0] for requirement in wanted)]
    return [(name, _version(name)) for name in names]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[tuple[str, str]]:
    facts = [("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")]
    if not torch.cuda.is_available():
        return [*facts, ("cuda", "none")]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        facts.append((f"cuda:{index}", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"))
    return facts


def _weights(folder: Path) -> str:
    """Size and folder, then the paragraph of the README that starts with "Score:"."""
    if not (folder / "pipeline.json").exists():
        return f"none in {folder}; make them with `make demo-weights`"
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.exists() else ""
    found = re.search(r"^Score: .+?(?=\n\s*\n|\Z)", text, re.M | re.S)
    score = " ".join(found[0].split()) if found else "no score in README.md"
    return f"{size / 1e6:.1f} MB in {folder}; {score}"


def _codecs() -> str:
    try:
        import av
    except ImportError:
        return "no PyAV: videos cannot be read or written; install av"
    ffmpeg = ".".join(map(str, av.library_versions["libavcodec"]))
    encoder = "H.264 (libx264)" if "libx264" in av.codecs_available else "MPEG-4, for there is no libx264"
    return f"libavcodec {ffmpeg}, mp4 files as {encoder}"
