"""The report's figures of scores, as matplotlib figures."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fmcortex.evaluation.evaluate import NATURAL, SessionScore

INK, MUTED, GRID = "#1b2733", "#7b8794", "#e3e8ed"
KNOWN = {"foundation": "#1f5fa8", "transferred": "#d9822b", "individual": "#5f9e6e"}
OTHERS = ("#8e5ea2", "#3aa6a1", "#c0504d", "#7b8794")
#: Points from which on a scatter is a picture inside the vector graphic.
RASTER = 1500

STYLE: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.parse_math": False,  # names of sessions may contain a dollar sign
    "svg.hashsalt": "fmcortex",
    "svg.fonttype": "path",
}


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures that are made and saved in the block."""
    import matplotlib

    settings: Any = STYLE
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float) -> Any:
    """An empty figure, inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def data_uri(figure: Any) -> str:
    """A figure as the address of an image that is its own content.

    As an image, not inline: nothing in it can be run, and identifiers of two figures cannot
    clash.
    """
    content = io.BytesIO()
    figure.savefig(content, format="svg", dpi=160, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def colours(models: Sequence[str]) -> dict[str, str]:
    """A colour for each model."""
    others = iter(OTHERS * (1 + len(models) // len(OTHERS)))
    return {name: KNOWN[name] if name in KNOWN else next(others) for name in models}


def neurons(score: SessionScore, key: str, domain: str = NATURAL) -> np.ndarray:
    """A score of each neuron [U]; NaN where it has none, empty where the domain was not shown."""
    values = score.per_neuron.get(domain, {}).get(key, [])
    return np.array([np.nan if value is None else value for value in values], float)


def distributions(models: Mapping[str, Sequence[SessionScore]], sessions: Sequence[str]) -> Any:
    """CC_norm of the neurons of each mouse under each model: dots, quartiles and median."""
    shade = colours(list(models))
    figure = new_figure(max(4.2, 1.1 + 0.42 * len(sessions) * len(models) + 1.5), 3.3)
    ax = figure.subplots()
    jitter = np.random.default_rng(0)
    width = 0.8 / max(len(models), 1)
    for m, (name, scores) in enumerate(models.items()):
        for score in scores:
            values = neurons(score, "cc_norm")
            values = values[np.isfinite(values)]
            if not len(values):
                continue
            x = sessions.index(score.session) + (m - (len(models) - 1) / 2) * width
            spread = jitter.uniform(-0.32, 0.32, len(values)) * width
            ax.scatter(
                x + spread,
                values,
                s=5,
                color=shade[name],
                alpha=0.35,
                lw=0,
                rasterized=len(values) > RASTER,
            )
            low, median, high = np.percentile(values, (25, 50, 75))
            ax.plot([x, x], [low, high], color=shade[name], lw=3, solid_capstyle="butt")
            ax.plot([x - width * 0.38, x + width * 0.38], [median, median], color=INK, lw=1.6)
    ax.axhline(0, color=MUTED, lw=0.8)
    ax.set_xticks(range(len(sessions)), sessions, rotation=30 if len(sessions) > 4 else 0)
    ax.set_xlim(-0.6, len(sessions) - 0.4)
    ax.set_ylabel("CC_norm of a neuron, natural movies")
    _limits(ax, [neurons(s, "cc_norm") for scores in models.values() for s in scores], ax.set_ylim)
    ax.grid(axis="y", color=GRID, lw=0.7)
    ax.set_axisbelow(True)
    _legend(figure, shade)
    return figure


def against(
    models: Mapping[str, Sequence[SessionScore]], pairs: Sequence[tuple[str, str]]
) -> Any | None:
    """One model's CC_norm against another's, a dot a neuron; None where no pair shares any."""
    found = []
    for first, second in pairs:
        joined = _shared(models[first], models[second])
        if len(joined):
            found.append((first, second, joined))
    if not found:
        return None
    figure = new_figure(3.2 * len(found), 3.2)
    for ax, (first, second, joined) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found, strict=True
    ):
        x, y = joined.T
        low, high = np.nanpercentile(joined, (0.5, 99.5)) + np.array([-0.08, 0.08])
        ax.plot([low, high], [low, high], color=MUTED, lw=0.9)
        ax.scatter(
            x, y, s=9, color=colours([second])[second], alpha=0.5, lw=0, rasterized=len(x) > RASTER
        )
        ax.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        ax.set_xlabel(f"CC_norm, {first}")
        ax.set_ylabel(f"CC_norm, {second}")
        ax.set_title(f"{(y > x).mean():.0%} of {len(x)} neurons above the line", loc="left")
    return figure


def _shared(first: Sequence[SessionScore], second: Sequence[SessionScore]) -> np.ndarray:
    """CC_norm under two models of the neurons that both have one: [n, 2]."""
    others = {score.session: score for score in second}
    blocks = [np.empty((0, 2))]
    for score in first:
        if score.session not in others:
            continue
        x, y = neurons(score, "cc_norm"), neurons(others[score.session], "cc_norm")
        if len(x) == len(y):
            both = np.stack([x, y], axis=1)
            blocks.append(both[np.isfinite(both).all(axis=1)])
    return np.concatenate(blocks)


def ceiling(models: Mapping[str, Sequence[SessionScore]]) -> Any | None:
    """CC_abs against CC_max, a panel a model: how near each neuron is to what is possible."""
    found = {}
    for name, scores in models.items():
        points = [
            np.stack([neurons(s, "cc_max"), neurons(s, "cc_abs")], axis=1)
            for s in scores
            if len(neurons(s, "cc_max"))
        ]
        if points:
            joined = np.concatenate(points)
            found[name] = joined[np.isfinite(joined).all(axis=1)]
    if not any(len(points) for points in found.values()):
        return None
    figure = new_figure(3.2 * len(found), 3.2)
    panels = figure.subplots(1, len(found), squeeze=False, sharex=True, sharey=True)[0]
    for ax, (name, points) in zip(panels, found.items(), strict=True):
        ax.plot([0, 1], [0, 1], color=MUTED, lw=0.9)
        ax.axhline(0, color=GRID, lw=0.8)
        shade = colours([name])[name]
        ax.scatter(
            points[:, 0],
            points[:, 1],
            s=9,
            color=shade,
            alpha=0.5,
            lw=0,
            rasterized=len(points) > RASTER,
        )
        least = min(0.0, float(points[:, 1].min())) - 0.05 if len(points) else 0.0
        ax.set(xlim=(0, 1), ylim=(least, 1), title=name)
        ax.set_xlabel("CC_max (best possible)")
    panels[0].set_ylabel("CC_abs")
    return figure


def domains(
    models: Mapping[str, Sequence[SessionScore]], names: Sequence[str], labels: Sequence[str]
) -> Any:
    """Median over mice of CC_norm for each stimulus domain, with a dot a mouse."""
    shade = colours(list(models))
    figure = new_figure(max(4.6, 1.0 + 0.95 * len(names)), 3.2)
    ax = figure.subplots()
    width = 0.8 / max(len(models), 1)
    for m, (name, scores) in enumerate(models.items()):
        for d, domain in enumerate(names):
            of_mice = [
                found.cc_norm
                for score in scores
                for found in score.domains
                if found.domain == domain and found.cc_norm is not None
            ]
            if not of_mice:
                continue
            x = d + (m - (len(models) - 1) / 2) * width
            ax.bar(x, np.median(of_mice), width * 0.88, color=shade[name], alpha=0.75)
            ax.scatter([x] * len(of_mice), of_mice, s=11, color=INK, lw=0, zorder=3)
    ax.axhline(0, color=MUTED, lw=0.8)
    ax.set_xticks(range(len(names)), [label.replace(" ", "\n") for label in labels])
    ax.set_ylabel("CC_norm (median over neurons)")
    ax.grid(axis="y", color=GRID, lw=0.7)
    ax.set_axisbelow(True)
    _legend(figure, shade)
    return figure


def _legend(figure: Any, shade: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    if shade:
        figure.legend(
            handles=[Patch(color=colour, label=name) for name, colour in shade.items()],
            loc="outside upper left",
            ncols=len(shade),
            frameon=False,
            fontsize=8.5,
        )


def _limits(ax: Any, values: Sequence[np.ndarray], setter: Any) -> None:
    """Leave out the few neurons whose tiny CC_max throws CC_norm far away."""
    joined = np.concatenate([v[np.isfinite(v)] for v in values] or [np.empty(0)])
    if len(joined):
        low, high = np.percentile(joined, (0.5, 99.5))
        setter(min(low, 0) - 0.08, max(high, 0.2) + 0.08)
