"""Text files that are whole or not there; and the commit that results carry."""

import contextlib
import json
import os
import secrets
import subprocess
from pathlib import Path
from typing import Any

from cogvideo.errors import CogVideoError


def write_whole(path: str | Path, text: str, *, parents: bool = False) -> Path:
    """Write text; `parents`: make the folders above it, too. Raises CogVideoError for a place that cannot be written.

    Processes may write the same file at the same time, on machines that count their processes alike: each has a part of its
    own, "NAME.*.part", which stays where one is killed.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if not isinstance(error, OSError | UnicodeError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise CogVideoError(
            f"{path} cannot be written ({reason}): choose another place, or make room there."
        ) from None
    return path


def write_json(path: str | Path, values: Any, *, parents: bool = False) -> Path:
    """Write values as JSON, as write_whole does it."""
    return write_whole(path, json.dumps(values, indent=1, ensure_ascii=False) + "\n", parents=parents)


def commit() -> str:
    """The commit of this checkout, with "-dirty" where files differ from it; "unknown" outside of one."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=12",
        "--dirty",
        "--exclude=*",
    ]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
