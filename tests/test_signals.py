"""Signals that stop a run: the first is kept for the end of a step, the second interrupts."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster import pretrain as driver
from fmcortex import cli
from fmcortex.errors import FmcortexError, Interrupted, Locked, Preempted
from fmcortex.lock import Lock
from fmcortex.signals import STOP_SIGNALS, StopSignals


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_is_kept_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert stop.asked is None
        signal.raise_signal(number)
        assert stop.asked is number
        error = stop.stopped("told to stop")
        assert isinstance(error, Preempted)
        assert isinstance(error, Interrupted) == (number is signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(number) is before


def test_what_a_script_has_put_in_the_background_ignores_ctrl_c() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.asked is None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("error", "status"),
    [(Interrupted("saved"), 130), (Preempted("saved"), 75), (KeyboardInterrupt(), 130)],
)
def test_exit_statuses(error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "cli", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == status


class Follower:
    """As far as the driver's wait looks at one."""

    begun = True


class Trainer:
    """Trains until it is told to end, and listens in which thread."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.end = error, threading.Event()
        self.began = threading.Event()
        self.thread: threading.Thread | None = None

    def fit(self) -> None:
        self.thread = threading.current_thread()
        self.began.set()
        if self.error is not None:
            raise self.error
        self.end.wait(60)


def wait(trainer: Trainer, tmp_path: Path, stop: StopSignals, **follower: Any) -> None:
    """Wait for a trainer as the driver does."""
    follows: Any = Follower()
    for key, value in follower.items():
        setattr(follows, key, value)
    with Lock(str(tmp_path), "pretrain") as lock:
        driver._fit(trainer, follows, lock, stop)


def test_ray_gets_no_hold_of_ctrl_c(tmp_path: Path) -> None:
    trainer = Trainer()

    def twice() -> None:
        trainer.began.wait(60)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    other = threading.Thread(target=twice)
    other.start()
    with StopSignals() as stop, pytest.raises(KeyboardInterrupt):
        wait(trainer, tmp_path, stop)
    trainer.end.set()
    other.join()
    assert trainer.thread is not threading.main_thread()  # where Ray puts its own handler in place


def test_told_to_stop_before_any_worker_started(tmp_path: Path) -> None:
    trainer = Trainer()
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted, match="before training had begun"):
            wait(trainer, tmp_path, stop, begun=False)
    trainer.end.set()


def test_errors_of_the_trainer_and_a_lost_lock(tmp_path: Path) -> None:
    with StopSignals() as stop:
        with pytest.raises(FmcortexError, match="bad"):
            wait(Trainer(FmcortexError("bad")), tmp_path, stop)
        trainer = Trainer()
        with Lock(str(tmp_path), "pretrain") as lock:
            lock._lost = "by anna"
            with pytest.raises(Locked, match="taken over by anna"):
                driver._fit(trainer, Follower(), lock, stop)  # type: ignore[arg-type]
        trainer.end.set()
