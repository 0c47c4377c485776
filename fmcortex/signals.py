"""The signals that announce the end of a job, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from fmcortex.errors import Interrupted, Preempted

#: Schedulers differ in which they send; SIGINT is that of Ctrl-C.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopSignals:
    """Hears the signals of the block; a second one interrupts at once.

    They reach the main thread only; in any other, as in some notebooks, none is heard.

    Attributes:
        asked: the signal that was heard first; None without any.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self.listen()
        return self

    def listen(self) -> None:
        """Listen again, where something else may have put its own handlers in place."""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is signal.SIG_IGN:
                    continue  # as of Ctrl-C, in what a script has put in the background
                before = signal.signal(number, self._hear)
                self._before.setdefault(number, before)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)

    def stopped(self, line: str) -> Preempted:
        """The error of a run that was told to stop: of Ctrl-C, or of a scheduler's signal."""
        return Interrupted(line) if self.asked is signal.SIGINT else Preempted(line)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
