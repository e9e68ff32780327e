"""The three commands of a sweep: run what is missing, show its status, stop it."""

import signal
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from cogvideo.errors import CogVideoError
from cogvideo.io import check_folder
from cogvideo.sweeps import notes, table
from cogvideo.sweeps.cluster import connect
from cogvideo.sweeps.display import Board
from cogvideo.sweeps.point import Job, lost, run_point
from cogvideo.sweeps.spec import Point, Sweep, load

if TYPE_CHECKING:
    from distributed import Client, Future

T = TypeVar("T")

INTERVAL = 0.5  # seconds between looks
STOPPING = 60.0  # seconds that points have to stop; a network file system may show their locks late
ARRIVAL = 60.0  # seconds that a note may take from another machine
STOPPED = 130  # the exit code of a sweep that was stopped
GONE = "The Dask scheduler is gone; points that run will end by themselves: start it and run the sweep again."


def run(
    file: str | Path,
    workers: int | None = None,
    scheduler: str | None = None,
    slurm: str | Path | None = None,
) -> int:
    """Run the points that have no result, or one of other code, and gather the table.

    Points that are still running because their driver died are waited for.
    Returns the exit code: the number of points that failed, at most 125; 130 when stopped.
    """
    sweep = load(file)
    check_folder(sweep.folder)
    # `status` holds the lock for an instant when it looks.
    lock = _within(2.0, lambda: notes.try_lock(sweep.folder / "lock"))
    if lock is None:
        raise CogVideoError(f"The sweep {sweep.name} is being run already: `cogvideo sweep stop` ends it.")
    with lock:
        name = uuid.uuid4().hex
        notes.set_run(sweep.folder, name)  # before anything that takes time, so that a stop meanwhile counts
        board = Board(sweep)
        todo = [point for point in sweep.points if board.state(point.name) != "done"]
        # Running ones first: a task that waits stands for one that runs.
        todo.sort(key=lambda point: board.state(point.name) != "running")
        board.say(_plan(board, todo))
        stopped = False
        if todo:
            with _ends_like_ctrl_c(), connect(workers, scheduler, slurm, sweep, len(todo)) as client:
                stopped = _drive(client, board, todo, name)
        written = table.write(sweep)
        failed = [point.name for point in sweep.points if board.state(point.name) == "failed"]
        for point in failed:
            board.say(f"{point} failed: {board.detail(point)}")
        board.say(f"{board.summary()}\n{written}")
        return STOPPED if stopped else min(len(failed), 125)


@contextmanager
def _ends_like_ctrl_c() -> Iterator[None]:
    """A closed terminal (unless under nohup) and `kill` stop the points as Ctrl-C does."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _within(seconds: float, look: Callable[[], T]) -> T:
    """What `look` returns as soon as it is true, or else after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(INTERVAL)
    return found


def _plan(board: Board, todo: list[Point]) -> str:
    names = {"waiting": "new", "changed": "done before by other code", "running": "running already"}
    reasons = Counter(board.state(point.name) for point in todo)
    total = len(board.sweep.points)
    parts = [f"{total - len(todo)} of {total} points done"]
    if todo:
        parts.append(", ".join(f"{count} {names.get(state, state)}" for state, count in reasons.items()))
    return f"Sweep {board.sweep.name}: {'; '.join(parts)}"


def _drive(client: "Client", board: Board, todo: list[Point], run: str) -> bool:
    """Submit the points and wait for them. run: this driver's name. Returns whether the sweep was stopped."""
    sweep = board.sweep
    futures: dict[Future, Point] = {}
    for rank, point in enumerate(todo):
        note = board.found[point.name]
        seen = None if note["status"] in ("running", "interrupted") else note.get("attempt")
        job = Job(replace(sweep, points=[point]), board.code, seen, run)
        futures[client.submit(run_point, job, pure=False, priority=-rank)] = point
    ended = {point.name for point in sweep.points} - {point.name for point in todo}
    try:
        with board.live() as live:
            while futures and notes.current_run(sweep.folder) == run:
                over = [(future, futures.pop(future)) for future in list(futures) if future.done()]
                found = {p.name: _note_of(future, client, sweep.folder_of(p)) for future, p in over}
                changed = board.look(ended)
                for name, note in found.items():
                    if note.get("reason") == "lost":
                        board.found[name] = note  # its folder has no verdict
                        changed.append(name)
                ended |= found.keys()
                board.show(live, changed, _workers(client))
                time.sleep(INTERVAL)
            if not futures:
                return False
    except KeyboardInterrupt:
        board.say("Stopping the points that run ...")
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
    if future.status == "error":
        error = " ".join(str(future.exception()).split()) or type(future.exception()).__name__
        return lost(folder.name, f"no worker could run it, {error[:300]}")
    note = future.result()
    if note.get("status") not in notes.VERDICTS or note.get("reason") == "lost":
        return note
    # A network file system may take a while.
    if _within(ARRIVAL, lambda: notes.read_note(folder).get("attempt") == note["attempt"]):
        return note
    return note | lost(folder.name, f"it ran on {note['host']}, whose files are not here: use a shared disk")


def _workers(client: "Client") -> int:
    try:
        return sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())
    except OSError:
        raise CogVideoError(GONE) from None


def _held(sweep: Sweep) -> list[Point]:
    return [point for point in sweep.points if notes.is_locked(sweep.folder_of(point) / "lock")]


def _wait_for_points(sweep: Sweep) -> None:
    if not _within(STOPPING, lambda: not _held(sweep)):
        where = [f"{p.name} ({notes.read_note(sweep.folder_of(p)).get('host')})" for p in _held(sweep)]
        raise CogVideoError(f"Some points have not stopped in {STOPPING:.0f} s: {', '.join(where)}.")


def stop(file: str | Path) -> str:
    """Stop a sweep from another terminal, with a driver or without. Returns a sentence: what was stopped."""
    sweep = load(file)
    held, lock = _held(sweep), sweep.folder / "lock"
    if not held and not notes.is_locked(lock):
        return f"Nothing of the sweep {sweep.name} is running."
    notes.set_run(sweep.folder, notes.STOPPED)
    _wait_for_points(sweep)

    def driver_ended() -> bool:
        if notes.is_locked(lock) and notes.current_run(sweep.folder) != notes.STOPPED:
            notes.set_run(sweep.folder, notes.STOPPED)  # it had just begun, and wrote its name after ours
        return not notes.is_locked(lock)

    if not _within(STOPPING, driver_ended):
        raise CogVideoError(f"The driver of the sweep {sweep.name} has not ended in {STOPPING:.0f} s.")
    return f"Stopped the sweep {sweep.name}: {len(held)} points were running; run it again to resume."


def status(file: str | Path) -> None:
    """Print the state of every point."""
    sweep = load(file)
    board = Board(sweep)
    board.console.print(board.table(rows=len(sweep.points)))
    at_work = notes.is_locked(sweep.folder / "lock")
    board.console.print("A driver is at work." if at_work else "No driver is at work.")
