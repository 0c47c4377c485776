"""The panels of a run's curves: each kind of panel with the metrics that the run has of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fmcortex.tracking.kinds import GROUPS, LEFT_OUT, Group, Kind, Line, Panel
from fmcortex.tracking.series import Binned, Curves, Series, Spread, spread
from fmcortex.tracking.ticks import short

PALETTE = (
    "#1f5fa8",
    "#d9822b",
    "#5f9e6e",
    "#8e5ea2",
    "#3aa6a1",
    "#c0504d",
    "#a58a2b",
    "#7b8794",
)
#: More metrics of one kind than this are drawn as their median and spread, with a few named.
LINES = len(PALETTE)
NAMED = 3
#: Bins at the end of a metric by which the worst are found.
RECENT = 5
#: Panels of metrics that nothing is known of.
OTHERS = 40


def groups(curves: Curves) -> list[Group]:
    """The panels of all metrics, those that nothing is known of last."""
    left = {name: series for name, series in curves.series.items() if series.count}
    left = {name: series for name, series in left.items() if not LEFT_OUT.fullmatch(name)}
    found = []
    for title, kinds in GROUPS.items():
        panels = []
        for kind in kinds:
            members = _members(kind, left)
            if members:
                panels.append(_filled(kind, {said: left.pop(n) for n, said in members.items()}))
        if panels:
            found.append(Group(title, tuple(panels)))
    if left:
        found.append(Group("Other metrics", tuple(_others(left))))
    return found


def _members(kind: Kind, left: Mapping[str, Series]) -> dict[str, str]:
    """What the metrics of a kind are called in its legend, by their names."""
    found = {name: said for name, said in kind.metrics.items() if name in left}
    if kind.pattern:
        for name in left:
            match = re.fullmatch(kind.pattern, name)
            if match:
                parts = [part.replace("gpu_", "GPU ") for part in match.groups() if part]
                found[name] = " ".join(parts) or "this machine"
    return found


def _others(left: Mapping[str, Series]) -> list[Panel]:
    """A panel for each metric, or for all of a prefix where those are many."""
    by_prefix: dict[str, list[str]] = {}
    for name in left:
        by_prefix.setdefault(name.rpartition("/")[0], []).append(name)
    panels = []
    for prefix, names in by_prefix.items():
        clock = prefix.startswith("system")
        if prefix and len(names) > LINES:
            members = {name.removeprefix(f"{prefix}/"): left[name] for name in names}
            panels.append(_filled(Kind(Panel(f"{prefix}/…", clock=clock)), members))
        else:
            panels += [_filled(Kind(Panel(n, clock=clock)), {n: left[n]}) for n in names]
    if len(panels) > OTHERS:
        more = f"{len(panels) - OTHERS} more metrics are not drawn."
        panels = panels[:OTHERS]
        panels[-1] = replace(panels[-1], notes=(*panels[-1].notes, more))
    return panels


def _filled(kind: Kind, members: Mapping[str, Series]) -> Panel:
    """The panel of a kind with its curves."""
    notes = [_unfinite(name, one) for name, one in members.items() if one.unfinite]
    if len(notes) > NAMED:
        notes = [*notes[:NAMED], f"{len(notes) - NAMED} more have values that are not finite."]
    together = None
    chosen = list(members)
    # One kind of thing may come by the hundred; a few different metrics never do.
    if len(members) > LINES:
        finite = {name: one for name, one in members.items() if one.last is not None}
        together = spread(list(finite.values())) if finite else None
        chosen = sorted(finite, key=lambda n: _recent(finite[n]))
        if kind.worst == "highest":
            chosen = chosen[::-1]
        chosen = chosen[:NAMED] if kind.worst else []
        which = f" and the {len(chosen)} {kind.worst}" if chosen else ""
        notes.insert(0, f"{len(members)} together: their median, the middle 80%{which}.")
    colours = PALETTE[1:] if together else PALETTE
    lines = tuple(
        Line(
            name,
            _scaled(members[name].binned(), kind.scale),
            colour,
            None if (last := members[name].last) is None else last * kind.scale,
            extremes=len(members) <= 3,
        )
        for name, colour in zip(chosen, colours, strict=False)
    )
    if together:
        s = together
        together = Spread(s.steps, s.middle * kind.scale, s.low * kind.scale, s.high * kind.scale)
    return replace(kind.panel, lines=lines, spread=together, notes=tuple(notes))


def _recent(series: Series) -> float:
    """Where a metric is by now: its latest value alone may be noise."""
    return float(series.binned().means[-RECENT:].mean())


def _scaled(bins: Binned, by: float) -> Binned:
    return Binned(bins.steps, bins.means * by, bins.lows * by, bins.highs * by, bins.bad)


def _unfinite(name: str, series: Series) -> str:
    values = "1 value is" if series.unfinite == 1 else f"{short(series.unfinite)} values are"
    return f"{name}: {values} not finite, the last at {series.last_unfinite}."


#: Metrics in which runs are compared.
COMPARED = ("train/loss", "epoch/loss", "validation/cc_abs", "train/lr", "speed/clips_per_second")


def comparison(runs: Mapping[str, Curves]) -> list[Group]:
    """The same metrics of several runs, drawn over each other."""
    kinds = {n: kind for some in GROUPS.values() for kind in some for n in kind.metrics}
    panels = []
    for name in COMPARED:
        members = {
            run: curves.series[name] for run, curves in runs.items() if name in curves.series
        }
        if members:
            panel = kinds[name].panel
            if name == "epoch/loss":
                panel = replace(panel, title="training loss, mean of the epoch")
            panels.append(_overlaid(panel, members, list(runs)))
    return [Group("Runs", tuple(panels))] if panels else []


def _overlaid(panel: Panel, members: Mapping[str, Series], runs: Sequence[str]) -> Panel:
    lines = [
        Line(run, one.binned(), PALETTE[runs.index(run) % LINES], one.last)
        for run, one in members.items()
    ]
    notes = tuple(_unfinite(name, one) for name, one in members.items() if one.unfinite)
    return replace(panel, lines=tuple(lines), notes=notes)


def reach(panels: Sequence[Panel]) -> tuple[float, float]:
    """The first and last step of all panels."""
    steps = [line.bins.steps for panel in panels for line in panel.lines]
    steps += [line.bins.bad for panel in panels for line in panel.lines]
    steps += [panel.spread.steps for panel in panels if panel.spread]
    joined = np.concatenate([np.empty(0), *steps])
    if not len(joined):
        return 0.0, 1.0
    low, high = float(joined.min()), float(joined.max())
    low = 0.0 if low <= 0.3 * high else low
    return (low, high) if high > low else (max(low - 1, 0.0), high + 1)
