"""MLflow runs that go on where the run, its store or its folder is not what it was."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.pretrain import _open_run
from fmcortex.config import RunConfig, load_config
from fmcortex.errors import ConfigError
from fmcortex.tracking.curves import curves_figure
from fmcortex.tracking.resume import CONTINUES, open_run
from fmcortex.tracking.run import RunLog, start_run
from fmcortex.tracking.run_file import read_run_file
from fmcortex.tracking.store import client
from fmcortex.training.single import train_single
from fmcortex.training.step import StepReport


def config_of(folder: Path) -> RunConfig:
    return load_config(None, [f"output={folder}", "data.url=/nowhere"])


@pytest.fixture
def folder(tmp_path: Path, store_in: Callable[[Path], str]) -> Path:
    """The folder of a run, with an empty store in it."""
    store_in(tmp_path / "run")
    return tmp_path / "run"


def recorded(folder: Path) -> RunLog:
    """A run with two steps of metrics."""
    run = start_run(config_of(folder), "pretrain")
    run.metrics({"train/loss": 2.0}, 1)
    run.metrics({"train/loss": 1.0, "grad/norm": float("inf")}, 2)
    run.end(failed=True)
    return run


def test_a_run_goes_on_in_its_own(folder: Path) -> None:
    old = recorded(folder)
    again = open_run(config_of(folder), "pretrain", run_id=old.run_id)
    assert again.run_id == old.run_id
    assert again.client.get_run(old.run_id).info.status == "RUNNING"


def test_a_run_deleted_in_mlflow_goes_on_in_a_new_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = recorded(folder)
    old.client.delete_run(old.run_id)
    run = open_run(config_of(folder), "pretrain", run_id=old.run_id)
    assert run.run_id != old.run_id
    said = capsys.readouterr().err
    assert f"MLflow: run {old.run_id} was deleted there; recording in a new one" in said
    assert run.history("train/loss") == [(1, 2.0), (2, 1.0)]
    assert run.history("grad/norm") == [(2, float("inf"))]
    told = run.client.get_run(run.run_id)
    assert told.data.tags[CONTINUES] == old.run_id
    assert told.data.params["output"] == str(folder)
    assert run.client.get_run(old.run_id).info.lifecycle_stage == "deleted"


def test_a_run_that_its_store_does_not_have(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    for place, why in ((folder, f"has no run {'0' * 32}"), (gone, "there is no store")):
        run = open_run(config_of(place), "pretrain", run_id="0" * 32)
        run.end()
        said = capsys.readouterr().err
        assert why in said
        assert "; recording in a new one" in said
        assert run.client.get_run(run.run_id).info.status == "FINISHED"


def test_pretraining_opens_its_run_again_whatever_became_of_it(folder: Path) -> None:
    config = config_of(folder)
    first = _open_run(config, None)
    assert _open_run(config, None).run_id == first.run_id
    first.client.delete_run(first.run_id)
    second = _open_run(config, None)
    known = read_run_file(config.output)
    assert known is not None
    assert known.run_id == second.run_id != first.run_id
    (folder / "run.json").write_text('{"config": 5}')
    with pytest.raises(ConfigError, match=r"run.json: not as fmcortex writes it: config: "):
        _open_run(config, None)


@pytest.mark.parametrize("how", ["copied", "moved"])
def test_a_folder_elsewhere_leaves_the_old_place_alone(
    folder: Path, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = folder
    first = _open_run(config_of(old), None)
    first.metrics({"train/loss": 2.0}, 1)
    first.end()
    (shutil.copytree if how == "copied" else shutil.move)(old, tmp_path / "new")
    before = {p: p.read_bytes() for p in old.rglob("*") if p.is_file()}
    new = tmp_path / "new"
    run = _open_run(config_of(new), None)
    assert (run.run_id, run.uri) == (first.run_id, f"sqlite:///{new}/mlflow.db")
    run.metrics({"train/loss": 1.0}, 2)
    run.figure(curves_figure({"train/loss": [(1, 2.0)]}), "figures/curves.png")
    run.end()
    assert run.history("train/loss") == [(1, 2.0), (2, 1.0)]
    assert (new / f"artifacts/fmcortex/{run.run_id}/artifacts/figures/curves.png").exists()
    other = start_run(config_of(new), "transfer")
    other.end()
    (place,) = new.glob(f"artifacts/fmcortex-*/{other.run_id}/artifacts")
    assert {path.name for path in place.iterdir()} == {"config.yaml", "environment.json"}
    said = capsys.readouterr().err
    assert "what this run adds to its artifacts is in" in said
    assert "new runs are in experiment fmcortex-" in said
    assert {p: p.read_bytes() for p in old.rglob("*") if p.is_file()} == before
    assert old.exists() == (how == "copied")


def test_artifact_store_that_cannot_be_reached(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(folder)
    uri = f"sqlite:///{folder}/mlflow.db"
    client(uri).create_experiment("fmcortex", artifact_location="file:///dev/null/store")
    run = start_run(config, "pretrain")
    run.end()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    for line, name in zip(said, ("config.yaml", "environment.json"), strict=True):
        assert line.startswith(f"MLflow: artifact {name} of run {run.run_id} not recorded: ")
        assert "Not a directory" in line
    assert run.client.get_run(run.run_id).info.status == "FINISHED"


def test_locked_sqlite_costs_no_training(
    tiny_run: RunConfig,
    store_in: Callable[[Path], str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Another program holds the store from the first step to the last."""
    store_in(Path(tiny_run.output))
    file = Path(tiny_run.output, "mlflow.db")
    holder: sqlite3.Connection | None = None
    steps = tiny_run.training.steps

    def on_step(report: StepReport) -> None:
        nonlocal holder
        if report.step == 0:
            holder = sqlite3.connect(file, isolation_level=None)
            holder.execute("BEGIN EXCLUSIVE")
        if report.step == steps - 1 and holder is not None:
            holder.execute("ROLLBACK")

    result = train_single(tiny_run, "individual", on_step=on_step)
    run = RunLog(f"sqlite:///{file}", result.run_id)
    assert [step for step, _ in run.history("train/loss")] == list(range(1, steps + 1))
    assert run.client.get_run(run.run_id).info.status == "FINISHED"
    assert "Traceback" not in capfd.readouterr().err
