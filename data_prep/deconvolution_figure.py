"""A figure of what was made of the fluorescence of some neurons of a session."""

from __future__ import annotations

import io
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.deconvolution import DeconvolutionSettings, deconvolve
from data_prep.deconvolve_blocks import COLUMNS
from data_prep.readers.deconvolved import read_record
from data_prep.readers.fluorescence import Fluorescence, open_fluorescence
from data_prep.readers.tables import read_rows
from fmcortex import storage
from fmcortex.errors import DataError
from fmcortex.report.figures import INK, MUTED, new_figure, style

NEURONS = 6
SECONDS = 60.0
BLUE, ORANGE = "#0072B2", "#E69F00"


def draw_deconvolution(folder: Path, to: str) -> None:
    """Draw fluorescence, fit and activity of neurons of all signal-to-noise ratios, a minute each.

    Args:
        folder: of a session whose fluorescence was deconvolved.
        to: URL or path of the image; its suffix tells the format.

    Raises:
        DataError: it has no fluorescence, or nothing was made of it.
        StorageError: the figure cannot be written.
    """
    found = open_fluorescence(folder)
    if isinstance(found, str):
        raise DataError(f"{folder}: {found}")
    with closing(found), style():
        figure = _figure(folder.name, found)
        stream = io.BytesIO()
        suffix = to.rpartition(".")[2] if "." in to.rpartition("/")[2] else "png"
        figure.savefig(stream, format=suffix, dpi=110)
    storage.write_bytes(to, stream.getvalue())


def _figure(name: str, found: Fluorescence) -> Any:
    settings = DeconvolutionSettings(**read_record(found.target).settings)
    rows = read_rows(found.target / "neurons.csv", set(COLUMNS), set())
    decay, noise, signal = (np.array([float(row[name]) for row in rows]) for name in COLUMNS[2:])
    there = np.flatnonzero(~np.isnan(noise))
    rows, decay, noise, signal = [rows[i] for i in there], decay[there], noise[there], signal[there]
    ratio = np.divide(signal, noise, out=np.zeros_like(noise), where=noise > 0)
    order = np.argsort(ratio, kind="stable")[::-1]
    chosen = order[np.unique(np.linspace(0, len(order) - 1, NEURONS).round().astype(int))]
    figure = new_figure(11, 0.6 + 1.35 * len(chosen))
    axes = figure.subplots(len(chosen), 1, squeeze=False)[:, 0]
    for ax, row in zip(axes, chosen, strict=True):
        field = next(t for t in found.traces if t.name == rows[row]["field"])
        column = int(rows[row]["column"])
        trace = field.read(slice(column, column + 1))[:, 0].astype(np.float64)
        result = deconvolve(trace, field.times, settings)
        part = _part(result.values, field.times)
        seconds = field.times[part] - field.times[part][0]
        ax.plot(seconds, trace[part], color=MUTED, lw=0.9, label="fluorescence")
        ax.plot(seconds, result.fit[part], color=BLUE, lw=1.2, label="fit")
        twin = ax.twinx()
        twin.vlines(seconds, 0, result.values[part], color=ORANGE, lw=1.4, label="activity")
        top = np.nanmax(result.values[part])
        twin.set_ylim(0, 3 * top if top > 0 else 1)  # below the traces, where it can
        twin.set_yticks([])
        twin.spines["right"].set_visible(False)
        place = f"{field.name}, column {column}" if len(found.traces) > 1 else f"column {column}"
        said = f"signal to noise {ratio[row]:.2f}, decay {decay[row]:.2f} s"
        if np.isnan(decay[row]):
            said = "constant"
        ax.set_title(f"{place}: {said}", loc="left", color=INK)
        ax.set_xlim(0, seconds[-1])
        ax.set_ylabel("fluorescence")
    handles = [*axes[0].get_legend_handles_labels()[0], *twin.get_legend_handles_labels()[0]]
    axes[0].legend(
        handles,
        ["fluorescence", "fit", "activity"],
        ncols=3,
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        fontsize=8,
    )
    axes[-1].set_xlabel("seconds")
    figure.suptitle(name, fontsize=11)
    return figure


def _part(activity: np.ndarray, times: np.ndarray) -> slice:
    """The minute with the greatest activity."""
    interval = float(np.median(np.diff(times)))
    count = min(max(round(SECONDS / interval), 2), len(times))
    summed = np.concatenate([[0.0], np.cumsum(np.nan_to_num(activity))])
    start = int(np.argmax(summed[count:] - summed[:-count]))
    return slice(start, start + count)
