"""How a sweep goes, for people: a live table on a terminal, a line for each change elsewhere."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cogvideo.sweeps import notes
from cogvideo.sweeps.spec import Sweep

ORDER = ("running", "failed", "interrupted", "stopped", "changed", "incomplete", "waiting", "done")
COLOURS = {"running": "cyan", "failed": "red", "done": "green"}


@dataclass
class Board:
    """What is known of every point; look() reads the folders of those that have not ended."""

    sweep: Sweep
    code: str  # the fingerprint by which a point is up to date
    states: dict[str, str] = field(default_factory=dict)  # by point
    found: dict[str, dict[str, Any]] = field(default_factory=dict)  # notes

    def look(self, ended: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
        """Returns the points whose state has changed. Those in `ended` were seen at their end before."""
        changed = []
        for point in self.sweep.points:
            if point.name in ended and point.name in self.states:
                continue
            folder = self.sweep.folder_of(point)
            note = self.found[point.name] = notes.read_note(folder)
            state = notes.status(folder, note, self.code, self.sweep.collect)
            if state != self.states.get(point.name):
                changed.append(point.name)
            self.states[point.name] = state
        return changed

    def put(self, name: str, note: dict[str, Any]) -> None:
        """A verdict that came by itself, not by the folder."""
        self.states[name], self.found[name] = note["status"], note

    def detail(self, name: str) -> str:
        note, state = self.found.get(name, {}), self.states[name]
        if state == "running":
            cell, cells = notes.cells(self.sweep.folder / name)
            gone, left = self._times(note)
            parts = [f"cell {cell}/{cells}" if cell else "starting", span(gone)]
            return ", ".join(parts + ([f"about {span(left)} left"] if left is not None else []))
        if state in ("done", "changed"):
            return span(note["seconds"])
        if state == "failed":
            where = f" in cell {note['cell']}" if note.get("cell") else ""
            return f"{note['reason']}{where}: {note['error']}"
        return ""

    def _times(self, note: dict[str, Any]) -> tuple[float, float | None]:
        """Seconds gone, and seconds left as far as points that are done tell."""
        gone = (datetime.now(timezone.utc) - datetime.fromisoformat(note["started"])).total_seconds()
        usual = notes.usual_seconds(list(self.found.values()))
        return max(gone, 0), None if usual is None else max(usual - gone, 0)

    def summary(self, workers: int = 0) -> str:
        counts = Counter(self.states.values())
        text = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
        usual = notes.usual_seconds(list(self.found.values()))
        if (
            usual is not None
            and workers
            and (open_points := len(self.states) - counts["done"] - counts["failed"])
        ):
            running = [
                self._times(self.found[name])[0] for name, state in self.states.items() if state == "running"
            ]
            left = max(open_points * usual - sum(min(gone, usual) for gone in running), 0) / min(
                workers, open_points
            )
            text += f"; about {span(left)} left with {workers} worker{'s' * (workers > 1)}"
        return f"{len(self.states)} points: {text}"

    def table(self, rows: int, workers: int = 0) -> Table:
        """Running and failed points first; at most so many rows."""
        names = sorted(
            self.states, key=lambda name: ORDER.index(self.states[name])
        )  # stable: else as in the file
        table = Table(title=f"sweep {escape(self.sweep.name)}", caption=self.summary(workers), expand=False)
        for column in ("point", "state", ""):
            table.add_column(column, overflow="fold" if not column else "ellipsis")
        for name in names[:rows]:
            state = self.states[name]
            table.add_row(
                escape(name), f"[{COLOURS.get(state, 'default')}]{state}", escape(self.detail(name))
            )
        if len(names) > rows:
            table.add_row(f"and {len(names) - rows} more", "", "")
        return table


class Display:
    """Shows a board while it changes."""

    def __init__(self, board: Board):
        self.board = board
        self.console = Console(file=sys.stdout)
        self.live = (
            Live(console=self.console, auto_refresh=False, transient=True)
            if self.console.is_terminal
            else None
        )

    def __enter__(self) -> "Display":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def show(self, changed: list[str], workers: int) -> None:
        if self.live:
            self.live.update(self.board.table(max(self.console.height - 7, 5), workers), refresh=True)
            return
        for name in changed:
            if self.board.states[name] in ("running", "done", "failed", "changed"):
                detail = self.board.detail(name) if self.board.states[name] != "running" else ""
                self.say(
                    " ".join([time.strftime("%H:%M:%S"), name, self.board.states[name], detail]).rstrip()
                )

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def span(seconds: float) -> str:
    """A duration: 12 s, 3:05, 2:03:05."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
