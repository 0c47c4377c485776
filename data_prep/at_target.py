"""What is at the target of a session already, and whether it is whole."""

from __future__ import annotations

from contextlib import suppress

from data_prep.journal import MANIFEST, SURVEY, note
from data_prep.movie_writer import stored_movie
from data_prep.retiered import ASTRIDE
from fmcortex import storage
from fmcortex.data.files import check_file, origin_problem, session_files
from fmcortex.data.manifest import SessionManifest, Tier
from fmcortex.errors import DataError, StorageError
from fmcortex.seal import seal_holds


def session_bytes(manifest: SessionManifest) -> int:
    """Bytes of a session's files but its manifest."""
    return sum(file.bytes for file in session_files(manifest).values())


def session_manifest(to: str, name: str) -> SessionManifest | None:
    """The manifest of a session at the target; None if there is none or it is damaged."""
    url = storage.join(to, "sessions", name, MANIFEST)
    if not storage.exists(url):
        return None
    try:
        return SessionManifest.parse_sealed(storage.read_bytes(url), url)
    except DataError:
        return None


def tiers_of(manifest: SessionManifest) -> dict[str, Tier | None]:
    """The tier of each trial of a session, those left out too, as in `Tiers`."""
    tiers: dict[str, Tier | None] = {
        item.trial: None if item.reason == ASTRIDE else item.tier for item in manifest.excluded
    }
    tiers |= {trial.key: "train" for trial in manifest.trials}
    return tiers | {trial.key: v.tier for v in manifest.videos for trial in v.shown}


def damage(to: str, manifest: SessionManifest, run: str | None) -> str | None:
    """The first thing that is wrong with a session at the target or with its movies; None if whole.

    Args:
        to: URL of the dataset.
        manifest: of the session.
        run: of the job, in which everything is read and compared with its SHA-256; None to go by
            the sizes of the files and the seals of indices.

    Raises:
        StorageError: the target cannot be read.
    """
    folder = storage.join(to, "sessions", manifest.session)
    if (problem := origin_problem(folder)) is not None:
        return problem
    sizes = storage.file_sizes(folder)
    for path, file in session_files(manifest).items():
        if run is not None:
            problem = check_file(folder, path, file, sizes.get(path))
        elif sizes.get(path) != file.bytes:
            problem = f"{storage.join(folder, path)}: missing, or of another size"
        else:
            problem = None
        if problem is None and path == SURVEY:
            problem = _survey_damage(folder)
        if problem is not None:
            return problem
    for name, entry in manifest.movies.items():
        if stored_movie(to, name, run) != entry:
            return f"movie {name[:12]}"
    return None


def _survey_damage(folder: str) -> str | None:
    url = storage.join(folder, SURVEY)
    return None if seal_holds(storage.read_bytes(url)) else f"{url}: differs from its own checksum"


def forget(to: str, name: str) -> None:
    """Before a session is written anew, take away what says that it is there.

    The dataset's manifest goes first. Other workers may be removing it too.
    """
    folder = storage.join(to, "sessions", name)
    session = storage.join(folder, MANIFEST)
    if not storage.exists(session):
        return
    note(folder, [])  # what the manifest says was written
    for url in (storage.join(to, MANIFEST), session):
        with suppress(StorageError):
            storage.remove(url)
        if storage.exists(url):
            raise StorageError(f"{url}: cannot remove")
