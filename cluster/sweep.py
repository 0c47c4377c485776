"""Running a sweep: its missing points one after another, then the law through all of them."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.pretrain import pretrain
from cluster.ray_place import cluster_address
from cluster.ray_session import ray_session
from fmcortex import storage
from fmcortex.config import RunConfig
from fmcortex.data.dataset import PreparedDataset, open_dataset
from fmcortex.device import choose
from fmcortex.errors import ConfigError, DataError, FmcortexError, Preempted
from fmcortex.evaluation.evaluate import evaluate_session
from fmcortex.lock import Lock
from fmcortex.model.network import Network
from fmcortex.progress import Progress
from fmcortex.scaling.figures import scaling_figure
from fmcortex.scaling.results import (
    SUMMARY,
    PointResult,
    SweepSummary,
    as_csv,
    as_table,
    load_point,
    point_file,
    summarise,
)
from fmcortex.scaling.sweep import Point, SweepConfig, points
from fmcortex.signals import StopSignals
from fmcortex.tracking.resume import continued
from fmcortex.tracking.run import RunLog, environment, tracking_uri
from fmcortex.training.checkpoint import open_checkpoint
from fmcortex.training.fit import fit
from fmcortex.training.going_on import absolute
from fmcortex.training.single import train_single
from fmcortex.training.step import StepReport

#: Names the sweep's MLflow run, so that a sweep that continues goes on in it.
SWEEP_FILE = "sweep.json"
PARENT_TAG = "mlflow.parentRunId"


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left.

    Attributes:
        summary: its points and the law.
        output: its folder, with scaling.json, scaling.csv and scaling.png.
        ran: names of the points that were run now.
        skipped: names of those that were finished before.
        run_id: of the MLflow parent run.
        tracking_uri: of its store.
    """

    summary: SweepSummary
    output: str
    ran: list[str]
    skipped: list[str]
    run_id: str
    tracking_uri: str


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def run_sweep(
    config: SweepConfig, workers: int | None = None, say: Callable[[str], None] = _to_stderr
) -> SweepResult:
    """Run the points that are not finished, and fit the law to all that are.

    Args:
        config: of the sweep.
        workers: Ray Train workers of a point, fewer where it has fewer mice; 0 trains in this
            process without Ray; None for `cluster.workers` of the base.
        say: hears a line about each point, and the table at the end.

    Raises:
        ConfigError: the sweep does not fit the dataset.
        Locked: another process writes to its output.
        Preempted: it was told to stop; called again, it goes on.
        FmcortexError: points have failed; they are named, and the others are finished.
    """
    config = config.model_copy(update={"output": storage.absolute(config.output)})
    if not config.run.data.url:
        raise ConfigError("base.data.url: missing; name a prepared dataset")
    dataset = open_dataset(config.run.data.url)
    grid = points(config, dataset)
    with Lock(config.output, "sweep", say) as lock, StopSignals() as stop:
        return _run_sweep(config, workers, say, dataset, grid, lock, stop)


def _run_sweep(
    config: SweepConfig,
    workers: int | None,
    say: Callable[[str], None],
    dataset: PreparedDataset,
    grid: list[Point],
    lock: Lock,
    stop: StopSignals,
) -> SweepResult:
    uri = tracking_uri(config.run.tracking, config.output)
    workers = config.run.cluster.workers if workers is None else workers
    if workers:
        cluster_address()  # before a run is opened in vain
    known = {point.key: load_point(config.output, point.key) for point in grid}
    parent = _open_parent(config, uri)
    failed: dict[str, str] = {}
    missing = [point for point in grid if known[point.key] is None]
    skipped = [point.name for point in grid if known[point.key] is not None]
    if skipped:
        say(f"sweep: {len(skipped)} of {len(grid)} points are finished already")
    try:
        with _ray(config, workers if missing else 0):
            stop.listen()  # Ray, when it starts, puts its own handlers in place
            for number, point in enumerate(missing, 1):
                lock.check()
                if stop.asked:
                    raise stop.stopped(
                        f"{config.output}: told to stop before point {number} of {len(missing)}. "
                        "The same command goes on from there"
                    )
                say(f"sweep: point {number} of {len(missing)}: {point.name}")
                try:
                    result = run_point(config, point, dataset, parent, workers)
                except Preempted:
                    raise
                except Exception as error:  # whatever it is, the other points can still be run
                    failed[point.name] = _line(error)
                    say(f"sweep: {point.name} failed: {failed[point.name]}")
                    continue
                known[point.key] = result
                say(f"sweep: {point.name}: {result.score:.3f} ({result.seconds:.0f} s)")
        done = [found for point in grid if (found := known[point.key]) is not None]
        summary = summarise(
            _label(config), config.axis, done, config.law, failed, parent.run_id, uri
        )
        _leave(config.output, summary, parent)
    except BaseException as error:
        parent.end(failed=True, stopped=isinstance(error, Preempted | KeyboardInterrupt))
        raise
    parent.end(failed=bool(failed))
    say(as_table(done))
    say(f"law: {summary.law.formula() if summary.law else summary.law_problem}")
    if failed:
        named = "; ".join(f"{name}: {message}" for name, message in failed.items())
        raise FmcortexError(
            f"{len(failed)} of {len(grid)} points failed: {named}; run the same command again for "
            "these alone"
        )
    ran = [point.name for point in missing]
    return SweepResult(summary, config.output, ran, skipped, parent.run_id, uri)


def _label(config: SweepConfig) -> str:
    if config.transfer is None:
        return config.metric.label
    return f"{config.metric.label}, new mouse {config.transfer.session}"


def _ray(config: SweepConfig, workers: int) -> AbstractContextManager[Any]:
    """One Ray for all points."""
    if workers == 0:
        return nullcontext()
    return ray_session(workers * config.run.cluster.cpus_per_worker)


def _open_parent(config: SweepConfig, uri: str) -> RunLog:
    """The sweep's MLflow run: a new one, or that of the sweep which continues in this folder."""
    path = storage.join(config.output, SWEEP_FILE)
    known = storage.read_json(path) if storage.exists(path) else {}
    if not isinstance(known, dict):
        raise ConfigError(f"{path}: not what a sweep wrote; move it away, or choose another output")
    run = None
    if known.get("uri") == uri and known.get("run_id"):
        found = continued(uri, str(known["run_id"]))
        run = found if isinstance(found, RunLog) else None
    if run is None:
        tracking = config.run.tracking
        labels = {"kind": "sweep", "output": config.output, **environment()}
        run = RunLog.start(uri, tracking.experiment, tracking.run_name or "sweep", labels)
        run.params(config.model_dump(mode="json", exclude={"base"}))
    dumped = config.model_dump(mode="json")
    run.dictionary(dumped, "sweep.yaml")
    storage.write_json(path, {"config": dumped, "uri": uri, "run_id": run.run_id})
    return run


def run_point(
    config: SweepConfig, point: Point, dataset: PreparedDataset, parent: RunLog, workers: int
) -> PointResult:
    """Train and score one point as a child of the sweep's MLflow run, and write its result.

    Raises:
        DataError: it has no score.
        FmcortexError: whatever else the user can act on.
    """
    began = time.monotonic()
    run_config = point.config.model_copy(
        update={
            "tracking": point.config.tracking.model_copy(
                update={"uri": parent.uri, "run_name": point.name}
            )
        }
    )
    tags = {PARENT_TAG: parent.run_id, "sweep.point": point.key}
    if workers == 0:
        run_id, folder = _train_here(absolute(run_config), tags)
    else:
        most = min(workers, run_config.training.lanes or point.mice)  # a rank needs a lane
        cluster = run_config.cluster.model_copy(update={"workers": most})
        trained = pretrain(run_config.model_copy(update={"cluster": cluster}), tags)
        run_id, folder = trained.run_id, trained.checkpoint
    child = RunLog(parent.uri, run_id)
    try:
        by_session = score_point(config, point, folder, dataset)
        values = [value for value in by_session.values() if value is not None]
        if not values:
            raise DataError(
                f"no neuron has a {config.metric.score} on the {config.metric.tier} videos of "
                f"{config.metric.domain}: its signal power is not positive"
            )
        result = PointResult(
            key=point.key,
            mice=point.mice,
            minutes=point.minutes,
            seed=point.seed,
            sessions=point.sessions,
            mouse_minutes=point.mouse_minutes,
            neuron_hours=point.neuron_hours,
            score=float(np.median(values)),
            by_session=by_session,
            run_id=run_id,
            tracking_uri=parent.uri,
            checkpoint=folder,
            seconds=time.monotonic() - began,
        )
        _log_score(child, config, result)
    except BaseException as error:
        child.end(failed=True, stopped=isinstance(error, KeyboardInterrupt))
        raise
    child.end()
    storage.write_json(point_file(config.output, point.key), result.model_dump(mode="json"))
    return result


def _train_here(config: RunConfig, tags: dict[str, str]) -> tuple[str, str]:
    """Train in this process what is left to train; the MLflow run and the checkpoint."""
    with Progress(config.tracking.run_name or "train", config.training.steps) as progress:

        def on_step(report: StepReport) -> None:
            loss = float(np.mean(list(report.losses.values())))
            progress.update(report.step + 1, f"loss {loss:.4f}")

        labels = {"kind": "pretrain", **tags}
        trained = train_single(config, "individual", tags=labels, on_step=on_step)
    return trained.run_id, trained.checkpoint


def score_point(
    config: SweepConfig, point: Point, checkpoint: str, dataset: PreparedDataset
) -> dict[str, float | None]:
    """Median over neurons of each scored session; None where no neuron has a value."""
    opened = open_checkpoint(checkpoint)
    device = choose(point.config.training.device).device
    shared = opened.shared().to(device)
    if point.transfer is not None:
        fitted = fit(absolute(point.transfer), shared=shared, freeze_shared=True)
        parts = fitted.sessions
    else:
        parts = {name: opened.session(name).to(device) for name in point.scored}
    metric = config.metric
    found = {}
    for name in point.scored:
        score = evaluate_session(
            Network(shared, parts[name]),
            dataset.session(name),
            metric.tier,
            [metric.domain],
            point.config.training.burnin,
            baseline=False,
        ).domain(metric.domain)
        found[name] = score.cc_norm if metric.score == "cc_norm" else score.cc_abs
    return found


def _log_score(run: RunLog, config: SweepConfig, result: PointResult) -> None:
    name = f"sweep/{config.metric.score}"
    values = {
        name: result.score,
        "sweep/mice": result.mice,
        "sweep/mouse_minutes": result.mouse_minutes,
        "sweep/neuron_hours": result.neuron_hours,
    }
    values |= {f"{name}/{s}": v for s, v in result.by_session.items() if v is not None}
    run.metrics(values, 0)
    run.flush()


def _leave(output: str, summary: SweepSummary, parent: RunLog) -> None:
    """Write table, law and figure to the sweep's folder and its MLflow run."""
    figure = scaling_figure(summary)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=160)
    document = summary.model_dump(mode="json")
    table = as_csv(summary.points)
    storage.write_bytes(storage.join(output, "scaling.png"), picture.getvalue())
    storage.write_bytes(storage.join(output, "scaling.csv"), table.encode())
    storage.write_json(storage.join(output, SUMMARY), document)
    parent.figure(figure, "figures/scaling.png")
    parent.dictionary(document, SUMMARY)
    parent.text(table, "scaling.csv")
    metrics: dict[str, float] = {
        "sweep/points": len(summary.points),
        "sweep/failed": len(summary.failed),
    }
    if summary.law is not None:
        law = summary.law
        metrics |= {"law/limit": law.limit, "law/scale": law.scale, "law/exponent": law.exponent}
    parent.metrics(metrics, 0)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, FmcortexError) else f"{type(error).__name__}: {text}"
