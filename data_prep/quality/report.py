"""The quality report of a prepared dataset: a page a session, one of all, and the numbers."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

from data_prep.quality import figures, flags, metrics
from data_prep.quality.session import BURNIN, session_quality
from data_prep.quality.types import SessionQuality
from fmcortex import __version__, storage
from fmcortex.data.dataset import open_dataset
from fmcortex.errors import without_secrets
from fmcortex.report.figures import data_uri, style

TEMPLATE = "page.html"
INDEX, NUMBERS = "index.html", "quality.json"
#: Decoded blocks to keep in memory: trials are read once, in order.
CACHE_BYTES = 32 << 20
#: Flagged neurons, trials and pairs that a page lists; all are in the numbers.
MOST_LISTED = 200

Track = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Line:
    """A session in the table of all."""

    session: str
    page: str
    animal: str
    neurons: int
    minutes: float
    left_out: int
    cc_max: float | None
    neuron_flags: int
    trial_flags: int
    remarks: int


@dataclass(frozen=True)
class Picture:
    """A figure of a page: the image itself, what it shows, and its natural width in pixels."""

    uri: str
    alt: str
    width: int


def write_quality(
    url: str,
    to: str,
    sessions: Sequence[str] | None = None,
    track: Track | None = None,
    burnin: int = BURNIN,
) -> list[str]:
    """Write the quality report of the prepared dataset at `url`.

    Args:
        url: of the dataset.
        to: URL of the folder of `index.html`, a page a session, and `quality.json`, which is
            written last.
        sessions: names of those to look at; None for all.
        track: called with the training trials done, all of them, and what is read next.
        burnin: first frames of each repeated video that do not count in CC_max.

    Returns:
        URLs of the files, the index first.

    Raises:
        DataError: not a prepared dataset, no such session, or a part of it is damaged.
        StorageError: something cannot be read or written.
    """
    to = storage.absolute(to)
    dataset = open_dataset(url)
    trials = {entry.session: entry.train_trials for entry in dataset.manifest.sessions}
    names = dataset.sessions if sessions is None else list(dict.fromkeys(sessions))
    for name in names:
        if name not in trials:
            dataset.session(name)  # says which there are
    total = sum(trials[name] for name in names)
    done, lines, numbers, files = 0, [], [], []
    for name in names:
        # Opened anew, so that what was read of one session does not stay in memory.
        session = open_dataset(url, cache_bytes=CACHE_BYTES).session(name)
        reader = _Tracker(track, name, done, total)
        quality = session_quality(session, burnin, reader)
        done += trials[name]
        files.append(storage.join(to, page_name(name)))
        storage.write_bytes(files[-1], session_page(quality).encode())
        lines.append(_line(quality))
        numbers.append(_encoded(quality))
    if track is not None:
        track(total, total, "")
    index = storage.join(to, INDEX)
    storage.write_bytes(index, index_page(url, lines).encode())
    # Put together from text: the numbers of many sessions as objects would fill the memory.
    head = json.dumps({"url": without_secrets(url), "thresholds": thresholds(burnin)})
    content = head[:-1] + ',\n"sessions": [\n' + ",\n".join(numbers) + "\n]}\n"
    storage.write_bytes(storage.join(to, NUMBERS), content.encode())
    return [index, *files, storage.join(to, NUMBERS)]


class _Tracker:
    """Counts the training trials of a session that are read, and passes on what is read."""

    def __init__(self, track: Track | None, session: str, before: int, total: int) -> None:
        self._track, self._session, self._done, self._total = track, session, before, total

    def __call__(self, what: str) -> None:
        if self._track is not None:
            # All is done only once the last session's videos are, too.
            done = min(self._done, self._total - 1)
            self._track(done, self._total, f"{self._session}: {what}")
        self._done += what.startswith("trial ")


def page_name(session: str) -> str:
    """The file of a session's page; `~` is in no session's name, so that none hides another."""
    return f"{session}.html" if session.lower() != "index" else f"{session}~.html"


def thresholds(burnin: int) -> dict[str, float]:
    """The limits by which neurons and trials are flagged."""
    return {
        "burnin_frames": burnin,
        "extreme_robust_sd": flags.EXTREME,
        "low_cc_max": flags.LOW_CC_MAX,
        "same_cell_correlation": flags.SAME_CELL,
        "filled": flags.MOST_FILLED,
        "outlier_sd": metrics.OUTLIER,
        "flat_seconds": metrics.FLAT_SECONDS,
        "flat_trial_seconds": metrics.FLAT_TRIAL_SECONDS,
        "drift": flags.LARGE_DRIFT,
    }


def session_page(quality: SessionQuality) -> str:
    """The HTML page of a session; every name in it is escaped."""
    with style():
        pictures = {
            name: Picture(data_uri(figure), alt, round(96 * figure.get_figwidth()))
            for name, alt, draw in (
                ("rates", "histogram of mean responses", figures.rates),
                ("excluded", "trials left out, by reason", figures.excluded),
                ("traces", "pupil and treadmill over the session", figures.traces),
                ("cc_max", "histogram of CC_max by area", figures.cc_max),
                ("population", "population response by trial", figures.population),
                ("cortex", "neurons in cortex, coloured by CC_max", figures.cortex),
            )
            if (figure := draw(quality)) is not None
        }
    return _template().render(
        **_common(f"Quality of {quality.session}"),
        q=quality,
        pictures=pictures,
        left_out=len(quality.missing.excluded),
        neuron_kinds=_kinds(quality.neuron_flags),
        trial_kinds=_kinds(quality.trial_flags),
        limits=thresholds(quality.reliability.burnin if quality.reliability else BURNIN),
        most=MOST_LISTED,
        numbers=NUMBERS,
        index=INDEX,
    )


def index_page(url: str, lines: Sequence[Line]) -> str:
    """The HTML page of all sessions."""
    shown = without_secrets(url)
    return _template().render(**_common("Quality of a dataset"), q=None, url=shown, lines=lines)


def _common(title: str) -> dict[str, Any]:
    made = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC")
    return {"title": title, "made": made, "version": __version__}


@cache
def _template() -> Any:
    import jinja2

    page = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page.filters["number"] = number
    page.filters["percent"] = percent
    template = resources.files("data_prep.quality").joinpath(TEMPLATE)
    return page.from_string(template.read_text("utf-8"))


def number(value: float | None, digits: int = 2) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None else f"{value:z.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    """A part as percent; what is little but there does not read as none."""
    return "under 0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def _kinds(flags: Sequence[Any]) -> dict[str, int]:
    """How often each kind of reason occurs, the most frequent first."""
    kinds = Counter(kind for flag in flags for kind in {reason.kind for reason in flag.reasons})
    return dict(kinds.most_common())


def _line(quality: SessionQuality) -> Line:
    found = quality.reliability
    return Line(
        session=quality.session,
        page=page_name(quality.session),
        animal=quality.animal,
        neurons=quality.neurons,
        minutes=quality.train_minutes,
        left_out=len(quality.missing.excluded),
        cc_max=None if found is None else found.median,
        neuron_flags=len(quality.neuron_flags),
        trial_flags=len(quality.trial_flags),
        remarks=len(quality.remarks),
    )


def _encoded(quality: SessionQuality) -> str:
    """The numbers of a session as JSON, without the traces, which are for drawing."""
    numbers = dataclasses.asdict(quality)
    for channel in numbers["behaviour"]["channels"]:
        del channel["trace_low"], channel["trace_high"]
    return json.dumps(numbers, allow_nan=False)
