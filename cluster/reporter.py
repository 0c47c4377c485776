"""Gathers what all ranks did in each step; rank 0 sends it to MLflow and to the user."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import psutil
import torch

from cluster.checkpoints import Saved
from cluster.placement import write_costs
from fmcortex import storage
from fmcortex.config import RunConfig
from fmcortex.data.loader import ClipLoader
from fmcortex.errors import FmcortexError, StorageError
from fmcortex.tracking.page import facts_of, read_curves, write_curves_page
from fmcortex.tracking.run import TRY_EVERY, RunLog
from fmcortex.tracking.store import impatient, why
from fmcortex.training.step import StepReport, Trainer

if TYPE_CHECKING:
    from cluster.loop import Outside

#: Steps whose metrics are gathered and sent together.
REPORT_EVERY = 10
#: First steps of a start, slower than the rest, whose times do not count.
WARM = 3
#: File with the measured cost of each session, for `cluster.costs` of a later run.
COSTS_FILE = "costs.json"


class Reporter:
    """Reports of the steps of one rank; all ranks must make the same calls.

    Args:
        config: of the run.
        trainer: of this rank.
        log: the MLflow run, on rank 0.
        outside: hears of the progress, from rank 0.
    """

    def __init__(
        self, config: RunConfig, trainer: Trainer, log: RunLog | None, outside: Outside
    ) -> None:
        self.config, self.log, self.outside = config, log, outside
        self.peers, self.plan, self.device = trainer.peers, trainer.plan, trainer.compute.device
        self.trainer = trainer
        self.waiting: list[StepReport] = []
        self.epoch: list[float] = []
        self.costs: dict[str, list[float]] = {}
        self.seen = 0
        self.read_stall = self.read_stall_before = self.save_stall = 0.0
        self.since = time.perf_counter()
        # One thread, so that everything is sent in order, and a slow server holds up nobody.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tracking")
        self._complained, self._try_at = False, 0.0
        self._page: LivePage | None = None
        if log is not None:
            self._pool.submit(self._open_page, log)

    def add(self, report: StepReport, loader: ClipLoader) -> None:
        """Keep the report of a step."""
        self.waiting.append(report)
        self.read_stall = loader.stalled
        self.seen += 1
        if self.seen > WARM:
            for lane, seconds in report.seconds.items():
                self.costs.setdefault(report.sessions[lane], []).append(seconds)

    def stalled(self, seconds: float) -> None:
        """Training stood still for `seconds` because of a checkpoint."""
        self.save_stall += seconds

    def after_step(self, done: int, now: bool) -> None:
        """Send what waits, now and then; `now`: in any case."""
        epoch_ends = done % self.config.training.steps_per_epoch == 0
        if now or epoch_ends or done % REPORT_EVERY == 0:
            self._send(done, epoch_ends)

    def _send(self, done: int, epoch_ends: bool) -> None:
        mine = (self.waiting, memory_gb(self.device), self.costs if epoch_ends else {})
        told = self.peers.gather(mine)
        steps, self.waiting = len(self.waiting), []
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        stalled = self.read_stall - self.read_stall_before
        self.read_stall_before = self.read_stall
        if self.peers.rank != 0 or not steps:
            return
        batches: list[tuple[dict[str, float], int]] = []
        for of_ranks in zip(*(reports for reports, *_ in told), strict=True):
            metrics = step_metrics(of_ranks)
            self.epoch.append(metrics["train/loss"])
            batches.append((metrics, of_ranks[0].step + 1))
        clips = steps * len(self.plan.lanes) * self.config.data.batch
        totals = {
            "train/skipped": self.trainer.skipped,
            "speed/steps_per_second": steps / seconds,
            "speed/clips_per_second": clips / seconds,
            "speed/stall_fraction": stalled / seconds,
            "checkpoint/stall_seconds": self.save_stall,
        }
        for kind in ("rss", "gpu"):
            if found := [memory[kind] for _, memory, _ in told if kind in memory]:
                totals[f"memory/{kind}_gb"] = max(found)
        if epoch_ends:
            totals["epoch/loss"] = sum(self.epoch) / len(self.epoch)
            self.epoch = []
            self._write_costs([costs for *_, costs in told])
        batches.append((totals, done))
        self._submit(batches)
        last = batches[-2][0]
        self.outside.tell(
            done,
            f"loss {last['train/loss']:.4f}, lr {last['train/lr']:.3g}, "
            f"{totals['speed/clips_per_second']:.1f} clips/s",
        )

    def validation(self, done: int, scores: Mapping[str, float]) -> None:
        """Gather and log the validation scores of all ranks."""
        told = self.peers.gather(dict(scores))
        self.since = time.perf_counter()  # validation is not counted as training time
        joined = {name: value for some in told for name, value in some.items()}
        if self.peers.rank != 0 or not joined:
            return
        metrics = {f"validation/cc_abs/{name}": value for name, value in joined.items()}
        metrics["validation/cc_abs"] = sum(joined.values()) / len(joined)
        self._submit([(metrics, done)])

    def saved(self, done: int, saved: Saved | None) -> None:
        """Tell of a save that has ended.

        Raises:
            StorageError: on all ranks, when too many saves in a row have failed.
        """
        if saved is None:
            return
        if saved.problem is None:
            self._submit([({"checkpoint/seconds": saved.seconds}, done)])
            return
        limit = self.config.checkpoint.max_failures
        if saved.failures > limit:
            raise StorageError(
                f"{saved.failures} checkpoints in a row could not be saved "
                f"(checkpoint.max_failures: {limit}): {saved.problem}"
            )
        self._say(f"checkpoint of step {saved.step} not saved: {saved.problem}; going on")
        self.event("checkpoint failed", done)

    def close(self) -> None:
        """Send what waits; called also when the rank fails."""
        if self.log is not None:
            self._pool.submit(self._record, [], True)
        self._pool.shutdown(wait=True)

    def _submit(self, batches: Sequence[tuple[Mapping[str, float], int]]) -> None:
        if self.log is not None:
            self._pool.submit(self._record, list(batches))

    def _open_page(self, log: RunLog) -> None:
        try:
            self._page = LivePage(log, self.config)
        except Exception as error:  # MLflow's; a run goes on without its page
            self._say(f"no curves: {_line(error)}")

    def _record(
        self, batches: Sequence[tuple[Mapping[str, float], int]], last: bool = False
    ) -> None:
        """Log and send; a tracking server that is away does not stop the training.

        What fails here is said: nobody waits for the results of this thread.
        """
        assert self.log is not None
        try:
            for metrics, step in batches:
                self.log.collect(metrics, step)
            if last or time.monotonic() >= self._try_at:
                with impatient() if last else nullcontext():
                    self.log.flush()
                self._complained = False
        except Exception as error:  # MLflow's, its client's or the database's own
            self._try_at = time.monotonic() + TRY_EVERY  # one that is silent takes a while to fail
            if not self._complained:
                self._say(f"metrics cannot be sent, and are kept for later: {why(error)}")
            self._complained = True
        if self._page is not None:
            try:
                self._page.add(batches)
            except Exception as error:  # whatever it is, the run is worth more than its page
                self._page = None
                self._say(f"no more curves: {_line(error)}")

    def event(self, text: str, done: int) -> None:
        """Mark something that happened after `done` steps in the run's curves."""
        if self.peers.rank == 0:
            self._submit([({f"event/{text}": 1.0}, done)])

    def _say(self, line: str) -> None:
        if self.peers.rank == 0:
            self.outside.say(line)

    def _write_costs(self, told: Sequence[Mapping[str, Sequence[float]]]) -> None:
        found: dict[str, list[float]] = {}
        for costs in told:
            for name, seconds in costs.items():
                found.setdefault(name, []).extend(seconds)
        if not found:
            return
        medians = {name: sorted(s)[len(s) // 2] for name, s in found.items()}
        try:
            write_costs(storage.join(self.config.output, COSTS_FILE), medians)
        except FmcortexError as error:
            self._say(f"{error}; going on")


class LivePage:
    """The page of curves of a run that goes on, rewritten now and then.

    Args:
        log: the run; what an earlier start has logged is read once.
        config: of the run.
    """

    def __init__(self, log: RunLog, config: RunConfig) -> None:
        self.log, self.config = log, config
        self.every = config.tracking.page_seconds
        self.curves = read_curves(log)
        known = log.client.get_run(log.run_id)
        self.title = f"Curves of {known.info.run_name}"
        self.facts = facts_of(known, log.uri)
        self.wrote = time.monotonic()

    def add(self, batches: Sequence[tuple[Mapping[str, float], int]]) -> None:
        """Keep metrics by their steps, and write the page if it is time."""
        for metrics, step in batches:
            self.curves.add(metrics, step)
        if self.every and time.monotonic() - self.wrote >= self.every:
            write_curves_page(
                self.log,
                self.config.output,
                self.title,
                self.facts,
                refresh=max(int(self.every), 1),
                curves=self.curves,
            )
            self.wrote = time.monotonic()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def step_metrics(of_ranks: Sequence[StepReport]) -> dict[str, float]:
    """The metrics of one step from the reports of all ranks."""
    first = of_ranks[0]
    by_session: dict[str, list[float]] = {}
    for report in of_ranks:
        for lane, loss in report.losses.items():
            by_session.setdefault(report.sessions[lane], []).append(loss)
    losses = [loss for some in by_session.values() for loss in some]
    metrics = {
        "train/loss": sum(losses) / len(losses),
        "train/lr": first.lr,
        "grad/norm": first.norms["all"],
        "grad/shared": first.norms["shared"],
        "grad/sessions": first.norms["sessions"],
        "grad/clipped": first.clipped,
        "grad/coefficient": first.coefficient,
    }
    return metrics | {f"loss/{name}": sum(v) / len(v) for name, v in by_session.items()}


def memory_gb(device: torch.device) -> dict[str, float]:
    """Memory of this process: `rss`, and `gpu` at its peak, in 10^9 bytes."""
    found: dict[str, Any] = {"rss": psutil.Process().memory_info().rss / 1e9}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.max_memory_allocated(device) / 1e9
    return found
