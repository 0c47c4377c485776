"""Progress of long work: a live bar on a terminal, now and then a plain line in a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self, TextIO


class Progress:
    """Progress towards `total` units of work.

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
        self._bar: Any = None

    def __enter__(self) -> Self:
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(file=self.stream),
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, note="")
        return self

    def update(self, done: int, note: str = "") -> None:
        """Tell that `done` units are done, with a short note such as the present loss."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if self.first is None:
            self.first, self.start = done, now
        if now - self.said < self.every and done < self.total:
            return
        self.said = now
        rate = (done - self.first) / max(now - self.start, 1e-9)
        speed = f", {rate:.2f} {self.unit}s/s" if done > self.first else ""
        text = f"{self.title}: {self.unit} {done}/{self.total}{speed}{', ' + note if note else ''}"
        print(text, file=self.stream, flush=True)

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
