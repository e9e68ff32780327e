"""What lies in the folder of a point, and who holds it.

lock           held (flock) by the one process that may run the point; the system lets go of it when that process dies
point.json     the note: what was run, where, how it went; written when a run begins and when it ends
outcome.json   how the notebook ended, by the process that ran it: survives the death of the one that watches
executed.ipynb, result.json, log.txt, and what the notebook writes

The sweep's own folder has a lock, too, for the driver, and `run`: the name of the driver that was started last.
"""

import fcntl
import json
from pathlib import Path
from statistics import median
from typing import IO, Any

from cogvideo.errors import CogVideoError
from cogvideo.io import write_json, write_whole

STOPPED = "stopped"
VERDICTS = ("done", "failed")  # a point with one of these has run to an end


def read_json(path: Path) -> dict[str, Any]:
    """The values of a file; none if it is not there or not whole."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def read_note(folder: Path) -> dict[str, Any]:
    return read_json(folder / "point.json")


def write_note(folder: Path, note: dict[str, Any]) -> None:
    write_json(folder / "point.json", note, parents=True)


def current_run(sweep_folder: Path) -> str:
    """The driver that was started last, by its random name; STOPPED after a stop. Only guards of that one begin a point."""
    try:
        return (sweep_folder / "run").read_text()
    except OSError:
        return ""


def set_run(sweep_folder: Path, name: str) -> None:
    write_whole(sweep_folder / "run", name)


def try_lock(path: Path) -> IO[str] | None:
    """The open file that holds the lock until it is closed or its process dies; None while another one has it.

    Raises CogVideoError on a file system that has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return _flock(path, fcntl.LOCK_EX)


def is_locked(path: Path) -> bool:
    if not path.exists():
        return False
    file = _flock(path, fcntl.LOCK_SH)
    if file is None:
        return True
    file.close()
    return False


def _flock(path: Path, kind: int) -> IO[str] | None:
    try:
        file = open(path, "a+")  # noqa: SIM115
    except OSError as error:
        raise CogVideoError(
            f"{path} cannot be opened ({error.strerror}): make its folder writable."
        ) from None
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        raise CogVideoError(
            f"{path} cannot be locked ({error.strerror}): put the sweep on a file system with locks."
        ) from None
    return file


def status(folder: Path, note: dict[str, Any], fingerprint: str, collect: list[str]) -> str:
    """waiting, running, done, failed, stopped; interrupted: its process died; changed: done by other code; incomplete:
    done without a metric that is now to be collected. note: the folder's, read once, since it may change at any time."""
    found = note.get("status", "waiting")
    if found == "running" and not is_locked(folder / "lock"):
        return "interrupted"
    if found == "done" and note["fingerprint"] != fingerprint:
        return "changed"
    if found == "done" and missing_metrics(folder, collect):
        return "incomplete"
    return found


def missing_metrics(folder: Path, collect: list[str]) -> list[str]:
    metrics = read_json(folder / "result.json").get("metrics", {})
    return [name for name in collect if name not in metrics]


def cells(folder: Path) -> tuple[int, int]:
    """Code cells that have begun, and all, by the executed notebook that papermill writes as it goes; (0, 0) before."""
    book = read_json(folder / "executed.ipynb")
    code = [
        cell["metadata"].get("papermill", {}) for cell in book.get("cells", []) if cell["cell_type"] == "code"
    ]
    return sum(cell.get("start_time") is not None for cell in code), len(code)


def usual_seconds(notes: list[dict[str, Any]]) -> float | None:
    """How long a point takes: the median of those that are done."""
    seconds = [note["seconds"] for note in notes if note.get("status") == "done"]
    return median(seconds) if seconds else None
