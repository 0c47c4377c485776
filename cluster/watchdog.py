"""Ends a process that makes no progress, after it has written down where it hangs."""

from __future__ import annotations

import faulthandler
import os
import tempfile
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

#: Exit code of a process that the watchdog has ended.
HUNG = 74
#: Seconds after the limit in which Python itself ends the process, should no thread of it run.
GRACE = 15.0


class Watchdog:
    """Watches over this process between `beat`s.

    Args:
        seconds: without a beat, after which the process is ended.
        report: is given what the process was doing and the stacks of its threads, before the end.
    """

    def __init__(self, seconds: float, report: Callable[[str, str], None]) -> None:
        self.seconds, self.report = seconds, report
        self.doing, self._last = "starting", time.monotonic()
        self._beside = ""
        self._owner = threading.get_ident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._owner = threading.get_ident()
        self.beat("starting")
        self._thread.start()
        return self

    def beat(self, doing: str) -> None:
        """Tell of progress, and of what is done next.

        What another thread tells, such as the one that writes checkpoints, is progress too; but the
        process hangs in what its own thread does.
        """
        if threading.get_ident() == self._owner:
            self.doing, self._beside = doing, ""
        else:
            self._beside = f"; beside it, last: {doing}"
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self.seconds / 4)):
            # A thread that holds the interpreter's lock would keep this one from running too; this
            # timer needs no lock.
            faulthandler.dump_traceback_later(self.seconds + GRACE, exit=True)
            silent = time.monotonic() - self._last
            if silent < self.seconds:
                continue
            what = (
                f"no progress for {silent:.0f} s (cluster.watchdog_seconds) in: "
                f"{self.doing}{self._beside}"
            )
            # In a thread of its own: the store that hangs may be where the report goes.
            told = threading.Thread(target=self.report, args=(what, all_stacks()), daemon=True)
            told.start()
            told.join(GRACE)
            os._exit(HUNG)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()


def all_stacks() -> str:
    """The stacks of all threads of this process."""
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
