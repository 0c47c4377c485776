"""Tiers made by us for all sessions of a run, and leaks found in those of a dataset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from data_prep.alignment import shown_frames
from data_prep.movie_writer import hashes_of
from data_prep.near_duplicates import near_duplicates
from data_prep.parallel import Task, run
from data_prep.readers.find import open_reader
from data_prep.settings import PrepSettings
from data_prep.splits import Leak, MovieUse, assign_apart, find_leaks
from data_prep.survey import PART
from fmcortex import storage
from fmcortex.data.dataset import open_dataset
from fmcortex.data.manifest import (
    VERSION,
    Document,
    MovieFile,
    Sealed,
    SessionManifest,
    Sha256,
    Tier,
)
from fmcortex.data.movies import INDEX, movie_folder, movie_name
from fmcortex.errors import ConfigError, DataError, FmcortexError

SPLIT = "split.json"


@dataclass(frozen=True)
class Shown:
    """What a trial showed: its movie, its length in seconds and its perceptual hashes."""

    key: str
    movie: str
    seconds: float
    hashes: np.ndarray


def look_at_movies(folder: str, settings: PrepSettings, number: int) -> list[Shown]:
    """What the trials of part `number` of a session showed."""
    reader = open_reader(Path(folder), settings)
    found = []
    for ref in reader.trials()[number * PART : (number + 1) * PART]:
        movie = shown_frames(reader.read(ref), reader.info, settings)
        seconds = len(movie) / settings.frame_rate
        hashes = hashes_of(movie, settings.frame_rate)
        found.append(Shown(ref.key, movie_name(movie), seconds, hashes))
    return found


def count_parts(folder: str, settings: PrepSettings) -> int:
    """Parts of a session that are looked at one by one."""
    return -(-len(open_reader(Path(folder), settings).trials()) // PART)


class _Looking:
    """Looks at all movies of one session."""

    def __init__(self, folder: Path, settings: PrepSettings, note: Callable[[str], None]) -> None:
        self.name = folder.name
        self.shown: list[Shown] = []
        self.error: FmcortexError | None = None
        self._folder, self._settings, self._note = str(folder), settings, note

    def start(self) -> list[Task]:
        return [Task(count_parts, (self._folder, self._settings), self._counted)]

    def _counted(self, parts: int) -> list[Task]:
        self._note(f"{self.name}: looking at the movies")
        return [
            Task(look_at_movies, (self._folder, self._settings, number), self._found)
            for number in range(parts)
        ]

    def _found(self, shown: list[Shown]) -> list[Task]:
        self.shown += shown
        return []

    def failed(self, error: FmcortexError) -> None:
        self.error = error


class MovieTier(Document):
    """The tier of a movie, and its perceptual hashes as in `MovieFile`."""

    tier: Tier
    hashes: list[str]


class SplitFile(Sealed):
    """`split.json` of a dataset whose split was made here: tiers that later runs keep.

    It is written before any session, so that a run that goes on after one that was killed, or adds
    sessions, does not move a movie from one tier to another.
    """

    version: Literal[2] = VERSION
    settings: dict[str, float]
    movies: dict[Sha256, MovieTier]


def made_tiers(
    folders: list[Path],
    to: str,
    settings: PrepSettings,
    workers: int,
    overwrite: bool,
    note: Callable[[str], None],
) -> tuple[dict[str, dict[str, Tier | None]], dict[str, FmcortexError]]:
    """Tiers of the trials of all sessions, by session and key; None for those to be left out.

    Movies that are alike are in one tier, in all sessions of the run and in those that are at
    the target already, whose movies keep theirs. A movie that is alike to some of training and to
    some held out there, such as one cut together of both, is left out.

    Returns:
        The tiers, and for each session whose movies cannot be looked at the reason. Such a session
        must not be prepared: it would keep the tiers of its source.

    Raises:
        ConfigError: the target's split was made with other settings.
        StorageError: the target cannot be read or written.
    """
    stored = _stored_split(to, settings, {folder.name for folder in folders}, overwrite, note)
    jobs = [_Looking(folder, settings, note) for folder in folders]
    run(jobs, workers)
    known = {name: movie.tier for name, movie in stored.movies.items()}
    hashes = {name: _hashes(movie.hashes) for name, movie in stored.movies.items()}
    seconds: dict[str, float] = {}
    times: dict[str, int] = {}
    for job in jobs:
        for shown in job.shown:
            hashes[shown.movie] = shown.hashes
            seconds[shown.movie] = shown.seconds
        # Repeats are those of one mouse: other mice tell nothing of how reliable its neurons are.
        for movie, count in Counter(shown.movie for shown in job.shown).items():
            times[movie] = max(times.get(movie, 0), count)
    assigned = assign_apart(
        [MovieUse(name, seconds[name], times[name]) for name in sorted(seconds)],
        near_duplicates(hashes),
        {"validation": settings.validation_fraction, "test": settings.test_fraction},
        settings.split_seed,
        known,
    )
    tiers = {name: tier for name, tier in assigned.items() if tier is not None} | known
    movies = {
        name: MovieTier(tier=tiers[name], hashes=[f"{h:016x}" for h in hashes[name].tolist()])
        for name in sorted(tiers)
    }
    content = stored.model_copy(update={"movies": movies}).sealed()
    url = storage.join(to, SPLIT)
    if not storage.exists(url) or storage.read_bytes(url) != content:
        storage.write_bytes(url, content)
    return {
        job.name: {shown.key: tiers.get(shown.movie) for shown in job.shown}
        for job in jobs
        if job.error is None
    }, {job.name: job.error for job in jobs if job.error is not None}


def _stored_split(
    to: str,
    settings: PrepSettings,
    names: set[str],
    overwrite: bool,
    note: Callable[[str], None],
) -> SplitFile:
    """The tiers that movies at the target have, by an earlier split or by their sessions."""
    asked = {
        "validation_fraction": settings.validation_fraction,
        "test_fraction": settings.test_fraction,
        "split_seed": float(settings.split_seed),
    }
    url = storage.join(to, SPLIT)
    others = {name: manifest for name, manifest in _manifests(to) if name not in names}
    try:
        found = (
            SplitFile.parse_sealed(storage.read_bytes(url), url) if storage.exists(url) else None
        )
    except DataError:  # of a damaged split the sessions themselves tell the tiers
        note(f"{SPLIT} is damaged: taking the tiers from the sessions")
        found, others = None, dict(_manifests(to))
    if found is not None:
        if found.settings == asked:
            return found
        changed = ", ".join(k for k in asked if found.settings.get(k) != asked[k])
        if not overwrite or others:
            raise ConfigError(
                f"{to}: its split was made with another {changed}; choose another target, or"
                " overwrite all of its sessions"
            )
    tiers: dict[str, set[Tier]] = {}
    for manifest in others.values():
        for movie, tier in _shown(manifest):
            tiers.setdefault(movie, set()).add(tier)
    movies = {
        name: MovieTier(
            tier=next(t for t in ("test", "validation", "train") if t in some),
            hashes=[f"{value:016x}" for value in stored_hashes(to, name).tolist()],
        )
        for name, some in sorted(tiers.items())
    }
    return SplitFile(settings=asked, movies=movies)


def _manifests(to: str) -> Iterator[tuple[str, SessionManifest]]:
    """The sessions that are at the target, whether or not its own manifest is."""
    root = storage.join(to, "sessions")
    for path in sorted(storage.file_sizes(root)):
        name, _, file = path.partition("/")
        if file == "manifest.json":
            url = storage.join(root, path)
            with suppress(DataError):  # it is made again, or the end of the job complains
                yield name, SessionManifest.parse_sealed(storage.read_bytes(url), url)


def _shown(manifest: SessionManifest) -> list[tuple[str, Tier]]:
    """The movies of a session with their tiers."""
    found: list[tuple[str, Tier]] = [(trial.movie, "train") for trial in manifest.trials]
    return found + [(video.movie, video.tier) for video in manifest.videos]


def _hashes(texts: list[str]) -> np.ndarray:
    return np.array([int(text, 16) for text in texts], np.uint64)


def stored_hashes(url: str, movie: str) -> np.ndarray:
    """The perceptual hashes uint64 [k] of a movie of the dataset at `url`.

    Raises:
        DataError: the movie's index is damaged.
        StorageError: it cannot be read.
    """
    index = storage.join(movie_folder(url, movie), INDEX)
    return _hashes(MovieFile.parse_sealed(storage.read_bytes(index), index).hashes)


def leaks(url: str) -> list[Leak]:
    """Movies of a prepared dataset that are alike, one in training, the other not.

    Raises:
        DataError: not a prepared dataset, or a part of it is damaged.
        StorageError: it cannot be read.
    """
    dataset = open_dataset(url)
    tiers: dict[tuple[str, str], set[Tier]] = {}
    for session in dataset.sessions:
        for movie, tier in _shown(dataset.session(session).manifest):
            tiers.setdefault((session, movie), set()).add(tier)
    movies = sorted({movie for _, movie in tiers})
    with ThreadPoolExecutor(8) as pool:
        hashes = dict(zip(movies, pool.map(partial(stored_hashes, url), movies), strict=True))
    return find_leaks(tiers, near_duplicates(hashes))
