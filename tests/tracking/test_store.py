"""MLflow stores that are away, silent, or not there: one line, in bounded time."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmcortex.errors import ConfigError
from fmcortex.tracking import store
from fmcortex.tracking.run import RunLog
from fmcortex.tracking.store import (
    client,
    finite_or_infinite,
    impatient,
    moved_artifacts,
    quiet_mlflow,
    why,
)


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(20)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


@pytest.fixture(autouse=True)
def usual_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_TIMEOUT", raising=False)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)


def test_a_server_that_does_not_answer(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = (1 + store.FIRST_RETRIES) * store.FIRST_TIMEOUT + 4 * store.FIRST_RETRIES  # back-off
    assert waits <= 15
    monkeypatch.setattr(store, "FIRST_TIMEOUT", 1)
    monkeypatch.setattr(store, "FIRST_RETRIES", 0)
    began = time.monotonic()
    with pytest.raises(ConfigError, match=f"cannot use MLflow at {silent}: it does not answer"):
        client(silent)
    with pytest.raises(ConfigError, match="it does not answer"):
        RunLog.start(silent, "e", "r")
    assert time.monotonic() - began < 60


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"cannot use MLflow at .*: nothing listens there"):
        client("http://127.0.0.1:1")


def test_training_is_not_held_up_by_a_silent_server(
    silent: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fmcortex.tracking.run.PATIENCE", 0.0)
    monkeypatch.setattr("fmcortex.tracking.run.SEND_EVERY", 0.0)
    monkeypatch.setattr(store, "FIRST_TIMEOUT", 1)
    monkeypatch.setattr(store, "FIRST_RETRIES", 0)
    run = RunLog(silent, "0" * 32)
    with run.sending():
        for step in range(5):
            run.collect({"train/loss": 1.0}, step)
    run.tags({"checkpoint": "x"})
    run.end()
    said = capsys.readouterr().err
    assert "MLflow: tags of run 0000" in said
    assert "MLflow: 5 metrics and the end of run 0000" in said
    assert said.count("\n") <= 3


def test_users_own_patience_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    quiet_mlflow()
    with impatient():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == str(store.FIRST_RETRIES)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == str(store.RETRIES)


def test_a_store_is_made_only_where_something_is_to_be_written(
    tmp_path: Path, store_in: Callable[[Path], str]
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(ConfigError, match=f"MLflow store {uri}: there is no such file"):
        client(uri, make=False)
    assert not list(tmp_path.iterdir())
    store_in(tmp_path)
    client(uri, make=False)


def test_no_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"this is no database, and longer than a header " * 9)
    with pytest.raises(ConfigError, match=r"cannot use MLflow at sqlite:.*: ") as caught:
        client(f"sqlite:///{tmp_path}/mlflow.db")
    assert "SQL:" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_in_words() -> None:
    assert why(ValueError("(x) database is locked\n[SQL: SELECT * FROM runs]")) == (
        "(x) database is locked"
    )
    assert why(ValueError("")) == "ValueError"


def test_where_artifacts_of_a_copied_store_belong(tmp_path: Path) -> None:
    uri, here = f"sqlite:///{tmp_path}/new/mlflow.db", tmp_path / "new" / "artifacts"
    assert moved_artifacts(uri, f"file://{here}/e") is None
    assert moved_artifacts(uri, f"file://{here}/e/r/artifacts") is None
    assert moved_artifacts(uri, "file:///old%20place/artifacts/e") == here / "e"
    assert moved_artifacts(uri, "/old/artifacts/e/r/artifacts") == here / "e/r/artifacts"
    for chosen in (
        "file:///big/disk",
        "s3://bucket/artifacts/e",
        "mlflow-artifacts:/1/r/artifacts",
    ):
        assert moved_artifacts(uri, chosen) is None
    assert moved_artifacts("http://host", "file:///old/artifacts/e") is None
    here.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "new")
    assert moved_artifacts(uri, f"file://{tmp_path}/link/artifacts/e") is None


def test_infinities_of_sql_stores() -> None:
    inf = float("inf")
    assert finite_or_infinite(1.7976931348623157e308) == inf
    assert finite_or_infinite(-1.7976931348623157e308) == -inf
    assert finite_or_infinite(2.5) == 2.5
    assert finite_or_infinite(inf) == inf
    assert str(finite_or_infinite(float("nan"))) == "nan"
