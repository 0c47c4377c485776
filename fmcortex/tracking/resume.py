"""The MLflow run of a run that goes on, which may have been deleted, moved or lost meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fmcortex.config import RunConfig
from fmcortex.errors import ConfigError
from fmcortex.tracking.run import METRICS_KEPT, RunLog, start_run, tracking_uri
from fmcortex.tracking.store import sqlite_file, why

#: Tag of a run that goes on for another one: the id of that.
CONTINUES = "continues"


def open_run(
    config: RunConfig,
    kind: str,
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> RunLog:
    """The MLflow run of `config`: the one it had, marked as going on, or a new one.

    Training does not depend on what was tidied up in MLflow: where the run is gone, it is said, and
    a new one takes over what the old one still has of metrics.

    Args:
        config: of the run.
        kind: pretrain, transfer, ...
        tags: of a new run.
        run_id: of the run that it had; None for none.

    Raises:
        ConfigError: the store cannot be reached.
    """
    uri = tracking_uri(config.tracking, config.output)
    if run_id is None:
        return start_run(config, kind, tags)
    found, deleted = continued(uri, run_id), None
    if isinstance(found, RunLog):
        return found
    if found is not None:
        deleted = RunLog(uri, run_id)
    run = start_run(config, kind, {**(tags or {}), CONTINUES: run_id})
    if deleted is not None:
        _take_over(run, deleted)
    return run


def continued(
    uri: str, run_id: str, say: Callable[[str], None] | None = None
) -> RunLog | str | None:
    """The run that goes on, marked so.

    Returns:
        With a word to the user, None if the store has no such run, and "deleted" if it was
        deleted there.

    Raises:
        ConfigError: the store cannot be reached.
    """
    log = RunLog(uri, run_id, say)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        log.say(f"MLflow: there is no store {uri} any more; recording in a new one")
        return None
    from mlflow.exceptions import MlflowException

    try:
        stage = log.client.get_run(run_id).info.lifecycle_stage
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise ConfigError(f"MLflow at {uri}: run {run_id}: {why(error)}") from error
        log.say(f"MLflow: {uri} has no run {run_id}; recording in a new one")
        return None
    if stage != "active":
        log.say(f"MLflow: run {run_id} was deleted there; recording in a new one")
        return "deleted"
    log.reopen()
    return log


def _take_over(run: RunLog, old: RunLog) -> None:
    """Copy the metrics of a deleted run; of very many, every so many of each."""
    from mlflow.entities import Metric

    with run.told("the metrics of the deleted run"):
        names = [n for n in old.client.get_run(old.run_id).data.metrics if "system/" not in n]
        histories: list[list[Any]] = [
            old.client.get_metric_history(old.run_id, name) for name in names
        ]
        every = -(-sum(map(len, histories)) // METRICS_KEPT)
        for history in histories:
            kept = history[::-1][:: max(every, 1)]  # the last one always
            run.put([Metric(m.key, m.value, m.timestamp, m.step) for m in reversed(kept)])
        run.flush()
