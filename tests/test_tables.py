"""Tables keep every digit and every name, however narrow the terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fmcortex import tables
from fmcortex.cli import cli
from fmcortex.commands.training import _print_scores
from fmcortex.evaluation.evaluate import DomainScore, SessionScore
from fmcortex.tables import print_table

WIDTHS = (60, 80, 120)
COLUMNS = ["session", "stimulus domain", "neurons", "no CC_max", "CC_norm", "test domains", "MB"]
ROWS = [
    ["mouse01-1-1", "natural_movie", "8000", "12", "0.234", "drifting_gabor, pink_noise", "12.5"],
    ["static22846-10-16-GrayImageNet", "gabor", "7", "-", "-0.012", "natural_movie", "104857.6"],
    ["[red]sweep-lr[01]:mouse:", "a/b", "123456789", "0", "0.1", "", "3"],
]


def printed(capsys: pytest.CaptureFixture[str], *words: Any, **options: Any) -> str:
    print_table(*words, **options)
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [*WIDTHS, 30, None])
def test_every_cell_is_there_whole(capsys: pytest.CaptureFixture[str], width: int | None) -> None:
    out = printed(capsys, "a title " * 20, COLUMNS, ROWS, keys=2, width=width)
    title, _, body = out.partition("\n")
    assert title == "a title " * 20
    assert "…" not in out
    words = set(body.split())
    for cell in (*COLUMNS, *(cell for row in ROWS for cell in row)):
        assert set(cell.split()) <= words, cell
    if width is not None and width >= 80:  # the longest name and word need 62
        assert max(map(len, body.splitlines())) <= width
    # Each part says of what its rows are.
    parts = [part for part in body.split("\n\n") if part.strip()]
    assert all("mouse01-1-1" in part and "natural_movie" in part for part in parts)
    assert len(parts) == 1 if width is None else len(parts) <= 5


def test_a_wide_terminal_has_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "t", COLUMNS[:3], [row[:3] for row in ROWS], width=80)
    assert out.count("─\n") == 1
    # Numbers end below each other.
    ends = {
        line.index(n) + len(n) for line in out.splitlines() for n in (" 8000", " 7") if n in line
    }
    assert len({re.search(r"\d+$", line.rstrip()).end() for line in out.splitlines()[4:7]}) == 1  # type: ignore[union-attr]
    assert ends


@pytest.mark.parametrize("width", WIDTHS)
def test_the_tables_of_commands(
    width: int,
    prepared: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What they print on a narrow terminal has all words of what they print into a file."""
    table = tmp_path / "sessions.csv"
    table.write_text(
        "session,neurons,minutes,scan_hz\nanimal-12345-session-6,7000,60,6\nb-2,8000,90,6.3\n"
    )
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"base: {{data: {{url: '{prepared}'}}}}\nmice: [1, 2]\nminutes: [0.1]\n")
    for words in (
        ["data", "info", prepared],
        ["data", "ls", prepared],
        ["data", "peek", prepared],
        ["data", "plan", str(table)],
        ["plan", "--sessions", str(table), "--ranks", "2", "--set", "model.preset=tiny"],
        ["sweep", str(sweep), "--dry-run"],
    ):
        shown = {}
        for columns in (None, width):
            monkeypatch.setattr(tables, "terminal_width", lambda columns=columns: columns)
            out = CliRunner().invoke(cli, words)
            assert out.exit_code == 0, out.exception
            shown[columns] = re.sub(r"planned in.*", "", out.output)
        check(shown[None], shown[width], width)
    score = DomainScore(
        domain="natural_movie",
        videos=2,
        repeats=10,
        neurons=8000,
        without_cc_max=1234,
        cc_abs=0.2345,
        cc_max=0.5432,
        cc_norm=0.4321,
        single_trial=0.1,
        baseline_cc_norm=-0.0123,
    )
    sessions = ["mouse01-1-1", "dynamic29515-10-12-Video-9b4f6a1a067fe51e15306b9628efea20"]
    scores = [
        SessionScore(session=name, tier="test", domains=[score], per_neuron={}) for name in sessions
    ]
    shown = {}
    for columns in (None, width):
        monkeypatch.setattr(tables, "terminal_width", lambda columns=columns: columns)
        _print_scores("runs/first", scores)
        shown[columns] = capsys.readouterr().out
    check(shown[None], shown[width], 200)


def check(whole: str, narrow: str, width: int) -> None:
    assert set(re.findall(r"[^\s─]+", whole)) <= set(re.findall(r"[^\s─]+", narrow))
    assert "…" not in narrow
    for line in narrow.splitlines():
        prose = line.startswith(("/", "hint")) or ": " in line
        assert len(line) <= width or prose, line


def test_a_real_terminal(prepared: str) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    command = [str(Path(sys.executable).parent / "fmcortex"), "data", "info", prepared]
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    with subprocess.Popen(command, stdout=slave, stdin=slave, stderr=slave, env=environment) as run:
        os.close(slave)
        said = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # how Linux says that the other side is closed
                break
            if not part:
                break
            said += part
    os.close(master)
    assert run.returncode == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", said.decode())
    assert "drifting_gabor" in text
    assert "…" not in text
    body = [line for line in text.splitlines() if "mouse0" in line and prepared not in line]
    assert body
    assert max(map(len, body)) <= 60
