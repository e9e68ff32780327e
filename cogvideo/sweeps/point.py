"""One point as a Dask task: start its guard, wait for it, return its note."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cogvideo.sweeps.notes import read_note
from cogvideo.sweeps.spec import Point, Sweep

ATTEMPTS = 4  # of a point whose guard is killed, on the same worker


def dask_setup(worker: Any) -> None:
    """Called by Dask in each new worker: Ctrl-C is for the driver alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def job_of(sweep: Sweep, point: Point, fingerprint: str, seen: str | None, run: str) -> dict[str, Any]:
    """What a guard needs to know, as plain values.

    seen: the attempt whose verdict the driver knows and wants renewed. run: the driver's name
    (notes.set_run).
    """
    return {
        "point": point.name,
        "folder": str(sweep.folder_of(point)),
        "notebook": str(sweep.notebook),
        "given": point.given,
        "parameters": point.parameters,
        "takes_folder": sweep.takes_folder,
        "collect": sweep.collect,
        "memory": sweep.resources.memory_bytes,
        "minutes": sweep.resources.minutes,
        "threads": sweep.resources.threads,
        "fingerprint": fingerprint,
        "seen": seen,
        "run": run,
    }


def run_point(job: dict[str, Any]) -> dict[str, Any]:
    """Run a point, or wait for the guard that runs it already, and return its note.

    A guard that was killed is started again; where guards cannot do their work, the note says why.
    """
    command, error = [sys.executable, "-m", "cogvideo.sweeps.guard"], ""
    for _ in range(ATTEMPTS):
        done = subprocess.run(
            command, input=json.dumps(job) + "\n", stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        if done.returncode == 0:
            return read_note(Path(job["folder"]))
        error = done.stderr.strip().split("\n")[-1] or f"killed by signal {-done.returncode}"
        if done.returncode > 0:
            break
    return lost(job["point"], f"its guard ended early, {error}")


def lost(point: str, error: str) -> dict[str, Any]:
    """The note of a point that could not be run at all."""
    return {"point": point, "status": "failed", "reason": "lost", "error": error}
