"""Downloads that resume where they stopped: one address to one file."""

import errno
import http.client
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cogvideo.checkpoints.registry import Known, size_text
from cogvideo.checkpoints.unzip import CHUNK, check_room
from cogvideo.errors import CogVideoError
from cogvideo.io import read_json, write_json

TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 4  # without a new byte between them
WAIT = 2.0  # seconds before the next attempt
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)


def download(url: str, path: Path, item: Known) -> None:
    """Download to `path`.part, which becomes `path` at the end; after a failure the next call resumes it.

    Retries after broken connections as long as new bytes arrive.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise CogVideoError(f"{url!r} is no address of the web: give one that begins with https://.")
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = size_of(part)
        try:
            if _receive(url, part, item):
                break
            reason = "the connection broke"
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                raise _unreachable(url, part, item, reason) from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise CogVideoError(f"{part} cannot be written: {error.strerror}.") from None
            reason = str(getattr(error, "reason", "") or error or type(error).__name__)
        failures = 0 if size_of(part) > before else failures + 1
        if failures == ATTEMPTS:
            raise _unreachable(url, part, item, reason)
        time.sleep(WAIT)
    os.replace(part, path)
    _note(part).unlink()


def _receive(url: str, part: Path, item: Known) -> bool:
    """Append what is missing to `part`, in one request -> whether it is complete now."""
    note, have = read_json(_note(part), advice="delete it", default={}), size_of(part)
    headers = {"User-Agent": "cogvideo", "Accept-Encoding": "identity"}
    if have and note.get("url") == url:
        headers["Range"] = f"bytes={have}-"
        if note.get("version"):  # the server sends all of a file that has changed since
            headers["If-Range"] = str(note["version"])
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
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
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
        write_json(_note(part), {"url": url, "version": _version(response.headers)})
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
                        f"{url} sends something else than {item.name}, perhaps a page that says why: "
                        f"{_by_hand(url, item)}"
                    )
                have += out.write(chunk)
                bar.update(len(chunk))
    return total is None or have == total


def _version(headers: Any) -> str:
    """What tells a changed file from the same one: the strong ETag, or the date."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _unreachable(url: str, part: Path, item: Known, reason: str) -> CogVideoError:
    size = size_of(part)
    kept = f", {size_text(size)} are kept and the same command resumes there" if size else ""
    return CogVideoError(
        f"{url} cannot be downloaded ({reason}){kept}: try again later, or {_by_hand(url, item)}"
    )


def _by_hand(url: str, item: Known) -> str:
    page = f" (if it has moved, look at {item.page})" if item.page else ""
    return (
        f"download {url} with a browser{page}, then run `cogvideo weights get {item.name} --file DOWNLOADED`"
        ", or give another address with --url."
    )


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


def _note(part: Path) -> Path:
    """Beside an unfinished download: its address and the version of the file there."""
    return part.with_name(part.name + ".json")
