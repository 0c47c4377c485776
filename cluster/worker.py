"""What each Ray Train worker runs: one rank of a pretraining."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from cluster.arrow import arrow_filesystem
from cluster.checkpoints import save_checkpoint
from cluster.engine import DeepSpeedEngine
from cluster.placement import Placement, configured_costs, place_lanes
from fmcortex import storage
from fmcortex.config import RunConfig
from fmcortex.data.dataset import PreparedDataset
from fmcortex.data.loader import ClipLoader
from fmcortex.data.plan import SamplingPlan
from fmcortex.device import Compute, choose
from fmcortex.errors import FmcortexError
from fmcortex.evaluation.evaluate import evaluate_session
from fmcortex.model.network import Network
from fmcortex.tracking.run import RunLog
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.checkpoint import SHARED, Checkpoint, newest
from fmcortex.training.engine import load_momenta
from fmcortex.training.fit import dataset_of, neurons_of, plan_of
from fmcortex.training.step import StepReport, Trainer

#: Where a worker leaves an error that a restart would only repeat.
ERROR_FILE = "error.json"
#: Steps whose metrics are gathered and sent together.
REPORT_EVERY = 10


def train(arguments: dict[str, Any]) -> None:
    """The Ray Train loop of one worker.

    Args:
        arguments: `config` (a dumped RunConfig), `uri` and `run_id` of the MLflow run, `board`
            (an actor that hears of the progress).

    An error that the user must act on is left in the run's folder and raised; after the restart
    that follows, every worker sees it and returns at once.
    """
    config = RunConfig.model_validate(arguments["config"])
    failure = storage.join(config.output, ERROR_FILE)
    if storage.exists(failure):
        return
    try:
        _train(config, arguments)
    except FmcortexError as error:
        storage.write_json(failure, {"kind": type(error).__name__, "message": str(error)})
        raise


def _train(config: RunConfig, arguments: dict[str, Any]) -> None:
    import ray.train

    torch.set_num_threads(config.cluster.cpus_per_worker)
    context = ray.train.get_context()
    rank, ranks = context.get_world_rank(), context.get_world_size()
    compute = choose(config.training.device, config.training.precision, context.get_local_rank())
    dataset = dataset_of(config)
    plan = plan_of(config, dataset)
    costs = configured_costs(neurons_of(dataset, plan.sessions), config.cluster.costs)
    placement = place_lanes(plan.lanes, costs, ranks)
    trainer, first = build_trainer(config, dataset, plan, placement, compute, rank)
    log = RunLog(arguments["uri"], arguments["run_id"]) if rank == 0 else None
    board = arguments.get("board") if rank == 0 else None
    if board is not None:
        board.start.remote(first, f"{ranks} ranks, {len(plan.lanes)} lanes")

    loader = ClipLoader(
        dataset,
        plan,
        placement.lanes[rank],
        first,
        config.training.steps,
        config.data.prefetch,
        pin=compute.device.type == "cuda",
    )
    reporter = Reporter(log, board, config, ranks)
    for step, batches in enumerate(loader, start=first):
        reporter.add(trainer.step(step, batches), loader)
        done = step + 1
        epoch_ends = done % config.training.steps_per_epoch == 0
        last = done == config.training.steps
        saves = last or done % config.checkpoint.every == 0
        if saves or epoch_ends or done % REPORT_EVERY == 0:
            reporter.send(done)
        every = config.tracking.validate_every * config.training.steps_per_epoch
        if every and (last or done % every == 0):
            reporter.validation(done, validate(trainer, dataset, config))
        if saves:
            if log:
                log.flush()  # what a checkpoint has behind it is never trained, so logged, again
            folder = save_checkpoint(config, trainer, done, rank)
            _report(done, folder)


def _report(step: int, folder: str) -> None:
    """Tell Ray Train of a checkpoint, which lies in its place already."""
    import ray.train

    filesystem, path = arrow_filesystem(folder)
    ray.train.report(
        {"step": step},
        checkpoint=ray.train.Checkpoint(path, filesystem),
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def build_trainer(
    config: RunConfig,
    dataset: PreparedDataset,
    plan: SamplingPlan,
    placement: Placement,
    compute: Compute,
    rank: int,
) -> tuple[Trainer, int]:
    """The state of this rank, from the run's newest whole checkpoint or from the start.

    Returns:
        The trainer, and the first step to train.
    """
    found: list[str | None] = [None]
    if rank == 0:
        checkpoint = newest(config.output, warn=print)
        found = [checkpoint.folder if checkpoint else None]
    dist.broadcast_object_list(found, src=0)  # all ranks continue from the same one
    start = Checkpoint(found[0]) if found[0] else None
    seed = config.training.seed
    shared = start.shared() if start else build_shared(config.model, seed)
    parts = {}
    for name in placement.sessions[rank]:
        if start and name in start.manifest.units:
            part = start.session(name)
        else:
            units = dataset.session(name).manifest.neurons
            part = build_session(config.model, units, seed, name)
        parts[name] = part.to(compute.device)
    moments = start.tensors(SHARED, momenta=True) if start else None
    engine = DeepSpeedEngine(shared, config.training, compute, config.cluster.zero_stage, moments)
    trainer = Trainer(config.training, plan, engine, parts, compute)
    if start:
        for name in parts:
            if name in start.manifest.units:
                load_momenta(trainer.optimizers[name], start.tensors(name, momenta=True))
    return trainer, start.step if start else 0


def validate(trainer: Trainer, dataset: PreparedDataset, config: RunConfig) -> dict[str, float]:
    """Median CC_abs of this rank's sessions on their validation videos, by session."""
    found = {}
    for name, part in trainer.sessions.items():
        session = dataset.session(name)
        if not session.videos("validation"):
            continue
        network = Network(trainer.engine.module, part)
        score = evaluate_session(
            network, session, "validation", burnin=config.training.burnin, baseline=False
        )
        values = [s.cc_abs for s in score.domains if s.cc_abs is not None]
        if values:
            found[name] = sum(values) / len(values)
    return found


class Reporter:
    """Gathers what the ranks did and sends it on, from rank 0.

    Args:
        log: the MLflow run, on rank 0.
        board: the driver's actor, on rank 0.
        config: of the run.
        ranks: how many.
    """

    def __init__(self, log: RunLog | None, board: Any, config: RunConfig, ranks: int) -> None:
        self.log, self.board, self.config, self.ranks = log, board, config, ranks
        self.waiting: list[StepReport] = []
        self.epoch: list[float] = []
        self.stalled = self.stalled_before = 0.0
        self.since = time.perf_counter()

    def add(self, report: StepReport, loader: ClipLoader) -> None:
        """Keep the report of a step until the next `send`."""
        self.waiting.append(report)
        self.stalled = loader.stalled

    def send(self, done: int) -> None:
        """Gather the reports of all ranks and log them; every rank must call it."""
        told = self._gather(self.waiting)
        steps, self.waiting = len(self.waiting), []
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        stalled, self.stalled_before = self.stalled - self.stalled_before, self.stalled
        if self.log is None or not steps:
            return
        for of_ranks in zip(*told, strict=True):
            losses = [loss for report in of_ranks for loss in report.losses.values()]
            mean = sum(losses) / len(losses)
            self.epoch.append(mean)
            metrics = {"train/loss": mean, "train/lr": of_ranks[0].lr}
            by_session: dict[str, list[float]] = {}
            for report in of_ranks:
                for lane, loss in report.losses.items():
                    by_session.setdefault(report.sessions[lane], []).append(loss)
            metrics |= {f"loss/{k}": sum(v) / len(v) for k, v in by_session.items()}
            self.log.metrics(metrics, of_ranks[0].step + 1)
        clips = steps * sum(len(report.losses) for report in of_ranks) * self.config.data.batch
        self.log.metrics(
            {
                "speed/steps_per_second": steps / seconds,
                "speed/clips_per_second": clips / seconds,
                "speed/stall_fraction": stalled / seconds,
            },
            done,
        )
        if self.board is not None:
            self.board.tell.remote(done, f"loss {mean:.4f}, lr {of_ranks[0].lr:.3g}")
        if done % self.config.training.steps_per_epoch == 0:
            self.log.metrics({"epoch/loss": sum(self.epoch) / len(self.epoch)}, done)
            self.epoch = []
            self.log.flush()

    def validation(self, done: int, scores: dict[str, float]) -> None:
        """Gather and log the validation scores of all ranks; every rank must call it."""
        told = self._gather(scores)
        self.since = time.perf_counter()  # validation is not counted as training time
        joined = {name: value for some in told for name, value in some.items()}
        if self.log is None or not joined:
            return
        metrics = {f"validation/cc_abs/{name}": value for name, value in joined.items()}
        metrics["validation/cc_abs"] = sum(joined.values()) / len(joined)
        self.log.metrics(metrics, done)
        self.log.flush()

    def _gather(self, mine: Any) -> Sequence[Any]:
        told: list[Any] = [None] * self.ranks
        dist.all_gather_object(told, mine)
        return told
