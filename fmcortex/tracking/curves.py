"""Figures of a run's metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fmcortex.tracking.series import drawable


def curves_figure(curves: Mapping[str, Sequence[tuple[int, float]]]) -> Any:
    """One panel a metric, over the steps.

    Args:
        curves: (step, value) by the metric's name; empty ones are left out. Values that are not
            finite are counted in the panel's title.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    shown = {name: points for name, points in curves.items() if points}
    figure = Figure(figsize=(4.2 * max(len(shown), 1), 3.2), layout="constrained")
    axes = figure.subplots(1, max(len(shown), 1), squeeze=False)[0]
    for ax, (name, points) in zip(axes, shown.items(), strict=False):
        table = np.array(points, float)
        fine = drawable(table[:, 1])
        bad = int((~fine).sum())
        steps, values = table[fine].T
        ax.plot(
            steps, values, color="#1f5fa8", lw=1.2, marker="o" if len(steps) < 30 else None, ms=3
        )
        ax.set_xlabel("step")
        ax.set_title(f"{name} ({bad} not finite)" if bad else name, fontsize=10)
        ax.spines[["top", "right"]].set_visible(False)
    return figure
