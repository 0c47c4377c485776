"""What a sweep leaves: a result for each point, and a summary with the law fitted to them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from fmcortex import storage
from fmcortex.data.manifest import Document
from fmcortex.errors import DataError
from fmcortex.scaling.power_law import Form, PowerLaw, fit_power_law

Axis = Literal["neuron_hours", "mouse_minutes"]

SUMMARY = "scaling.json"
COLUMNS = ("mice", "minutes", "seed", "mouse_minutes", "neuron_hours", "score", "seconds", "run_id")


class PointResult(Document):
    """One finished point of a sweep."""

    version: Literal[1] = 1
    key: str = Field(description="hash of everything that affects the result")
    mice: int = Field(ge=1)
    minutes: float | None = Field(description="of training data a mouse; null for all")
    seed: int
    sessions: list[str] = Field(description="pretrained on")
    mouse_minutes: float = Field(gt=0, description="minutes of training data, summed over mice")
    neuron_hours: float = Field(gt=0, description="neurons x hours of training data, summed")
    score: float = Field(description="median over the scored sessions")
    by_session: dict[str, float | None] = Field(description="median over its neurons")
    run_id: str = Field(description="of the MLflow run")
    tracking_uri: str
    checkpoint: str
    seconds: float = Field(ge=0, description="of training and scoring")

    def amount(self, axis: Axis) -> float:
        """The amount of training data, in the unit of `axis`."""
        return self.neuron_hours if axis == "neuron_hours" else self.mouse_minutes


class SweepSummary(Document):
    """A sweep's finished points, and the law fitted to them or why there is none."""

    version: Literal[1] = 1
    label: str = Field(description="what the score is")
    axis: Axis
    points: list[PointResult]
    failed: dict[str, str] = Field(default_factory=dict, description="message by point")
    law: PowerLaw | None = None
    law_problem: str | None = None
    run_id: str = Field("", description="of the MLflow parent run")
    tracking_uri: str = ""


def summarise(
    label: str,
    axis: Axis,
    points: Sequence[PointResult],
    form: Form | Literal["auto"] = "auto",
    failed: dict[str, str] | None = None,
    run_id: str = "",
    tracking_uri: str = "",
) -> SweepSummary:
    """Fit a law to the points that there are; where none can be fitted, say why."""
    law, problem = None, None
    try:
        law = fit_power_law([p.amount(axis) for p in points], [p.score for p in points], form)
    except DataError as error:
        problem = str(error)
    return SweepSummary(
        label=label,
        axis=axis,
        points=list(points),
        failed=failed or {},
        law=law,
        law_problem=problem,
        run_id=run_id,
        tracking_uri=tracking_uri,
    )


def as_csv(points: Sequence[PointResult]) -> str:
    """The points as a table of comma-separated values, with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for point in points:
        values = point.model_dump()
        writer.writerow(["" if values[name] is None else values[name] for name in COLUMNS])
    return text.getvalue()


def as_table(points: Sequence[PointResult]) -> str:
    """The points as lines for a terminal."""
    lines = [f"{'mice':>5} {'minutes':>8} {'seed':>5} {'neuron-hours':>13} {'score':>7}"]
    for point in points:
        minutes = "all" if point.minutes is None else f"{point.minutes:g}"
        lines.append(
            f"{point.mice:>5} {minutes:>8} {point.seed:>5} {point.neuron_hours:>13.3f} "
            f"{point.score:>7.3f}"
        )
    return "\n".join(lines)


def point_file(output: str, key: str) -> str:
    """The file of a point's result in a sweep's folder."""
    return storage.join(output, "points", f"{key}.json")


def load_point(output: str, key: str) -> PointResult | None:
    """A point's result; None if it is not finished.

    Raises:
        DataError: the file is malformed; removing it lets the point run again.
    """
    path = point_file(output, key)
    if not storage.exists(path):
        return None
    return PointResult.parse(storage.read_bytes(path), path)


def load_summary(output: str) -> SweepSummary:
    """The summary in a sweep's folder.

    Raises:
        StorageError: there is none.
        DataError: it is malformed.
    """
    path = storage.join(output, SUMMARY)
    return SweepSummary.parse(storage.read_bytes(path), path)
