"""The report's figures that need a network: where its neurons look, and what it predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fmcortex.data.dataset import PreparedSession
from fmcortex.errors import DataError
from fmcortex.evaluation.evaluate import NATURAL, predict_video
from fmcortex.evaluation.metrics import cc_abs, mean_over_repeats
from fmcortex.model.network import Network
from fmcortex.report.figures import GRID, INK, KNOWN, MUTED, RASTER, new_figure

#: Visual areas in the order in which colours are given.
AREA_COLOURS = ("#1f5fa8", "#d9822b", "#5f9e6e", "#8e5ea2", "#c0504d", "#3aa6a1", "#7b8794")
#: The neurons whose traces are shown, by their rank in CC_abs.
PERCENTILES = (95, 75, 50, 25)


def positions(network: Network) -> np.ndarray:
    """Where each neuron's readout looks, the eye at rest: [U, 2] degrees, right and up.

    The feature map covers the retina, whose pixels lie at equal angles from the optical axis
    (`fmcortex.model.perspective.retina_rays`).
    """
    config = network.config
    mu = network.readout.position.mu.detach().cpu().double()
    unit = np.tanh(mu.numpy())
    height = config.retina_degrees * config.retina_height / config.retina_width
    return np.asarray(unit * np.array([config.retina_degrees, -height]))


def readouts(networks: dict[str, Network], areas: dict[str, np.ndarray]) -> Any:
    """Readout positions over the retina, a panel a session, coloured by area where it is known.

    Args:
        networks: by session.
        areas: of each neuron [U], by session; a session may be missing.
    """
    names = sorted({str(area) for values in areas.values() for area in values})
    shade = {n: AREA_COLOURS[i % len(AREA_COLOURS)] for i, n in enumerate(names)}
    columns = min(len(networks), 4)
    rows = -(-len(networks) // columns)
    figure = new_figure(2.9 * columns + 0.6, 2.3 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in panels.flat[len(networks) :]:
        ax.set_visible(False)
    for i, (ax, (session, network)) in enumerate(zip(panels.flat, networks.items(), strict=False)):
        place = positions(network)
        known = areas.get(session)
        colour = [shade[str(a)] for a in known] if known is not None else MUTED
        ax.scatter(*place.T, s=10, c=colour, alpha=0.65, lw=0, rasterized=len(place) > RASTER)
        config = network.config
        height = config.retina_degrees * config.retina_height / config.retina_width
        ax.set(xlim=(-config.retina_degrees, config.retina_degrees), ylim=(-height, height))
        ax.set_aspect("equal")
        ax.axhline(0, color=GRID, lw=0.8, zorder=0)
        ax.axvline(0, color=GRID, lw=0.8, zorder=0)
        ax.set_title(f"{session} ({len(place)} neurons)", loc="left")
        if i % columns == 0:
            ax.set_ylabel("up (degrees)")
        if i >= len(networks) - columns:
            ax.set_xlabel("right (degrees)")
            ax.tick_params(labelbottom=True)
    if shade:
        from matplotlib.lines import Line2D

        figure.legend(
            handles=[
                Line2D([], [], ls="", marker="o", ms=5, color=c, label=n) for n, c in shade.items()
            ],
            loc="outside upper left",
            ncols=len(shade),
            frameon=False,
            fontsize=8.5,
        )
    return figure


@dataclass(frozen=True)
class Traces:
    """Recorded and predicted responses of a few neurons to one video.

    Attributes:
        video: its name.
        repeats: that were recorded.
        seconds: [T].
        neurons: indices of those shown, [n].
        scores: CC_abs of each on this video, [n].
        recorded: mean over repeats, [T, n].
        error: standard error of that mean, [T, n].
        predicted: mean over repeats, [T, n].
    """

    video: str
    repeats: int
    seconds: np.ndarray
    neurons: np.ndarray
    scores: np.ndarray
    recorded: np.ndarray
    error: np.ndarray
    predicted: np.ndarray


def find_traces(network: Network, session: PreparedSession, burnin: int) -> Traces:
    """Traces of the most repeated natural test movie, for neurons of fixed ranks in CC_abs.

    Args:
        network: of the session.
        session: of the prepared dataset.
        burnin: first frames of the video that are left out.

    Raises:
        DataError: there is no such movie, the network is of another recording, or its responses
            are constant.
    """
    name = session.manifest.session
    if network.session.units != session.manifest.neurons:
        raise DataError(f"session {name}: the checkpoint and the dataset differ in neurons")
    videos = session.videos("test", NATURAL)
    if not videos:
        raise DataError(f"session {name}: no natural test movie")
    entry = max(videos, key=lambda v: (v.repeats, v.name))
    video = session.video(entry.name)
    recorded = video.responses[:, burnin:].astype(np.float64)
    predicted = predict_video(network.eval(), video)[:, burnin:].astype(np.float64)
    scores = cc_abs(predicted, recorded)
    finite = int(np.isfinite(scores).sum())
    if not finite:
        raise DataError(f"session {name}: no neuron has a CC_abs on {entry.name}")
    ranked = np.argsort(np.where(np.isfinite(scores), scores, -np.inf))[-finite:]
    chosen = np.array([ranked[round(p / 100 * (len(ranked) - 1))] for p in PERCENTILES])
    shown = recorded[:, :, chosen]
    counts = np.maximum(np.isfinite(shown).sum(axis=0), 1)
    mean = mean_over_repeats(shown)
    variance = mean_over_repeats((shown - mean) ** 2) * counts / np.maximum(counts - 1, 1)
    return Traces(
        video=entry.name,
        repeats=entry.repeats,
        seconds=(np.arange(len(mean)) + burnin) / session.manifest.frame_rate,
        neurons=chosen,
        scores=scores[chosen],
        recorded=mean,
        error=np.sqrt(variance / counts),
        predicted=predicted[:, :, chosen].mean(axis=0),
    )


def traces_figure(traces: Traces) -> Any:
    """A row a neuron: the recorded mean with its standard error, and the prediction."""
    count = len(traces.neurons)
    figure = new_figure(8.6, 1.15 * count + 0.6)
    panels = figure.subplots(count, 1, squeeze=False, sharex=True)[:, 0]
    for i, ax in enumerate(panels):
        mean, error = traces.recorded[:, i], traces.error[:, i]
        ax.fill_between(traces.seconds, mean - error, mean + error, color=GRID, lw=0)
        ax.plot(traces.seconds, mean, color=MUTED, lw=1.0, label="recorded, mean ± s.e.m.")
        ax.plot(
            traces.seconds,
            traces.predicted[:, i],
            color=KNOWN["foundation"],
            lw=1.4,
            label="predicted",
        )
        ax.set_title(
            f"neuron {traces.neurons[i]}, percentile {PERCENTILES[i]}: "
            f"CC_abs {traces.scores[i]:.2f}".replace("-", "−"),
            loc="left",
            fontsize=8.5,
            color=INK,
        )
        ax.margins(x=0)
    panels[-1].set_xlabel("time in the movie (s)")
    figure.supylabel("response (training mean = 1)", fontsize=9, color=INK)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside upper right",
        ncols=2,
        frameon=False,
        fontsize=8.5,
    )
    return figure
