"""The process that watches over one point: `python -m cogvideo.sweeps.guard`, in a session of its own.

It holds the point's lock from before the notebook starts until the verdict is written, so no two processes
run the same point. It outlives the Dask worker that started it and the driver: if they die, the notebook
still runs to its end within its limits, and another guard of that point waits for the lock and takes over the
verdict.
"""

import json
import os
import pickle
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

import cogvideo
from cogvideo.io import commit
from cogvideo.sweeps import RESULT_FILE, notes
from cogvideo.sweeps.point import Job
from cogvideo.sweeps.spec import fingerprint

ATTEMPT = "COGVIDEO_SWEEP_ATTEMPT"  # in the environment of all processes of one run of a point
INTERVAL = 0.5  # seconds between looks
GRACE = 30.0  # seconds that papermill has to save the notebook after its kernel was killed
OURS = ("point.json", "outcome.json", "executed.ipynb", "result.json", "log.txt")


class Guard:
    """One point: its lock, its limits, its verdict."""

    def __init__(self, job: Job):
        self.job, self.sweep, self.folder, self.peak = job, job.sweep, job.sweep.folder_of(job.point), 0
        self.terminated = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self.terminated.set())

    def may_begin(self) -> bool:
        """Not for a driver that was stopped or has a successor, whose guards will run the point."""
        return not self.terminated.is_set() and notes.current_run(self.sweep.folder) == self.job.run

    def run(self) -> None:
        while (lock := notes.try_lock(self.folder / "lock")) is None:
            if not self.may_begin():
                return
            time.sleep(INTERVAL)
        with lock:
            code, note = fingerprint(self.sweep.notebook), notes.read_note(self.folder)
            if note.get("status") == "running":  # its guard died
                if note["host"] == platform.node():
                    kill(note["attempt"])
                note = self._settle(note)
            if self.job.answered_by(note, code):
                return  # another guard has run it since it was asked for
            if self.may_begin():
                self._clear(keep=note.get("fingerprint") == code)
                self._attempt(code)

    def _settle(self, note: dict[str, Any]) -> dict[str, Any]:
        """If the notebook had ended before its guard died, that counts."""
        outcome = notes.read_json(self.folder / "outcome.json")
        if outcome.get("attempt") != note["attempt"]:
            return note
        ended = (self.folder / "outcome.json").stat().st_mtime
        seconds = ended - datetime.fromisoformat(note["started"]).timestamp()
        note |= self._judge(outcome) | {"seconds": round(seconds, 2)}
        notes.write_note(self.folder, note)
        return note

    def _clear(self, keep: bool) -> None:
        """Remove an earlier run. keep: the notebook's own files, for the same code to resume."""
        for path in self.folder.iterdir():
            if path.name != "lock" and not (keep and path.name not in OURS):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _attempt(self, code: str) -> None:
        point, attempt, clock = self.job.point, uuid.uuid4().hex, time.monotonic()
        versions = {name: version(name) for name in ("torch", "numpy", "papermill")}
        note = {
            "point": point.name,
            "status": "running",
            "attempt": attempt,
            "given": point.given,
            "parameters": point.parameters,
            "fingerprint": code,
            "commit": commit(),
            "versions": {"python": platform.python_version(), "cogvideo": cogvideo.__version__} | versions,
            "host": platform.node(),
            "guard": os.getpid(),
            "started": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        }
        notes.write_note(self.folder, note)
        ours = [str(Path(cogvideo.__file__).parents[1]), os.environ.get("PYTHONPATH")]
        libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = os.environ | dict.fromkeys(libraries, str(self.sweep.resources.threads)) | {
            ATTEMPT: attempt,
            RESULT_FILE: str(self.folder / "result.json"),
            "PYTHONPATH": os.pathsep.join(filter(None, ours)),
        }  # fmt: skip
        start: dict[str, Any] = {"notebook": str(self.sweep.notebook), "folder": str(self.folder)}
        folder = {"output_dir": str(self.folder)} if self.sweep.takes_folder else {}
        start |= {"attempt": attempt, "passed": point.given | folder}
        with open(self.folder / "log.txt", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cogvideo.sweeps.execute"],
                bufsize=0, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment,
            )  # fmt: skip
        try:
            assert process.stdin  # a pipe; left open: its end means that this guard has died
            with suppress(BrokenPipeError):  # the process ended at once: the log says why
                process.stdin.write(f"{json.dumps(start)}\n".encode())
            verdict = self._watch(process, clock)
        finally:
            kill(attempt)  # also what the notebook left running
            process.wait()
        ended = {"seconds": round(time.monotonic() - clock, 2), "peak_memory": self.peak}
        notes.write_note(self.folder, note | verdict | ended)

    def _watch(self, process: "subprocess.Popen[bytes]", clock: float) -> dict[str, Any]:
        """Wait for the end, or bring it about at a limit. Returns what is added to the note."""
        while process.poll() is None:
            if verdict := self._limit(process.pid, time.monotonic() - clock):
                kill_kernel(process, GRACE)
                return verdict | {"cell": notes.cells(self.folder)[0]}
            time.sleep(INTERVAL)
        return self._judge(notes.read_json(self.folder / "outcome.json"))

    def _limit(self, pid: int, seconds: float) -> dict[str, Any] | None:
        if self.terminated.is_set() or notes.current_run(self.sweep.folder) == notes.STOPPED:
            return {"status": "stopped", "reason": "stopped", "error": "by the user"}
        limits = self.sweep.resources
        used, most, minutes = memory_of(pid), limits.memory_bytes, limits.minutes
        self.peak = max(self.peak, used)
        if most and used > most and (used := memory_of(pid, shared_once=True)) > most:
            sizes = f"{used / 1e9:.2f} GB of {most / 1e9:.2f} GB"
            return {"status": "failed", "reason": "out of memory", "error": sizes}
        if minutes and seconds > 60 * minutes:
            return {"status": "failed", "reason": "time limit", "error": f"{minutes:g} min"}
        return None

    def _judge(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """The verdict on a notebook that has ended, whose process wrote `outcome`; {}: it died before."""
        cell = {"cell": notes.cells(self.folder)[0]}
        if not outcome:
            lines = (self.folder / "log.txt").read_text("utf-8", errors="replace").strip().split("\n")
            said = lines[-1].strip()[:300] or "log.txt is empty"
            return {"status": "failed", "reason": "papermill died", "error": said} | cell
        if outcome["status"] == "failed":
            return outcome | cell
        if absent := notes.missing_metrics(self.folder, self.sweep.collect):
            said = f"the notebook did not record {', '.join(absent)}: call cogvideo.sweeps.record in it"
            return {"status": "failed", "reason": "no result", "error": said}
        return outcome


def memory_of(pid: int, *, shared_once: bool = False) -> int:
    """Bytes that a process and all below it hold in memory.

    Pages that several of them share, such as those of forked data loaders, count for each, or once with
    shared_once, which is slow and known on Linux alone.
    """
    total = 0
    with suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        for process in [top, *top.children(recursive=True)]:
            with suppress(psutil.Error):  # it has ended meanwhile
                once = shared_once and psutil.LINUX
                total += process.memory_full_info().pss if once else process.memory_info().rss
    return total


def kill_kernel(process: "subprocess.Popen[bytes]", grace: float) -> None:
    """Kill what runs below papermill, give papermill time to save the notebook, then kill it, too."""
    kernel = psutil.Process(process.pid).children(recursive=True)
    for child in kernel:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    try:
        process.wait(grace if kernel else 0)
    except subprocess.TimeoutExpired:
        process.kill()


def kill(attempt: str) -> None:
    """Kill all processes of one run of a point, whatever session or parent they have by now."""

    def running() -> list[psutil.Process]:
        everything = psutil.process_iter(["environ"])
        return [p for p in everything if (p.info["environ"] or {}).get(ATTEMPT) == attempt]

    while found := running():
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=1)


if __name__ == "__main__":
    Guard(pickle.load(sys.stdin.buffer)).run()
