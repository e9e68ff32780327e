"""Getting weights into the cache; their hashes are recorded on first use and compared from then on."""

import shutil
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

from cogvideo.checkpoints.i3d_weights import fetch_i3d
from cogvideo.checkpoints.registry import Known, cache_dir, find, known
from cogvideo.checkpoints.transfer import download, size_of
from cogvideo.checkpoints.unzip import check_room, unpack
from cogvideo.errors import CogVideoError, explained
from cogvideo.io import check_folder, file_hash, read_json, replacing, write_json

HASHES = "hashes.json"


def get(name: str, url: str | None = None, file: Path | None = None) -> tuple[Path, str]:
    """Fetch weights into the cache, or verify those that are there -> their path, what was done.

    url: another address. file: what was downloaded by other means; for i3d the source distribution. A zip is
    unpacked and, if it was downloaded here, deleted. The SHA-256 of every file is recorded in hashes.json of
    the cache when the file is first seen, and compared on every later `get`.
    """
    item, folder = known(name), cache_dir()
    if item.packaged:
        return folder_of(name), "comes with this package"
    busy = f"Another process is getting {name} just now: wait for it, then try again."
    with explained(f"The cache {folder} cannot be written (REASON): set COGVIDEO_CACHE.", OSError):
        check_folder(folder, "set COGVIDEO_CACHE to another")  # a full disk, too
        folder.mkdir(parents=True, exist_ok=True)
        with explained(busy, Timeout), FileLock(lock := folder / f"{name}.lock", timeout=0):
            try:
                return _get(item, folder / item.place, url, file)
            finally:
                lock.unlink(missing_ok=True)


def _get(item: Known, target: Path, url: str | None, file: Path | None) -> tuple[Path, str]:
    if item.name == "i3d":
        fetch_i3d(target.parent, file)
        return target, _verify(target)
    if target.exists():
        return target, _verify(target)
    archive = target.with_name(f"{item.name}.zip") if item.zipped else target
    if file is not None:
        archive = _given(file, archive, item)
    by_hand = archive.exists()
    if not by_hand:
        download(url or item.source, archive, item)
    hashes = {f"{item.name}.zip" if item.zipped else item.place: _hash(archive)}
    try:
        _compare(hashes, archive)
    except CogVideoError:
        if not (by_hand and item.zipped):
            archive.unlink()
        raise
    if item.zipped:
        hashes |= {f"{item.name}/{inside}": value for inside, value in unpack(archive, target).items()}
        _compare(hashes, target)
    _record(hashes)
    if not item.zipped:
        return target, "downloaded" if file is None else "copied"
    if by_hand:
        return target, f"unpacked; {archive} may be deleted now"
    archive.unlink()
    return target, "downloaded and unpacked"


def _given(file: Path, target: Path, item: Known) -> Path:
    """The user's own file, its first bytes checked: a zip as it is, any other file copied to `target`."""
    unread = explained(f"{file} cannot be read (REASON): give the downloaded file.", OSError)
    with unread, open(file, "rb") as content:
        right = content.read(16).startswith(item.starts)
    if not right:
        raise CogVideoError(f"{file} is not {item.name} as {item.source} sends it: download it again.")
    if item.zipped:
        return file
    check_room(target.parent, size_of(file))
    with replacing(target) as part:
        shutil.copyfile(file, part)
    return target


def folder_of(name: str) -> Path:
    """The path of packaged weights."""
    path = find(name)
    if path is None:
        raise CogVideoError(f"The weights {name} are missing: install cogvideo again.")
    return path


def _verify(path: Path) -> str:
    """Hash a file, or all files of a folder, and compare -> in words what was found."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    found = {file.relative_to(path.parent).as_posix(): _hash(file) for file in files}
    recorded = {name for name in _hashes() if name == path.name or name.startswith(f"{path.name}/")}
    if missing := sorted(recorded - found.keys()):
        raise CogVideoError(f"{path.parent / missing[0]} is missing: delete {path} and get it again.")
    _compare(found, path)
    _record(found)
    return "already here, unchanged" if recorded else "already here; its hash is recorded from now on"


def _compare(found: dict[str, str], path: Path) -> None:
    """Raise CogVideoError about `path` when a hash differs from the recorded one."""
    recorded = _hashes()
    for name, value in found.items():
        if recorded.get(name, value) != value:
            raise CogVideoError(
                f"{name} is not the file that was recorded on first use (SHA-256 {value[:12]}.. now, "
                f"{recorded[name][:12]}.. then): delete {path} and get it again, or delete its line in "
                f"{cache_dir() / HASHES} if the change is meant."
            )


def _record(found: dict[str, str]) -> None:
    recorded = _hashes()
    if recorded | found != recorded:
        write_json(cache_dir() / HASHES, dict(sorted((recorded | found).items())))


def _hashes() -> dict[str, str]:
    """File in the cache -> SHA-256."""
    values = read_json(cache_dir() / HASHES, advice="delete it", default={})
    if not all(isinstance(value, str) for value in values.values()):
        raise CogVideoError(f"{cache_dir() / HASHES} should hold the hashes of files: delete it.")
    return values


def _hash(path: Path) -> str:
    with tqdm(
        total=size_of(path), desc=f"checking {path.name}", unit="B", unit_scale=True, leave=False
    ) as bar:
        return file_hash(path, bar.update)
