"""What is in a prepared dataset, and whether it is whole: `fmcortex data info` and `verify`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from fmcortex import storage
from fmcortex.data.dataset import MANIFEST, PreparedSession, open_dataset
from fmcortex.data.files import movie_problems
from fmcortex.data.manifest import MovieEntry
from fmcortex.errors import FmcortexError
from fmcortex.seal import seal_holds

#: Tiers of movies, if they were made when the dataset was prepared.
SPLIT = "split.json"
#: Sessions and movies that are checked at a time.
_THREADS = 8


def describe(url: str) -> dict[str, Any]:
    """Summarise the prepared dataset at `url` from its manifests.

    Returns:
        `url`, totals over sessions (`sessions`, `neurons`, `train_trials`, `train_minutes`,
        `bytes` of the sessions' folders), the distinct `movies` and their `movie_bytes`, and
        `session_details`: one entry a session, sorted by name, with the frame size
        in pixels, the frame rate in Hz, the repeated videos by tier and domain, and the excluded
        trials by reason. JSON-ready.

    Raises:
        DataError: not a prepared dataset, or a manifest is missing or damaged.
        StorageError: it cannot be read.
    """
    dataset = open_dataset(url)
    sizes = {entry.session: entry.bytes for entry in dataset.manifest.sessions}
    details = [_describe_session(dataset.session(name), sizes[name]) for name in dataset.sessions]
    totals = {
        key: sum(detail[key] for detail in details)
        for key in ("neurons", "train_trials", "train_minutes", "bytes")
    }
    movies = {"movies": dataset.manifest.movies, "movie_bytes": dataset.manifest.movie_bytes}
    return {"url": url, "sessions": len(details), **totals, **movies, "session_details": details}


def _describe_session(session: PreparedSession, size: int) -> dict[str, Any]:
    manifest = session.manifest
    videos: dict[str, dict[str, dict[str, int]]] = {}
    for video in manifest.videos:
        domains = videos.setdefault(video.tier, {})
        counts = domains.setdefault(video.domain, {"videos": 0, "repeats": 0})
        counts["videos"] += 1
        counts["repeats"] += video.repeats
    return {
        "session": manifest.session,
        "animal": manifest.animal,
        "layout": manifest.layout,
        "neurons": manifest.neurons,
        "frame_rate": manifest.frame_rate,
        "height": manifest.height,
        "width": manifest.width,
        "perspectives": manifest.perspectives,
        "modulations": manifest.modulations,
        "train_trials": len(manifest.trials),
        "train_minutes": manifest.train_minutes,
        "bytes": size,
        "videos": videos,
        "excluded": dict(Counter(item.reason for item in manifest.excluded)),
    }


@dataclass(frozen=True)
class ShardLine:
    """A shard as `fmcortex data ls` lists it; `frames` are those of its trials."""

    session: str
    shard: str
    trials: int
    frames: int
    frame_rate: float
    bytes: int


def shards_of(url: str) -> list[ShardLine]:
    """All shards of the prepared dataset at `url`, by session, from its manifests.

    Raises:
        DataError, StorageError: as `describe`.
    """
    dataset = open_dataset(url)
    lines = []
    for name in dataset.sessions:
        manifest = dataset.session(name).manifest
        frames = [0] * len(manifest.shards)
        for trial in (*manifest.trials, *(t for video in manifest.videos for t in video.shown)):
            frames[trial.shard] += trial.frames
        lines += [
            ShardLine(name, shard.name, shard.trials, count, manifest.frame_rate, shard.bytes)
            for shard, count in zip(manifest.shards, frames, strict=True)
        ]
    return lines


def datasets_in(url: str) -> list[str]:
    """URLs of the prepared datasets in the folder at `url`.

    Raises:
        StorageError: it cannot be listed.
    """
    places = [storage.join(url, name) for name in storage.names(url)]
    return [place for place in places if storage.exists(storage.join(place, MANIFEST))]


def verify(url: str, track: Callable[[int, int, str], None] | None = None) -> list[str]:
    """Check every byte of the prepared dataset at `url`, and every pixel of its movies.

    Args:
        url: of the dataset.
        track: called with the sessions and movies done, all of them, and the next one's name.

    Returns:
        One line for each problem, naming the file, shard or array; empty if all is whole.

    Raises:
        DataError: not a prepared dataset.
        StorageError: its manifest cannot be read.
    """
    dataset = open_dataset(url)
    problems = split_problems(url)
    movies: dict[str, MovieEntry] = {}
    sessions = []
    for name in dataset.sessions:
        try:
            sessions.append(dataset.session(name))
        except FmcortexError as error:
            problems.append(str(error))
            continue
        for movie, entry in sessions[-1].manifest.movies.items():
            if movies.setdefault(movie, entry) != entry:
                problems.append(f"{url}: session {name} says otherwise of movie {movie}")
    checks = [(session.manifest.session, session.verify) for session in sessions]
    checks += [
        (f"movie {name[:12]}", partial(movie_problems, dataset.url, name, entry))
        for name, entry in sorted(movies.items())
    ]
    # From an object store most of the time is waiting, and hashing lets other threads run.
    with ThreadPoolExecutor(_THREADS) as pool:
        found = [pool.submit(_checked, check) for _, check in checks]
        for number, ((name, _), future) in enumerate(zip(checks, found, strict=True)):
            if track is not None:
                track(number, len(checks), name)
            problems += future.result()
    return problems


def split_problems(url: str) -> list[str]:
    """What is wrong with the tiers that were made here, if any were."""
    place = storage.join(url, SPLIT)
    if not storage.exists(place) or seal_holds(storage.read_bytes(place)):
        return []
    return [f"{place}: differs from its own checksum"]


def _checked(check: Callable[[], list[str]]) -> list[str]:
    try:
        return check()
    except FmcortexError as error:
        return [str(error)]
