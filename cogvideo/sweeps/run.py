"""The three commands of a sweep: run what is missing, tell how it stands, stop it."""

import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cogvideo.errors import CogVideoError
from cogvideo.sweeps import notes, table
from cogvideo.sweeps.cluster import connect
from cogvideo.sweeps.display import Board, Display
from cogvideo.sweeps.point import job_of, run_point
from cogvideo.sweeps.spec import Point, Sweep, fingerprint, load

if TYPE_CHECKING:
    from distributed import Client, Future

INTERVAL = 0.5  # seconds between looks
STOPPING = 60.0  # seconds that points have to stop; a network file system may tell them late
ARRIVAL = 60.0  # seconds that a note may take from another machine
STOPPED = 130  # the exit code of what was stopped
GONE = "The Dask scheduler is gone; points that run go on: start it and run the sweep again."


def run(
    file: str | Path,
    workers: int | None = None,
    scheduler: str | None = None,
    slurm: str | Path | None = None,
) -> int:
    """Run the points that have no result, or one of other code, and gather the table.

    Points that other processes run already, left by a driver that died, are waited for.
    Returns the exit code: the number of points that failed, at most 125; 130 when stopped.
    Raises CogVideoError for a mistake in the file, before anything runs, and while another driver runs the same sweep.
    """
    sweep = load(file)
    lock = _driver_lock(sweep)
    if lock is None:
        raise CogVideoError(
            f"The sweep {sweep.name} is being run already: look with `cogvideo sweep status`, or `cogvideo sweep stop` it."
        )
    with lock:
        name = uuid.uuid4().hex
        notes.set_run(sweep.folder, name)  # before anything that takes time, so that a stop meanwhile counts
        board = Board(sweep, fingerprint(sweep.notebook))
        board.look()
        todo = [point for point in sweep.points if board.states[point.name] != "done"]
        todo.sort(
            key=lambda point: board.states[point.name] != "running"
        )  # a task that waits stands for one that runs
        display = Display(board)
        display.say(_plan(board, todo))
        stopped = False
        if todo:
            with _ends_like_ctrl_c(), connect(workers, scheduler, slurm, sweep, len(todo)) as (client, tend):
                stopped = _drive(client, tend, board, display, todo, name)
        written = table.write(sweep)
        failed = [point.name for point in sweep.points if board.states[point.name] == "failed"]
        for point in failed:
            display.say(f"{point} failed: {board.detail(point)}")
        display.say(f"{board.summary()}\n{written}")
        return STOPPED if stopped else min(len(failed), 125)


@contextmanager
def _ends_like_ctrl_c() -> Iterator[None]:
    """A closed terminal and `kill` stop the points, too; not a terminal that nohup told to ignore."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _driver_lock(sweep: Sweep):
    for _ in range(5):  # `status` holds it for a moment when it looks
        if lock := notes.try_lock(sweep.folder / "lock"):
            return lock
        time.sleep(0.1)
    return None


def _plan(board: Board, todo: list[Point]) -> str:
    reasons = Counter(board.states[point.name] for point in todo)
    done = len(board.sweep.points) - len(todo)
    names = {"waiting": "new", "changed": "done before by other code", "running": "running already"}
    parts = ", ".join(f"{count} {names.get(state, state)}" for state, count in reasons.items())
    return f"Sweep {board.sweep.name}: {done} of {len(board.sweep.points)} points done" + (
        f"; {parts}" if parts else ""
    )


def _drive(
    client: "Client", tend: Callable[[], None], board: Board, display: Display, todo: list[Point], run: str
) -> bool:
    """Hand the points to the cluster and wait for them. run: our name. Returns whether the sweep was stopped."""
    sweep = board.sweep
    futures: dict[Future, Point] = {}
    for rank, point in enumerate(todo):
        note = board.found[point.name]
        seen = note.get("attempt") if note.get("status") != "running" else None
        job = job_of(sweep, point, board.code, seen, run)
        futures[client.submit(run_point, job, pure=False, priority=-rank)] = point
    ended = {point.name for point in sweep.points} - {point.name for point in todo}
    try:
        with display:
            while futures and notes.current_run(sweep.folder) == run:
                over = [future for future in futures if future.done()]
                folders = {future: sweep.folder_of(futures.pop(future)) for future in over}
                found = {folder.name: _note_of(future, client, folder) for future, folder in folders.items()}
                changed = board.look(ended)
                for name, note in found.items():
                    if note.get("reason") == "lost":
                        board.put(name, note)
                        changed.append(name)
                ended |= found.keys()
                display.show(changed, _workers(client))
                tend()
                time.sleep(INTERVAL)
            if not futures:
                return False
    except KeyboardInterrupt:
        display.say("Stopping the points that run ...")
        notes.set_run(sweep.folder, notes.STOPPED)
    with suppress(Exception):  # the scheduler may be gone: the points read the file
        client.cancel(list(futures))
    _wait_for_points(sweep)
    board.look()
    return True


def _note_of(future: "Future", client: "Client", folder: Path) -> dict[str, Any]:
    """What a task returned, or a note that says why there is none in the point's folder."""
    if client.status != "running" or future.status not in ("finished", "error"):
        raise CogVideoError(GONE)
    if future.status == "finished":
        note = future.result()
        if note.get("status") not in notes.VERDICTS or note.get("reason") == "lost" or _arrived(folder, note):
            return note
        said = f"it ran on {note['host']}, whose files are not here: put the sweep on a disk that all of them share"
        return note | {"status": "failed", "reason": "lost", "error": said}
    error = " ".join(str(future.exception()).split()) or type(future.exception()).__name__
    said = f"no worker could run it, {error[:300]}"
    return {"point": folder.name, "status": "failed", "reason": "lost", "error": said}


def _arrived(folder: Path, note: dict[str, Any]) -> bool:
    """Whether the folder has the same note here; a network file system may take a while."""
    deadline = time.monotonic() + ARRIVAL
    while notes.read_note(folder).get("attempt") != note["attempt"]:
        if time.monotonic() > deadline:
            return False
        time.sleep(INTERVAL)
    return True


def _workers(client: "Client") -> int:
    try:
        return sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
    except OSError:
        raise CogVideoError(GONE) from None


def _held(sweep: Sweep) -> list[Point]:
    return [point for point in sweep.points if notes.is_locked(sweep.folder_of(point) / "lock")]


def _wait_for_points(sweep: Sweep) -> None:
    """Raises CogVideoError when some do not stop."""
    deadline = time.monotonic() + STOPPING
    while held := _held(sweep):
        if time.monotonic() > deadline:
            names = ", ".join(f"{p.name} ({notes.read_note(sweep.folder_of(p)).get('host')})" for p in held)
            raise CogVideoError(f"Some points have not stopped in {STOPPING:.0f} s: {names}.")
        time.sleep(0.2)


def stop(file: str | Path) -> str:
    """Stop a sweep from another terminal, driver or no driver. Returns a sentence that says what was stopped.

    Raises CogVideoError for what does not stop.
    """
    sweep = load(file)
    held = _held(sweep)
    if not held and not notes.is_locked(sweep.folder / "lock"):
        return f"Nothing of the sweep {sweep.name} is running."
    notes.set_run(sweep.folder, notes.STOPPED)
    _wait_for_points(sweep)
    deadline = time.monotonic() + STOPPING
    while notes.is_locked(sweep.folder / "lock"):
        if time.monotonic() > deadline:
            raise CogVideoError(
                f"The driver of the sweep {sweep.name} has not ended in {STOPPING:.0f} s: look with `cogvideo sweep status`."
            )
        time.sleep(0.2)
    return f"Stopped the sweep {sweep.name}: {len(held)} points were running; `cogvideo sweep run` goes on with it."


def status(file: str | Path) -> None:
    """Print how every point stands."""
    sweep = load(file)
    board = Board(sweep, fingerprint(sweep.notebook))
    board.look()
    console = Display(board).console
    console.print(board.table(rows=len(sweep.points)))
    console.print(
        "A driver is at work." if notes.is_locked(sweep.folder / "lock") else "No driver is at work."
    )
