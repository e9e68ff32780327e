"""Getting weights: downloads that go on where they stopped, hashes recorded on first use and compared after."""

import contextlib
import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cogvideo.checkpoints.registry import Known, cache_dir, find, known, size_text
from cogvideo.checkpoints.unzip import check_room, unpack
from cogvideo.errors import CogVideoError
from cogvideo.io import write_json

CHUNK = 2**20
TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 4  # without a new byte between them
WAIT = 2.0  # seconds before the next attempt
HASHES = "hashes.json"


def get(name: str, url: str | None = None, file: Path | None = None) -> tuple[Path, str]:
    """Fetch weights into the cache, or check those that are there -> where they lie, what was done.

    url: another address. file: what was downloaded by other means, instead of a download; for i3d the source distribution.
    A zip is unpacked; one that was downloaded here does not stay beside its folder, one of the user's does. SHA-256 of
    all files are recorded in hashes.json of the cache when they are first seen, and compared whenever they are got again.
    Raises CogVideoError that names the address and the way by hand when it cannot be reached, for a wrong file, a changed
    one, a hostile zip, and for too little room on the disk.
    """
    item, folder = known(name), cache_dir()
    if item.packaged:
        return folder_of(name), "comes with this package"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder / f"{name}.lock", name):
            return _get(item, folder, name, url, file)
    except OSError as error:
        raise CogVideoError(
            f"The cache {folder} cannot be written ({error.strerror}): set COGVIDEO_CACHE."
        ) from None


@contextlib.contextmanager
def _alone(lock: Path, name: str) -> Iterator[None]:
    """Keep other processes from getting the same weights meanwhile; the system lets go of the lock when one dies."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise CogVideoError(
                f"Another process is getting {name} just now: wait for it, then try again."
            ) from None
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _get(item: Known, folder: Path, name: str, url: str | None, file: Path | None) -> tuple[Path, str]:
    target = folder / item.place
    if name == "i3d":
        from cogvideo.checkpoints.i3d_weights import fetch_i3d

        fetch_i3d(folder, file)
        return target, _verify(target)
    if target.exists():
        return target, _verify(target)
    archive = folder / f"{name}.zip" if item.zipped else target
    if file is not None:
        archive = _given(file, archive, item)
    by_hand = archive.exists()
    if not by_hand:
        download(url or item.source, archive, item)
    hashes = {f"{name}.zip" if item.zipped else item.place: _sha256(archive)}
    try:
        _compare(hashes, archive)
    except CogVideoError:
        if not (by_hand and item.zipped):
            archive.unlink()
        raise
    if item.zipped:
        hashes |= {f"{name}/{inside}": value for inside, value in unpack(archive, target).items()}
        _compare(hashes, target)
    _record(hashes)
    if not item.zipped:
        return target, "downloaded" if file is None else "copied"
    if by_hand:
        return target, f"unpacked; {archive} may be deleted now"
    archive.unlink()
    return target, "downloaded and unpacked"


def _given(file: Path, place: Path, item: Known) -> Path:
    """A zip where it lies, any other file copied to `place`; CogVideoError when it is missing or something else."""
    try:
        with open(file, "rb") as content:
            right = content.read(16).startswith(item.starts)
    except OSError as error:
        raise CogVideoError(f"{file} cannot be read ({error.strerror}): give the downloaded file.") from None
    if not right:
        raise CogVideoError(f"{file} is not {item.name} as {item.source} sends it: download it again.")
    if item.zipped:
        return file
    check_room(place.parent, _size(file))
    part = place.with_name(place.name + ".part")
    shutil.copyfile(file, part)
    os.replace(part, place)
    return place


def folder_of(name: str) -> Path:
    """Where packaged weights lie; raises CogVideoError when the package lacks them."""
    path = find(name)
    if path is None:
        raise CogVideoError(
            f"The weights {name} are missing from this installation of cogvideo: install it again."
        )
    return path


def download(url: str, path: Path, item: Known) -> None:
    """Download to `path` by way of `path`.part, which stays when the download is broken off and is gone on with.

    Goes on by itself after broken connections as long as new bytes come. Raises CogVideoError as `get` does.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise CogVideoError(f"{url!r} is no address of the web: give one that begins with https://.")
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            if _receive(url, part, item):
                break
            reason = "the connection broke"
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise _unreachable(url, path, item, reason) from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in (
                errno.ENOSPC,
                errno.EDQUOT,
                errno.EACCES,
                errno.EROFS,
            ):
                raise CogVideoError(f"{part} cannot be written: {error.strerror}.") from None
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        failures = 0 if _size(part) > before else failures + 1
        if failures == ATTEMPTS:
            raise _unreachable(url, path, item, reason)
        time.sleep(WAIT)
    os.replace(part, path)
    _note(part).unlink()


def _receive(url: str, part: Path, item: Known) -> bool:
    """Append what is missing to `part`, in one request -> whether it is whole now."""
    note, have = _read_json(_note(part)), _size(part)
    headers = {"User-Agent": "cogvideo", "Accept-Encoding": "identity"}
    if have and note.get("url") == url:
        headers["Range"] = f"bytes={have}-"
        if note.get("version"):
            headers["If-Range"] = note["version"]  # the server begins anew if the file has changed since
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and "Range" in headers:  # nothing behind what is there
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return True
            part.unlink()
            return False
        raise
    with response:
        total = _int(response.headers.get("Content-Length"))
        if response.status == 206:
            first = re.match(r"bytes (\d+)-\d+/", response.headers.get("Content-Range", ""))
            if first is None or int(first[1]) != have:
                part.unlink()
                return False
            total = None if total is None else have + total
        else:  # the first request, a changed file, or a server that knows no ranges
            have = 0
        if total is not None:
            check_room(part.parent, total - have + (total if item.zipped else 0))
        _note(part).write_text(json.dumps({"url": url, "version": _version(response.headers)}))
        with (
            open(part, "r+b" if have else "wb") as out,
            tqdm(total=total, initial=have, desc=item.name, unit="B", unit_scale=True) as bar,
        ):
            out.seek(have)
            while chunk := response.read(CHUNK):
                if have == 0 and not chunk.startswith(item.starts):
                    _note(part).unlink()
                    part.unlink()
                    raise CogVideoError(
                        f"{url} does not send {item.name} but something else, perhaps a page that says why: {_by_hand(url, item)}"
                    )
                have += out.write(chunk)
                bar.update(len(chunk))
    return total is None or have == total


def _version(headers: Any) -> str:
    """What tells a changed file from the same one: the strong ETag, or the date."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _unreachable(url: str, path: Path, item: Known, reason: str) -> CogVideoError:
    part = path.with_name(path.name + ".part")
    kept = (
        f", {size_text(_size(part))} are kept and the same command goes on from there" if _size(part) else ""
    )
    return CogVideoError(
        f"{url} cannot be downloaded ({reason}){kept}: try again later, or {_by_hand(url, item)}"
    )


def _by_hand(url: str, item: Known) -> str:
    page = f" (if it has moved, look at {item.page})" if item.page else ""
    return f"download {url} with a browser{page}, then run `cogvideo weights get {item.name} --file DOWNLOADED`, or give another address with --url."


def _verify(path: Path) -> str:
    """Hash a file, or all files of a folder, and compare -> in words what was found."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    found = {file.relative_to(path.parent).as_posix(): _sha256(file) for file in files}
    recorded = {name for name in _hashes() if name == path.name or name.startswith(f"{path.name}/")}
    if missing := sorted(recorded - found.keys()):
        raise CogVideoError(f"{path.parent / missing[0]} is missing: delete {path} and get it again.")
    _compare(found, path)
    _record(found)
    return "already here, unchanged" if recorded else "already here; its hash is recorded from now on"


def _compare(found: dict[str, str], path: Path) -> None:
    """Raise CogVideoError that speaks of `path` when a hash differs from the recorded one."""
    recorded = _hashes()
    for name, value in found.items():
        if recorded.get(name, value) != value:
            raise CogVideoError(
                f"{name} is not the file that was recorded on first use (SHA-256 {value[:12]}.. now, {recorded[name][:12]}.. "
                f"then): delete {path} and get it again, or delete its line in {cache_dir() / HASHES} if the change is meant."
            )


def _record(found: dict[str, str]) -> None:
    """Add hashes to hashes.json, which is either whole or as it was."""
    recorded = _hashes()
    if recorded | found != recorded:
        write_json(cache_dir() / HASHES, dict(sorted((recorded | found).items())))


def _hashes() -> dict[str, str]:
    """File in the cache -> SHA-256."""
    return _read_json(cache_dir() / HASHES)


def _read_json(path: Path) -> dict[str, str]:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise CogVideoError(f"{path} is damaged ({error}): delete it.") from None
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise CogVideoError(f"{path} should hold names and texts: delete it.")
    return values


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with (
        open(path, "rb") as file,
        tqdm(total=_size(path), desc=f"checking {path.name}", unit="B", unit_scale=True, leave=False) as bar,
    ):
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _int(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _note(part: Path) -> Path:
    """Beside an unfinished download: its address and the version of the file there."""
    return part.with_name(part.name + ".json")
