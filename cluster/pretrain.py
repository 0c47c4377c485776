"""The driver of a pretraining: checks the run, starts Ray Train, follows it, closes it."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cluster.worker as worker
from cluster.arrow import arrow_filesystem
from cluster.loop import HANGS
from cluster.placement import configured_costs, place_lanes
from cluster.ray_place import cluster_address
from cluster.ray_session import ray_session
from fmcortex import errors, storage
from fmcortex.config import RunConfig
from fmcortex.errors import CheckpointError, ConfigError, FmcortexError, Preempted
from fmcortex.lock import Lock
from fmcortex.progress import Progress
from fmcortex.signals import StopSignals
from fmcortex.tracking.run import RunLog, tracking_uri
from fmcortex.tracking.store import to_stderr, why
from fmcortex.training.checkpoint import (
    Checkpoint,
    latest_step,
    list_checkpoints,
    step_folder,
)
from fmcortex.training.fit import dataset_of, neurons_of, plan_of, sessions_of
from fmcortex.training.going_on import absolute, finished_run, known_run, open_run
from fmcortex.training.same_run import accepted_changes, check_reached

#: Seconds after which it is said that workers have not started yet.
PATIENCE = 60.0


@dataclass(frozen=True)
class PretrainResult:
    """What a pretraining left.

    Attributes:
        checkpoint: folder of the last checkpoint.
        run_id: of the MLflow run.
        tracking_uri: of its store.
        seconds: of this call.
        steps: of the whole run.
        skipped: of them, that were left out because something was not finite.
    """

    checkpoint: str
    run_id: str
    tracking_uri: str
    seconds: float
    steps: int
    skipped: int = 0


def pretrain(config: RunConfig, tags: dict[str, str] | None = None) -> PretrainResult:
    """Pretrain on all the sessions of `config`, or continue such a run.

    Args:
        config: of the run; `output` may hold checkpoints of the same run, which is then continued.
        tags: of the MLflow run.

    Ctrl-C, SIGTERM, SIGUSR1 and SIGUSR2 make the run save after the step it is in, and stop; a
    second one ends it at once. A run that is finished, or refused, is left as it is.

    Raises:
        ConfigError: the configuration does not fit the dataset, the machine or the run in
            `output`.
        Locked: another process writes to `output`.
        Preempted: it was told to stop before it was done; called again, it goes on.
        FmcortexError: whatever stopped the workers that the user can act on.
    """
    began = time.monotonic()
    config = absolute(config)
    check(config)
    with Lock(config.output, "pretrain") as lock, StopSignals() as stop:
        found = _finished(config)
        if found is None:
            found = _train(config, tags, lock, stop)
    checkpoint, run = found
    return PretrainResult(
        checkpoint=checkpoint.folder,
        run_id=run.run_id,
        tracking_uri=run.uri,
        seconds=time.monotonic() - began,
        steps=config.training.steps,
        skipped=checkpoint.manifest.skipped,
    )


def _train(
    config: RunConfig, tags: dict[str, str] | None, lock: Lock, stop: StopSignals
) -> tuple[Checkpoint, RunLog]:
    """Train what is left to train; the last checkpoint and the MLflow run."""
    Progress("pretrain", config.training.steps).stage("opening the MLflow run")
    run = _open_run(config, tags)
    steps = config.training.steps
    try:
        newest = _newest_readable(config.output)
        if newest is None or newest.step < steps:
            _run_workers(config, run, lock, stop)
            done = latest_step(config.output)
            if done < steps and stop.asked:
                raise stop.stopped(
                    f"{config.output}: told to stop; saved after step {done} of {steps}. The "
                    "same command goes on from there"
                )
            if done < steps:
                raise CheckpointError(
                    f"{config.output}: the workers ended without a final checkpoint"
                )
        checkpoint = Checkpoint(step_folder(config.output, latest_step(config.output)))
        run.tags({"checkpoint": checkpoint.folder})
        run.end()
    except BaseException as error:
        run.end(failed=True, stopped=isinstance(error, Preempted | KeyboardInterrupt))
        if not isinstance(error, KeyboardInterrupt):  # which is to end at once
            _figures(config, run)
        raise
    _figures(config, run)
    return checkpoint, run


def _finished(config: RunConfig) -> tuple[Checkpoint, RunLog] | None:
    """The last checkpoint and the MLflow run of a run that is finished, neither of them touched.

    Returns:
        None where something is left to do.

    Raises:
        ConfigError: `output` holds another run, or one that cannot go on with this configuration.
    """
    known = known_run(config, "pretrain")
    done = latest_step(config.output)
    check_reached(config.output, done, config.training)
    checkpoint = _newest_readable(config.output)
    if checkpoint is not None:
        accepted_changes(checkpoint, config, dataset_of(config))
    if checkpoint is None or checkpoint.step < config.training.steps:
        return None
    _check_finished(config, checkpoint)
    run = finished_run(config, known)
    return (checkpoint, run) if run is not None else None


def _newest_readable(run: str) -> Checkpoint | None:
    """The newest checkpoint whose manifest can be read; what is in it, the workers check."""
    for folder in list_checkpoints(run):
        with suppress(CheckpointError):
            return Checkpoint(folder)
    return None


def check(config: RunConfig) -> None:
    """Find what would stop the workers before they are started.

    Raises:
        ConfigError: or another error that names the field at fault.
    """
    dataset = dataset_of(config)
    plan = plan_of(config, dataset)
    costs = configured_costs(neurons_of(dataset, plan.sessions), config.cluster.costs)
    place_lanes(plan.lanes, costs, config.cluster.workers)
    tracking_uri(config.tracking, config.output)
    cluster_address()


def _check_finished(config: RunConfig, checkpoint: Checkpoint) -> None:
    """Refuse to take a finished run for one of other sessions.

    Raises:
        ConfigError: naming the sessions that differ.
    """
    different = sorted({*checkpoint.sessions} ^ {*sessions_of(config, dataset_of(config))})
    if different:
        raise ConfigError(
            f"output: the run in {config.output} is finished, with other sessions "
            f"({', '.join(different[:5])} differ); choose another output"
        )


def _open_run(config: RunConfig, tags: dict[str, str] | None) -> RunLog:
    for left in (worker.ERROR_FILE, HANGS):
        storage.remove(storage.join(config.output, left))
    return open_run(config, "pretrain", tags, known_run(config, "pretrain"))


def _run_workers(config: RunConfig, run: RunLog, lock: Lock, stop: StopSignals) -> None:
    cluster = config.cluster
    # What Ray Train remembers of an earlier call; the checkpoints themselves say where to go on.
    storage.remove(storage.join(config.output, "checkpoints", "checkpoint_manager_snapshot.json"))
    cpus = cluster.workers * cluster.cpus_per_worker
    with (
        Progress("pretrain", config.training.steps) as progress,
        ray_session(cpus, say=progress.stage) as ray,
    ):
        stop.listen()  # Ray, when it starts, puts its own handlers in place
        from ray.train import FailureConfig, ScalingConfig
        from ray.train import RunConfig as RayRunConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        gpus = cluster.gpus_per_worker
        if gpus is None:
            there = ray.cluster_resources().get("GPU", 0)
            gpus = int(there >= cluster.workers and config.training.device != "cpu")
        filesystem, path = arrow_filesystem(config.output)
        board = ray.remote(num_cpus=0)(Board).remote()
        trainer = TorchTrainer(
            worker.train,
            train_loop_config={
                "config": config.model_dump(mode="json"),
                "uri": run.uri,
                "run_id": run.run_id,
                "board": board,
            },
            torch_config=TorchConfig(
                backend="nccl" if gpus else "gloo", timeout_s=int(cluster.timeout_seconds)
            ),
            scaling_config=ScalingConfig(
                num_workers=cluster.workers,
                use_gpu=bool(gpus),
                resources_per_worker={"CPU": cluster.cpus_per_worker}
                | ({"GPU": gpus} if gpus else {}),
                placement_strategy="SPREAD",
            ),
            run_config=RayRunConfig(
                # Ray Train wants the checkpoints that it is told of inside its own folder.
                storage_filesystem=filesystem,
                storage_path=path,
                name="checkpoints",
                failure_config=FailureConfig(max_failures=cluster.max_failures),
            ),
        )
        of = "worker" if cluster.workers == 1 else "workers"
        progress.stage(f"starting {cluster.workers} {of}")
        with Follower(board, progress, stop) as follower:
            try:
                _fit(trainer, follower, lock, stop)
            except FmcortexError:
                raise
            except Exception as error:
                raise _cause(error, config) from error
        _raise_left_behind(config)


def _fit(trainer: Any, follower: Follower, lock: Lock, stop: StopSignals) -> None:
    """Train in a thread, as Ray takes Ctrl-C for itself in the main one, which listens to it.

    Raises:
        Locked: the run's lock was lost.
        Preempted: told to stop before any worker had started, so that nothing is to be saved.
    """
    failed: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=fit, name="trainer", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
        lock.check()
        if stop.asked and not follower.begun:
            raise stop.stopped("told to stop before training had begun; nothing has changed")
    if failed:
        raise failed[0]


def _raise_left_behind(config: RunConfig) -> None:
    path = storage.join(config.output, worker.ERROR_FILE)
    if storage.exists(path):
        left = storage.read_json(path)
        kind = getattr(errors, str(left.get("kind")), FmcortexError)
        raise kind(left.get("message"))


def _cause(error: Exception, config: RunConfig) -> Exception:
    """The error that the user should see, out of the one that Ray Train raises."""
    try:
        _raise_left_behind(config)
    except FmcortexError as left:
        return left
    failures = getattr(error, "worker_failures", None) or {}
    for failure in failures.values():
        inner: BaseException | None = failure
        while inner is not None:
            if isinstance(inner, FmcortexError):
                return inner
            inner = getattr(inner, "cause", None) or inner.__cause__
    first = " ".join(str(next(iter(failures.values()), error)).split())
    hangs = storage.join(config.output, HANGS)
    if storage.exists(hangs):
        first = f"they hung, with the stacks of their threads in {hangs}: {first}"
    return FmcortexError(
        f"{config.output}: the workers failed {config.cluster.max_failures + 1} times: "
        f"{first[-600:]}; set FMCORTEX_RAY_LOGS=1 to see their logs"
    )


class Board:
    """A Ray actor between the driver and rank 0."""

    def __init__(self) -> None:
        self.done, self.note, self.starts, self.stop = 0, "", 0, False
        self.stages: list[str] = []
        self.lines: list[str] = []

    def start(self, done: int, note: str) -> None:
        """The workers have started, or started again."""
        self.starts += 1
        self.tell(done, note)

    def tell(self, done: int, note: str) -> None:
        """So many steps are done."""
        self.done, self.note = done, note

    def stage(self, what: str) -> None:
        """What the workers do before the first step."""
        self.stages.append(what)

    def say(self, line: str) -> None:
        """A line for the user."""
        self.lines.append(line)

    def ask_to_stop(self) -> None:
        """Save and stop at the next step."""
        self.stop = True

    def stop_asked(self) -> bool:
        """Whether the run shall stop."""
        return self.stop

    def read(self) -> tuple[int, str, int, list[str], list[str]]:
        """Steps done, a note, how often the workers have started; stages and lines not yet read."""
        lines, self.lines = self.lines, []
        stages, self.stages = self.stages, []
        return self.done, self.note, self.starts, stages, lines


class Follower:
    """Between the board and the user, from a thread while the driver waits for Ray Train."""

    def __init__(self, board: Any, progress: Progress, stop: StopSignals) -> None:
        self.board, self.progress, self.stop = board, progress, stop
        self.end, self.starts, self.last, self.told = threading.Event(), 1, -1, False
        self.begun = False  # whether the workers have ever started
        self.waits_until = time.monotonic() + PATIENCE
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Follower:
        self.thread.start()
        return self

    def _follow(self) -> None:
        while not self.end.wait(0.5):
            self._look()

    def _look(self) -> None:
        import ray

        if self.stop.asked and not self.told:
            self.progress.say("told to stop; saving after this step")
            self.board.ask_to_stop.remote()
            self.told = True
        try:
            done, note, starts, stages, lines = ray.get(self.board.read.remote(), timeout=5)
        except Exception:  # the board may be busy or going away; progress is not worth a crash
            return
        for what in stages:
            self.progress.stage(what)
            self.waits_until = float("inf")  # they are there
        self.begun = self.begun or starts > 0
        if starts == 0 and time.monotonic() > self.waits_until:
            free = ray.available_resources()
            self.progress.say(
                f"still waiting for the workers to start; the cluster has {free.get('CPU', 0):.0f} "
                f"CPUs and {free.get('GPU', 0):.0f} GPUs free"
            )
            self.waits_until = time.monotonic() + PATIENCE
        if done < self.last or starts > self.starts:
            self.progress.say(f"workers restarted; continuing from step {done}")
        self.starts = max(self.starts, starts)
        for line in lines:
            self.progress.say(line)
        if done != self.last and note:
            self.progress.update(done, note)
            self.last = done

    def __exit__(self, *exception: object) -> None:
        self.end.set()
        self.thread.join(timeout=10)
        self._look()


def _figures(config: RunConfig, run: RunLog) -> None:
    """Log a figure of the curves to MLflow, and write the page of all of them, if that can be."""
    try:
        _write_figures(config, run)
    except Exception as error:  # what has ended the run is what counts
        to_stderr(f"pretrain: no figures of the curves: {why(error)}")


def _write_figures(config: RunConfig, run: RunLog) -> None:
    from fmcortex.tracking.curves import curves_figure
    from fmcortex.tracking.page import write_curves_page

    figure = curves_figure(
        {key: run.history(key) for key in ("train/loss", "train/lr", "validation/cc_abs")}
    )
    run.figure(figure, "figures/curves.png")
    write_curves_page(run, config.output)
