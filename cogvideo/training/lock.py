"""One process group a run folder: two trainings in it would overwrite each other's checkpoints."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cogvideo.errors import CogVideoError
from cogvideo.io import disk_errors, read_json, write_json
from cogvideo.training import distributed

LOCK, HOLDER = "lock", "holder.json"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder for this process, or all of torchrun's; it may be held again inside.

    The system releases the lock of a process that dies, so that nobody has to clean up behind a killed one.
    Raises CogVideoError where others hold it, with their host and process.
    """
    lock, note = FileLock(folder / LOCK, timeout=0, is_singleton=True), folder / HOLDER

    def acquire() -> None:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire()
            except Timeout:
                holder = read_json(note, default={"pid": "?", "host": "?"})
                raise CogVideoError(
                    f"{folder} is being trained by process {holder['pid']} on {holder['host']}: wait for its "
                    "end, stop it, or choose another run_dir."
                ) from None
            if lock.lock_counter == 1:
                write_json(note, {"host": socket.gethostname(), "pid": os.getpid()})

    distributed.first_only(acquire)
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            note.unlink(missing_ok=True)
        lock.release()
