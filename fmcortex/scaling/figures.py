"""The figure of a sweep: scores over the amount of data, with the law and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fmcortex.scaling.results import Axis, PointResult, SweepSummary

UNITS: dict[Axis, tuple[str, str]] = {
    "neuron_hours": ("training data (neuron-hours)", "neuron-hours"),
    "mouse_minutes": ("training data (mouse-minutes, summed over mice)", "mouse-minutes"),
}
#: Law and band; the points' colours go from few mice to many.
INK, BAND, FEW, MANY = "#1b2733", "#c9d6e3", 0.15, 0.8


def scaling_figure(summary: SweepSummary) -> Any:
    """Points by number of mice, mean and range over seeds, the law and its interval.

    Returns:
        A matplotlib figure.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.subplots()
    label, unit = UNITS[summary.axis]
    counts = sorted({point.mice for point in summary.points})
    shades = matplotlib.colormaps["viridis"](np.linspace(FEW, MANY, max(len(counts), 1)))
    for count, shade in zip(counts, shades, strict=False):
        x, mean, low, high = _over_seeds([p for p in summary.points if p.mice == count], summary)
        ax.errorbar(
            x,
            mean,
            yerr=[mean - low, high - mean],
            fmt="o",
            ms=6,
            color=shade,
            mec="white",
            mew=0.6,
            capsize=2.5,
            lw=1.1,
            zorder=3,
            label=f"{count} {'mouse' if count == 1 else 'mice'}",
        )
    scores = [point.score for point in summary.points]
    if scores:
        margin = max(0.12 * float(np.ptp(scores)), 0.02)
        ax.set_ylim(min(scores) - 2 * margin, max(scores) + 2 * margin)
    if summary.law is not None:
        _draw_law(ax, summary, unit)
    elif summary.law_problem:
        ax.text(
            0.02,
            0.98,
            f"no law: {summary.law_problem}",
            transform=ax.transAxes,
            va="top",
            fontsize=8,
            color="#8a2f2f",
            wrap=True,
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(label)
    ax.set_ylabel(summary.label)
    ax.grid(axis="y", color="#e3e8ed", lw=0.7)
    ax.spines[["top", "right"]].set_visible(False)
    if summary.points:
        ax.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _over_seeds(
    points: Sequence[PointResult], summary: SweepSummary
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Amount of data, and mean, least and greatest score over the seeds of each."""
    grouped: dict[float, list[float]] = {}
    for point in points:
        grouped.setdefault(point.amount(summary.axis), []).append(point.score)
    amounts = sorted(grouped)
    scores = [grouped[amount] for amount in amounts]
    return (
        np.array(amounts),
        np.array([np.mean(s) for s in scores]),
        np.array([min(s) for s in scores]),
        np.array([max(s) for s in scores]),
    )


def _draw_law(ax: Any, summary: SweepSummary, unit: str) -> None:
    law = summary.law
    assert law is not None
    amounts = [point.amount(summary.axis) for point in summary.points]
    x = np.geomspace(min(amounts) / 1.3, max(amounts) * 1.3, 200)
    band = law.band(x)
    if band is not None:
        ax.fill_between(
            x, *band, color=BAND, alpha=0.6, lw=0, zorder=1, label=f"{law.level:.0%} interval"
        )
    ax.plot(x, law.predict(x), color=INK, lw=1.6, zorder=2, label="power law")
    said = f"y = {law.formula()},  x in {unit}"
    if law.exponent_interval is not None:
        low, high = law.exponent_interval
        values = f"{law.exponent:.3g}, {law.level:.0%} interval {low:.3g} to {high:.3g}"
        said += f"\nexponent {values}".replace("-", "−")
        if not law.significant:
            said += ": no effect of data beyond the scatter"
    else:
        said += "\nno points to spare for an interval"
    ax.set_title(said, fontsize=9, loc="left", color=INK)
