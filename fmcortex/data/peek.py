"""A trial at a glance: what is in its arrays, and a figure of it."""

from __future__ import annotations

import io

import numpy as np

from fmcortex import storage
from fmcortex.data.dataset import PreparedSession
from fmcortex.data.manifest import Trial
from fmcortex.data.shards import ARRAYS, TrialArrays
from fmcortex.errors import DataError

#: Frames of the movie that are drawn.
_SHOWN = 8


def find_trial(session: PreparedSession, key: str | None) -> tuple[Trial, str]:
    """A trial of a session, of whatever tier, and its tier.

    Args:
        session: of the trial.
        key: what the recording calls the trial; None for the first of training.

    Raises:
        DataError: the session has none of that name.
    """
    manifest = session.manifest
    if key is None:
        return manifest.trials[0], "train"
    known = {trial.key: (trial, "train") for trial in manifest.trials}
    for video in manifest.videos:
        known |= {trial.key: (trial, video.tier) for trial in video.shown}
    if key in known:
        return known[key]
    for left_out in manifest.excluded:
        if left_out.trial == key:
            raise DataError(f"{session.url}: trial {key} was left out: {left_out.reason}")
    names = [trial.key for trial in manifest.trials]
    raise DataError(
        f"{session.url}: no trial {key}; the {len(known)} that it has are called such as "
        f"{', '.join(names[:3])}"
    )


def summary(arrays: TrialArrays) -> list[list[str]]:
    """Of each array its name, shape, dtype, least, mean and greatest value."""
    rows = []
    for name in ARRAYS:
        values = getattr(arrays, name)
        numbers = [f"{f(values):.3f}" for f in (np.min, np.mean, np.max)]
        rows.append([name, " x ".join(map(str, values.shape)), values.dtype.name, *numbers])
    return rows


def draw_trial(session: PreparedSession, trial: Trial, arrays: TrialArrays, to: str) -> None:
    """Draw frames of the movie, the responses and the behaviour of a trial.

    Args:
        session: of the trial.
        trial: as the manifest has it.
        arrays: of the trial.
        to: URL or path of the image; its suffix tells the format.

    Raises:
        StorageError: it cannot be written.
    """
    from matplotlib.figure import Figure

    manifest = session.manifest
    frames = len(arrays.stimulus)
    seconds = np.arange(frames) / manifest.frame_rate
    figure = Figure(figsize=(11, 8), layout="constrained")
    grid = figure.add_gridspec(4, _SHOWN, height_ratios=[1.1, 3, 1, 1])
    shown = np.linspace(0, frames - 1, _SHOWN).round().astype(int)
    for column, frame in enumerate(shown):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(arrays.stimulus[frame], cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{seconds[frame]:.1f} s", fontsize=8)
        axes.axis("off")
    raster = figure.add_subplot(grid[1, :])
    image = raster.imshow(
        arrays.responses.T,
        aspect="auto",
        cmap="gray_r",
        vmin=0,
        vmax=float(np.nanquantile(arrays.responses, 0.99)) or 1.0,
        extent=(0, frames / manifest.frame_rate, manifest.neurons, 0),
        interpolation="none",
    )
    raster.set_ylabel("neuron")
    figure.colorbar(image, ax=raster, label="response / its scale", pad=0.01)
    for row, values, names, label in (
        (2, arrays.perspectives, manifest.perspectives, "perspectives"),
        (3, arrays.modulations, manifest.modulations, "modulations"),
    ):
        axes = figure.add_subplot(grid[row, :], sharex=raster)
        axes.plot(seconds, values, linewidth=1)
        axes.legend(names, fontsize=7, loc="upper right", frameon=False)
        axes.set_ylabel(f"{label}\n(standardised)", fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("seconds since the first frame")
    figure.suptitle(f"{manifest.session}, trial {trial.key}, {trial.domain}", fontsize=11)
    stream = io.BytesIO()
    suffix = to.rpartition(".")[2] if "." in to.rpartition("/")[2] else "png"
    figure.savefig(stream, format=suffix, dpi=110)
    storage.write_bytes(to, stream.getvalue())
