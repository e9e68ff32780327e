"""Files that are whole or not there, their hashes, JSON, HTML pages; and the commit that results carry."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cogvideo.errors import CogVideoError, explained

ADVICE = "choose another place, or make room there"
# In the RuntimeErrors by which torch.save reports what the disk did.
TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "unexpected pos")
PROBE = 2**16  # bytes that are written to find out whether there is room at all
CHUNK = 2**20  # bytes that are hashed at a time: a file may be larger than memory


@contextlib.contextmanager
def disk_errors(path: str | Path, advice: str = ADVICE) -> Iterator[None]:
    """Turn what a full disk, a missing folder or a lost mount raises into a CogVideoError about `path`."""
    try:
        yield
    except (OSError, UnicodeError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in TORCH_WRITER):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise CogVideoError(f"{path} cannot be written ({reason}): {advice}.") from None


@contextlib.contextmanager
def replacing(
    path: str | Path, *, parents: bool = False, one_writer: bool = False, advice: str | None = ADVICE
) -> Iterator[Path]:
    """A temporary path beside `path` to write a file or a folder to, which becomes `path` at the end.

    After any exception `path` is what it was, and the temporary one is deleted. Several processes may write
    the same path: each has its own "NAME.*.part", which stays behind when the process is killed.
    parents: make missing folders above it. one_writer: no other process writes this path; the temporary one
    is "NAME.part", and what a killed process left there is deleted. advice: how a CogVideoError about the
    disk ends; None leaves the disk's exceptions as they are.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part" if one_writer else f"{path.name}.{secrets.token_hex(4)}.part")
    with contextlib.nullcontext() if advice is None else disk_errors(path, advice):
        try:
            if parents:
                path.parent.mkdir(parents=True, exist_ok=True)
            _delete(part)
            yield part
            os.replace(part, path)
        except BaseException:
            _delete(part)
            raise


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def write_whole(path: str | Path, content: str | bytes, *, parents: bool = False) -> Path:
    """Write text (as UTF-8) or bytes, as replacing() does it."""
    with replacing(path, parents=parents) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def write_json(path: str | Path, values: Any, *, parents: bool = False) -> Path:
    """Write values as JSON, as replacing() does it."""
    return write_whole(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n", parents=parents)


def read_json(
    path: str | Path, kind: type = dict, *, advice: str = "make or copy it again", default: Any = None
) -> Any:
    """What a JSON file holds: an object, or another `kind`.

    Raises CogVideoError, ending with `advice`, where the file is missing (unless there is a default), cannot
    be read, is not JSON, or holds something else.
    """
    try:
        values = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        if default is not None:
            return default
        raise CogVideoError(f"{path} is missing: {advice}.") from None
    except (OSError, ValueError, RecursionError) as error:  # of JSON or UTF-8; brackets without end
        reason = getattr(error, "strerror", None) or error
        raise CogVideoError(f"{path} is damaged ({reason}): {advice}.") from None
    if not isinstance(values, kind):
        wanted = {dict: "an object", list: "a list"}.get(kind, kind.__name__)
        raise CogVideoError(f"{path} should hold {wanted}, not {type(values).__name__}: {advice}.")
    return values


def file_hash(path: str | Path, progress: Callable[[int], object] = lambda size: None) -> str:
    """SHA-256 of a file, in hexadecimal. progress: called with the number of bytes after each part."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; {policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def html_page(title: str, body: str, style: str, policy: str) -> str:
    """A self-contained page. title: text; body: HTML; policy: what a browser may load or run (CSP)."""
    return HTML.format(title=escape(title), body=body, style=style, policy=policy)


def check_place(path: str | Path) -> Path:
    """The path, if a file can be written there; called before the work, not after it.

    Raises CogVideoError for a folder in its place, a missing one above it, a full or a read-only disk.
    """
    path = Path(path)
    if path.is_dir():
        raise CogVideoError(f"{path} cannot be written, it is a folder: give the name of a file.")
    _check(path, path.parent, "choose a folder that exists")
    return path


def check_folder(path: str | Path, advice: str = "choose another folder") -> Path:
    """The path, if it can be written there with the folders missing above it; nothing is made yet."""
    path = Path(path)
    there = path.absolute()
    _check(path, next(place for place in (there, *there.parents) if place.exists()), advice)
    return path


def _check(path: Path, folder: Path, advice: str) -> None:
    with explained(f"{path} cannot be written (REASON): {advice}, or make room.", OSError):
        _probe(folder)


def _probe(folder: Path) -> None:
    """Write a file that vanishes: permissions tell nothing of full disks and read-only mounts."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(PROBE))


def make_writable(name: str, folder: Path) -> None:
    """Make the folder that the setting `name` asks for; raises CogVideoError where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _probe(folder)
    except OSError as error:
        raise CogVideoError(f"Cannot write to {name} {folder}: {error.strerror}; set another one.") from None


def output_folder(path: str | Path) -> Path:
    """The folder that a notebook writes to, made if missing.

    A relative path starts at the root of the repository, wherever the notebook runs; where the package was
    installed without its repository, at the current folder.
    """
    root = Path(__file__).parents[1]
    folder = (root if (root / "pyproject.toml").exists() else Path.cwd()) / path
    make_writable("output_dir", folder)
    return folder


def commit() -> str:
    """The commit of this checkout, with "-dirty" where files differ from it; "unknown" outside of one."""
    folder = str(Path(__file__).parent)
    git = ["git", "-C", folder, "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
