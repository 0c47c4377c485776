"""An MLflow run: what was asked for and what came of it. The driver makes runs, ranks do not."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from fmcortex import storage
from fmcortex.config import RunConfig, TrackingConfig
from fmcortex.errors import ConfigError, without_secrets

#: MLflow refuses larger batches.
METRICS_A_BATCH, PARAMS_A_BATCH = 1000, 100
#: The most that wait for a store that cannot be reached.
METRICS_KEPT = 200_000

PACKAGES = ("torch", "deepspeed", "ray", "mlflow", "webdataset", "zarr", "numpy", "fmcortex")


def tracking_uri(config: TrackingConfig, output: str) -> str:
    """The tracking URI of a run: the configured one, or an SQLite file in its output folder.

    Raises:
        ConfigError: the output folder is remote, where an SQLite file cannot be.
    """
    if config.uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(config.uri.removeprefix('sqlite:///')).absolute()}"
    if config.uri:
        return config.uri
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return os.environ["MLFLOW_TRACKING_URI"]
    if not storage.is_local(output):
        raise ConfigError(
            f"tracking.uri: the output {output} is remote; name an MLflow server, "
            "such as --set tracking.uri=http://host:5000"
        )
    return f"sqlite:///{storage.absolute(output)}/mlflow.db"


def quiet_mlflow() -> None:
    """Keep MLflow's banners and migration logs out of the user's way."""
    import logging

    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def client(uri: str) -> Any:
    """An `MlflowClient` of the store at `uri`; makes a new SQLite store if there is none.

    A fresh SQLite store must be made by one process before others open it.

    Raises:
        ConfigError: the store cannot be reached.
    """
    quiet_mlflow()
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with _first(uri):
            made = MlflowClient(tracking_uri=uri, registry_uri=uri)
            made.search_experiments(max_results=1)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise ConfigError(f"tracking.uri: cannot use {uri}: {_line(error)}") from error
    return made


@contextmanager
def _first(uri: str) -> Iterator[None]:
    """Keep other processes from opening an SQLite store until its tables are made."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    path = Path(uri.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def experiment(mlflow_client: Any, name: str, uri: str) -> str:
    """The id of the experiment called `name`, made if there is none.

    With an SQLite store its artifacts lie in a folder beside the file.
    """
    from mlflow.exceptions import MlflowException

    found = mlflow_client.get_experiment_by_name(name)
    if found is None:
        location = None
        if uri.startswith("sqlite:///"):
            location = (Path(uri.removeprefix("sqlite:///")).parent / "artifacts" / name).as_uri()
        try:
            return str(mlflow_client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another process was faster
            found = mlflow_client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        raise ConfigError(f"tracking.experiment: {name!r} is deleted in {uri}; use another name")
    return str(found.experiment_id)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `section.key` with values as text, as MLflow wants parameters.

    Secrets of the URLs in them are left out.
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = without_secrets(str(value))[:500]
    return found


def to_share(document: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON document without the secrets of the URLs in it."""
    shared: dict[str, Any] = json.loads(without_secrets(json.dumps(dict(document))))
    return shared


def environment() -> dict[str, str]:
    """Versions, machine and code that a run used."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found["cpus"] = str(os.cpu_count())
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name(0)
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
        )
        if commit.returncode == 0:
            found["git_commit"] = commit.stdout.strip()
    except (OSError, subprocess.SubprocessError):  # the latter where it took too long
        pass
    return found


class RunLog:
    """Writes to one MLflow run; metrics are collected and sent in batches.

    Args:
        uri: of the tracking store.
        run_id: of a run that exists.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self.client = client(uri)
        self._waiting: list[Any] = []

    @classmethod
    def start(
        cls,
        uri: str,
        experiment_name: str,
        run_name: str | None,
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
    ) -> RunLog:
        """Make a run; with `parent` a child of that run."""
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        made = client(uri)
        labels = {key: without_secrets(value) for key, value in (tags or {}).items()}
        if parent:
            labels[MLFLOW_PARENT_RUN_ID] = parent
        run = made.create_run(
            experiment(made, experiment_name, uri), run_name=run_name, tags=labels
        )
        return cls(uri, run.info.run_id)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings, flattened."""
        from mlflow.entities import Param

        entries = [Param(key, value) for key, value in flat(values).items()]
        for i in range(0, len(entries), PARAMS_A_BATCH):
            self.client.log_batch(self.run_id, params=entries[i : i + PARAMS_A_BATCH])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        for key, value in values.items():
            self.client.set_tag(self.run_id, key, without_secrets(value))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of a step; they are sent when there are many, or by `flush`."""
        self.collect(values, step)
        if len(self._waiting) >= METRICS_A_BATCH // 2:
            self.flush()

    def collect(self, values: Mapping[str, float], step: int) -> None:
        """Keep metrics of a step for the next `flush`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [Metric(key, float(value), now, step) for key, value in values.items()]
        del self._waiting[:-METRICS_KEPT]

    def flush(self) -> None:
        """Send the metrics that wait."""
        while self._waiting:
            self.client.log_batch(self.run_id, metrics=self._waiting[:METRICS_A_BATCH])
            self._waiting = self._waiting[METRICS_A_BATCH:]

    def dictionary(self, values: Mapping[str, Any], name: str) -> None:
        """Log a dictionary as a .json or .yaml file, without secrets of the URLs in it."""
        self.client.log_dict(self.run_id, to_share(values), name)

    def file(self, path: str | Path, folder: str | None = None) -> None:
        """Log a local file."""
        self.client.log_artifact(self.run_id, str(path), folder)

    def figure(self, figure: Any, name: str) -> None:
        """Log a matplotlib figure."""
        self.client.log_figure(self.run_id, figure, name)

    def history(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, by step."""
        found = self.client.get_metric_history(self.run_id, key)
        return sorted((metric.step, metric.value) for metric in found)

    def reopen(self) -> None:
        """Mark a run that had ended as going on."""
        self.client.update_run(self.run_id, status="RUNNING")

    def end(self, failed: bool = False, stopped: bool = False) -> None:
        """Send what waits and close the run, as finished, failed, or stopped from outside."""
        self.flush()
        status = "KILLED" if stopped else "FAILED" if failed else "FINISHED"
        self.client.set_terminated(self.run_id, status)


def start_run(config: RunConfig, kind: str, tags: Mapping[str, str] | None = None) -> RunLog:
    """The MLflow run of `config`, with its parameters, configuration and environment logged.

    Args:
        config: of the run.
        kind: pretrain, transfer, ...
        tags: more tags; `mlflow.parentRunId` makes it a child.
    """
    uri = tracking_uri(config.tracking, config.output)
    labels = {"kind": kind, "output": config.output, **environment(), **(tags or {})}
    run = RunLog.start(uri, config.tracking.experiment, config.tracking.run_name or kind, labels)
    run.params(config.model_dump(mode="json"))
    run.dictionary(config.model_dump(mode="json"), "config.yaml")
    run.dictionary(environment(), "environment.json")
    return run
