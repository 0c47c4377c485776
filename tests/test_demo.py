"""The demo, whole: what `make demo` runs after it has set up."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unprivileged import Unprivileged, unprivileged_user

ROOT = Path(__file__).parents[1]


def summary(foundation: float, baseline: float, transferred: float, individual: float) -> Any:
    def mice(score: float, other: float) -> dict[str, Any]:
        return {"mice": {"m": {"cc_norm": score, "baseline_cc_norm": other}}}

    models = {
        "foundation": mice(foundation, baseline),
        "transferred": mice(transferred, 0.0),
        "individual": mice(individual, 0.0),
    }
    return {"models": models}


def test_the_demo_asserts_nothing_that_luck_can_break() -> None:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "examples" / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    # Which of the new mouse's models is better was within 0.003 of chance.
    assert demo.problem_of(summary(0.37, 0.01, 0.298, 0.301)) is None
    assert demo.problem_of(summary(0.37, 0.01, 0.31, 0.29)) is None
    assert "not clearly above" in demo.problem_of(summary(0.05, 0.01, 0.31, 0.29))


@pytest.fixture
def user() -> Iterator[Unprivileged]:
    """A user with a home that is new, and a checkout that is not theirs."""
    with unprivileged_user() as one:
        one.settle()
        yield one


def test_the_demo_says_where_it_cannot_write() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), "--output", "/dev/null/demo"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "demo: cannot write to /dev/null/demo; name another folder with --output"
    )


@pytest.mark.slow
def test_demo(user: Unprivileged) -> None:
    folder = user.folder / "a demo"
    # The demo itself asserts that its foundation model has learnt.
    out = user.run(
        *(sys.executable, ROOT / "examples" / "demo.py", "--output", "a demo"), timeout=1200
    )
    assert out.returncode == 0, out.stdout[-3000:] + out.stderr[-3000:]
    shown = [line for line in out.stdout.splitlines() if line.startswith("$ fmcortex ")]
    words = {line.split()[2] for line in shown}
    assert words == {
        "simulate",
        "prep",
        "data",
        "pretrain",
        "transfer",
        "individual",
        "evaluate",
        "register",
        "report",
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary["models"]) == {"foundation", "transferred", "individual"}
    foundation = summary["models"]["foundation"]
    assert foundation["workers"] == 2
    assert foundation["zero_stage"] == 1
    assert len(foundation["mice"]) == 4
    assert all(len(m["run_id"]) == 32 for m in summary["models"].values())
    assert (folder / "report.html").stat().st_size > 100_000
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert used < 1e9
    again = user.run(sys.executable, ROOT / "examples" / "demo.py", "--output", folder)
    assert again.returncode == 1
    assert "holds an earlier demo" in again.stderr

    # A small sweep on the same mice, through Ray: drawn with its fit, and not run twice.
    line = [
        str(Path(sys.executable).parent / "fmcortex"),
        "sweep",
        str(ROOT / "configs/sweep.yaml"),
        "--workers",
        "1",
        "--set",
        f"base.data.url={folder / 'prepared'}",
        "--set",
        f"base.tracking.uri=sqlite:///{folder}/mlflow.db",
        "--set",
        "base.training.epochs=2",
        "--set",
        f"output={user.folder / 'sweep'}",
        "--set",
        "base.training.steps_per_epoch=30",
    ]
    swept = user.run(*line, timeout=900)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    assert "3 points run, 0 found finished" in swept.stdout
    result = json.loads((user.folder / "sweep" / "scaling.json").read_text())
    assert len(result["points"]) == 3
    assert result["law"] is not None
    assert (user.folder / "sweep" / "scaling.png").stat().st_size > 10_000
    swept = user.run(*line, timeout=300)
    assert "0 points run, 3 found finished" in swept.stdout
