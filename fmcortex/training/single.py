"""Training of single mice in this process, recorded in MLflow: transfer, and individual models.

As a pretraining, such a run saves while it goes on and when it is told to stop, and goes on from
there; interrupted and continued it has the same bits as one that was left alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import torch

from fmcortex import storage
from fmcortex.config import RunConfig
from fmcortex.errors import ConfigError, Preempted, StorageError
from fmcortex.lock import Lock
from fmcortex.signals import StopSignals
from fmcortex.tracking.curves import curves_figure
from fmcortex.tracking.run import RunLog
from fmcortex.training.checkpoint import Checkpoint, prune
from fmcortex.training.fit import FitResult, dataset_of, fit, save_checkpoint, sessions_of
from fmcortex.training.going_on import (
    absolute,
    finished_run,
    known_run,
    load_newest,
    open_run,
    remove_unfinished,
)
from fmcortex.training.peers import Alone
from fmcortex.training.same_run import (
    accepted_changes,
    check_reached,
    different_settings,
    refuse_other_settings,
)
from fmcortex.training.step import StepReport, Trainer

Kind = Literal["transfer", "individual"]


@dataclass(frozen=True)
class SingleResult:
    """What `train_single` left.

    Attributes:
        fit: the parts, and the reports of the steps of this call.
        checkpoint: folder of the checkpoint.
        run_id: of the MLflow run.
        seconds: of the training, in this call.
    """

    fit: FitResult
    checkpoint: str
    run_id: str
    seconds: float


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def train_single(
    config: RunConfig,
    kind: Kind,
    start: Checkpoint | None = None,
    tags: dict[str, str] | None = None,
    on_step: Callable[[StepReport], None] | None = None,
    say: Callable[[str], None] = _to_stderr,
) -> SingleResult:
    """Train the sessions of `config` in this process, or go on with such a run.

    Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 make it save after the step it is in, and stop; a second
    one ends it at once. A run that is finished is left as it is; with more `training.cycles` it
    goes on.

    Args:
        config: of the run; with `start` its model is that of the checkpoint.
        kind: `transfer` freezes the shared part of `start`; `individual` trains everything anew.
        start: a checkpoint with the shared part.
        tags: more tags of the MLflow run.
        on_step: hears of every step.
        say: hears what a user should know.

    Raises:
        ConfigError: `output` holds another run, or a transfer has nothing to start from.
        Locked: another process writes to `output`.
        Preempted: it was told to stop before it was done; called again, it goes on.
        FmcortexError: as `fit` does.
    """
    if (kind == "transfer") != (start is not None):
        raise ConfigError(f"{kind}: a transfer, and only a transfer, starts from a checkpoint")
    if start is not None:
        config = config.model_copy(update={"model": start.model})
    config = absolute(config)
    with Lock(config.output, kind, say) as lock, StopSignals() as stop:
        known = known_run(config, kind)
        found = load_newest(config.output, _whole, Alone(), 0, say)
        kept: list[int] = []
        if found is not None:
            kept = _check_going_on(config, kind, start, found, say)
            run = finished_run(config, known)
            if found.step == config.training.steps and run is not None:
                return SingleResult(_fitted(found), found.folder, run.run_id, 0.0)
        url = storage.join(config.output, "config.json")
        storage.write_json(url, config.model_dump(mode="json"))
        source = {"start": start.folder} if start else {}
        run = open_run(config, kind, {**source, **(tags or {})}, known)
        try:
            saving = _Saving(config, lock, stop, kept, say)
            return _train(config, run, start, found, saving, on_step)
        except BaseException as error:
            run.end(failed=True, stopped=isinstance(error, Preempted | KeyboardInterrupt))
            raise


def _whole(checkpoint: Checkpoint) -> Checkpoint:
    checkpoint.verify()
    return checkpoint


def _fitted(checkpoint: Checkpoint) -> FitResult:
    """The result of a run that was finished before."""
    parts = {name: checkpoint.session(name) for name in checkpoint.sessions}
    manifest = checkpoint.manifest
    return FitResult(
        checkpoint.shared(), parts, [], checkpoint.folder, manifest.step, manifest.skipped
    )


def _check_going_on(
    config: RunConfig,
    kind: Kind,
    start: Checkpoint | None,
    found: Checkpoint,
    say: Callable[[str], None],
) -> list[int]:
    """Refuse to go on from a checkpoint of another run; the steps of checkpoints to be kept.

    Raises:
        ConfigError: it is one.
    """
    dumped = config.model_dump(mode="json")
    refuse_other_settings(config.output, different_settings(found.manifest.config, dumped))
    check_reached(config.output, found.step, config.training)
    dataset = dataset_of(config)
    different = sorted({*found.sessions} ^ {*sessions_of(config, dataset)})
    if different:
        raise ConfigError(
            f"output: {config.output} holds a run of other sessions ({', '.join(different[:5])} "
            "differ); choose another output"
        )
    if start is not None:
        ours, theirs = found.tensors("shared"), start.tensors("shared")
        if ours.keys() != theirs.keys() or any(not torch.equal(ours[k], theirs[k]) for k in ours):
            raise ConfigError(
                f"output: {config.output} holds a transfer with another core than that of "
                f"{start.folder}; choose another output"
            )
    kept = list(found.manifest.kept)
    changed = accepted_changes(found, config, dataset)
    if changed:
        kept.append(found.step)
        say(
            f"{kind}: going on from step {found.step} although data was prepared anew: "
            f"{', '.join(changed)}; the checkpoint of that step is kept"
        )
    elif found.step < config.training.steps:
        say(f"{kind}: going on from step {found.step}")
    return sorted({*kept})


def _train(
    config: RunConfig,
    run: RunLog,
    start: Checkpoint | None,
    found: Checkpoint | None,
    saving: _Saving,
    on_step: Callable[[StepReport], None] | None,
) -> SingleResult:
    began = time.monotonic()
    points: list[tuple[int, float]] = []
    remove_unfinished(config.output)

    def log(report: StepReport) -> None:
        losses = list(report.losses.values())
        mean = sum(losses) / len(losses)
        points.append((report.step + 1, mean))
        run.collect({"train/loss": mean, "train/lr": report.lr}, report.step + 1)
        if on_step:
            on_step(report)

    with run.sending():
        result = fit(
            config,
            shared=start.shared() if start else None,
            freeze_shared=start is not None,
            on_step=log,
            start=found,
            after_step=saving.after_step,
        )
    steps = config.training.steps
    if result.done < steps:
        raise saving.stop.stopped(
            f"{config.output}: told to stop; saved after step {result.done} of {steps}. The same "
            "command goes on from there"
        )
    result.checkpoint = saving.folder or (found.folder if found else None)
    seconds = time.monotonic() - began
    assert result.checkpoint is not None
    run.tags({"checkpoint": result.checkpoint})
    if found is not None:
        with run.told("the loss before"):
            run.flush()
            points = run.history("train/loss")
    run.figure(curves_figure({"train/loss": points}), "figures/curves.png")
    run.end()
    return SingleResult(result, result.checkpoint, run.run_id, seconds)


class _Saving:
    """Saves at intervals, at the end, and when told to stop.

    Args:
        config: of the run.
        lock: on its output.
        stop: the signals.
        kept: steps of older checkpoints that are never removed.
        say: hears of checkpoints that could not be saved.

    Attributes:
        folder: of the checkpoint that was saved last.
    """

    def __init__(
        self,
        config: RunConfig,
        lock: Lock,
        stop: StopSignals,
        kept: list[int],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.lock, self.stop, self.kept, self.say = config, lock, stop, kept, say
        self.dataset = dataset_of(config)
        self.folder: str | None = None
        self.failures = 0

    def after_step(self, trainer: Trainer, done: int) -> bool:
        """Save if it is time; whether to stop.

        Raises:
            Locked: the output is another's by now.
            StorageError: the last checkpoint, or too many in a row, could not be saved.
        """
        self.lock.check()
        asked = self.stop.asked is not None
        last = asked or done == self.config.training.steps
        if last or done % self.config.checkpoint.every == 0:
            self._save(trainer, done, last)
        return asked

    def _save(self, trainer: Trainer, done: int, last: bool) -> None:
        config = self.config
        try:
            self.folder = save_checkpoint(config, trainer, done, self.dataset, self.kept)
        except StorageError as error:
            self.failures += 1
            if last or self.failures > config.checkpoint.max_failures:
                raise
            self.say(f"checkpoint of step {done} not saved: {error}; going on")
            return
        self.failures = 0
        with suppress(StorageError):  # what cannot be removed now is removed after the next save
            prune(config.output, config.checkpoint.keep, self.kept)
