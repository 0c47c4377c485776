"""A small sweep of three sizes of data: run, continued, failing, drawn."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any

import pytest

import cluster.sweep
from cluster.sweep import SweepResult, run_sweep
from fmcortex import storage
from fmcortex.errors import DataError, FmcortexError, Locked, Preempted
from fmcortex.lock import Lock
from fmcortex.scaling.figures import scaling_figure
from fmcortex.scaling.results import PointResult, load_summary, summarise
from fmcortex.scaling.sweep import SweepConfig
from fmcortex.tracking.run import client


def config(url: str, output: Path, **values: Any) -> SweepConfig:
    base = {
        "model": {"preset": "tiny"},
        "data": {"url": url, "frames": 20, "batch": 1},
        "training": {
            "epochs": 1,
            "steps_per_epoch": 2,
            "warmup_epochs": 0,
            "burnin": 5,
            "device": "cpu",
        },
    }
    given = {"base": base, "mice": [1, 2, 3], "minutes": [0.3], "output": str(output), **values}
    return SweepConfig.model_validate(given)


@pytest.fixture(scope="session")
def swept(three_mice: str, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return run_sweep(config(three_mice, tmp_path_factory.mktemp("sweep")), workers=0)


def test_three_sizes_are_run_and_fitted(swept: SweepResult) -> None:
    assert len(swept.ran) == 3
    assert not swept.skipped
    law = swept.summary.law
    assert law is not None
    assert (law.sizes, law.form) == (3, "error")
    assert [p.mice for p in swept.summary.points] == [1, 2, 3]
    assert all(len(p.by_session) == p.mice for p in swept.summary.points)


def test_table_law_and_figure_are_left(swept: SweepResult) -> None:
    folder = Path(swept.output)
    rows = list(csv.DictReader((folder / "scaling.csv").read_text().splitlines()))
    assert [float(row["score"]) for row in rows] == [p.score for p in swept.summary.points]
    assert load_summary(swept.output) == swept.summary
    assert (folder / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_points_are_children_of_the_sweeps_run(swept: SweepResult) -> None:
    store = client(swept.tracking_uri)
    parent = store.get_run(swept.run_id)
    assert parent.data.tags["kind"] == "sweep"
    assert parent.info.status == "FINISHED"
    assert {"figures/scaling.png"} <= {
        file.path for file in store.list_artifacts(swept.run_id, "figures")
    }
    children = store.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{swept.run_id}'"
    )
    assert {run.info.run_id for run in children} == {p.run_id for p in swept.summary.points}
    for point in swept.summary.points:
        child = store.get_run(point.run_id)
        assert child.info.status == "FINISHED"
        assert child.data.metrics["sweep/cc_norm"] == pytest.approx(point.score)
        assert "train/loss" in child.data.metrics


def test_continued_sweep_runs_the_missing_point_alone(
    swept: SweepResult, three_mice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = swept.summary.points[0]
    (Path(swept.output) / "points" / f"{gone.key}.json").unlink()
    heard: list[str] = []
    again = run_sweep(config(three_mice, Path(swept.output)), workers=0, say=heard.append)
    assert len(again.ran) == 1
    assert len(again.skipped) == 2
    assert again.run_id == swept.run_id
    assert again.summary.points[0].score == pytest.approx(gone.score)
    assert again.summary.points[1:] == swept.summary.points[1:]
    assert "2 of 3 points are finished already" in heard[0]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished point was run again")

    monkeypatch.setattr(cluster.sweep, "run_point", never)
    assert run_sweep(config(three_mice, Path(swept.output)), workers=0).ran == []


def test_failed_point_is_named_and_the_others_go_on(
    swept: SweepResult, three_mice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = {point.mice: point for point in swept.summary.points}

    def fails_once(settings: SweepConfig, point: Any, *_: Any) -> PointResult:
        if point.mice == 2:
            raise FmcortexError("the disk of node7 is full")
        result = results[point.mice]
        path = cluster.sweep.point_file(settings.output, point.key)
        storage.write_json(path, result.model_dump(mode="json"))
        return result

    monkeypatch.setattr(cluster.sweep, "run_point", fails_once)
    with pytest.raises(FmcortexError, match=r"1 of 3 points failed: 2 mice.*node7 is full"):
        run_sweep(config(three_mice, tmp_path), workers=0)
    left = load_summary(str(tmp_path))
    assert [p.mice for p in left.points] == [1, 3]
    assert list(left.failed) == ["2 mice, 0.3 minutes, seed 0"]
    assert left.law is None
    assert "2 sizes of data" in str(left.law_problem)
    store = client(left.tracking_uri)
    assert store.get_run(left.run_id).info.status == "FAILED"


def test_new_mouse_is_scored_with_the_shared_part_frozen(three_mice: str, tmp_path: Path) -> None:
    transfer = {"session": "mouse02-1-1", "minutes": 0.3, "steps": 2}
    given = config(three_mice, tmp_path, mice=[1], transfer=transfer)
    found = run_sweep(given, workers=0).summary
    assert list(found.points[0].by_session) == ["mouse02-1-1"]
    assert "new mouse mouse02-1-1" in found.label


def test_figure_shows_points_law_interval_and_units(swept: SweepResult) -> None:
    points = [
        point.model_copy(update={"seed": seed, "score": score, "neuron_hours": hours})
        for point, hours, scores in zip(
            swept.summary.points,
            (1.0, 10.0, 100.0),
            ((0.3, 0.34), (0.5, 0.52), (0.66,)),
            strict=True,
        )
        for seed, score in enumerate(scores)
    ]
    summary = summarise("median CC_norm", "neuron_hours", points)
    ax = scaling_figure(summary).axes[0]
    assert ax.get_xlabel() == "training data (neuron-hours)"
    assert ax.get_ylabel() == "median CC_norm"
    assert "95% interval" in ax.get_title(loc="left")
    labels = ax.get_legend_handles_labels()[1]
    assert labels == ["95% interval", "power law", "1 mouse", "2 mice", "3 mice"]
    drawn = {text.get_label(): text for text in ax.containers}
    assert drawn["1 mouse"].lines[0].get_ydata() == pytest.approx([0.32])
    assert ax.get_xscale() == "log"


def test_figure_without_a_law_says_why(swept: SweepResult) -> None:
    summary = summarise("score", "mouse_minutes", swept.summary.points[:2])
    ax = scaling_figure(summary).axes[0]
    assert "2 sizes of data" in ax.texts[0].get_text()
    assert "mouse-minutes" in ax.get_xlabel()


def test_a_second_sweep_into_the_same_folder_is_refused(three_mice: str, tmp_path: Path) -> None:
    with (
        Lock(str(tmp_path), "sweep"),
        pytest.raises(Locked, match="in use by sweep of user"),
    ):
        run_sweep(config(three_mice, tmp_path), workers=0)
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_is_told_to_stop_counts_no_point_as_failed(
    three_mice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise Preempted("told to stop; saved after step 1 of 2")

    def while_scored(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        raise DataError("no score")

    monkeypatch.setattr(cluster.sweep, "run_point", stopped)
    with pytest.raises(Preempted, match="saved after step 1 of 2"):
        run_sweep(config(three_mice, tmp_path), workers=0)
    known = storage.read_json(str(tmp_path / "sweep.json"))
    assert client(known["uri"]).get_run(known["run_id"]).info.status == "KILLED"
    monkeypatch.setattr(cluster.sweep, "run_point", while_scored)
    with pytest.raises(Preempted, match="told to stop before point 2 of 3"):
        run_sweep(config(three_mice, tmp_path), workers=0)
