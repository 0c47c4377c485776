"""The trials of an NWB file: the rows of its interval tables, on the frames of the stimulus."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data_prep.checks import check_key
from data_prep.readers.clock import Clock
from data_prep.readers.hdf5_links import child, find, is_group, listed
from data_prep.readers.nwb_columns import need_column, text
from data_prep.readers.nwb_schema import NWB_JSON, NwbSession
from fmcortex.errors import DataError

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TIERS = ("train", "validation", "test", "none")
#: By how much showings of one clip differ in length at most, as displays and clocks have it.
_JITTER_SECONDS = 0.1


@dataclass(frozen=True)
class Shown:
    """A trial's place among the frames of the stimulus.

    Attributes:
        key: its name.
        tier: its tier, or none.
        domain: of its video.
        table: that it is a row of.
        label: its condition in that table.
        first: its first frame.
        frames: how many it has.
        left_out: why it is not used, if it is not.
        video: the name of what is shown.
    """

    key: str
    tier: str
    domain: str
    table: str
    label: str
    first: int
    frames: int
    left_out: str | None = None
    video: str = ""


def read_trials(file: Any, source: str, session: NwbSession, clock: Clock) -> list[Shown]:
    """The trials of all tables that `session` names, in the order of time.

    Args:
        file: that is open.
        source: its path or URL, for messages.
        session: what `nwb.json` says.
        clock: of the stimulus's frames.

    Raises:
        DataError: there are none, or a table is malformed.
    """
    intervals = find(file, "intervals", source)
    has = sorted(intervals) if is_group(intervals) else []
    tables = [name for name in session.intervals if name in has]
    if not tables:
        sought = listed(session.intervals)
        raise DataError(
            f"{source}: intervals has {listed(has) or 'no tables'}, but none of {sought};"
            f" say in {NWB_JSON} which tables are trials"
        )
    shown = [trial for name in tables for trial in _table(file, name, source, session, clock)]
    if not shown:
        raise DataError(f"{source}: no trials in intervals/{', '.join(tables)}")
    groups: dict[tuple[str, str], list[Shown]] = {}
    for trial in shown:
        groups.setdefault((trial.table, trial.label), []).append(trial)
    names = _video_names(list(groups))
    slack = max(round(_JITTER_SECONDS / clock.interval), 1)
    result = []
    for condition, trials in groups.items():
        tier = "test" if len(trials) >= session.repeats_for_test else "train"
        for trial in _of_one_length(trials, slack):
            video = names[condition]
            result.append(replace(trial, tier=trial.tier or tier, video=video))
    return sorted(result, key=lambda trial: trial.first)


def _of_one_length(trials: list[Shown], slack: int) -> list[Shown]:
    """The showings of one clip, cut to the shortest that is whole; others are left out.

    Those that agree within `slack` frames are whole, if no more of them agree on another length;
    of two lengths with as many showings the longer one.
    """
    counts = [trial.frames for trial in trials]

    def agreeing(longest: int) -> list[int]:
        return [count for count in counts if longest - slack <= count <= longest]

    whole = agreeing(max(counts, key=lambda count: (len(agreeing(count)), count)))
    frames = min(whole)
    result = []
    for trial in trials:
        if trial.frames in whole:
            result.append(replace(trial, frames=frames))
            continue
        was = "was broken off after" if trial.frames < frames else "went on for"
        reason = f"{was} {trial.frames} frames; other showings of its clip have {frames}"
        result.append(replace(trial, left_out=reason))
    return result


def _video_names(conditions: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """A name for the video of each table and label: the label, where that can be a name.

    A label that occurs in several tables follows the table's name. What cannot be a name, or would
    be another's, is a hash.
    """
    tables = Counter(label for _, label in conditions)
    names = {
        (table, label): label if tables[label] == 1 else f"{table}-{label}"
        for table, label in conditions
    }
    taken = Counter(names.values())
    for condition, name in names.items():
        if not _PLAIN.fullmatch(name) or taken[name] > 1:
            digest = hashlib.sha256("/".join(condition).encode()).hexdigest()
            names[condition] = f"sha256-{digest[:24]}"
    return names


def _table(file: Any, name: str, source: str, session: NwbSession, clock: Clock) -> list[Shown]:
    """The trials of one table, with an empty tier where no column tells it."""
    where = f"{source}: intervals/{name}"
    columns = _columns(child(file, f"intervals/{name}", source), where, session)
    start, stop = columns["start_time"], columns["stop_time"]
    bad = ~(np.isfinite(start) & np.isfinite(stop) & (start < stop))
    if bad.any():
        at = int(np.argmax(bad))
        raise DataError(f"{where}: row {at}: from {start[at]} to {stop[at]} s is no interval")
    first = np.searchsorted(clock.times, start - clock.interval / 2)
    last = np.searchsorted(clock.times, stop - clock.interval / 2)
    labels = text(columns[session.condition], where)
    tiers = text(columns[session.tier_column], where) if session.tier_column else []
    result = []
    for row, number in enumerate(columns["id"]):
        key = f"{name}-{number}"
        check_key(key, f"{where}: trial")
        tier = tiers[row] if tiers else ""
        if tiers and tier not in _TIERS:
            raise DataError(f"{where}: row {row}: unknown tier {tier!r}; known: {_TIERS}")
        if labels[row] in ("", "nan"):
            raise DataError(f"{where}: row {row}: {session.condition} says nothing")
        if start[row] < clock.times[0] - clock.interval or last[row] <= first[row]:
            raise DataError(
                f"{where}: row {row}: from {start[row]:.6g} to {stop[row]:.6g} s no frames"
                f" were shown; those are from {clock.times[0]:.6g} to {clock.times[-1]:.6g} s"
            )
        frames = int(last[row] - first[row])
        domain = session.intervals[name]
        result.append(Shown(key, tier, domain, name, labels[row], int(first[row]), frames))
    keys = [trial.key for trial in result]
    if len(set(keys)) != len(keys):
        raise DataError(f"{where}: an id occurs more than once")
    return result


def _columns(table: Any, where: str, session: NwbSession) -> dict[str, np.ndarray]:
    """The columns of a table that are needed, each of one number or text a row."""
    if not is_group(table):
        raise DataError(f"{where}: is a dataset, not a table")
    columns = {
        "id": need_column(table, "id", where, "iu"),
        "start_time": need_column(table, "start_time", where, "fiu"),
        "stop_time": need_column(table, "stop_time", where, "fiu"),
        session.condition: need_column(table, session.condition, where, "Uiufb"),
    }
    if session.tier_column:
        columns[session.tier_column] = need_column(table, session.tier_column, where, "U")
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{key} {len(values)}" for key, values in columns.items())
        raise DataError(f"{where}: columns of unequal length: {lengths}")
    return columns
