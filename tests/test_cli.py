"""The command line: the whole way by its commands, its help, and its one-line errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fmcortex.cli import cli, main
from fmcortex.config import RunConfig

FMCORTEX = str(Path(sys.executable).parent / "fmcortex")


def fmcortex(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([FMCORTEX, *words], capture_output=True, text=True, cwd=cwd, timeout=240)


def commands() -> list[list[str]]:
    found = []
    for name, command in cli.commands.items():
        inner = getattr(command, "commands", None)
        found += [[name, one] for one in inner] if inner else [[name]]
    return found


def test_help_is_fast() -> None:
    fmcortex("--help")  # compiles what is not compiled yet
    took = []
    for _ in range(5):
        began = time.perf_counter()
        assert fmcortex("--help").returncode == 0
        took.append(time.perf_counter() - began)
    assert min(took) < 0.7


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, fmcortex.cli; "
        "print([m for m in ('torch', 'ray', 'mlflow', 'deepspeed', 'numpy', 'pydantic') "
        "if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_has_help_with_an_example(words: list[str]) -> None:
    out = fmcortex(*words, "--help")
    assert out.returncode == 0
    assert "Example:" in out.stdout
    assert f"fmcortex {' '.join(words)}" in out.stdout.split("Example:")[1]


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: {preset: tiny, retina_height: 12, retina_width: 18}\n"
        "data: {url: prepared, frames: 16, batch: 2}\n"
        "training: {epochs: 2, steps_per_epoch: 3, warmup_epochs: 1, burnin: 4}\n"
        "tracking: {uri: 'sqlite:///mlflow.db'}\n"
    )
    small = (
        "--mice 2 --neurons 6 --set trial_seconds=3 --set height=12 --set width=20 "
        "--set test_repeats=4 --set domains=[drifting_gabor]"
    )
    for line in (
        f"simulate recordings {small} --minutes 0.4",
        "prep recordings --to prepared",
        "data info prepared",
        "data verify prepared",
        "individual --config run.yaml --session mouse01-1-1 --output first",
        "transfer --config run.yaml --from first --session mouse02-1-1 --minutes 0.2 --output new",
        "evaluate first --data prepared --to evaluations/individual.json --burnin 4",
        "evaluate new --data prepared --to evaluations/transferred.json --burnin 4",
        "register first --name cortex --alias best",
        "report . --to report.html --checkpoint new --data prepared",
    ):
        out = fmcortex(*line.split(), cwd=tmp_path)
        assert out.returncode == 0, f"{line}\n{out.stdout}\n{out.stderr}"
    scores = json.loads((tmp_path / "evaluations" / "transferred.json").read_text())
    assert [score["session"] for score in scores] == ["mouse02-1-1"]
    assert {d["domain"] for d in scores[0]["domains"]} == {"natural_movie", "drifting_gabor"}
    assert "mouse02-1-1" in (tmp_path / "report.html").read_text()

    # The shared part came from the first mouse and was left as it is.
    from fmcortex.training.checkpoint import SHARED, open_checkpoint

    first, new = (open_checkpoint(str(tmp_path / name)) for name in ("first", "new"))
    for name, weights in first.tensors(SHARED).items():
        assert (weights == new.tensors(SHARED)[name]).all(), name

    # A registered model is as good a start as a folder.
    line = "transfer --config run.yaml --from models:/cortex@best --session mouse02-1-1 --output x"
    assert fmcortex(*line.split(), cwd=tmp_path).returncode == 0
    # Run again, it finds that it is done; an output that holds a run takes no other.
    assert fmcortex(*line.split(), cwd=tmp_path).returncode == 0
    out = fmcortex(*line.replace("mouse02", "mouse01").split(), cwd=tmp_path)
    assert out.returncode == 1
    assert out.stderr.splitlines()[-1].startswith("error: output: "), out.stderr


@pytest.fixture
def broken(recordings: Path, tmp_path: Path) -> Path:
    """A copy of one recording, to be broken."""
    copy = tmp_path / "recordings" / "mouse01-1-1"
    shutil.copytree(recordings / "mouse01-1-1", copy)
    return copy


def one_line(out: subprocess.CompletedProcess[str], *culprits: str) -> None:
    assert out.returncode == 1
    # A training says what it is doing, and under its command's name.
    doing = f"{out.args[1]}: "
    errors = [line for line in out.stderr.splitlines() if line and not line.startswith(doing)]
    assert len(errors) == 1, out.stderr
    assert errors[0].startswith("error: ")
    for culprit in culprits:
        assert culprit in errors[0]


def test_bad_recordings(broken: Path, tmp_path: Path) -> None:
    to = tmp_path / "prepared"

    def prep() -> subprocess.CompletedProcess[str]:
        return fmcortex("prep", str(broken.parent), "--to", str(to))

    units = broken / "units" / "0.npy"
    whole = units.read_bytes()
    units.write_bytes(whole[:-100])
    one_line(prep(), "units/0.npy", "truncated")

    values = np.load(broken / "units" / "1.npy")
    values[5, 2] = np.nan
    np.save(units, np.load(broken / "units" / "1.npy"))
    units.write_bytes(whole)
    np.save(broken / "units" / "1.npy", values)
    one_line(prep(), "units/1.npy")

    np.save(broken / "units" / "1.npy", np.nan_to_num(values)[:-3])
    one_line(prep(), "/1.npy")

    shutil.rmtree(broken / "perspectives")
    one_line(prep(), "perspectives")
    assert not (to / "manifest.json").exists()
    assert not list(to.rglob("manifest.json"))


def test_bad_configurations(prepared: str, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("training: {learning_rate: 1}\n")
    one_line(
        fmcortex("pretrain", "--config", str(config)),
        "run.yaml",
        "unknown key training.learning_rate",
        "known: seed",
    )
    config.write_text("training: [\n")
    one_line(fmcortex("pretrain", "--config", str(config)), "run.yaml", "not valid YAML")
    one_line(fmcortex("pretrain", "--set", "training.lr=-1"), "training.lr")
    one_line(fmcortex("pretrain"), "data.url")
    one_line(fmcortex("pretrain", "--config", str(tmp_path / "no.yaml")), "no.yaml")
    target = ["--set", f"data.url={prepared}", "--set", "data.frames=16"]
    one_line(fmcortex("individual", *target, "--output", "/proc/x"), "/proc/x")
    one_line(fmcortex("prep", prepared, "--to", "s4://bucket"), "s4://bucket")
    one_line(fmcortex("evaluate", str(tmp_path), "--data", prepared), "no checkpoint here")
    one_line(fmcortex("sweep", str(tmp_path / "none.yaml")), "none.yaml")
    assert fmcortex("pretrain", "--no-such-flag").returncode == 2


def test_names_on_the_command_line_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """What --output, --session and the like say reaches the configuration to the last character."""
    from fmcortex.commands import training

    seen: list[RunConfig] = []
    monkeypatch.setattr(training, "_train_single", lambda kind, config, *_: seen.append(config))
    monkeypatch.setattr(training, "open_source", lambda *_: None)
    for name in ("runs/first #2", "2026-11-28", "20240115", "no", "null", "[x", " a", "a: b"):
        words = ["--output", name, "--session", name, "--minutes", "1e-1"]
        for line in (["individual"], ["transfer", "--from", "x"]):
            out = CliRunner().invoke(cli, [*line, *words])
            assert out.exit_code == 0, out.exception
            config = seen.pop()
            assert (config.output, config.data.sessions) == (name, [name])
            assert config.data.minutes == 0.1


def test_too_little_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(**_: bool) -> None:
        raise MemoryError("Unable to allocate 43.6 GiB")

    monkeypatch.setattr("fmcortex.cli.cli", full)
    monkeypatch.delenv("FMCORTEX_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said == "error: not enough memory on this machine: Unable to allocate 43.6 GiB\n"
