"""What lies in the folder of a point, and which process holds it.

lock           held (flock) by the one process that may run the point; released when that process dies
point.json     the note: what was run, where, and how it ended; written when a run begins and when it ends
outcome.json   how the notebook ended, by the process that ran it: this survives the death of its guard
executed.ipynb, result.json, log.txt, and what the notebook writes

The sweep's own folder has a lock for the driver, and `run`: the name of the driver that was started last.
"""

import fcntl
from pathlib import Path
from typing import IO, Any

from cogvideo import io
from cogvideo.errors import CogVideoError

STOPPED = "stopped"
VERDICTS = ("done", "failed")  # a point with one of these has run to an end


def read_json(path: Path) -> dict[str, Any]:
    """The values of a file; none if it does not exist or is not whole."""
    try:
        return io.read_json(path, default={})
    except CogVideoError:
        return {}


def read_note(folder: Path) -> dict[str, Any]:
    return read_json(folder / "point.json")


def write_note(folder: Path, note: dict[str, Any]) -> None:
    io.write_json(folder / "point.json", note, parents=True)


def current_run(sweep_folder: Path) -> str:
    """The random name of the driver that was started last; STOPPED after a stop.

    Only guards of that driver begin a point.
    """
    try:
        return (sweep_folder / "run").read_text()
    except OSError:
        return ""


def set_run(sweep_folder: Path, name: str) -> None:
    io.write_whole(sweep_folder / "run", name)


def try_lock(path: Path) -> IO[str] | None:
    """The open file that holds the lock until it is closed or its process dies; None while another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return _flock(path, fcntl.LOCK_EX)


def is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    if file := _flock(path, fcntl.LOCK_SH):
        file.close()
    return file is None


def _flock(path: Path, kind: int) -> IO[str] | None:
    file = None
    try:
        file = open(path, "a+")  # noqa: SIM115
        fcntl.flock(file, kind | fcntl.LOCK_NB)
        return file
    except OSError as error:
        if file:
            file.close()
        if isinstance(error, BlockingIOError):
            return None
        advice = "put the sweep on a writable file system with locks"
        raise CogVideoError(f"{path} cannot be locked ({error.strerror}): {advice}.") from None


def look(folder: Path, fingerprint: str, collect: list[str]) -> dict[str, Any]:
    """The note, its status as it is now: waiting, running, done, failed, stopped, or one of three more.

    interrupted: its process died; changed: done by other code; incomplete: done without a metric to collect.
    """
    note = {"status": "waiting"} | read_note(folder)
    if note["status"] == "running" and not is_locked(folder / "lock"):
        note["status"] = "interrupted"
    elif note["status"] == "done" and note["fingerprint"] != fingerprint:
        note["status"] = "changed"
    elif note["status"] == "done" and missing_metrics(folder, collect):
        note["status"] = "incomplete"
    return note


def missing_metrics(folder: Path, collect: list[str]) -> list[str]:
    metrics = read_json(folder / "result.json").get("metrics", {})
    return [name for name in collect if name not in metrics]


def cells(folder: Path) -> tuple[int, int]:
    """Code cells begun, and all, by the executed notebook that papermill keeps up to date; (0, 0) before."""
    book = read_json(folder / "executed.ipynb")
    code = [cell["metadata"] for cell in book.get("cells", []) if cell["cell_type"] == "code"]
    return sum(bool(cell.get("papermill", {}).get("start_time")) for cell in code), len(code)
