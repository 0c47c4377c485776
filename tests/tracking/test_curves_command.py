"""The command that draws curves: one run, several, and folders that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from fmcortex.cli import cli
from fmcortex.commands.curves import names, run_of
from fmcortex.errors import ConfigError
from fmcortex.tracking.run import RunLog


def made(folder: Path, store: Path, loss: float) -> str:
    """A run's folder with two steps in MLflow."""
    uri = f"sqlite:///{store}/mlflow.db"
    run = RunLog.start(uri, "e", folder.name)
    run.metrics({"train/loss": loss}, 1)
    run.metrics({"train/loss": loss / 2}, 2)
    run.end()
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"uri": uri, "run_id": run.run_id}))
    return str(folder)


def run(*words: str) -> str:
    return str(CliRunner().invoke(cli, ["curves", *words], catch_exceptions=False).output)


@pytest.fixture
def first(tmp_path: Path) -> str:
    return made(tmp_path / "runs" / "first", tmp_path, 2.0)


def test_one_run_has_its_page_in_its_folder(first: str) -> None:
    assert run(first + "/") == f"wrote {first}/curves.html\n"
    page = Path(first, "curves.html").read_text()
    assert "Curves of first" in page
    assert 'data-name="each step"' in page


def test_one_run_into_a_file(first: str, tmp_path: Path) -> None:
    to = str(tmp_path / "new" / "page.html")
    assert run(first, "--to", to) == f"wrote {to}\n"
    assert "Curves of first" in Path(to).read_text()
    assert not Path(first, "curves.html").exists()


def test_several_runs_are_drawn_over_each_other(
    first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = made(tmp_path / "runs" / "second", tmp_path, 4.0)
    monkeypatch.chdir(tmp_path)
    assert run(first, second, first) == "wrote curves.html\n"
    page = (tmp_path / "curves.html").read_text()
    assert page.count("<figure>") == 1
    assert page.count("<polyline") == 2
    assert 'data-name="first"' in page
    assert 'data-name="second"' in page


def test_names_of_folders() -> None:
    assert names(["a/x", "b/x", "s3://c/y"]) == {"a/x": "a/x", "b/x": "b/x", "s3://c/y": "y"}


def test_folders_that_are_no_runs(first: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere/run.json: no such file"):
        run_of(str(tmp_path / "nowhere"))
    path = Path(first, "run.json")
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({"uri": whole["uri"]}))
    with pytest.raises(ConfigError, match=r"first/run.json: names no MLflow run"):
        run_of(first)
    path.write_text(json.dumps({**whole, "run_id": "0" * 32}))
    with pytest.raises(ConfigError, match=r"first/run.json: cannot read run 0{32}"):
        run_of(first)
    path.write_text(json.dumps({**whole, "uri": f"sqlite:///{tmp_path}/gone.db"}))
    with pytest.raises(ConfigError, match=r"gone.db does not exist"):
        run_of(first)
    assert not (tmp_path / "gone.db").exists()
