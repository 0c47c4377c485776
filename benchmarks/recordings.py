"""A recording of the size of a real one, made fast: sparse activity, filmed-like movies.

Its neurons respond to nothing; only sizes, sparseness and clocks are those of a real session.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.simulator.arrays import save
from data_prep.simulator.movies import natural_movie
from data_prep.simulator.signals_layout import description

FRAME_RATE = 30.0
SCAN_RATE = 6.3
EYE_RATE = 20.0
TREADMILL_RATE = 60.0
GAP = 1.0  # seconds between trials


@dataclass(frozen=True)
class Size:
    """How large a recording is; the defaults are those of the paper but for the minutes."""

    neurons: int = 8000
    trials: int = 36
    frames: int = 300
    height: int = 144
    width: int = 256

    @property
    def seconds(self) -> float:
        """Of all trials."""
        return self.trials * self.frames / FRAME_RATE


def write_recording(
    folder: Path,
    size: Size,
    seed: int = 0,
    name: str | None = None,
    movies: Sequence[np.ndarray] = (),
) -> Path:
    """Write a session in the signals layout.

    Args:
        folder: that receives its folder.
        size: of it.
        seed: of everything random.
        name: of the session.
        movies: to draw from; new ones if there are none.

    Returns:
        The session's folder.
    """
    generator = np.random.default_rng(seed)
    session = folder / (name or f"mouse{seed + 1:02d}-1-1")
    length = size.frames / FRAME_RATE
    starts = 2.0 + np.arange(size.trials) * (length + GAP)
    rows = []
    for number, start in enumerate(starts):
        if movies:
            movie = movies[generator.integers(len(movies))]
        else:
            movie = natural_movie(size.frames, size.height, size.width, FRAME_RATE, generator)
        save(session / "videos" / f"movie{number}.npy", movie)
        rows.append(
            [f"trial{number}", "train", "natural_movie", f"movie{number}", repr(float(start))]
        )
    total = starts[-1] + length + 2
    times = np.arange(0, total, 1 / SCAN_RATE)
    _signal(session, "responses", _activity(len(times), size.neurons, generator), times)
    times = np.arange(0, total, 1 / EYE_RATE)
    pupil = np.cumsum(generator.normal(0, 0.3, (len(times), 3)), axis=0).astype(np.float32)
    _signal(session, "pupil", pupil, times)
    times = np.arange(0, total, 1 / TREADMILL_RATE)
    _signal(session, "treadmill", generator.gamma(1, 5, (len(times), 1)).astype("f4"), times)
    np.savez(
        session / "neurons.npz",
        unit_id=np.arange(size.neurons),
        delay_seconds=np.repeat(np.arange(10) / 10 / SCAN_RATE, -(-size.neurons // 10))[
            : size.neurons
        ],
    )
    with open(session / "trials.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["trial", "tier", "domain", "video", "start"], *rows])
    (session / "session.json").write_text(json.dumps(description(FRAME_RATE)))
    return session


def _signal(session: Path, name: str, values: np.ndarray, times: np.ndarray) -> None:
    save(session / "signals" / name / "values.npy", values)
    save(session / "signals" / name / "times.npy", times)


def _activity(scans: int, neurons: int, generator: np.random.Generator) -> np.ndarray:
    """Events of gamma-distributed sizes at lognormal rates: three in five samples are zero.

    The simulator's compound Poisson noise, at the sparseness that it has with its defaults.
    """
    found = np.empty((scans, neurons), np.float32)
    for first in range(0, neurons, 500):
        some = min(500, neurons - first)
        rate = generator.lognormal(-0.9, 0.8, some)
        modulation = np.exp(generator.normal(0, 0.7, (scans, some)) - 0.245)
        events = generator.poisson(rate * modulation)
        found[:, first : first + some] = generator.standard_gamma(2.0 * events) * 0.5
    return found
