"""How large a prepared dataset becomes and how long preparing takes, before anything is read.

From the neurons, minutes and scan rate of each session. The rates are measured ones
(`benchmarks/data_loading.py` prints those of a machine): what they are not exact for is how well
movies compress and how fast a machine is, so both can be given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from data_prep.readers.tables import read_columns
from data_prep.settings import PrepSettings
from fmcortex.errors import DataError

COLUMNS = ("session", "neurons", "minutes", "scan_hz")


@dataclass(frozen=True)
class Session:
    """A session to be: neurons U, minutes of stimulus, scans per second."""

    name: str
    neurons: int
    minutes: float
    scan_rate: float


@dataclass(frozen=True)
class Rates:
    """What preparing a dataset was measured to take.

    Attributes:
        responses: bytes stored of one byte of responses.
        movies: bytes stored of one pixel of a frame.
        sample_seconds: seconds of a core for a sample, a neuron in a scan; with both passes.
        pixel_seconds: seconds of a core for a pixel of a frame; with both passes.
    """

    responses: float = 0.5
    movies: float = 0.66
    sample_seconds: float = 2.2e-7
    pixel_seconds: float = 1.2e-8


@dataclass(frozen=True)
class SessionSize:
    """What a session becomes."""

    session: str
    neurons: int
    minutes: float
    trials: int
    shards: int
    response_bytes: int
    movie_bytes: int
    core_seconds: float


def read_table(path: str) -> list[Session]:
    """The sessions of a CSV file with columns session, neurons, minutes and scan_hz.

    Raises:
        DataError: the file, or a row of it, is not so; the message names it.
    """
    table = read_columns(Path(path), ("session",))
    lacking = [name for name in COLUMNS if name not in table]
    if lacking:
        raise DataError(f"{path}: no column {', '.join(lacking)}")
    for name in COLUMNS[1:]:
        if table[name].dtype.kind not in "fi":
            raise DataError(f"{path}: column {name} is not all numbers")
    sessions: dict[str, Session] = {}
    for name, *numbers in zip(*(table[name].tolist() for name in COLUMNS), strict=True):
        session = Session(name, int(numbers[0]), *map(float, numbers[1:]))
        if not (session.neurons > 0 and session.minutes > 0 and session.scan_rate > 0):
            raise DataError(f"{path}: session {name}: neurons, minutes and scan_hz are above zero")
        if name in sessions:
            raise DataError(f"{path}: session {name} is there twice")
        sessions[name] = session
    if not sessions:
        raise DataError(f"{path}: no sessions")
    return list(sessions.values())


def sizes_of(
    sessions: Sequence[Session],
    settings: PrepSettings,
    rates: Rates | None = None,
    trial_seconds: float = 10.0,
    shared_movies: float = 0.0,
) -> list[SessionSize]:
    """What each session becomes.

    Args:
        sessions: to be prepared.
        settings: of the preparation; height and width are those of the prepared movies, pixels.
        rates: of the machine; those measured if None.
        trial_seconds: length of a trial.
        shared_movies: the part of a session's minutes whose movies other sessions have shown
            already, or it has itself, so that they are stored once.

    Raises:
        ValueError: settings without height and width.
    """
    if settings.height is None or settings.width is None:
        raise ValueError("height and width of the movies are needed")
    rates = rates or Rates()
    itemsize = 2 if settings.response_dtype == "float16" else 4
    found = []
    for session in sessions:
        seconds = session.minutes * 60
        trials = max(1, round(seconds / trial_seconds))
        samples = seconds * session.scan_rate * session.neurons
        # As `plan_shards` closes them, by the bytes of the arrays as float32.
        trial_bytes = 4 * samples / trials
        per_shard = max(1, min(settings.trials_per_shard, int(settings.shard_bytes // trial_bytes)))
        pixels = seconds * settings.frame_rate * settings.height * settings.width
        found.append(
            SessionSize(
                session.name,
                session.neurons,
                session.minutes,
                trials,
                ceil(trials / per_shard),
                round(samples * itemsize * rates.responses),
                round(pixels * (1 - shared_movies) * rates.movies),
                samples * rates.sample_seconds + pixels * rates.pixel_seconds,
            )
        )
    return found
