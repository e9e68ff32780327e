"""One point as a Dask task: start its guard, wait for it, return its note."""

import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from cogvideo.sweeps.notes import VERDICTS, read_note
from cogvideo.sweeps.spec import Point, Sweep

ATTEMPTS = 4  # of a point whose guard is killed, on the same worker


@dataclass(frozen=True)
class Job:
    """What a guard needs to know. It goes to the worker, and to the guard, pickled."""

    sweep: Sweep  # with this point alone
    fingerprint: str
    seen: str | None  # the attempt whose verdict the driver knows and wants renewed
    run: str  # the driver's name (notes.set_run)

    @property
    def point(self) -> Point:
        return self.sweep.points[0]

    def answered_by(self, note: dict[str, Any], *codes: str) -> bool:
        """Whether a note is a verdict on this code, or one of `codes`, that the driver has not seen."""
        fresh = note.get("attempt") != self.seen and note.get("fingerprint") in (self.fingerprint, *codes)
        return note.get("status") in VERDICTS and fresh


def dask_setup(worker: Any) -> None:
    """Called by Dask in each new worker: Ctrl-C is for the driver alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_point(job: Job) -> dict[str, Any]:
    """Run a point, or wait for the guard that runs it already, and return its note.

    A guard that was killed is started again; where guards cannot do their work, the note says why.
    """
    folder = job.sweep.folder_of(job.point)
    if job.answered_by(note := read_note(folder)):  # before the worker that had this task died
        return note
    command, error = [sys.executable, "-m", "cogvideo.sweeps.guard"], ""
    for _ in range(ATTEMPTS):
        done = subprocess.run(
            command, input=pickle.dumps(job), stderr=subprocess.PIPE, start_new_session=True
        )
        if done.returncode == 0:
            return read_note(folder)
        error = done.stderr.decode().strip().split("\n")[-1] or f"killed by signal {-done.returncode}"
        if done.returncode > 0:
            break
    return lost(job.point.name, f"its guard ended early, {error}")


def lost(point: str, error: str) -> dict[str, Any]:
    """The note of a point that could not be run at all."""
    return {"point": point, "status": "failed", "reason": "lost", "error": error}
