"""How a sweep stands, for people: a live table on a terminal, a line for each change elsewhere."""

import sys
import time
from collections import Counter
from datetime import datetime, timedelta, timezone
from statistics import median
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from cogvideo.sweeps import notes
from cogvideo.sweeps.spec import Sweep, fingerprint

ORDER = ("running", "failed", "interrupted", "stopped", "changed", "incomplete", "waiting", "done")
COLOURS = {"running": "cyan", "failed": "red", "done": "green"}


class Board:
    """What is known of every point, and how it is shown."""

    def __init__(self, sweep: Sweep):
        self.sweep, self.code = sweep, fingerprint(sweep.notebook)  # by `code` a point is up to date
        self.found: dict[str, dict[str, Any]] = {}  # by point what notes.look finds
        self.console = Console(file=sys.stdout)
        self.look()

    def look(self, ended: set[str] | None = None) -> list[str]:
        """Read the folders of all points but those in `ended`. Returns the points whose state has changed."""
        before = {name: note["status"] for name, note in self.found.items()}
        for point in self.sweep.points:
            if point.name not in (ended or ()):
                note = notes.look(self.sweep.folder_of(point), self.code, self.sweep.collect)
                self.found[point.name] = note
        return [name for name, note in self.found.items() if note["status"] != before.get(name)]

    def state(self, name: str) -> str:
        return self.found[name]["status"]

    def detail(self, name: str) -> str:
        note, state = self.found[name], self.state(name)
        if state == "running":
            cell, cells = notes.cells(self.sweep.folder / name)
            left = self._left(name)
            parts = [f"cell {cell}/{cells}" if cell else "starting", _span(self._gone(name))]
            return ", ".join(parts + ([] if left is None else [f"about {_span(left)} left"]))
        if state in ("done", "changed"):
            return _span(note["seconds"])
        if state == "failed":
            where = f" in cell {note['cell']}" if note.get("cell") else ""
            return f"{note['reason']}{where}: {note['error']}"
        return ""

    def _gone(self, name: str) -> float:
        """Seconds since a running point began."""
        if self.state(name) != "running":
            return 0.0
        began = datetime.fromisoformat(self.found[name]["started"])
        return max((datetime.now(timezone.utc) - began).total_seconds(), 0.0)

    def _left(self, name: str) -> float | None:
        """Seconds that a point still needs, by the median of those that are done."""
        ended = ("done", "changed", "incomplete")
        done = [note["seconds"] for note in self.found.values() if note["status"] in ended]
        return max(median(done) - self._gone(name), 0.0) if done else None

    def summary(self, workers: int = 0) -> str:
        counts = Counter(note["status"] for note in self.found.values())
        text = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
        open_points = [name for name, note in self.found.items() if note["status"] not in notes.VERDICTS]
        left = [seconds for name in open_points if (seconds := self._left(name)) is not None]
        if left and workers:
            seconds = sum(left) / min(workers, len(left))
            text += f"; about {_span(seconds)} left with {workers} worker{'s' * (workers > 1)}"
        return f"{len(self.found)} points: {text}"

    def table(self, rows: int, workers: int = 0) -> Table:
        """Running and failed points first; at most so many rows."""
        names = sorted(self.found, key=lambda name: ORDER.index(self.state(name)))
        table = Table(title=f"sweep {escape(self.sweep.name)}", caption=self.summary(workers))
        for column in ("point", "state", ""):
            table.add_column(column, overflow="fold" if not column else "ellipsis")
        for name in names[:rows]:
            state = self.state(name)
            shown = f"[{COLOURS.get(state, 'default')}]{state}"
            table.add_row(escape(name), shown, escape(self.detail(name)))
        if len(names) > rows:
            table.add_row(f"and {len(names) - rows} more", "", "")
        return table

    def live(self) -> Live:
        """A context in which `show` may be called."""
        return Live(console=self.console, auto_refresh=False, transient=True)

    def show(self, live: Live, changed: list[str], workers: int) -> None:
        if self.console.is_terminal:
            live.update(self.table(max(self.console.height - 7, 5), workers), refresh=True)
            return
        for name in changed:
            state = self.state(name)
            if state in ("running", "done", "failed", "changed"):
                detail = "" if state == "running" else self.detail(name)
                self.say(f"{time.strftime('%H:%M:%S')} {name} {state} {detail}".rstrip())

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
