"""Training of single mice in this process, recorded in MLflow: transfer, and individual models."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fmcortex import storage
from fmcortex.config import RunConfig
from fmcortex.errors import ConfigError
from fmcortex.lock import Lock
from fmcortex.tracking.curves import curves_figure
from fmcortex.tracking.run import start_run
from fmcortex.tracking.run_file import RunFile, write_run_file
from fmcortex.training.checkpoint import Checkpoint, list_checkpoints
from fmcortex.training.fit import FitResult, fit
from fmcortex.training.step import StepReport


@dataclass(frozen=True)
class SingleResult:
    """What `train_single` left.

    Attributes:
        fit: the parts and the reports of the steps.
        checkpoint: folder of the checkpoint.
        run_id: of the MLflow run.
        seconds: of the training.
    """

    fit: FitResult
    checkpoint: str
    run_id: str
    seconds: float


def train_single(
    config: RunConfig,
    kind: Literal["transfer", "individual"],
    start: Checkpoint | None = None,
    tags: dict[str, str] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> SingleResult:
    """Train the sessions of `config` in this process and save a checkpoint.

    Args:
        config: of the run; with `start` its model is that of the checkpoint.
        kind: `transfer` freezes the shared part of `start`; `individual` trains everything anew.
        start: a checkpoint with the shared part.
        tags: more tags of the MLflow run.
        on_step: hears of every step.

    Raises:
        ConfigError: `output` holds a run already, or a transfer has nothing to start from.
        Locked: another process writes to `output`.
        FmcortexError: as `fit` does.
    """
    if (kind == "transfer") != (start is not None):
        raise ConfigError(f"{kind}: a transfer, and only a transfer, starts from a checkpoint")
    with Lock(config.output, kind):
        return _train_single(config, kind, start, tags, on_step)


def _train_single(
    config: RunConfig,
    kind: Literal["transfer", "individual"],
    start: Checkpoint | None,
    tags: dict[str, str] | None,
    on_step: Callable[[StepReport], None] | None,
) -> SingleResult:
    if list_checkpoints(config.output):
        raise ConfigError(
            f"output: {config.output} holds a run already; choose another, or remove that folder"
        )
    if start is not None:
        config = config.model_copy(update={"model": start.model})
    storage.write_json(storage.join(config.output, "config.json"), config.model_dump(mode="json"))
    source = {"start": start.folder} if start else {}
    run = start_run(config, kind, {**source, **(tags or {})})
    began = time.monotonic()
    points: list[tuple[int, float]] = []

    def log(report: StepReport) -> None:
        losses = list(report.losses.values())
        mean = sum(losses) / len(losses)
        points.append((report.step + 1, mean))
        run.collect({"train/loss": mean, "train/lr": report.lr}, report.step + 1)
        if on_step:
            on_step(report)

    try:
        with run.sending():
            result = fit(
                config,
                shared=start.shared() if start else None,
                freeze_shared=start is not None,
                on_step=log,
                save=True,
            )
    except BaseException:
        run.end(failed=True)
        raise
    seconds = time.monotonic() - began
    assert result.checkpoint is not None
    run.tags({"checkpoint": result.checkpoint})
    dumped = config.model_dump(mode="json")
    write_run_file(config.output, RunFile(config=dumped, uri=run.uri, run_id=run.run_id))
    run.figure(curves_figure({"train/loss": points}), "figures/curves.png")
    run.end()
    return SingleResult(result, result.checkpoint, run.run_id, seconds)
