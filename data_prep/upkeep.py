"""Upkeep of a prepared dataset: damaged parts made again, sessions and unused movies taken out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pydantic import ValidationError

from data_prep.at_target import session_manifest
from data_prep.job import prepare, write_manifest
from data_prep.journal import MANIFEST, OWN, done, note, remove_empty, remove_written, written
from data_prep.settings import PrepSettings
from fmcortex import storage
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import split_problems
from fmcortex.data.files import movie_problems, session_problems
from fmcortex.data.manifest import DatasetManifest, SessionManifest
from fmcortex.data.movies import ARRAY, INDEX, movie_folder
from fmcortex.errors import ConfigError, DataError
from fmcortex.lock import Lock
from fmcortex.names import check_session

#: The files of a movie, in the order in which they go: without its index it is not there.
_MOVIE = (INDEX, "zarr.json", ARRAY)


@dataclass(frozen=True)
class Going:
    """A session or movie that is to be removed: its name, its files' paths, and their bytes."""

    name: str
    files: list[str]
    bytes: int


def session_names(url: str) -> list[str]:
    """The sessions that are at a dataset's URL, finished or damaged, sorted.

    Raises:
        StorageError: it cannot be read.
    """
    root = storage.join(url, "sessions")
    return [n for n in storage.names(root) if storage.exists(storage.join(root, n, MANIFEST))]


def damaged(url: str, note: Callable[[str], None] | None = None) -> dict[str, list[str]]:
    """What is wrong with each session of a dataset and with its movies; every byte is read.

    Args:
        url: of the dataset.
        note: is told what is looked at.

    Returns:
        Lines of problems by session; those without any are left out.

    Raises:
        StorageError: it cannot be read.
    """
    names = set(session_names(url))
    manifest_url = storage.join(url, MANIFEST)
    with suppress(DataError):
        if storage.exists(manifest_url):
            known = DatasetManifest.parse_sealed(storage.read_bytes(manifest_url), manifest_url)
            names |= {entry.session for entry in known.sessions}
    movies: dict[str, list[str]] = {}
    split = split_problems(url)
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        if note is not None:
            note(name)
        folder = storage.join(url, "sessions", name)
        manifest = session_manifest(url, name)
        if manifest is None:
            problems = [f"{storage.join(folder, MANIFEST)}: missing or damaged"]
        else:
            problems = session_problems(folder, manifest)
            for movie, entry in manifest.movies.items():
                if movie not in movies:
                    movies[movie] = movie_problems(url, movie, entry)
                problems += movies[movie]
            if manifest.settings.get("split") == "made":
                problems, split = problems + split, []  # its preparation makes that again
        if problems:
            found[name] = problems
    return found


def repair(
    url: str,
    source: str,
    names: Sequence[str],
    progress: Callable[[str], None] | None = None,
    track: Callable[[int, int, str], None] | None = None,
) -> None:
    """Make the damaged parts of some sessions again from their source, with the same settings.

    Args:
        url: of the dataset.
        source: the local folder of the recordings.
        names: of the sessions.
        progress, track: as of `prepare`.

    Raises:
        ConfigError: the settings of a session are lost, and the other sessions differ in theirs.
        DataError, StorageError: as `prepare`.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        settings = _settings_of(url, name)
        groups.setdefault(settings.model_dump_json(), []).append(name)
    for text, some in groups.items():
        # As they were: whether they may be mixed was asked when they were prepared.
        known = {"sessions": some, "mixed": True}
        settings = PrepSettings.model_validate_json(text).model_copy(update=known)
        prepare(source, url, settings, 0, progress, False, track, content=True)
    if not groups:
        with Lock(url, "repair", todo="wait for that"):
            write_manifest(url)


def _settings_of(url: str, name: str) -> PrepSettings:
    """The settings that a session was prepared with; those of the others if its own are lost."""
    manifest = session_manifest(url, name)
    others = [manifest] if manifest else [session_manifest(url, n) for n in session_names(url)]
    found = [other.settings for other in others if other is not None]
    if not found or any(settings != found[0] for settings in found):
        raise ConfigError(
            f"{url}: how session {name} was prepared is lost with its manifest; run `fmcortex prep`"
            " with its settings"
        )
    try:
        return PrepSettings.model_validate(found[0])
    except ValidationError as error:
        raise ConfigError(
            f"{url}: session {name} was prepared by another version, with other settings; run"
            " `fmcortex prep`"
        ) from error


def sessions_going(url: str, names: Sequence[str]) -> list[Going]:
    """The files that removing some sessions removes.

    Raises:
        ConfigError: these are all sessions of the dataset.
        DataError: there is no such session, not a finished dataset, or another one is damaged.
        StorageError: it cannot be read.
    """
    known = set(open_dataset(url).sessions)
    going = []
    for name in dict.fromkeys(names):
        check_session(name, f"{url}: session")
        folder = storage.join(url, "sessions", name)
        sizes = storage.file_sizes(folder)
        files = sorted((written(folder) | set(OWN)) & set(sizes))
        if name not in known and not files:
            raise DataError(f"{url}: no session {name!r}; it has {', '.join(sorted(known))}")
        going.append(Going(name, files, sum(sizes[path] for path in files)))
    if known <= set(names):
        raise ConfigError(f"{url}: these are all of its sessions; remove the folder itself")
    _manifests(url, leave_out=names)
    return going


def _manifests(url: str, leave_out: Sequence[str] = ()) -> dict[str, SessionManifest]:
    """The manifests of a dataset's sessions.

    Raises:
        DataError: one is damaged.
    """
    found = {}
    for name in session_names(url):
        if name not in leave_out:
            manifest = session_manifest(url, name)
            if manifest is None:
                raise DataError(f"{url}: session {name}: its manifest is damaged; repair it")
            found[name] = manifest
    return found


def remove_sessions(url: str, names: Sequence[str]) -> None:
    """Take sessions out of a dataset. What others have put into their folders stays, and movies do.

    Raises:
        ConfigError, DataError, StorageError: as `sessions_going`.
        Locked: the dataset is being prepared.
    """
    with Lock(url, "remove", todo="wait for that"):
        sessions_going(url, names)
        folders = [storage.join(url, "sessions", name) for name in dict.fromkeys(names)]
        for folder in folders:
            note(folder, OWN)  # should this be interrupted, the next removes the rest
            storage.remove(storage.join(folder, MANIFEST))
        write_manifest(url)
        for folder in folders:
            remove_written(folder)
            done(folder)
            remove_empty(folder)


def movies_going(url: str) -> list[Going]:
    """The movies that no session of a dataset shows any more.

    Raises:
        DataError: not a finished dataset, or a session's manifest is damaged.
        StorageError: it cannot be read.
    """
    open_dataset(url)
    shown = {movie for manifest in _manifests(url).values() for movie in manifest.movies}
    going = []
    for name in storage.names(storage.join(url, "movies")):
        is_movie = len(name) == 64 and not set(name) - set("0123456789abcdef")
        if is_movie and name not in shown:
            sizes = storage.file_sizes(movie_folder(url, name))
            files = [path for path in _MOVIE if path in sizes]
            if files:
                going.append(Going(name, files, sum(sizes[path] for path in files)))
    return going


def remove_movies(url: str) -> list[Going]:
    """Remove the movies that no session shows any more.

    Returns:
        What was removed.

    Raises:
        DataError, StorageError: as `movies_going`.
        Locked: the dataset is being prepared.
    """
    with Lock(url, "gc", todo="wait for that"):
        going = movies_going(url)
        for movie in going:
            folder = movie_folder(url, movie.name)
            for path in movie.files:
                storage.remove(storage.join(folder, path))
            remove_empty(folder)
    return going
