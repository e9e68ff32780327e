"""Weights that this project can use (registry.yaml), and their place on this machine."""

import os
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import yaml

from cogvideo.errors import CogVideoError

PACKAGED = Path(__file__).parent.parent / "weights"
DEMO = PACKAGED / "demo"
PIPELINE = "pipeline.json"  # what makes a folder a pipeline


@dataclass(frozen=True)
class Known:
    """One file or folder of weights. Sizes are approximate; those of folders are counted in 16 bit."""

    name: str
    purpose: str
    size: float  # bytes, about
    source: str  # an address, or in words where there is none
    page: str = ""  # where a person finds it, should the address have moved
    file: str = ""  # its name in the cache, or in the package; the name itself if not given
    starts: tuple[bytes, ...] = ()  # the possible first bytes of what the address sends
    zipped: bool = False  # the address sends a zip of a released folder
    packaged: bool = False  # comes with this package

    @property
    def place(self) -> str:
        return self.file or self.name


def _entries() -> dict[str, Known]:
    rows = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
    starts = [tuple(text.encode("latin-1") for text in row.pop("starts", ())) for row in rows]
    return {row["name"]: Known(**row, starts=first) for row, first in zip(rows, starts, strict=True)}


KNOWN = _entries()


def weights_folder(weights: str | Path) -> Path:
    """The folder of "demo", the pipeline that a training has left in its run_dir, or the folder given."""
    folder = DEMO if str(weights) == "demo" else Path(weights)
    return folder / "pipeline" if (folder / "pipeline" / PIPELINE).is_file() else folder


def weights_hash(folder: str | Path) -> str:
    """The first 16 digits of a SHA-256 over names and contents of all weights files below a folder."""
    digest = sha256()
    for file in sorted(Path(folder).rglob("*.safetensors")):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def no_pipeline(folder: Path) -> CogVideoError:
    """What to say of a folder that should be a pipeline and is none: how one comes of it."""
    parts = [folder / name / "config.json" for name in ("", "model", "stage1", "stage2", "superres")]
    if (folder / "model_config.json").exists():
        why = (
            f"give the folder of the whole pipeline, with {PIPELINE} or with all of the release's files in it"
        )
        return CogVideoError(f"{folder} holds a single model: {why}.")
    if any(map(Path.exists, parts)):
        why = f"`cogvideo weights assemble NEW {folder} demo` makes one, and takes from demo what it lacks"
        return CogVideoError(f"{folder} holds parts of a pipeline, but no {PIPELINE}: {why}.")
    if any(folder.glob("checkpoint*")):
        why = "run `cogvideo train` to its end, then `cogvideo weights assemble`"
        return CogVideoError(f"{folder} holds a training that has not ended: {why}.")
    return CogVideoError(f"There are no weights at {folder}: give demo or a folder with {PIPELINE}.")


def known(name: str) -> Known:
    """The entry of a name; raises CogVideoError that lists the names."""
    if name not in KNOWN:
        raise CogVideoError(f"There are no weights called {name!r}: choose one of {', '.join(KNOWN)}.")
    return KNOWN[name]


def cache_dir() -> Path:
    """The folder of fetched weights: $COGVIDEO_CACHE, or `cogvideo` in the system's folder for caches."""
    if own := os.environ.get("COGVIDEO_CACHE"):
        return Path(own).expanduser().absolute()
    if sys.platform == "win32":
        caches = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "cogvideo"


def find(name: str) -> Path | None:
    """The path of weights, in the package or the cache (of a zip not yet unpacked, too); None if missing."""
    item = known(name)
    folder = PACKAGED if item.packaged else cache_dir()
    places = [folder / item.place, *([folder / f"{name}.zip"] if item.zipped else [])]
    return next((place for place in places if place.exists()), None)


def size_text(size: float) -> str:
    """Bytes in the decimal unit that leaves one to three digits before the point."""
    for unit, bytes_each in (("GB", 1e9), ("MB", 1e6)):
        if size >= bytes_each:
            return f"{size / bytes_each:.{0 if size >= 100 * bytes_each else 1}f} {unit}"
    return f"{size / 1e3:.0f} kB"


def table() -> str:
    """All known weights in aligned columns: name, purpose, size, where found (or how to get them), source."""
    rows = [("name", "for", "size", "found", "from")]
    for item in KNOWN.values():
        found = find(item.name)
        where = f"not here: cogvideo weights get {item.name}" if found is None else str(found)
        rows.append((item.name, item.purpose, f"about {size_text(item.size)}", where, item.source))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.append(f"With the release's files in it: cogvideo generate PROMPT --weights {cache_dir()}")
    return "\n".join(lines)
