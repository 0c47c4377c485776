"""MLflow's store: opening it, and what to make of one that is away, gone, copied or moved.

MLflow's client waits for minutes and prints stacks by default. Here it is asked for a sign of life
first, its requests are bounded, and its errors are said in one line that names MLflow.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fmcortex.errors import ConfigError, without_secrets

SQLITE = "sqlite:///"
#: Seconds for which a server may be silent: when it is first asked, and later.
FIRST_TIMEOUT, TIMEOUT = 4, 20
#: Tries more of a request that failed.
FIRST_RETRIES, RETRIES = 1, 2
#: Seconds for which a server may be silent while a file is stored.
UPLOAD_TIMEOUT = 600
#: Packages whose errors are those of a store.
_THEIRS = ("mlflow", "sqlalchemy", "requests", "urllib3", "sqlite3")


def to_stderr(line: str) -> None:
    """Say a line to the user."""
    print(without_secrets(line), file=sys.stderr, flush=True)


def quiet_mlflow() -> None:
    """Keep MLflow's banners, logs and stacks out of the user's way, and bound its requests."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(TIMEOUT))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(RETRIES))
    os.environ.setdefault("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", str(UPLOAD_TIMEOUT))
    for name in ("mlflow", "alembic"):
        # It logs the stacks of errors that it raises; those are handled here.
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def impatient() -> Iterator[None]:
    """Give a server that is silent few seconds, unless the user has set how many."""
    ours = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": (TIMEOUT, FIRST_TIMEOUT),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": (RETRIES, FIRST_RETRIES),
    }
    changed = {name: some for name, some in ours.items() if os.environ.get(name) == str(some[0])}
    os.environ.update({name: str(short) for name, (_, short) in changed.items()})
    try:
        yield
    finally:
        os.environ.update({name: str(usual) for name, (usual, _) in changed.items()})


def is_of_store(error: BaseException) -> bool:
    """Whether an error is one of MLflow, its database, its server or its artifact store."""
    package = type(error).__module__.partition(".")[0]
    return package in _THEIRS or isinstance(error, OSError)


def why(error: BaseException) -> str:
    """What is wrong with a store, in one line without SQL."""
    line = " ".join(str(error).split()).partition(" [SQL: ")[0]
    if "Max retries exceeded" in line or "ConnectionPool" in line:
        for mark, said in (
            ("timed out", "it does not answer"),
            ("refused", "nothing listens there (connection refused)"),
            ("resolve", "there is no such host"),
            ("too many", "it answers with errors only"),
        ):
            if mark in line.lower():
                return said
    return without_secrets(line)[:300] or type(error).__name__


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store; None of another store."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def client(uri: str, make: bool = True) -> Any:
    """An `MlflowClient` of the store at `uri`.

    A fresh SQLite store must be made by one process before others open it.

    Args:
        uri: of the store.
        make: whether an SQLite store that is not there is made.

    Raises:
        ConfigError: the store cannot be reached, within some fifteen seconds, or is not there.
    """
    file = sqlite_file(uri)
    if not make and file is not None and not file.exists():
        raise ConfigError(f"MLflow store {uri}: there is no such file")
    quiet_mlflow()
    from mlflow import MlflowClient

    try:
        with _first(file), impatient():
            made = MlflowClient(tracking_uri=uri, registry_uri=uri)
            made.search_experiments(max_results=1)
    except Exception as error:
        if not is_of_store(error):
            raise
        raise ConfigError(f"tracking.uri: cannot use MLflow at {uri}: {why(error)}") from error
    return made


@contextmanager
def _first(file: Path | None) -> Iterator[None]:
    """Keep other processes from opening an SQLite store until its tables are made."""
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{file}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def local_path(uri: str) -> Path | None:
    """The path of a `file:` URI, or of a plain path; None of another URI."""
    parts = urlsplit(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(unquote(parts.path) if parts.scheme else uri)


def artifacts_of(uri: str, experiment: str) -> Path | None:
    """Where an SQLite store keeps the artifacts of an experiment: beside it. None of others."""
    file = sqlite_file(uri)
    return None if file is None else file.absolute().parent / "artifacts" / experiment


def moved_artifacts(uri: str, recorded: str) -> Path | None:
    """Where artifacts belong that a store which was copied or moved records at another place.

    MLflow records absolute paths. Followed, a copy would write into the original.

    Args:
        uri: of the store.
        recorded: URI of the artifacts of an experiment, `.../artifacts/<name>`, or of one of its
            runs, `.../artifacts/<name>/<run>/artifacts`.

    Returns:
        The folder beside the store; None if nothing was moved, or the place was chosen by a user.
    """
    file, path = sqlite_file(uri), local_path(recorded)
    if file is None or path is None:
        return None
    for depth, place in enumerate(path.parents):
        if place.name == "artifacts" and depth in (0, 2):
            here = file.absolute().parent / "artifacts"
            same = place == here or (place.exists() and here.exists() and place.samefile(here))
            return None if same else here / path.relative_to(place)
    return None


def experiment(mlflow_client: Any, name: str, uri: str) -> str:
    """The id of the experiment called `name`, made if there is none.

    With an SQLite store its artifacts lie in a folder beside the file. Where the store was copied
    or moved, another experiment is made, since one's artifacts cannot be told to be elsewhere.

    Raises:
        ConfigError: the experiment was deleted.
    """
    found = mlflow_client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "active":
        here = moved_artifacts(uri, found.artifact_location or "")
        if here is not None:
            tag = hashlib.sha256(str(here).encode()).hexdigest()[:8]
            to_stderr(
                f"MLflow: {uri} was copied or moved: its experiment {name} keeps artifacts in "
                f"{found.artifact_location}; new runs are in experiment {name}-{tag}"
            )
            name = f"{name}-{tag}"
            found = mlflow_client.get_experiment_by_name(name)
    if found is None:
        from mlflow.exceptions import MlflowException

        location = artifacts_of(uri, name)
        try:
            return str(
                mlflow_client.create_experiment(
                    name, artifact_location=location.as_uri() if location else None
                )
            )
        except MlflowException:  # another process was faster
            found = mlflow_client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise ConfigError(
            f"tracking.experiment: {name!r} is deleted in MLflow at {uri}; use another name"
        )
    return str(found.experiment_id)


def finite_or_infinite(value: float) -> float:
    """A metric's value as it was logged: SQL stores keep infinities as the largest number."""
    if abs(value) == sys.float_info.max:
        return math.copysign(math.inf, value)
    return value
