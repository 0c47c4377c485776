"""Progress in a log: lines in good time, none too many, with the right speed."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re

import pytest

from fmcortex import progress
from fmcortex.progress import Progress


class Clock:
    """Stands for the time module."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_lines_come_every_so_often_and_at_the_end(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("training", 8, every=10, stream=stream) as bar:
        for done in range(1, 9):
            clock.now += 4
            bar.update(done, f"loss {done}")
    # Updates come at 4, 8, 12, ... seconds: lines at 12 and 24, and at the end, 32.
    assert stream.getvalue().splitlines() == [
        "training: step 3/8, 0.25 steps/s, 20 s left, loss 3",
        "training: step 6/8, 0.25 steps/s, 8 s left, loss 6",
        "training: step 8/8, 0.25 steps/s, loss 8",
    ]


def test_the_speed_counts_from_where_a_resumed_run_started(clock: Clock) -> None:
    stream = io.StringIO()
    bar = Progress("training", 1000, unit="clip", every=10, stream=stream)
    clock.now += 50  # start-up, which is no training
    bar.update(900)
    clock.now += 20
    bar.update(940)
    first, second = stream.getvalue().splitlines()
    assert first == "training: clip 900/1000"
    assert second == "training: clip 940/1000, 2.00 clips/s, 30 s left"


def test_the_speed_counts_anew_where_work_is_set_back(clock: Clock) -> None:
    stream = io.StringIO()
    bar = Progress("training", 10_000, every=10, stream=stream)
    for done, seconds in ((5000, 10), (5240, 24), (5100, 300), (5120, 400)):
        clock.now += seconds
        bar.update(done)
    assert stream.getvalue().splitlines() == [
        "training: step 5000/10000",
        "training: step 5240/10000, 10.00 steps/s, 7 min 56 s left",
        "training: step 5100/10000",  # the workers were restarted
        "training: step 5120/10000, 20.0 s/step, 1 d 3 h 6 min left",
    ]


def test_nothing_is_said_before_its_time(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("reading", 3, every=10, stream=stream) as bar:
        bar.update(1)
        clock.now += 9.9
        bar.update(2)
    assert stream.getvalue() == ""


def test_a_line_in_between(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("reading", 3, stream=stream) as bar:
        bar.say("a [bold]line[/bold]")
    assert stream.getvalue() == "a [bold]line[/bold]\n"


def test_a_log_goes_to_standard_error(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", 1) as bar:
        bar.update(1)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "reading: step 1/1\n")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with Progress("training", 5, stream=stream) as bar:
        bar.update(2, "loss 0.5")
        bar.say("a [bold]line[/bold]")
        bar.update(5, "loss 0.4")
    text = stream.getvalue()
    assert "\x1b[" in text  # drawn in place
    assert "5/5" in text
    assert "loss 0.4" in text
    assert "a [bold]line[/bold]" in text


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_resumed_run_on_a_real_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    master, slave = pty.openpty()
    with (
        os.fdopen(slave, "w") as stream,
        Progress("pretrain", 10_000, stream=stream) as bar,
    ):
        bar.update(5000, "starting")
        clock.now += 100
        bar.update(6000, "loss 0.5312, lr 0.0998, 312 clips/s, [0.4% waiting]")
    text = b""
    with contextlib.suppress(OSError):  # the end of a terminal that was closed
        while part := os.read(master, 1 << 16):
            text += part
    os.close(master)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.decode())
    numbers, note = [line for line in re.split(r"[\r\n]+", plain) if line.strip()][-2:]
    assert re.fullmatch(
        r"pretrain [━╸╺]{8,40}\s+6000/10000 10\.00 steps/s, 6 min 40 s left\s*", numbers
    )
    assert note.strip() == "loss 0.5312, lr 0.0998, 312 clips/s, [0.4% waiting]"


def test_a_terminal_that_cannot_draw_gets_lines(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress("training", 5, stream=stream) as bar:
        bar.update(5, "loss 0.4")
    assert stream.getvalue() == "training: step 5/5, loss 0.4\n"


def test_a_bar_lets_an_error_through_and_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with pytest.raises(ValueError, match="lost"), Progress("training", 5, stream=stream) as bar:
        raise ValueError("lost")
    assert bar._bar.finished is False
    assert not bar._bar.live.is_started


def test_what_is_started_is_said_before_there_is_progress(clock: Clock) -> None:
    stream = io.StringIO()
    with Progress("pretrain", 30, stream=stream) as bar:
        bar.stage("starting Ray on this machine")
        bar.update(0, "2 ranks")
    assert stream.getvalue().splitlines() == ["pretrain: starting Ray on this machine"]

    parent, child = pty.openpty()
    with os.fdopen(child, "w") as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm")
        with Progress("pretrain", 30, stream=terminal) as bar:
            bar.stage("starting 2 workers")
    shown = b""
    with contextlib.suppress(OSError):  # the end, on Linux
        while part := os.read(parent, 65536):
            shown += part
    os.close(parent)
    assert b"starting 2 workers" in shown
    assert b"0/30" in shown
