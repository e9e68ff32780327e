"""Unpacking zips that are not trusted: nothing outside the folder, nothing but plain files, no bombs."""

import hashlib
import re
import shutil
import stat
import zipfile
import zlib
from contextlib import AbstractContextManager
from pathlib import Path

from tqdm import tqdm

from cogvideo.errors import CogVideoError, explained

# Weights in 16 bit hardly shrink in a zip; the largest folder of the release has about 15.4 GB.
MAX_RATIO = 100
MAX_BYTES = 100 * 10**9
MAX_FILES = 1000
SMALL = 10**6  # bytes that may come out whatever the ratio
CHUNK = 2**20


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip unless it is damaged or hostile."""
    with _whole(path, OSError), explained(f"There is no file {path}: check the path.", FileNotFoundError):
        archive = zipfile.ZipFile(path)
    try:
        _check_members(archive, path)
    except CogVideoError:
        archive.close()
        raise
    return archive


def unpack(path: Path, folder: Path) -> dict[str, str]:
    """Unpack the released folder inside a zip as `folder` -> SHA-256 of every file by its path in there.

    The released folder is the one that holds model_config.json; zips of the release have it at the top or a
    few levels down. All is written to `folder`.part, which takes its name at the end. Raises CogVideoError as
    open_zip does, for a zip without a model, and for too little room on the disk.
    """
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    with open_zip(path) as archive:
        root = model_root(archive, path)
        members = [i for i in archive.infolist() if i.filename.startswith(root) and not i.is_dir()]
        total = sum(info.file_size for info in members)
        check_room(folder.parent, total)
        hashes = {}
        failed = explained(f"{path} cannot be unpacked to {folder}: REASON.", OSError)
        bar = tqdm(total=total, desc=f"unpacking {path.name}", unit="B", unit_scale=True)
        try:
            with failed, _whole(path), bar:
                for info in members:
                    name = info.filename.removeprefix(root)
                    hashes[name] = _extract(archive, info, part / name, bar)
                part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return hashes


def unpacked(path: Path) -> Path:
    """A folder as it is; of NAME.zip the folder NAME beside it, which is unpacked if it is not there."""
    if path.suffix != ".zip":
        return path
    folder = path.with_suffix("")
    if not folder.exists():
        unpack(path, folder)
    return folder


def model_root(archive: zipfile.ZipFile, path: Path) -> str:
    """What stands before `model_config.json` in the names of a zip: "" or a folder with its slash."""
    roots = [
        info.filename.removesuffix("model_config.json")
        for info in archive.infolist()
        if info.filename.split("/")[-1] == "model_config.json"
    ]
    if len(roots) != 1:
        raise CogVideoError(f"{path} should hold one model_config.json, not {len(roots)}: download it again.")
    return roots[0]


def check_room(folder: Path, need: int, advice: str = "set COGVIDEO_CACHE to a folder elsewhere") -> None:
    """Raise CogVideoError when fewer than `need` bytes are free on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if need > free:
        sizes = f"{need / 1e9:.1f} GB are needed in {folder} and {free / 1e9:.1f} GB are free"
        raise CogVideoError(f"{sizes}: make room, or {advice}.")


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, bar: tqdm) -> str:
    """Write one member, never more than its stated size -> SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with archive.open(info) as source, open(target, "xb") as out:
        while chunk := source.read(CHUNK):  # ends at the stated size, and compares the checksum there
            out.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse names that leave the folder, anything but files and folders, duplicates, and bombs."""
    infos, seen = archive.infolist(), set()
    for info in infos:
        reason = _unsafe(info)
        plain = info.filename.rstrip("/").casefold()  # the same file on disks that ignore case
        if not reason and plain in seen:
            reason = "comes twice"
        if reason:
            raise CogVideoError(
                f"{path} is not unpacked because {info.filename!r} in it {reason}: it may be hostile; "
                "download the release's own."
            )
        seen.add(plain)
    total = sum(info.file_size for info in infos)
    if len(infos) > MAX_FILES or total > MAX_BYTES or total > max(SMALL, MAX_RATIO * path.stat().st_size):
        raise CogVideoError(
            f"{path} is not unpacked because its {path.stat().st_size / 1e9:.3f} GB would become "
            f"{total / 1e9:.3f} GB in {len(infos)} files (at most {MAX_RATIO} times as much, "
            f"{MAX_BYTES / 1e9:.0f} GB and {MAX_FILES} files): it may be a bomb; download the release's own."
        )


def _unsafe(info: zipfile.ZipInfo) -> str:
    """Why a member must not be unpacked, or nothing."""
    name, mode = info.orig_filename, info.external_attr >> 16
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "is an absolute path"
    if any(part in ("..", ".") for part in re.split(r"[/\\]", name)):
        return "leaves its folder"
    if not name or re.search(r"[\x00-\x1f:\\]|//", name):
        return "has a name that is not plain"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & 1:
        return "is encrypted"
    return ""


def _whole(path: Path, *errors: type[Exception]) -> AbstractContextManager[None]:
    """Explain what a damaged zip raises, and `errors`."""
    damage = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError, ValueError)
    message = f"{path} is damaged or only half downloaded (REASON): delete it and get it again."
    return explained(message, *damage, *errors)
