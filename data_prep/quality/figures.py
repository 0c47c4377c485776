"""The figures of a session's quality report, as matplotlib figures.

Colours are those of Okabe and Ito, and viridis, which colour-blind people tell apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data_prep.quality.flags import EXTREME, LOW_CC_MAX, MOST_FILLED, trial_z
from data_prep.quality.metrics import OUTLIER
from data_prep.quality.types import SessionQuality
from fmcortex.report.figures import GRID, INK, MUTED, RASTER, new_figure

BLUE, ORANGE, GREEN, RED, PINK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
SKY, YELLOW = "#56B4E9", "#F0E442"
AREAS = (BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW)
#: Areas with colours of their own; the others are joined.
MOST_AREAS = len(AREAS)
BINS = 40
#: Letters of a reason that fit beside a bar.
LETTERS = 60


def rates(quality: SessionQuality) -> Any | None:
    """Histogram of the neurons' mean responses, logarithmic; None if none is positive."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    mean = np.array(quality.rates.mean)
    shown = mean[mean > 0]
    if not len(shown):
        return None
    figure = new_figure(4.8, 2.9)
    ax = figure.subplots()
    low, high = np.log10(shown.min()) - 0.05, np.log10(shown.max()) + 0.05
    ax.hist(shown, np.logspace(low, high, min(BINS, 8 + len(shown) // 5)), color=BLUE, lw=0)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 2 else (1,)))
    # The logarithmic axis's own labels are mathematics, which is off for the sake of names.
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    if quality.rates.median > 0:
        _median_line(ax, quality.rates.median, "median {:.3g}")
    ax.set_xlabel("mean response of a neuron, units of the source")
    ax.set_ylabel("neurons")
    left_out = len(mean) - len(shown)
    if left_out:
        ax.set_title(f"{left_out} more at or below zero", loc="left", color=RED)
    return figure


def excluded(quality: SessionQuality) -> Any | None:
    """Bars of the trials that were left out, by reason and tier; None if all were kept."""
    found = quality.missing.by_reason
    if not found:
        return None
    reasons = sorted(found, key=lambda reason: sum(found[reason].values()))
    figure = new_figure(9.6, 0.9 + 0.34 * len(reasons))
    ax = figure.subplots()
    left = np.zeros(len(reasons))
    for tier, colour in (("train", BLUE), ("validation", ORANGE), ("test", GREEN)):
        counts = np.array([found[reason].get(tier, 0) for reason in reasons])
        if counts.any():
            ax.barh(range(len(reasons)), counts, left=left, color=colour, label=tier, height=0.65)
        left += counts
    for row, count in enumerate(left):
        ax.annotate(f" {count:.0f}", (count, row), va="center", fontsize=8.5)
    ax.set_yticks(range(len(reasons)), [_cut(reason) for reason in reasons])
    ax.set_xlabel("trials left out")
    ax.set_xlim(0, left.max() * 1.12)
    ax.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize=8.5)
    return figure


def traces(quality: SessionQuality) -> Any | None:
    """Pupil and behaviour over the training trials, with what is wrong in them; None without any.

    Changes of another channel are left out: what is wrong is seen in that channel.
    """
    channels = [c for c in quality.behaviour.channels if not c.name.endswith("_change")]
    if not channels:
        return None
    starts = np.array(quality.behaviour.trial_minutes)
    figure = new_figure(9.6, 0.9 + 1.15 * len(channels))
    panels = figure.subplots(len(channels), 1, sharex=True, squeeze=False)[:, 0]
    for ax, channel in zip(panels, channels, strict=True):
        low, high = np.array(channel.trace_low), np.array(channel.trace_high)
        at = (np.arange(len(low)) + 0.5) * starts[-1] / len(low)
        # Drawn as a line through both, or a stretch of one frame would have no height.
        line = np.stack([low, high], axis=1).ravel()
        colour = BLUE if channel.pupil else GREEN
        ax.plot(np.repeat(at, 2), line, color=colour, lw=0.6, rasterized=True)
        ax.set_title(channel.name.replace("_", " "), loc="left", pad=2)
        ax.set_ylabel("SD")
        # One mad frame must not squeeze the rest into a line.
        ax.set_ylim(
            max(min(-3.2, low.min() - 0.3), -2 * OUTLIER), min(max(3.2, high.max() + 0.3), 12)
        )
        ax.grid(axis="y", color=GRID, lw=0.6)
        ax.set_axisbelow(True)
    panels[-1].set_xlim(0, starts[-1])
    panels[-1].set_xlabel("minutes of training trials, in order")
    _mark_traces(quality, figure, dict(zip((c.name for c in channels), panels, strict=True)))
    return figure


def _mark_traces(quality: SessionQuality, figure: Any, panels: dict[str, Any]) -> None:
    """Mark excluded, filled and flat parts of the traces, and say which colour is which."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    starts = quality.behaviour.trial_minutes
    number = {name: i for i, name in enumerate(quality.trials)}
    handles: dict[str, Any] = {}
    for ax in panels.values():
        for i, share in enumerate(quality.missing.filled):
            if share > MOST_FILLED:
                ax.axvspan(starts[i], starts[i + 1], color=ORANGE, alpha=0.3, lw=0)
                label = f"more than {MOST_FILLED:.0%} interpolated"
                handles[label] = Patch(color=ORANGE, alpha=0.3, label=label)
        for item in quality.missing.excluded:
            if item.tier == "train" and item.after is not None:
                ax.axvline(starts[item.after], color=RED, lw=1, ls="--")
                label = "a trial left out here"
                handles[label] = Line2D([], [], color=RED, lw=1, ls="--", label=label)
    for channel in quality.behaviour.channels:
        # A mouse may well stand still, so that only the pupil's are marked.
        if not channel.pupil or channel.name not in panels:
            continue
        for line in channel.flat:
            if line.tier == "train":
                start = starts[number[line.trial]] + line.start / 60
                panels[channel.name].axvspan(
                    start, start + line.seconds / 60, 0, 0.07, color=INK, lw=1
                )
                handles["flat"] = Patch(color=INK, label="stands still")
    if handles:
        figure.legend(
            handles=list(handles.values()),
            loc="outside upper right",
            ncols=3,
            frameon=False,
            fontsize=8.5,
        )


def cc_max(quality: SessionQuality) -> Any | None:
    """Histogram of CC_max, stacked by area; None if no neuron has one."""
    found = quality.reliability
    if found is None or found.median is None:
        return None
    values = np.array([np.nan if value is None else value for value in found.cc_max])
    areas, shade = _areas(quality)
    figure = new_figure(5.4, 3.1)
    ax = figure.subplots()
    groups = [values[np.isfinite(values) & (areas == name)] for name in shade]
    # Few repeats estimate it badly, and a little above 1 is possible.
    edges = np.linspace(0, max(1.0, float(np.nanmax(values))), 31)
    ax.hist(groups, edges, stacked=True, color=list(shade.values()), lw=0)
    _median_line(ax, found.median, "median {:.2f}")
    ax.axvline(LOW_CC_MAX, color=MUTED, lw=0.9, ls=":")
    ax.set_xlim(0, edges[-1])
    ax.set_xlabel("CC_max")
    ax.set_ylabel("neurons")
    if quality.area_of is not None:
        _legend(figure, shade)
    return figure


def population(quality: SessionQuality) -> Any:
    """Mean response of the population in each training trial, with its trend."""
    drift = quality.drift
    minutes, response = np.array(drift.minutes), np.array(drift.population)
    odd = np.abs(trial_z(response)) > EXTREME
    figure = new_figure(9.6, 2.6)
    ax = figure.subplots()
    ax.plot(minutes, response, color=GRID, lw=1, zorder=1)
    ax.scatter(minutes[~odd], response[~odd], s=12, color=BLUE, lw=0, zorder=2)
    ax.scatter(minutes[odd], response[odd], s=46, color=RED, marker="x", zorder=3)
    if drift.change is not None:
        ends = minutes[~odd][[0, -1]]
        fitted = np.polyval(np.polyfit(minutes[~odd], response[~odd], 1), ends)
        ax.plot(ends, fitted, color=ORANGE, lw=2)
        ax.set_title(f"trend {drift.change:+.0%} over the session".replace("-", "−"), loc="left")
    bottom, top = min(0.0, response.min()), max(response.max(), 0.0)
    ax.set_ylim(bottom, top + 0.08 * (top - bottom or 1))
    ax.set_xlabel("minutes of all trials that were kept")
    ax.set_ylabel("mean response")
    ax.grid(axis="y", color=GRID, lw=0.6)
    ax.set_axisbelow(True)
    return figure


def cortex(quality: SessionQuality) -> Any | None:
    """The neurons' places in cortex, coloured by CC_max; None where these are not known."""
    if quality.position is None:
        return None
    x, y = np.array(quality.position)
    found = quality.reliability
    values = np.full(len(x), np.nan)
    if found is not None:
        values = np.array([np.nan if value is None else value for value in found.cc_max])
    has = np.isfinite(values)
    figure = new_figure(5.6, 4.4)
    ax = figure.subplots()
    size = float(np.clip(12000 / len(x), 3, 26))
    looks: dict[str, Any] = {"s": size, "lw": 0, "rasterized": len(x) > RASTER}
    ax.scatter(x[~has], y[~has], color=RED, **{**looks, "marker": "x", "lw": 0.7})
    if has.any():
        drawn = ax.scatter(x[has], y[has], c=values[has], cmap="viridis", vmin=0, vmax=1, **looks)
        figure.colorbar(drawn, ax=ax, label="CC_max", shrink=0.7)
    _name_areas(ax, quality, x, y)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel("x, µm")
    ax.set_ylabel("y, µm")
    return figure


def _name_areas(ax: Any, quality: SessionQuality, x: np.ndarray, y: np.ndarray) -> None:
    """The name of each area above its neurons, which it must not hide."""
    if quality.area_of is None or not 1 < len(quality.areas) <= MOST_AREAS:
        return
    areas = np.array(quality.area_of)
    for name in quality.areas:
        mine = areas == name
        ax.text(
            np.median(x[mine]),
            y[mine].max() + 0.02 * np.ptp(y),
            _cut(name),
            ha="center",
            va="bottom",
            fontweight="bold",
        )


def _areas(quality: SessionQuality) -> tuple[np.ndarray, dict[str, str]]:
    """The area of each neuron [U] and a colour for each area, the largest first."""
    if quality.area_of is None:
        return np.full(quality.neurons, "all"), {"all": BLUE}
    largest = sorted(quality.areas, key=lambda name: -quality.areas[name])
    named = largest if len(largest) <= MOST_AREAS else largest[: MOST_AREAS - 1]
    areas = np.array([name if name in named else "others" for name in quality.area_of])
    names = [*named, *(["others"] if len(named) < len(largest) else [])]
    return areas, dict(zip(names, AREAS, strict=False))


def _legend(figure: Any, shade: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    figure.legend(
        # A label that starts with an underscore would be hidden.
        handles=[Patch(color=c, label=_cut(name).lstrip("_") or " ") for name, c in shade.items()],
        loc="outside upper left",
        ncols=4,
        frameon=False,
        fontsize=8.5,
    )


def _median_line(ax: Any, value: float, text: str) -> None:
    ax.axvline(value, color=INK, lw=1.4)
    ax.annotate(
        text.format(value),
        (value, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -2),
        textcoords="offset points",
        va="top",
        fontsize=8.5,
        bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1},
    )


def _cut(name: str) -> str:
    """A name that fits."""
    return name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"
