"""Putting the report's page together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

from fmcortex import storage
from fmcortex.data.dataset import open_dataset
from fmcortex.data.manifest import DOMAINS
from fmcortex.errors import FmcortexError, without_secrets
from fmcortex.evaluation.evaluate import NATURAL, DomainScore
from fmcortex.report import figures, network_figures
from fmcortex.report.inputs import (
    Report,
    ReportInputs,
    RunRecord,
    gather,
    inputs_of,
    pretty,
)
from fmcortex.scaling.figures import scaling_figure
from fmcortex.tracking.curves import curves_figure
from fmcortex.tracking.run import environment

TEMPLATE = "template.html"
#: Sessions whose readouts are drawn.
READOUT_PANELS = 8
#: Pairs of models whose neurons are drawn against each other.
PAIRS = 3


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        uri: the image itself.
        alt: what it shows, for those who cannot see it.
        caption: what to read in it.
        width: of its natural size, pixels.
    """

    uri: str
    alt: str
    caption: str
    width: int


@dataclass(frozen=True)
class Cell:
    """A cell of the heat map: the value, and how strongly it is coloured, from 0 to 1."""

    value: float | None
    strength: float


def write_report(inputs: ReportInputs | Report | str, to: str) -> Path:
    """Write the report as one HTML file that needs nothing else.

    Args:
        inputs: what to report on, or a folder to look through (`inputs_of`), or what was read.
        to: the file.

    Raises:
        FmcortexError: something that was named cannot be read, or the file cannot be written.
    """
    inputs = inputs_of(inputs) if isinstance(inputs, str) else inputs
    report = inputs if isinstance(inputs, Report) else gather(inputs)
    storage.write_bytes(storage.absolute(to), render(report).encode())
    return Path(storage.absolute(to))


def render(report: Report) -> str:
    """The page's HTML; every name in it is escaped."""
    import jinja2

    source = resources.files(__package__ or "fmcortex.report").joinpath(TEMPLATE).read_text("utf-8")
    page = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters["number"] = number
    with figures.style():
        pictures = _pictures(report)
    return page.from_string(source).render(
        report=report,
        made=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        tiles=_tiles(report),
        headline=_headline(report),
        heat_domains=[_spoken(name) for name in _domains(report)],
        heat=_heat(report),
        law=_law(report),
        pictures=pictures,
        details=[_details(run) for run in report.runs],
        versions=environment(),
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:z.{digits}f}".replace("-", "−")


def _spoken(domain: str) -> str:
    return domain.replace("_", " ")


def _natural(report: Report, model: str, session: str) -> DomainScore | None:
    score = report.score(model, session)
    return next((d for d in score.domains if d.domain == NATURAL), None) if score else None


def _domains(report: Report) -> list[str]:
    """Stimulus domains that some model was evaluated on, in the paper's order."""
    found = {d.domain for scores in report.models.values() for s in scores for d in s.domains}
    return [d for d in DOMAINS if d in found] + sorted(found - set(DOMAINS))


def _middle(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return median(there) if there else None


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """The page's few large numbers: value, what it is, a remark."""
    found = []
    for model in report.models:
        natural = [_natural(report, model, session) for session in report.sessions]
        value = _middle([d.cc_norm for d in natural if d])
        baseline = _middle([d.baseline_cc_norm for d in natural if d])
        mice = sum(1 for d in natural if d)
        remark = f"{mice} {'mouse' if mice == 1 else 'mice'}, "
        remark += f"baseline {number(baseline)}" if baseline is not None else "no baseline"
        found.append((number(value), f"{model}: median CC_norm, natural movies", remark))
    if report.sweep is not None and report.sweep.law is not None:
        law = report.sweep.law
        interval = law.exponent_interval
        remark = (
            "no interval"
            if interval is None
            else f"{law.level:.0%} interval {number(interval[0])} to {number(interval[1])}"
        )
        found.append((number(law.exponent), "scaling exponent", remark))
    return found


def _headline(report: Report) -> list[dict[str, Any]]:
    """A row a mouse, and one of medians: natural movies under each model."""
    rows = []
    for session in report.sessions:
        by_model = {model: _natural(report, model, session) for model in report.models}
        some = next((d for d in by_model.values() if d is not None), None)
        rows.append(
            {
                "name": session,
                "some": some,
                "scores": [
                    (d.cc_norm, d.baseline_cc_norm) if d else (None, None)
                    for d in by_model.values()
                ],
            }
        )
    if len(rows) > 1:
        columns = zip(*(row["scores"] for row in rows), strict=True)
        middles = [(_middle([c[0] for c in col]), _middle([c[1] for c in col])) for col in columns]
        rows.append({"name": "median over mice", "some": None, "scores": middles})
    return rows


def _heat(report: Report) -> list[tuple[str, str, list[Cell]]]:
    """CC_norm by stimulus domain: model, mouse and a cell a domain."""
    rows = []
    names = _domains(report)
    for model, scores in report.models.items():
        for score in scores:
            values = {d.domain: d.cc_norm for d in score.domains}
            cells = [
                Cell(values.get(name), min(max(values.get(name) or 0.0, 0.0), 1.0))
                for name in names
            ]
            rows.append((model, score.session, cells))
    return rows


def _law(report: Report) -> str | None:
    """What the sweep says, in a sentence."""
    if report.sweep is None:
        return None
    law = report.sweep.law
    if law is None:
        return report.sweep.law_problem
    unit = report.sweep.axis.replace("_", "-")
    said = f"y = {law.formula()} with x in {unit}, fitted to {len(report.sweep.points)} points"
    if law.significant is False:
        said += "; the exponent's interval holds zero, so this sweep shows no effect of data"
    return said


def _details(run: RunRecord) -> dict[str, Any]:
    checkpoint = run.checkpoint
    facts = {
        "MLflow run": run.run_id,
        "tracking store": without_secrets(run.uri) if run.uri else None,
        "status": run.status,
        "checkpoint": checkpoint.folder if checkpoint else None,
        "steps": str(checkpoint.step) if checkpoint else None,
        "sessions": ", ".join(checkpoint.sessions) if checkpoint else None,
        "neurons": str(sum(checkpoint.manifest.units.values())) if checkpoint else None,
        **run.environment,
    }
    return {"folder": run.folder, "facts": facts, "config": pretty(run.config)}


def _pictures(report: Report) -> dict[str, list[Picture]]:
    """The figures, by section; one that cannot be drawn is listed as missing."""
    found: dict[str, list[Picture]] = {}

    def add(section: str, alt: str, caption: str, draw: Callable[[], Any]) -> None:
        try:
            figure = draw()
        except FmcortexError as error:
            report.missing.append(f"{alt}: {error}")
            return
        if figure is not None:
            picture = Picture(
                figures.data_uri(figure), alt, caption, round(96 * figure.get_figwidth())
            )
            found.setdefault(section, []).append(picture)

    models = report.models
    if models:
        add(
            "movies",
            "CC_norm of neurons by mouse and model",
            "A dot is a neuron, the bar its quartiles, the line the median. Neurons without a "
            "CC_max are left out; the axis leaves out the outermost 0.5%.",
            lambda: figures.distributions(models, report.sessions),
        )
        pairs = [(x, y) for y, x in combinations(models, 2)]
        add(
            "movies",
            "CC_norm of neurons under two models",
            "The same neurons under two models, natural movies.",
            lambda: figures.against(models, pairs[:PAIRS]),
        )
        add(
            "movies",
            "CC_abs against CC_max",
            "Correlation with the mean response against the largest that any predictor could "
            "reach with these repeats (Schoppe et al. 2016), natural movies.",
            lambda: figures.ceiling(models),
        )
        names = _domains(report)
        if len(names) > 1:
            add(
                "domains",
                "CC_norm by stimulus domain",
                "Bars are medians over mice, a dot is a mouse.",
                lambda: figures.domains(models, names, [_spoken(n) for n in names]),
            )
    for run in report.runs:
        if run.curves:
            caption = f"Run {run.folder}."
            add("curves", "training curves", caption, partial(curves_figure, run.curves))
    sweep = report.sweep
    if sweep is not None:
        caption = "Dots are means over seeds, bars their range. The band is the law's interval."
        add("scaling", "score over the amount of data", caption, partial(scaling_figure, sweep))
    _network_pictures(report, add)
    return found


def _network_pictures(report: Report, add: Callable[..., None]) -> None:
    """Readout positions and traces of the checkpoint's first sessions."""
    checkpoint = report.checkpoint
    if checkpoint is None or not checkpoint.sessions:
        return
    names = checkpoint.sessions[:READOUT_PANELS]
    networks = {name: checkpoint.network(name) for name in names}
    dataset = None
    try:
        dataset = open_dataset(report.dataset) if report.dataset else None
    except FmcortexError as error:
        report.missing.append(f"areas and traces: {error}")
    areas = {}
    for name in names:
        if dataset is not None and name in dataset.sessions:
            table = dataset.session(name).neurons()
            if "area" in table and len(table["area"]) == networks[name].session.units:
                areas[name] = table["area"]
    left_out = len(checkpoint.sessions) - len(names)
    more = f" {left_out} more sessions are not shown." if left_out else ""
    add(
        "neurons",
        "readout positions",
        "Where each neuron's readout looks on the retina, the eye at rest." + more,
        lambda: network_figures.readouts(networks, areas),
    )
    shown = next((n for n in names if dataset is not None and n in dataset.sessions), None)
    if dataset is not None and shown is not None:
        session = dataset.session(shown)
        given = checkpoint.setting("training", "burnin")
        burnin = given if isinstance(given, int) else 10

        def draw() -> Any:
            traces = network_figures.find_traces(networks[shown], session, burnin)
            return network_figures.traces_figure(traces)

        add(
            "neurons",
            "recorded and predicted responses",
            f"Session {shown}: the most repeated natural test movie. Neurons are taken by their "
            "rank in CC_abs on it, not by looks.",
            draw,
        )
