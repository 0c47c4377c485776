"""What rank 0 tells of a run, to MLflow, to the page of curves and to the user."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.checkpoints import Saved
from cluster.loop import Nobody
from cluster.placement import read_costs
from cluster.reporter import WARM, Reporter, step_metrics
from fmcortex.config import RunConfig, load_config
from fmcortex.errors import StorageError
from fmcortex.tracking.run import RunLog
from fmcortex.training.peers import Alone
from fmcortex.training.step import StepReport


class Heard(Nobody):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.notes: list[tuple[int, str]] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def tell(self, done: int, note: str) -> None:
        self.notes.append((done, note))


class TwoRanks(Alone):
    """Rank 0 of two, the other of which says the same of its own lane."""

    def gather(self, value: Any) -> list[Any]:
        if isinstance(value, tuple):
            reports, memory, costs = value
            others = [report(r.step, lane=1, session="b", loss=3.0) for r in reports]
            theirs = {"b": [0.5] * len(costs["a"])} if costs else {}
            return [value, (others, {"rss": memory["rss"] + 1}, theirs)]
        return [value]


def report(step: int, lane: int = 0, session: str = "a", loss: float = 1.0) -> StepReport:
    return StepReport(
        step=step,
        lr=0.1,
        losses={lane: loss},
        sessions={lane: session},
        norms={"all": 5.0, "shared": 3.0, "sessions": 4.0},
        clipped=0.25,
        seconds={lane: 0.01 * (step + 1)},
    )


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    settings = [f"output={tmp_path}", "training.epochs=2", "training.steps_per_epoch=20"]
    return load_config(None, [*settings, "training.warmup_epochs=1", "tracking.page_seconds=1e-6"])


def reporter(config: RunConfig, log: RunLog | None, heard: Heard) -> Reporter:
    trainer: Any = SimpleNamespace(
        peers=TwoRanks(),
        plan=SimpleNamespace(lanes=[["a"], ["b"]]),
        compute=SimpleNamespace(device=torch.device("cpu")),
        skipped=2,
    )
    return Reporter(config, trainer, log, heard)


def test_a_step_of_two_ranks() -> None:
    metrics = step_metrics([report(0), report(0, lane=1, session="b", loss=3.0)])
    assert metrics == {
        "train/loss": 2.0,
        "train/lr": 0.1,
        "grad/norm": 5.0,
        "grad/shared": 3.0,
        "grad/sessions": 4.0,
        "grad/clipped": 0.25,
        "grad/coefficient": 1.0,
        "loss/a": 1.0,
        "loss/b": 3.0,
    }


def test_what_is_recorded(config: RunConfig, tmp_path: Path) -> None:
    log, heard = RunLog.start(f"sqlite:///{tmp_path}/mlflow.db", "e", "r"), Heard()
    told = reporter(config, log, heard)
    loader: Any = SimpleNamespace(stalled=0.0)
    for step in range(20):
        time.sleep(0.002)
        told.add(report(step), loader)
        told.after_step(step + 1, now=False)
    told.saved(20, Saved(20, "f", 1.5, None, 0))
    told.validation(20, {"a": 0.5})
    told.saved(20, Saved(20, "f", 1.5, "the store is away", 1))
    told.close()
    assert [step for step, _ in log.history("train/loss")] == list(range(1, 21))
    assert [step for step, _ in log.history("speed/clips_per_second")] == [10, 20]
    assert log.history("train/skipped") == [(10, 2.0), (20, 2.0)]
    assert log.history("epoch/loss") == [(20, 2.0)]
    assert log.history("validation/cc_abs/a") == [(20, 0.5)]
    assert log.history("checkpoint/seconds") == [(20, 1.5)]
    rss = log.history("memory/rss_gb")
    assert rss[0][1] > 1  # the largest of the ranks
    assert [done for done, _ in heard.notes] == [10, 20]
    assert heard.notes[0][1].startswith("loss 2.0000, lr 0.1, ")
    assert heard.lines == ["checkpoint of step 20 not saved: the store is away; going on"]
    # The first steps, slower than the rest, do not count.
    assert read_costs(f"{tmp_path}/costs.json")["a"] == pytest.approx(0.01 * (20 + WARM + 1) / 2)
    page = (tmp_path / "curves.html").read_text()
    assert "checkpoint failed" in page


def test_saves_that_fail_too_often_end_the_run(config: RunConfig) -> None:
    told = reporter(config, None, Heard())
    with pytest.raises(StorageError, match=r"4 checkpoints in a row could not be saved .*: away"):
        told.saved(20, Saved(20, "f", 1.5, "away", 4))


def test_a_tracking_store_that_is_away(config: RunConfig, tmp_path: Path) -> None:
    log, heard = RunLog.start(f"sqlite:///{tmp_path}/mlflow.db", "e", "r"), Heard()
    told = reporter(config, log, heard)
    loader: Any = SimpleNamespace(stalled=0.0)
    works, away = log.client.log_batch, [True]

    def log_batch(*arguments: Any, **options: Any) -> None:
        if away[0]:
            raise ConnectionError("nobody listens")
        works(*arguments, **options)

    log.client.log_batch = log_batch
    for step in range(30):
        if step == 25:
            told._pool.submit(away.clear)
            told._pool.submit(away.append, False)
        told.add(report(step), loader)
        told.after_step(step + 1, now=False)
    told.close()
    assert heard.lines == ["metrics cannot be sent, and are kept for later: nobody listens"]
    assert len(log.history("train/loss")) == 30  # nothing was lost


def test_a_page_that_cannot_be_drawn_is_said(config: RunConfig, tmp_path: Path) -> None:
    log, heard = RunLog.start(f"sqlite:///{tmp_path}/mlflow.db", "e", "r"), Heard()
    told = reporter(config, log, heard)
    loader: Any = SimpleNamespace(stalled=0.0)

    def fails(batches: object) -> None:
        raise ZeroDivisionError("a page")

    told._pool.submit(lambda: setattr(told._page, "add", fails))
    for step in range(20):
        told.add(report(step), loader)
        told.after_step(step + 1, now=False)
    told.close()
    assert heard.lines == ["no more curves: a page"]
    assert len(log.history("train/loss")) == 20


def test_a_run_with_an_infinite_loss_goes_on_with_its_page(
    config: RunConfig, tmp_path: Path
) -> None:
    """The page is made of what MLflow has, when the run goes on."""
    log, heard = RunLog.start(f"sqlite:///{tmp_path}/mlflow.db", "e", "r"), Heard()
    log.metrics({"train/loss": float("inf"), "grad/norm": float("inf")}, 1)
    log.flush()
    told = reporter(config, log, heard)
    loader: Any = SimpleNamespace(stalled=0.0)
    for step in range(1, 11):
        told.add(report(step), loader)
        told.after_step(step + 1, now=step == 10)
    told.close()
    assert heard.lines == []
    assert "<svg" in (tmp_path / "curves.html").read_text()
