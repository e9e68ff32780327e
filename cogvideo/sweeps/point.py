"""One point as a Dask task: start its guard, wait for it, return its note."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from cogvideo.sweeps.notes import read_note
from cogvideo.sweeps.spec import Point, Sweep

LOST = 3  # how often a point whose guard was killed is begun again on the same worker


def job_of(sweep: Sweep, point: Point, fingerprint: str, seen: str | None, run: str) -> dict[str, Any]:
    """What a guard needs to know, as plain values.

    seen: the attempt whose verdict the driver knows and wants renewed. run: the driver's name, as in notes.set_run.
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
        "seconds": sweep.resources.minutes and sweep.resources.minutes * 60,
        "threads": sweep.resources.threads,
        "fingerprint": fingerprint,
        "seen": seen,
        "run": run,
    }


def run_point(job: dict[str, Any]) -> dict[str, Any]:
    """Run a point or wait for whoever runs it already; a guard that was killed counts as lost and is started again.

    Returns the note; a note of its own when the guard cannot do its work.
    """
    command = [sys.executable, "-m", "cogvideo.sweeps.guard"]
    text = json.dumps(job) + "\n"
    error = ""
    for _ in range(LOST + 1):
        guard = subprocess.Popen(
            command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        _, said = guard.communicate(text)
        if guard.returncode == 0:
            return read_note(Path(job["folder"]))
        error = said.strip().split("\n")[-1] or f"killed by signal {-guard.returncode}"
        if guard.returncode > 0:
            break
    return {
        "point": job["point"],
        "status": "failed",
        "reason": "lost",
        "error": f"its guard ended early, {error}",
    }
