"""Drawing a panel of curves as SVG, readable without any script.

What a script needs to tell values under the pointer stands in attributes: the svg says where its
axes lie (`data-x`, `data-y`: value at either end), each line what it is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

from fmcortex.tracking import ticks
from fmcortex.tracking.kinds import Line, Panel
from fmcortex.tracking.series import Event

WIDTH, HEIGHT = 480, 232
LEFT, RIGHT, TOP, BOTTOM = 52, 470, 22, 194
#: Points of a line up to which each is marked.
DOTS = 40
#: How far from the rest, in units of its range, a few values may be and still be on the axis.
OUTLIERS = 3.0
#: Marks of events nearer to each other than this have no number, pixels.
APART = 16


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, values: np.ndarray) -> np.ndarray:
        low, high = self.low, self.high
        if self.logarithmic:
            # What is not above zero lies on the axis.
            values, low, high = np.log(np.maximum(values, low)), math.log(low), math.log(high)
        return np.clip(
            self.start + (values - low) / (high - low) * (self.end - self.start),
            min(self.start, self.end),
            max(self.start, self.end),
        )


def draw(panel: Panel, reach: tuple[float, float], events: Sequence[Event] = ()) -> Markup:
    """The panel as an svg element.

    Args:
        panel: what is drawn.
        reach: first and last step of the horizontal axis.
        events: marked at their steps; an axis of time has none.
    """
    x = Axis(*reach, LEFT, RIGHT)
    y = vertical(panel)
    parts = [*_frame(panel, x, y)]
    if not panel.clock:
        parts += _marks(events, x)
    if panel.spread is not None:
        s = panel.spread
        across = x(s.steps)
        parts.append(_area(across, y(s.low), y(s.high), "#1f5fa8"))
        parts.append(_polyline("median", across, y(s.middle), "#1f5fa8"))
    for line in panel.lines:
        parts += _line(line, x, y)
    bad = np.concatenate([np.empty(0), *(line.bins.bad for line in panel.lines)])
    for at in np.unique(x(bad).round(1)):
        parts.append(f'<path class="bad" d="M{at:g} {BOTTOM}v-7"/>')
    if not any(len(line.bins.steps) for line in panel.lines) and panel.spread is None:
        middle = (LEFT + RIGHT) / 2
        parts.append(f'<text class="mid" x="{middle}" y="110">no finite value</text>')
    label = f"{panel.title}{', ' + panel.unit if panel.unit else ''}"
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" '
        f'data-axis="{"time" if panel.clock else "step"}" data-x="{x.low!r} {x.high!r}" '
        f'data-y="{y.low!r} {y.high!r}"{" data-log" if y.logarithmic else ""}>'
        f"{''.join(parts)}</svg>"
    )


def vertical(panel: Panel) -> Axis:
    """The vertical axis: all means, and all extremes but a few that lie far out."""
    lines = [line for line in panel.lines if len(line.bins.steps)]
    drawn = [line.bins.means for line in lines]
    drawn += [np.concatenate([n.bins.lows, n.bins.highs]) for n in lines if n.extremes]
    if panel.spread is not None:
        drawn += [panel.spread.low, panel.spread.high]
    outer = np.concatenate([np.empty(0), *drawn])
    if not len(outer):
        return Axis(0.0, 1.0, BOTTOM, TOP)
    low, high = float(outer.min()), float(outer.max())
    if panel.logarithmic and high > 0:
        low = float(outer[outer > 0].min())
        return Axis(low / 1.15, high * 1.15, BOTTOM, TOP, logarithmic=True)
    core = np.percentile(outer, (1, 98))
    far = OUTLIERS * float(core[1] - core[0])
    if len(outer) > DOTS and far > 0:
        near = outer[(outer >= core[0] - far) & (outer <= core[1] + far)]
        low, high = float(near.min()), float(near.max())
    low = low if panel.least is None else min(low, panel.least)
    high = high if panel.most is None else max(high, panel.most)
    # A constant is drawn in the middle, one at zero on the axis.
    spread = (high - low) or abs(high) or 1.0
    low = low if low in (0.0, panel.least) else low - 0.06 * spread
    high = high if high == panel.most else high + 0.06 * spread
    return Axis(low, high, BOTTOM, TOP)


def _frame(panel: Panel, x: Axis, y: Axis) -> list[str]:
    parts = [f'<text class="unit" x="{LEFT - 6}" y="11">{escape(panel.unit)}</text>']
    values = ticks.logarithmic(y.low, y.high) if y.logarithmic else ticks.linear(y.low, y.high)
    texts = [ticks.short(v) for v in values] if y.logarithmic else ticks.labels(values)
    for at, text in zip(y(np.array(values)), texts, strict=True):
        parts.append(f'<path class="grid" d="M{LEFT} {at:.1f}H{RIGHT}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{at + 3.8:.1f}">{text}</text>')
    values = (ticks.times if panel.clock else ticks.whole)(x.low, x.high)
    texts = [ticks.duration(v) if panel.clock else ticks.short(v) for v in values]
    for at, text in zip(x(np.array(values)), texts, strict=True):
        parts.append(f'<path class="tick" d="M{at:.1f} {BOTTOM}v4"/>')
        # A label at the very end would be cut off.
        anchor = ' style="text-anchor:end"' if at > RIGHT - 12 else ""
        at = min(at, RIGHT) if not anchor else WIDTH - 2
        parts.append(f'<text class="x" x="{at:.1f}" y="{BOTTOM + 16}"{anchor}>{text}</text>')
    name = "time since the start" if panel.clock else "step"
    parts.append(f'<text class="name" x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 5}">{name}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {BOTTOM}H{RIGHT}"/>')
    return parts


def colour_of(event: Event) -> str:
    """Failures stand out."""
    return "#c0504d" if "fail" in event.text.lower() else "#d9822b"


def _marks(events: Sequence[Event], x: Axis) -> list[str]:
    """A dashed line at each event, with its number where there is room."""
    parts = []
    free = -math.inf
    for number, event in enumerate(events, start=1):
        at = float(x(np.array(float(event.step))))
        shade = colour_of(event)
        text = escape(f"{event.text}, step {event.step}")
        parts.append(
            f'<path class="event" stroke="{shade}" d="M{at:.1f} {TOP - 6}V{BOTTOM}">'
            f"<title>{text}</title></path>"
        )
        if at - free >= APART:
            free = at
            parts.append(
                f'<text class="number" style="fill:{shade}" x="{at:.1f}" y="{TOP - 9}">'
                f"{number}</text>"
            )
    return parts


def _line(line: Line, x: Axis, y: Axis) -> list[str]:
    bins = line.bins
    if not len(bins.steps):
        return []
    parts = []
    across = x(bins.steps)
    if line.extremes and (bins.highs > bins.lows).any():
        parts.append(_area(across, y(bins.lows), y(bins.highs), line.colour))
    parts.append(_polyline(line.name, across, y(bins.means), line.colour))
    if len(across) <= DOTS:
        parts += [
            f'<circle cx="{a:.2f}" cy="{b:.2f}" r="2.6" fill="{line.colour}"/>'
            for a, b in zip(across, y(bins.means), strict=True)
        ]
    if not y.logarithmic:
        shown = bins.highs if line.extremes else bins.means
        for at in across[shown > y.high]:
            parts.append(f'<path class="beyond" d="M{at:.1f} {TOP - 5}l3.5 6h-7z"/>')
        shown = bins.lows if line.extremes else bins.means
        for at in across[shown < y.low]:
            parts.append(f'<path class="beyond" d="M{at:.1f} {BOTTOM + 5}l3.5 -6h-7z"/>')
    return parts


def _polyline(name: str, across: np.ndarray, up: np.ndarray, colour: str) -> str:
    return (
        f'<polyline class="line" data-name="{escape(name)}" stroke="{colour}" '
        f'points="{_points(across, up)}"/>'
    )


def _area(across: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> str:
    there = _points(across, high)
    back = _points(across[::-1], low[::-1])
    return f'<polygon class="band" fill="{colour}" stroke="{colour}" points="{there} {back}"/>'


def _points(across: np.ndarray, up: np.ndarray) -> str:
    pairs = zip(across.tolist(), up.tolist(), strict=True)
    return " ".join([f"{a:.2f},{b:.2f}" for a, b in pairs])
