"""An MLflow run: what was asked for and what came of it. The driver makes runs, ranks do not."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from fmcortex import storage
from fmcortex.config import RunConfig, TrackingConfig
from fmcortex.errors import ConfigError, without_secrets
from fmcortex.tracking.store import (
    client,
    experiment,
    finite_or_infinite,
    impatient,
    is_of_store,
    moved_artifacts,
    sqlite_file,
    to_stderr,
    why,
)

#: MLflow refuses larger batches.
METRICS_A_BATCH, PARAMS_A_BATCH = 1000, 100
#: The most that wait for a store that cannot be reached.
METRICS_KEPT = 200_000
#: Seconds between sends of what waits, and between tries where a store does not take it.
SEND_EVERY, TRY_EVERY = 2.0, 30.0
#: Seconds for which the end of a run waits for a store that is away.
PATIENCE = 30.0

PACKAGES = ("torch", "deepspeed", "ray", "mlflow", "webdataset", "zarr", "numpy", "fmcortex")


def tracking_uri(config: TrackingConfig, output: str) -> str:
    """The tracking URI of a run: the configured one, or an SQLite file in its output folder.

    Raises:
        ConfigError: the output folder is remote, where an SQLite file cannot be.
    """
    if (file := sqlite_file(config.uri)) is not None:
        return f"sqlite:///{file.absolute()}"
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

    A store that is away does not stop what is recorded: tags, files and figures that it does not
    take are left out, with a word; metrics wait. What reads from the store raises.

    Args:
        uri: of the tracking store; it is opened when it is first needed.
        run_id: of a run that exists.
        say: hears what could not be recorded; None for the terminal.
    """

    def __init__(self, uri: str, run_id: str, say: Callable[[str], None] | None = None) -> None:
        self.uri, self.run_id = uri, run_id
        self.say = say or to_stderr
        self._waiting: list[Any] = []
        self._lock = threading.Lock()

    @cached_property
    def client(self) -> Any:
        """The client of the store.

        Raises:
            ConfigError: it cannot be reached.
        """
        return client(self.uri)

    @classmethod
    def start(
        cls,
        uri: str,
        experiment_name: str,
        run_name: str | None,
        tags: Mapping[str, str] | None = None,
        parent: str | None = None,
    ) -> RunLog:
        """Make a run; with `parent` a child of that run.

        Raises:
            ConfigError: the store cannot be reached, or does not take a run.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        made = client(uri)
        labels = {key: without_secrets(value) for key, value in (tags or {}).items()}
        if parent:
            labels[MLFLOW_PARENT_RUN_ID] = parent
        try:
            run = made.create_run(
                experiment(made, experiment_name, uri), run_name=run_name, tags=labels
            )
        except Exception as error:
            if not is_of_store(error):
                raise
            raise ConfigError(f"MLflow at {uri} does not take a run: {why(error)}") from error
        log = cls(uri, run.info.run_id)
        log.client = made
        return log

    def params(self, values: Mapping[str, Any]) -> None:
        """Log settings, flattened."""
        from mlflow.entities import Param

        entries = [Param(key, value) for key, value in flat(values).items()]
        with self.told("settings"):
            for i in range(0, len(entries), PARAMS_A_BATCH):
                self.client.log_batch(self.run_id, params=entries[i : i + PARAMS_A_BATCH])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        with self.told("tags"):
            for key, value in values.items():
                self.client.set_tag(self.run_id, key, without_secrets(value))

    @contextmanager
    def told(self, what: str) -> Iterator[None]:
        """Say what a store does not take, and go on."""
        try:
            yield
        except Exception as error:
            if not (is_of_store(error) or isinstance(error, ConfigError)):
                raise
            self.say(f"MLflow: {what} of run {self.run_id} not recorded: {why(error)}; going on")

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log metrics of a step; they are sent when there are many, or by `flush`."""
        self.collect(values, step)
        if len(self._waiting) >= METRICS_A_BATCH // 2:
            with self.told("metrics"):  # they go on waiting
                self.flush()

    def collect(self, values: Mapping[str, float], step: int) -> None:
        """Keep metrics of a step for the next `flush`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self.put([Metric(key, float(value), now, step) for key, value in values.items()])

    def put(self, metrics: list[Any]) -> None:
        """Keep metrics, as MLflow has them, for the next `flush`."""
        with self._lock:
            self._waiting += metrics
            del self._waiting[:-METRICS_KEPT]

    def flush(self) -> None:
        """Send the metrics that wait; those that the store does not take go on waiting."""
        while True:
            with self._lock:
                batch = self._waiting[:METRICS_A_BATCH]
            if not batch:
                return
            self.client.log_batch(self.run_id, metrics=batch)
            sent = set(map(id, batch))
            with self._lock:
                self._waiting = [one for one in self._waiting if id(one) not in sent]

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send what is collected from a thread while the block runs.

        So a store that is slow, locked or away holds nothing up.
        """
        stop = threading.Event()
        thread = threading.Thread(target=self._send, args=(stop,), name="tracking", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(PATIENCE)

    def _send(self, stop: threading.Event) -> None:
        complained, pause = False, SEND_EVERY
        while not stop.wait(pause):
            try:
                self.flush()
                complained, pause = False, SEND_EVERY
            except Exception as error:  # whatever it is, what is recorded goes on
                if not complained:
                    self.say(f"metrics cannot be sent, and are kept for later: {why(error)}")
                complained, pause = True, TRY_EVERY

    def dictionary(self, values: Mapping[str, Any], name: str) -> None:
        """Log a dictionary as a .json or .yaml file, without secrets of the URLs in it."""
        import yaml

        shared = to_share(values)
        text = json.dumps(shared, indent=2) if name.endswith(".json") else yaml.safe_dump(shared)
        self.artifact(name, text.encode())

    def text(self, content: str, name: str) -> None:
        """Log a text file."""
        self.artifact(name, content.encode())

    def figure(self, figure: Any, name: str) -> None:
        """Log a matplotlib figure."""
        picture = io.BytesIO()
        figure.savefig(picture, format=name.rpartition(".")[2])
        self.artifact(name, picture.getvalue())

    def artifact(self, name: str, content: bytes) -> None:
        """Log a file of the run.

        Args:
            name: its path among the run's artifacts.
            content: of the file.
        """
        folder, _, file = name.rpartition("/")
        with self.told(f"artifact {name}"):
            if self._moved is not None:
                storage.write_bytes(str(self._moved / name), content)
                return
            with tempfile.TemporaryDirectory(prefix="fmcortex-artifact-") as place:
                Path(place, file).write_bytes(content)
                self.client.log_artifact(self.run_id, str(Path(place, file)), folder or None)

    @cached_property
    def _moved(self) -> Path | None:
        """Where the run's artifacts belong, if its store was copied or moved since."""
        recorded = self.client.get_run(self.run_id).info.artifact_uri
        here = moved_artifacts(self.uri, recorded)
        if here is not None:
            self.say(
                f"MLflow: {self.uri} was copied or moved; what this run adds to its artifacts is "
                f"in {here}, while MLflow's page looks in {recorded}"
            )
        return here

    def history(self, key: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, by step."""
        found = self.client.get_metric_history(self.run_id, key)
        return sorted((metric.step, finite_or_infinite(metric.value)) for metric in found)

    @property
    def status(self) -> str:
        """RUNNING, FINISHED, FAILED or KILLED."""
        return str(self.client.get_run(self.run_id).info.status)

    def reopen(self) -> None:
        """Mark a run that had ended as going on."""
        with self.told("the state"):
            self.client.update_run(self.run_id, status="RUNNING")

    def end(self, failed: bool = False, stopped: bool = False) -> None:
        """Send what waits and close the run, as finished, failed, or stopped from outside.

        A store that is away is tried for some `PATIENCE` seconds.
        """
        status = "KILLED" if stopped else "FAILED" if failed else "FINISHED"
        until = time.monotonic() + PATIENCE
        with impatient():
            while True:
                try:
                    self.flush()
                    self.client.set_terminated(self.run_id, status)
                    return
                except Exception as error:
                    if not (is_of_store(error) or isinstance(error, ConfigError)):
                        raise
                    problem = why(error)
                if stopped or time.monotonic() > until:
                    break
                time.sleep(1.0)
        lost = f"{len(self._waiting)} metrics and " if self._waiting else ""
        self.say(
            f"MLflow: {lost}the end of run {self.run_id} ({status.lower()}) not recorded: {problem}"
        )


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
