"""The process that watches over one point: `python -m cogvideo.sweeps.guard`, in a session of its own.

It holds the point's lock from before the notebook starts until the verdict is written, so that no two run the same point. It
outlives the Dask worker that started it and the driver: whoever dies, what runs goes on to its end within its limits, and
whoever asks for the same point meanwhile waits for the lock and takes over the verdict.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

import cogvideo
from cogvideo.io import commit
from cogvideo.sweeps import RESULT_FILE, notes
from cogvideo.sweeps.spec import fingerprint

ATTEMPT = "COGVIDEO_SWEEP_ATTEMPT"  # in the environment of all processes of one run of a point
INTERVAL = 0.5  # seconds between looks
GRACE = 10.0  # seconds that papermill has to save the notebook after its kernel was killed
OURS = ("point.json", "outcome.json", "executed.ipynb", "result.json", "log.txt")
PACKAGES = ("torch", "numpy", "papermill")  # whose versions are noted, beside Python's and our own


def main() -> None:
    job = json.loads(sys.stdin.readline())
    Guard(job).run()


class Guard:
    """One point: its lock, its limits, its verdict."""

    def __init__(self, job: dict[str, Any]):
        self.job, self.folder = job, Path(job["folder"])
        self.terminated = False
        self.peak = 0
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, *_: Any) -> None:
        self.terminated = True

    def asked_to_stop(self) -> bool:
        return self.terminated or notes.current_run(self.folder.parent) == notes.STOPPED

    def may_begin(self) -> bool:
        """Not for a driver that was stopped or has a successor: then that one's guards do it."""
        return not self.terminated and notes.current_run(self.folder.parent) == self.job["run"]

    def run(self) -> None:
        while (lock := notes.try_lock(self.folder / "lock")) is None:
            if not self.may_begin():
                return
            time.sleep(INTERVAL)
        with lock:
            code = fingerprint(Path(self.job["notebook"]))
            note = notes.read_note(self.folder)
            if note.get("status") == "running":  # its guard died
                if note["host"] == platform.node():
                    kill(note["attempt"])
                note = self._settle(note)
            codes = (code, self.job["fingerprint"])
            fresh = note.get("attempt") != self.job["seen"] and note.get("fingerprint") in codes
            if note.get("status") in notes.VERDICTS and fresh:
                return  # somebody else has run it since it was asked for
            if self.may_begin():
                self._clear(keep=note.get("fingerprint") == code)
                self._attempt(code)

    def _settle(self, note: dict[str, Any]) -> dict[str, Any]:
        """If the notebook had come to its end before its guard died, that counts."""
        outcome = notes.read_json(self.folder / "outcome.json")
        if outcome.pop("attempt", None) != note["attempt"]:
            return note
        ended = (self.folder / "outcome.json").stat().st_mtime
        seconds = ended - datetime.fromisoformat(note["started"]).timestamp()
        note |= self._judge(outcome) | {"seconds": round(seconds, 2)}
        notes.write_note(self.folder, note)
        return note

    def _clear(self, keep: bool) -> None:
        """Take away an earlier run. keep: it was of the same code, so what its notebook wrote stays: training goes on."""
        for path in self.folder.iterdir():
            if path.name != "lock" and not (keep and path.name not in OURS):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _attempt(self, code: str) -> None:
        job, attempt = self.job, uuid.uuid4().hex
        passed = job["given"] | ({"output_dir": str(self.folder)} if job["takes_folder"] else {})
        note = {
            "point": job["point"],
            "status": "running",
            "attempt": attempt,
            "given": job["given"],
            "parameters": job["parameters"],
            "fingerprint": code,
            "commit": commit(),
            "versions": versions(),
            "host": platform.node(),
            "guard": os.getpid(),
            "started": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        }
        notes.write_note(self.folder, note)
        clock = time.monotonic()
        environment = os.environ | {
            ATTEMPT: attempt,
            RESULT_FILE: str(self.folder / "result.json"),
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(Path(cogvideo.__file__).parents[1]), os.environ.get("PYTHONPATH")])
            ),
        }
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment[name] = str(job["threads"])
        with open(self.folder / "log.txt", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cogvideo.sweeps.execute"],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, text=True,
            )  # fmt: skip
        assert process.stdin
        try:
            process.stdin.write(json.dumps(job | {"attempt": attempt, "passed": passed}) + "\n")
            process.stdin.flush()  # left open: its end would tell of our death
            verdict = self._watch(process, clock)
        except BrokenPipeError:  # gone at once: the log tells why
            verdict = self._judge({})
        finally:
            kill(attempt)  # what the notebook left running, too
            process.wait()
        seconds = round(time.monotonic() - clock, 2)
        notes.write_note(self.folder, note | verdict | {"seconds": seconds, "peak_memory": self.peak})

    def _watch(self, process: subprocess.Popen[str], clock: float) -> dict[str, Any]:
        """Wait for the end, or bring it about. Returns what becomes of the note."""
        while process.poll() is None:
            cut = self._limit(process.pid, time.monotonic() - clock)
            if cut:
                kill_kernel(process, GRACE)
                return cut | {"cell": notes.cells(self.folder)[0]}
            time.sleep(INTERVAL)
        return self._judge(notes.read_json(self.folder / "outcome.json"))

    def _limit(self, pid: int, seconds: float) -> dict[str, Any] | None:
        if self.asked_to_stop():
            return {"status": "stopped", "reason": "stopped", "error": "by the user"}
        used, most = memory_of(pid), self.job["memory"]
        self.peak = max(self.peak, used)
        if most and used > most and (used := memory_of(pid, shared_once=True)) > most:
            sizes = f"{used / 1e9:.2f} GB of {most / 1e9:.2f} GB"
            return {"status": "failed", "reason": "out of memory", "error": sizes}
        if self.job["seconds"] and seconds > self.job["seconds"]:
            limit = f"{self.job['seconds'] / 60:g} min"
            return {"status": "failed", "reason": "time limit", "error": limit}
        return None

    def _judge(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """The verdict on a notebook that has ended, whose process wrote `outcome`; nothing if it died before."""
        begun, _ = notes.cells(self.folder)
        if not outcome:
            lines = (self.folder / "log.txt").read_text("utf-8", errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "log.txt is empty")
            return {"status": "failed", "reason": "papermill died", "error": last[:300], "cell": begun}
        outcome.pop("attempt", None)
        if outcome["status"] == "failed":
            return outcome | {"cell": begun}
        if absent := notes.missing_metrics(self.folder, self.job["collect"]):
            said = f"the notebook did not record {', '.join(absent)}: call cogvideo.sweeps.record in it"
            return {"status": "failed", "reason": "no result", "error": said}
        return outcome


def memory_of(pid: int, *, shared_once: bool = False) -> int:
    """Bytes that a process and all below it hold in memory.

    Pages that several of them share, such as those of forked data loaders, count for each, or once with shared_once, which
    is slow and known on Linux alone.
    """
    try:
        top = psutil.Process(pid)
        tree = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for process in tree:
        with suppress(psutil.Error):  # gone meanwhile
            total += (
                process.memory_full_info().pss if shared_once and psutil.LINUX else process.memory_info().rss
            )
    return total


def kill_kernel(process: subprocess.Popen[str], grace: float) -> None:
    """Kill what runs below papermill and give papermill time to save the notebook; then, or without a kernel, end it."""
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
    while found := [process for process in psutil.process_iter() if _attempt_of(process) == attempt]:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(found, timeout=1)


def _attempt_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(ATTEMPT)
    except psutil.Error:
        return None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cogvideo": cogvideo.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
