"""A run's curves as one HTML page that needs nothing else, rewritten while the run goes on."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, partial
from importlib import resources
from typing import Any

from markupsafe import Markup

from fmcortex import storage
from fmcortex.errors import without_secrets
from fmcortex.tracking import svg
from fmcortex.tracking.kinds import Group
from fmcortex.tracking.panels import comparison, groups, reach
from fmcortex.tracking.run import RunLog
from fmcortex.tracking.series import Curves, Event
from fmcortex.tracking.store import finite_or_infinite
from fmcortex.tracking.ticks import duration, short

PAGE_FILE = "curves.html"
#: Events that are listed and marked, the newest ones.
EVENTS = 60
#: Tags of a run that are no facts of it.
NO_FACTS = ("kind", "output", "checkpoint")

Points = Mapping[str, Sequence[tuple[int, float]]]


def curves_page(
    curves: Points | Curves,
    title: str,
    facts: Mapping[str, str] | None = None,
    events: Sequence[Event] = (),
    refresh: int = 0,
) -> str:
    """The page of one run's curves.

    Args:
        curves: (step, value) by the metric's name, or what `Curves` kept of them. The step of a
            metric `system/...` is seconds since the start; a metric `event/<text>` is an event.
        title: of the page.
        facts: of the run, by what they are called.
        events: more of them, beside those in `curves`.
        refresh: seconds after which a browser loads the page again; 0 for never.

    Returns:
        HTML; every name in it is escaped.
    """
    kept = curves if isinstance(curves, Curves) else Curves.of(curves)
    happened = sorted({*kept.events, *events})[-EVENTS:]
    return _rendered(groups(kept), title, _tiles(kept), facts or {}, happened, refresh)


def comparison_page(runs: Mapping[str, Curves], title: str) -> str:
    """The page of several runs' curves over each other.

    Args:
        runs: by the name that the legend gives them.
        title: of the page.
    """
    facts = {name: _state(curves) for name, curves in runs.items()}
    return _rendered(comparison(runs), title, [], facts, [], 0, "Latest")


def write_curves_page(
    run: RunLog,
    output: str,
    title: str | None = None,
    facts: Mapping[str, str] | None = None,
    events: Sequence[Event] = (),
    refresh: int = 0,
    curves: Curves | None = None,
) -> str:
    """Write `<output>/curves.html`, whole or not at all.

    Args:
        run: whose curves they are.
        output: folder of the run, any fsspec URL.
        title: of the page; None for the name of the run.
        facts: of the run; None for what MLflow knows of it (`facts_of`).
        events: more of them, beside those that were logged as `event/<text>`.
        refresh: seconds after which a browser loads the page again; 0 for never.
        curves: of the run; None to read them all from MLflow, which takes about a second for
            every 50,000 values. A process that logs the metrics keeps them in a `Curves` itself.

    Returns:
        URL of the page.

    Raises:
        StorageError: it cannot be written.
    """
    if facts is None or title is None:
        known = run.client.get_run(run.run_id)
        facts = facts_of(known, run.uri) if facts is None else facts
        title = f"Curves of {known.info.run_name}" if title is None else title
    if curves is None:
        run.flush()
        curves = read_curves(run)
    url = storage.join(output, PAGE_FILE)
    storage.write_bytes(url, curves_page(curves, title, facts, events, refresh).encode())
    return url


def read_curves(run: RunLog) -> Curves:
    """The metrics and events of a run, as MLflow has them.

    Those of machines are set on the seconds since the run's start, by the time of each sample.
    """
    known = run.client.get_run(run.run_id)
    found = Curves()
    for name in known.data.metrics:
        history = run.client.get_metric_history(run.run_id, name)
        if name.startswith("system/"):
            start = known.info.start_time or 0
            points = [((m.timestamp - start) // 1000, finite_or_infinite(m.value)) for m in history]
        else:
            points = [(m.step, finite_or_infinite(m.value)) for m in history]
        found.extend(name, points)
    return found


def facts_of(known: Any, uri: str) -> dict[str, str]:
    """What there is to say of an MLflow run: its state, its store, versions and machine."""
    info, tags = known.info, known.data.tags
    began = datetime.fromtimestamp((info.start_time or 0) / 1000, UTC)
    facts = {"run": info.run_id, "state": info.status.lower(), "tracking store": uri}
    facts["started"] = began.strftime("%d %B %Y, %H:%M UTC")
    if info.end_time and info.status != "RUNNING":
        facts["took"] = duration((info.end_time - info.start_time) / 1000)
    for key in ("output", "checkpoint"):
        if key in tags:
            facts[key] = tags[key]
    facts |= {k: v for k, v in tags.items() if not k.startswith("mlflow.") and k not in NO_FACTS}
    return {key: without_secrets(str(value)) for key, value in facts.items()}


def _tiles(curves: Curves) -> list[tuple[str, str, str]]:
    """The page's few large numbers: value, what it is, a remark."""
    series = curves.series
    found = []
    trained = [one.last_step for name, one in series.items() if not name.startswith("system/")]
    if trained:
        found.append((f"{max(trained):,}".replace(",", " "), "steps done", ""))

    def add(name: str, what: str, remark: str, best: bool = False) -> None:
        if name in series and series[name].last is not None:
            bins = series[name].binned()
            if best:
                remark = f"best {short(float(bins.highs.max()))}"
            found.append((short(series[name].last), what, remark))

    add("train/loss", "training loss", "latest step")
    add("validation/cc_abs", "validation CC_abs", "", best=True)
    add("speed/clips_per_second", "clips per second", "all ranks")
    add("speed/stall_fraction", "waiting for data", "fraction of the time")
    if "train/skipped" in series:
        add("train/skipped", "steps skipped", "loss not finite")
    return found if len(found) > 1 else []


def _state(curves: Curves) -> str:
    last = {name: one for name, one in curves.series.items() if one.last is not None}
    said = []
    for name, what in (("train/loss", "loss"), ("validation/cc_abs", "validation CC_abs")):
        if name in last:
            said.append(f"{what} {short(last[name].last)} at step {last[name].last_step}")
    return ", ".join(said) or "no metrics"


def _rendered(
    made: Sequence[Group],
    title: str,
    tiles: Sequence[tuple[str, str, str]],
    facts: Mapping[str, str],
    events: Sequence[Event],
    refresh: int,
    facts_title: str = "Run",
) -> str:
    panels = [panel for group in made for panel in group.panels]
    steps = reach([panel for panel in panels if not panel.clock])
    times = reach([panel for panel in panels if panel.clock])
    template, script, digest = _template()
    return str(
        template.render(
            title=title,
            made=datetime.now(UTC).strftime("%d %B %Y, %H:%M:%S UTC"),
            groups=made,
            tiles=tiles,
            facts=facts,
            facts_title=facts_title,
            events=events,
            refresh=refresh,
            script=Markup(script),
            script_hash=digest,
            drawn=lambda panel: svg.draw(panel, times if panel.clock else steps, events),
        )
    )


@cache
def _template() -> tuple[Any, str, str]:
    """The compiled template, the script, and its hash for the page's security policy."""
    import jinja2

    folder = resources.files(__package__ or "fmcortex.tracking")
    script = folder.joinpath("page.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"short": partial(short, digits=4), "colour": svg.colour_of}
    source = folder.joinpath("page.html").read_text("utf-8")
    return environment.from_string(source), script, f"sha256-{digest}"
