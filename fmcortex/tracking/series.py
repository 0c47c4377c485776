"""Metrics over the steps of a run, kept in little memory however long the run becomes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Bins of a metric: more could not be told apart in a figure.
BINS = 512
#: Bins of many metrics drawn together, which are put on one grid.
TOGETHER = 128
#: Metrics of this name are not curves: the step is that of an event, the rest its text.
EVENT = "event/"
#: Numbers beyond these, which float32 does not have, are as good as infinite, or as zero.
LARGEST, SMALLEST = 1e100, 1e-100


def drawable(values: np.ndarray) -> np.ndarray:
    """Which values are numbers that an axis can show: neither NaN nor infinite, or nearly so."""
    found: np.ndarray = np.abs(values) < LARGEST  # false of NaN
    return found


@dataclass(frozen=True, order=True)
class Event:
    """Something that happened to a run.

    Attributes:
        step: after which it happened.
        text: what, such as "workers restarted".
    """

    step: int
    text: str


@dataclass(frozen=True)
class Binned:
    """The bins of a metric that hold anything, by step.

    Attributes:
        steps: [n] mean step of the bin's finite values.
        means: [n] of the finite values; NaN where there is none.
        lows: [n] least finite value.
        highs: [n] largest finite value.
        bad: [m] mean step of the bins that hold NaN or an infinity.
    """

    steps: np.ndarray
    means: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    bad: np.ndarray


class Series:
    """One metric: at most `BINS` bins of as many steps each, which are widened as the run grows.

    A bin keeps the mean and the extremes of its values, so that a single spike is never lost. As
    long as steps are fewer than `BINS`, every value is kept as it is.

    Attributes:
        count: values seen.
        unfinite: of them, NaN or infinite (`drawable`).
        last: the finite value of the latest step; None if there is none.
        last_unfinite: the latest step with a value that is not finite; None if there is none.
    """

    def __init__(self) -> None:
        self.width = 1
        self.count = self.unfinite = 0
        self.last: float | None = None
        self.last_step = -1
        self.last_unfinite: int | None = None
        self._finite, self._bad = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
        self._steps, self._bad_steps = np.zeros(BINS), np.zeros(BINS)
        self._sum = np.zeros(BINS)
        self._low, self._high = np.full(BINS, np.inf), np.full(BINS, -np.inf)

    def extend(self, steps: np.ndarray, values: np.ndarray) -> None:
        """Keep the values [n] of steps [n], in any order."""
        if not len(steps):
            return
        steps = np.maximum(steps.astype(np.int64), 0)
        while int(steps.max()) // self.width >= BINS:
            self._widen()
        self.count += len(steps)
        finite = drawable(values)
        values = np.where(np.abs(values) < SMALLEST, 0.0, values)
        if not finite.all():
            bad = steps[~finite]
            np.add.at(self._bad, bad // self.width, 1)
            np.add.at(self._bad_steps, bad // self.width, bad)
            self.unfinite += len(bad)
            self.last_unfinite = max(int(bad.max()), self.last_unfinite or 0)
            steps, values = steps[finite], values[finite]
        if not len(steps):
            return
        at = steps // self.width
        np.add.at(self._finite, at, 1)
        np.add.at(self._steps, at, steps)
        np.add.at(self._sum, at, values)
        np.minimum.at(self._low, at, values)
        np.maximum.at(self._high, at, values)
        newest = len(steps) - 1 - int(steps[::-1].argmax())  # the later of two on the same step
        if steps[newest] >= self.last_step:
            self.last, self.last_step = float(values[newest]), int(steps[newest])

    def _widen(self) -> None:
        """Join the bins in pairs."""
        self.width *= 2
        rest = np.zeros(BINS // 2)
        for name in ("_finite", "_bad", "_steps", "_bad_steps", "_sum"):
            old = getattr(self, name)
            joined = old.reshape(-1, 2).sum(1)
            setattr(self, name, np.concatenate([joined, rest.astype(old.dtype)]))
        self._low = np.concatenate([self._low.reshape(-1, 2).min(1), rest + np.inf])
        self._high = np.concatenate([self._high.reshape(-1, 2).max(1), rest - np.inf])

    def binned(self) -> Binned:
        """What is kept, by step."""
        some, bad = self._finite > 0, self._bad > 0
        count = self._finite[some]
        return Binned(
            steps=self._steps[some] / count,
            means=self._sum[some] / count,
            lows=self._low[some],
            highs=self._high[some],
            bad=self._bad_steps[bad] / self._bad[bad],
        )

    def on_grid(self, width: int, bins: int) -> np.ndarray:
        """Means [bins] over bins of `width` steps, a multiple of this one's; NaN where empty."""
        by = width // self.width
        padded = -(-BINS // by) * by
        count, total = np.zeros(padded), np.zeros(padded)
        count[:BINS], total[:BINS] = self._finite, self._sum
        count, total = count.reshape(-1, by).sum(1)[:bins], total.reshape(-1, by).sum(1)[:bins]
        found = np.full(bins, np.nan)
        found[: len(count)][count > 0] = total[count > 0] / count[count > 0]
        return found


class Curves:
    """The metrics of a run by their names, and what happened to it.

    Attributes:
        events: by step; a metric named `event/<text>` is one.
    """

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}
        self._waiting: dict[str, list[tuple[int, float]]] = {}
        self.events: list[Event] = []

    @classmethod
    def of(cls, curves: Mapping[str, Sequence[tuple[int, float]]]) -> Curves:
        """From (step, value) by the metric's name."""
        made = cls()
        for name, points in curves.items():
            made.extend(name, points)
        return made

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Keep the metrics of a step."""
        for name, value in values.items():
            if name.startswith(EVENT):
                self.event(step, name.removeprefix(EVENT))
            else:
                waiting = self._waiting.setdefault(name, [])
                waiting.append((step, value))
                if len(waiting) >= BINS:  # many at once cost little more than one
                    self.extend(name, self._waiting.pop(name))

    def extend(self, name: str, points: Sequence[tuple[int, float]]) -> None:
        """Keep (step, value) of one metric."""
        if name.startswith(EVENT):
            for step, _ in points:
                self.event(step, name.removeprefix(EVENT))
        elif points:
            table = np.array(points, float)
            self._series.setdefault(name, Series()).extend(table[:, 0], table[:, 1])

    def event(self, step: int, text: str) -> None:
        """Something happened after `step` steps."""
        if (event := Event(step, text)) not in self.events:
            self.events.append(event)
            self.events.sort()

    @property
    def series(self) -> dict[str, Series]:
        """Each metric by its name, in the order in which they came."""
        while self._waiting:
            self.extend(*self._waiting.popitem())
        return self._series


@dataclass(frozen=True)
class Spread:
    """Many metrics together, on one grid of bins.

    Attributes:
        steps: [n] middles of the bins in which some metric has a value.
        middle: [n] median over the metrics; one that has no value in a bin keeps its last.
        low: [n] tenth percentile.
        high: [n] ninetieth percentile.
    """

    steps: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def spread(several: Sequence[Series]) -> Spread:
    """The median and the middle four fifths of several metrics over the steps."""
    last = max((one.last_step for one in several), default=0)
    width = max((one.width for one in several), default=1)
    while last // width >= TOGETHER:
        width *= 2
    bins = last // width + 1
    given = np.stack([one.on_grid(width, bins) for one in several])
    there = np.isfinite(given).any(0)
    table = np.stack([_kept(row) for row in given])
    low, middle, high = np.nanquantile(table[:, there], (0.1, 0.5, 0.9), axis=0)
    middles = np.minimum((np.arange(bins) + 0.5) * width - 0.5, last)
    return Spread(middles[there], middle, low, high)


def _kept(values: np.ndarray) -> np.ndarray:
    """`values` with each NaN replaced by the last that is none."""
    at = np.where(np.isfinite(values), np.arange(len(values)), 0)
    return values[np.maximum.accumulate(at)]
