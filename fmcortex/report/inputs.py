"""What a report is made of: where it lies, and reading it. What is missing stays missing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from fmcortex import storage
from fmcortex.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    FmcortexError,
    without_secrets,
)
from fmcortex.evaluation.evaluate import SessionScore
from fmcortex.scaling.results import SUMMARY, SweepSummary, load_summary
from fmcortex.tracking.run_file import RUN_FILE, read_run_file
from fmcortex.tracking.series import drawable
from fmcortex.tracking.store import client, sqlite_file, why
from fmcortex.training.checkpoint import Checkpoint, list_checkpoints, open_checkpoint

#: Folder of evaluations in a folder that is reported on: <model>.json, a list of SessionScore.
EVALUATIONS = "evaluations"
#: The models that come first, in this order.
ORDER = ("foundation", "transferred", "individual")
#: Metrics that are drawn, and what they are called there.
CURVES = {
    "train/loss": "training loss",
    "validation/cc_abs": "validation CC_abs (mean over mice)",
    "train/lr": "learning rate",
}
#: Points of a curve; more cannot be seen.
POINTS_A_CURVE = 600


@dataclass(frozen=True)
class ReportInputs:
    """Where the parts of a report lie; each may be missing.

    Attributes:
        runs: folders of runs.
        evaluations: JSON files with a list of `SessionScore`, by the model's name. The names
            foundation, transferred and individual have colours of their own.
        sweep: folder of a sweep.
        checkpoint: of the readouts and the traces; None for the newest of the first run.
        dataset: prepared dataset of the areas and the traces; None for that of the first run.
        title: of the page.
    """

    runs: Sequence[str] = ()
    evaluations: Mapping[str, str] = field(default_factory=dict)
    sweep: str | None = None
    checkpoint: str | None = None
    dataset: str | None = None
    title: str = "Foundation model of mouse visual cortex"


@dataclass
class RunRecord:
    """What is known of a run.

    Attributes:
        folder: of the run.
        config: as it was asked for.
        run_id: of the MLflow run; None if it is not recorded.
        uri: of its store.
        status: of the MLflow run.
        environment: versions, machine and code.
        curves: (step, value) by the name in `CURVES`.
        checkpoint: newest whole one; None if there is none.
        missing: what could not be read, a line each.
    """

    folder: str
    config: dict[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    uri: str | None = None
    status: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    missing: list[str] = field(default_factory=list)


@dataclass
class Report:
    """All that was read.

    Attributes:
        title: of the page.
        models: scores of each session, by the model's name.
        runs: in the order given.
        sweep: None if there is none.
        checkpoint: of the readouts and the traces.
        dataset: URL of the prepared dataset.
        missing: what could not be read, a line each.
    """

    title: str
    models: dict[str, list[SessionScore]]
    runs: list[RunRecord]
    sweep: SweepSummary | None
    checkpoint: Checkpoint | None
    dataset: str | None
    missing: list[str]

    @property
    def sessions(self) -> list[str]:
        """Sessions that some model was evaluated on."""
        return sorted({score.session for scores in self.models.values() for score in scores})

    def score(self, model: str, session: str) -> SessionScore | None:
        """Of a model on a session."""
        return next((s for s in self.models[model] if s.session == session), None)


def inputs_of(folder: str, title: str | None = None) -> ReportInputs:
    """What there is to report on in a local folder, or one folder below it.

    A folder with run.json is a run, one with scaling.json a sweep; `evaluations/<model>.json` are
    evaluations.

    Raises:
        ConfigError: there is nothing.
    """
    root = Path(folder)
    places = [root, *sorted(p for p in root.iterdir() if p.is_dir())] if root.is_dir() else []
    runs = [str(place) for place in places if (place / RUN_FILE).exists()]
    sweeps = [str(place) for place in places if (place / SUMMARY).exists()]
    files = [file for place in places for file in sorted((place / EVALUATIONS).glob("*.json"))]
    if not (runs or sweeps or files):
        raise ConfigError(
            f"{folder}: nothing to report on: no {RUN_FILE}, no {SUMMARY} and no "
            f"{EVALUATIONS}/<model>.json in it"
        )
    given = ReportInputs(
        runs=runs,
        evaluations={file.stem: str(file) for file in files},
        sweep=sweeps[0] if sweeps else None,
    )
    return given if title is None else ReportInputs(**{**given.__dict__, "title": title})


def read_scores(path: str) -> list[SessionScore]:
    """The evaluations in a JSON file: a list of `SessionScore`, or one.

    Raises:
        StorageError: it cannot be read.
        DataError: it is something else.
    """
    document = storage.read_json(path)
    try:
        several = document if isinstance(document, list) else [document]
        return [SessionScore.model_validate(one) for one in several]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "document"
        raise DataError(f"{path}: not a list of evaluations: {where}: {first['msg']}") from error


def gather(inputs: ReportInputs) -> Report:
    """Read everything.

    Raises:
        FmcortexError: something that was named outright cannot be read. What a run merely points
            to (its tracking store, its dataset) may be gone, and is listed as missing.
    """
    # With a model of its own, a report needs no run's.
    runs = [read_run(folder, strict=not inputs.checkpoint) for folder in inputs.runs]
    first = next((run for run in runs if run.checkpoint is not None), None)
    checkpoint = open_checkpoint(inputs.checkpoint) if inputs.checkpoint else None
    if checkpoint is None and first is not None:
        checkpoint = first.checkpoint
    ordered = [name for name in ORDER if name in inputs.evaluations]
    ordered += [name for name in inputs.evaluations if name not in ORDER]
    dataset = inputs.dataset
    if dataset is None and checkpoint is not None:
        url = checkpoint.setting("data", "url")
        dataset = url if isinstance(url, str) else None
    return Report(
        title=inputs.title,
        models={name: read_scores(inputs.evaluations[name]) for name in ordered},
        runs=runs,
        sweep=load_summary(inputs.sweep) if inputs.sweep else None,
        checkpoint=checkpoint,
        dataset=dataset,
        missing=[without_secrets(f"{r.folder}: {line}") for r in runs for line in r.missing],
    )


def read_run(folder: str, strict: bool = True) -> RunRecord:
    """A run's folder, and what its MLflow run recorded.

    Args:
        folder: of the run.
        strict: whether a damaged checkpoint is an error; else it is listed as missing.

    Raises:
        DataError: the folder holds neither a run nor a checkpoint.
        CheckpointError: its newest checkpoint is damaged.
        ConfigError: its `run.json` is of another form.
    """
    record = RunRecord(folder)
    if list_checkpoints(folder):
        try:
            record.checkpoint = open_checkpoint(folder)
        except CheckpointError as error:
            if strict:
                raise CheckpointError(f"{error} with --checkpoint") from error
            record.missing.append(str(error))
    known = read_run_file(folder)
    if known is not None:
        record.config, record.run_id, record.uri = known.config, known.run_id, known.uri
    elif record.checkpoint is None:
        raise DataError(f"{folder}: neither {RUN_FILE} nor a checkpoint in it; it is no run")
    else:
        record.config = record.checkpoint.manifest.config
    if record.checkpoint is None and not record.missing:
        record.missing.append("no whole checkpoint")
    if record.run_id is None or record.uri is None:
        record.missing.append(f"no MLflow run ({RUN_FILE} names none), so no curves")
        return record
    try:
        _read_tracking(record, record.uri, record.run_id)
    except Exception as error:  # a store that is away must not cost the rest of the report
        record.missing.append(f"MLflow run {record.run_id} cannot be read: {why(error)}")
    return record


def _read_tracking(record: RunRecord, uri: str, run_id: str) -> None:
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise FmcortexError(f"{uri}: no such store")  # opening it would make an empty one
    store = client(uri)
    run = store.get_run(run_id)
    record.status = run.info.status
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")}
    record.environment = {k: v for k, v in tags.items() if k not in ("kind", "output")}
    for key, name in CURVES.items():
        history = store.get_metric_history(run_id, key) if key in run.data.metrics else []
        points = sorted((metric.step, metric.value) for metric in history)
        fine = [point for point, shown in zip(points, _drawn(points), strict=True) if shown]
        if len(fine) < len(points):
            bad = len(points) - len(fine)
            record.missing.append(f"{name}: {bad} of {len(points)} values are not finite")
        if fine:
            record.curves[name] = thinned(fine)


def _drawn(points: Sequence[tuple[int, float]]) -> list[bool]:
    return [bool(shown) for shown in drawable(np.array([value for _, value in points], float))]


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `POINTS_A_CURVE` points: means over equal numbers of neighbours."""
    width = -(-len(points) // POINTS_A_CURVE)
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def pretty(document: Any) -> str:
    """A configuration as text, without passwords."""
    return without_secrets(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False))
