"""`fmcortex prep`: from a folder of recordings to a prepared dataset.

The job may be stopped at any time and run again. A session counts as written once its manifest
is there, which is written last; a session that is there from the same source with the same
settings is left alone, and of one that is not yet there, the survey, movies and shards that are
whole are kept. The dataset's manifest is written last of all, from all the sessions at the target,
and only if every session of the run succeeded.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

from data_prep.at_target import session_bytes
from data_prep.journal import MANIFEST, check_target, leftovers
from data_prep.kinds import Kinds
from data_prep.parallel import raise_failures, run
from data_prep.readers.find import find_sessions
from data_prep.readers.nwb_schema import read_nwb_json
from data_prep.session_job import SessionJob
from data_prep.session_writer import Origin
from data_prep.settings import PrepSettings
from data_prep.split_job import made_tiers
from fmcortex import __version__, storage
from fmcortex.data.manifest import (
    DatasetManifest,
    MovieEntry,
    SessionEntry,
    SessionManifest,
    Tier,
)
from fmcortex.errors import ConfigError, DataError, FmcortexError, StorageError
from fmcortex.lock import Lock
from fmcortex.overlap import check_apart


def prepare(
    source: str,
    to: str,
    settings: PrepSettings | None = None,
    workers: int = 0,
    progress: Callable[[str], None] | None = None,
    overwrite: bool = False,
    track: Callable[[int, int, str], None] | None = None,
    skip_unknown: bool = False,
    within: AbstractContextManager[Any] | None = None,
    content: bool | None = None,
) -> DatasetManifest:
    """Prepare the recordings at `source` as a dataset at `to`, or what is missing there.

    Args:
        source: a local folder of session folders, or one session's folder.
        to: any fsspec URL or local path; sessions already there are kept.
        settings: how to prepare them; the defaults if None.
        workers: tasks at a time, over sessions and parts of sessions, of the Ray that is connected;
            0 works in this process.
        progress: called with one line as each session is done.
        overwrite: prepare sessions again that are at the target with other settings, or of another
            recording of that name; shards that do not depend on what changed are kept.
        track: called with the sessions done, all sessions, and what is being done.
        skip_unknown: pass over folders beside the sessions that are of no known layout; otherwise
            they are refused before anything is done.
        within: entered once there is something to do: what connects Ray, such as `ray_session`.
        content: read what is at the target and make again what is damaged, rather than go by the
            sizes of files; None where the target is local and sources are read, too, or `overwrite`
            is set.

    Returns:
        The dataset's manifest.

    Raises:
        ConfigError: a session is at the target with other settings or of another recording, the
            settings do not fit, or source and target overlap.
        DataError: the input of one or more sessions is bad. The others are written, what was
            written of the bad ones is removed, and the dataset's manifest is not written.
        Locked: another process prepares a dataset at the target.
        StorageError: the target cannot be read or written.
    """
    settings = settings or PrepSettings()
    to = storage.absolute(to)
    folders = find_sessions(source, settings.sessions, skip_unknown, progress)
    if workers and to.startswith("memory:"):
        raise ConfigError(f"{to}: Ray workers cannot write to this process's memory; use workers=0")
    parts = ["sessions", "movies", *(f"sessions/{folder.name}" for folder in folders)]
    check_apart([source, *dict.fromkeys(url for f in folders for url in read_from(f))], to, parts)
    check_target(to)
    _check_writable(to)
    if content is None:
        known = storage.is_local(to) and settings.check_source == "content"
        content = overwrite or known
    run_name = uuid.uuid4().hex
    done = 0
    lock = Lock(to, "prep", progress or (lambda line: None), "choose another target")

    def note(what: str) -> None:
        lock.check()
        if track is not None:
            track(done, len(folders), what)

    def say(line: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(line)
        note("")

    with lock, within or nullcontext():
        kinds = Kinds(to, settings, [folder.name for folder in folders])
        tiers: dict[str, dict[str, Tier | None]] = {}
        unseen: dict[str, FmcortexError] = {}
        if settings.split == "made":
            tiers, unseen = made_tiers(folders, to, settings, workers, overwrite, note)
        jobs = [
            SessionJob(
                folder,
                to,
                settings,
                tiers.get(folder.name),
                overwrite,
                content,
                run_name,
                say,
                note,
                kinds,
            )
            for folder in folders
        ]
        for job in jobs:
            if job.name in unseen:
                job.failed(unseen[job.name])
        run([job for job in jobs if job.error is None], workers)
        raise_failures(jobs)
        return write_manifest(to)


#: Bytes of every `origin.json`.
_ORIGIN_BYTES = len(Origin(folder_sha256="0" * 64).sealed())


def read_from(folder: Path) -> list[str]:
    """What is read of a session: its folder, and a file that is elsewhere."""
    with suppress(DataError):
        if (url := read_nwb_json(folder).url) is not None:
            return [str(folder), url]
    return [str(folder)]


def _check_writable(to: str) -> None:
    """Find out at once, rather than after hours of work, that the target cannot be written."""
    probe = storage.join(to, ".fmcortex-can-write")
    try:
        storage.write_bytes(probe, b"")
        storage.remove(probe)
    except FmcortexError:
        raise
    except Exception as error:
        # The clients of object stores have no common class for "no such host" and the like.
        raise StorageError(f"{to}: cannot write: {error}") from error


def write_manifest(to: str) -> DatasetManifest:
    """Write the dataset's manifest, from the manifests of all sessions at the target.

    Raises:
        DataError: a session's manifest is malformed.
        StorageError: the target cannot be read or written.
    """
    root = storage.join(to, "sessions")
    entries = []
    movies: dict[str, MovieEntry] = {}
    for name in storage.names(root):
        url = storage.join(root, name, MANIFEST)
        if not storage.exists(url):
            continue
        content = storage.read_bytes(url)
        manifest = SessionManifest.parse_sealed(content, url)
        movies.update(manifest.movies)
        entries.append(
            SessionEntry(
                session=name,
                manifest_sha256=storage.sha256(content),
                neurons=manifest.neurons,
                train_trials=len(manifest.trials),
                train_frames=manifest.train_frames,
                bytes=session_bytes(manifest) + len(content) + _ORIGIN_BYTES,
            )
        )
    _remove_leftovers(to)
    dataset = DatasetManifest(
        sessions=entries,
        movies=len(movies),
        movie_bytes=sum(movie.bytes for movie in movies.values()),
        tool_version=__version__,
    )
    url = storage.join(to, MANIFEST)
    if not storage.exists(url) or storage.read_bytes(url) != dataset.sealed():
        storage.write_bytes(url, dataset.sealed())
    return DatasetManifest.parse_sealed(dataset.sealed(), url)


def _remove_leftovers(to: str) -> None:
    """Remove the temporary files that killed runs on this machine left."""
    for found in leftovers(to):
        with suppress(StorageError):
            storage.remove(found)
