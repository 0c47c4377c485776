"""The loop of one rank: steps, validation, saving, stopping when asked to. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from cluster.checkpoints import Saver, any_rank
from cluster.reporter import Reporter
from cluster.state import Start, start_rank
from cluster.watchdog import Watchdog
from fmcortex import storage
from fmcortex.config import RunConfig
from fmcortex.data.dataset import PreparedDataset
from fmcortex.data.identity import trained_sessions
from fmcortex.data.loader import ClipLoader
from fmcortex.device import choose
from fmcortex.errors import StorageError
from fmcortex.evaluation.evaluate import evaluate_session
from fmcortex.model.network import Network
from fmcortex.tracking.run import RunLog
from fmcortex.training.diagnosis import check_trained
from fmcortex.training.fit import dataset_of
from fmcortex.training.going_on import remove_unfinished
from fmcortex.training.snapshot import take_snapshot
from fmcortex.training.step import Trainer

#: Folder of what the watchdog has to say.
HANGS = "hangs"


class Outside(Protocol):
    """What surrounds a rank."""

    def start(self, done: int, note: str) -> None:
        """The rank has started, with so many steps done."""

    def stage(self, what: str) -> None:
        """What is done before the rank has started."""

    def tell(self, done: int, note: str) -> None:
        """So many steps are done."""

    def say(self, line: str) -> None:
        """Something that the user should know."""

    def stop_asked(self) -> bool:
        """Whether the run shall save and stop at the next step."""


class Nobody:
    """Nothing surrounds the rank."""

    def start(self, done: int, note: str) -> None:
        pass

    def stage(self, what: str) -> None:
        pass

    def tell(self, done: int, note: str) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def stop_asked(self) -> bool:
        return False


def train_rank(
    config: RunConfig,
    rank: int,
    ranks: int,
    local_rank: int = 0,
    outside: Outside | None = None,
    log: RunLog | None = None,
    last: int | None = None,
) -> Start:
    """Train one rank of a run, from its newest checkpoint on.

    Args:
        config: of the run.
        rank: of this process; `torch.distributed` must be up.
        ranks: of the run.
        local_rank: of this process on its machine.
        outside: what surrounds the rank.
        log: the MLflow run; on rank 0.
        last: the step after which to stop; None for the run's last.

    Returns:
        The rank's state at the end: after the last step, or when it was asked to stop.

    Raises:
        FmcortexError: what stopped the run that the user can act on.
    """
    outside = outside or Nobody()
    with Watchdog(config.cluster.watchdog_seconds, partial(_hung, config, rank, outside)) as dog:
        compute = choose(config.training.device, config.training.precision, local_rank)
        compute.activate()
        outside.stage("reading the dataset")
        dataset = dataset_of(config)
        start = start_rank(config, dataset, compute, rank, ranks, outside.say, outside.stage)
        trainer, plan = start.trainer, start.trainer.plan
        if rank == 0:
            remove_unfinished(config.output)
            outside.start(start.step, f"{ranks} ranks, {len(plan.lanes)} lanes")
            for line in start.news:
                outside.say(line)
        end = config.training.steps if last is None else last
        loader = ClipLoader(
            dataset,
            plan,
            start.placement.lanes[rank],
            start.step,
            end,
            config.data.prefetch,
            config.data.threads,
            pin=compute.device.type == "cuda",
        )
        data = trained_sessions(dataset, plan.sessions)
        saver = Saver(config, rank, trainer.peers, start.kept, dog.beat, data)
        reporter = Reporter(config, trainer, log, outside)
        if start.step:
            reporter.event("went on from a checkpoint", start.step)
        if start.changed:
            reporter.event("went on with other data", start.step)
        try:
            _steps(config, start, end, loader, dataset, saver, reporter, outside, dog.beat)
        finally:
            saver.close()
            reporter.close()
    return start


def _steps(
    config: RunConfig,
    start: Start,
    end: int,
    loader: ClipLoader,
    dataset: PreparedDataset,
    saver: Saver,
    reporter: Reporter,
    outside: Outside,
    beat: Callable[[str], None],
) -> None:
    trainer = start.trainer
    beat(f"step {start.step}: reading clips")
    for step, batches in enumerate(loader, start=start.step):
        beat(f"step {step}: training")
        report = trainer.step(step, batches)
        beat(f"step {step}: after training")
        done = step + 1
        reporter.add(report, loader)
        asked, waiting = any_rank(trainer.peers, outside.stop_asked(), not saver.written)
        finished = done == end
        if done == config.training.steps:
            check_trained(trainer.skipped, done)
        if saver.busy and not waiting:
            reporter.saved(done, saver.advance())
        saves = finished or asked or done % config.checkpoint.every == 0
        reporter.after_step(done, now=saves)
        every = config.tracking.validate_every * config.training.steps_per_epoch
        if every and (done == config.training.steps or done % every == 0):
            reporter.validation(done, validate(trainer, dataset, config, beat))
        if saves:
            began = time.monotonic()
            reporter.saved(done, saver.finish())  # the one before; saves do not pile up
            beat(f"step {step}: copying the state")
            saver.start(take_snapshot(trainer, done, shared=trainer.peers.rank == 0))
            reporter.stalled(time.monotonic() - began)
        if finished or asked:
            beat(f"step {step}: saving")
            ended = saver.finish()
            reporter.saved(done, ended)
            if ended is not None and ended.problem:
                raise StorageError(f"the last checkpoint could not be saved: {ended.problem}")
        if asked and not finished:
            if trainer.peers.rank == 0:
                outside.say(f"stopped after step {done}, which is saved")
            break
        beat(f"step {done}: reading clips")


def validate(
    trainer: Trainer,
    dataset: PreparedDataset,
    config: RunConfig,
    beat: Callable[[str], None] = lambda what: None,
) -> dict[str, float]:
    """Median CC_abs of the sessions this rank speaks for, on their validation videos.

    All ranks must call it.
    """
    trainer.engine.gather()
    found = {}
    for name, part in trainer.sessions.items():
        session = dataset.session(name)
        if not trainer.peers.counts(name) or not session.videos("validation"):
            continue
        score = evaluate_session(
            Network(trainer.engine.module, part),
            session,
            "validation",
            burnin=config.training.burnin,
            baseline=False,
            on_video=partial(_validating, beat, name),
        )
        values = [s.cc_abs for s in score.domains if s.cc_abs is not None]
        if values:
            found[name] = sum(values) / len(values)
    return found


def _validating(beat: Callable[[str], None], session: str, video: str) -> None:
    beat(f"validating {session}: {video}")


def _hung(config: RunConfig, rank: int, outside: Outside, what: str, stacks: str) -> None:
    """Leave the stacks of a process that hangs in the run's folder, and say so."""
    url = storage.join(config.output, HANGS, f"rank-{rank}.txt")
    outside.say(f"rank {rank}: {what}; the stacks of its threads are in {url}")
    storage.write_bytes(url, f"{what}\n\n{stacks}".encode())
