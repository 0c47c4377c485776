"""Progress of long work: a live bar on a terminal, now and then a plain line in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, TextIO

from fmcortex.tracking.ticks import duration


class Progress:
    """Progress towards `total` units of work.

    The speed and the remaining time count from the first update, or from where work that was set
    back goes on: what an earlier process did, and the start-up, tell nothing of them.

    Args:
        title: what is being done.
        total: units of work.
        unit: the name of one unit.
        every: seconds between the lines of a log.
        stream: where to write; None for standard error.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str = "step",
        every: float = 10.0,
        stream: TextIO | None = None,
    ) -> None:
        self.title, self.total, self.unit, self.every = title, total, unit, every
        self.stream = stream or sys.stderr
        self.start = self.said = time.monotonic()
        self.first: int | None = None
        self.last = 0
        self._bar: Any = None

    def __enter__(self) -> Self:
        # A dumb terminal cannot draw in place.
        if self.stream.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown"):
            self._bar = _bar(self.stream)
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, speed="", note="")
        return self

    def update(self, done: int, note: str = "") -> None:
        """Tell that `done` units are done, with a short note such as the present loss."""
        now = time.monotonic()
        if self.first is None or done < self.last:
            self.first, self.start = done, now
        self.last = done
        speed = self._speed(done, now)
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=self.total, speed=speed, note=note)
            return
        if now - self.said < self.every and done < self.total:
            return
        self.said = now
        parts = [f"{self.title}: {self.unit} {done}/{self.total}", speed, note]
        print(", ".join(part for part in parts if part), file=self.stream, flush=True)

    def _speed(self, done: int, now: float) -> str:
        """Speed and remaining time as text; empty while nothing is known of them."""
        if self.first is None or done <= self.first:
            return ""
        rate = (done - self.first) / max(now - self.start, 1e-9)
        # Large models take many seconds a step.
        text = f"{rate:.2f} {self.unit}s/s" if rate >= 0.1 else f"{1 / rate:.1f} s/{self.unit}"
        if done >= self.total:
            return text
        return f"{text}, {duration((self.total - done) / rate)} left"

    def stage(self, what: str) -> None:
        """Tell what is being done before there is progress to tell of: starting, connecting."""
        if self._bar is not None:
            self._bar.update(self._task, note=what)
        else:
            print(f"{self.title}: {what}", file=self.stream, flush=True)

    def say(self, line: str) -> None:
        """Print a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self.stream, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(stream: TextIO) -> Any:
    """A bar with its numbers on one line, and below it the note, which may be as long."""
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column
    from rich.text import Text

    class Bar(RichProgress):
        def get_renderables(self) -> Iterable[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            for task in self.tasks:
                if task.fields["note"]:
                    note = f"  {task.fields['note']}"
                    yield Text(note, style="dim", no_wrap=True, overflow="ellipsis")

    return Bar(
        TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(table_column=Column(ratio=1, min_width=8, max_width=40)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[speed]}", markup=False, table_column=Column(no_wrap=True)),
        console=Console(file=stream),
        expand=False,
    )
