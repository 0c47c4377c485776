"""`fmcortex prep`: from a folder of recordings to a prepared dataset.

The job may be stopped at any time and run again. A session counts as written once its manifest
is there, which is written last; a session that is there from the same source with the same
settings is left alone. The dataset's manifest is written last of all, from all the sessions at
the target, and only if every session of the run succeeded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from data_prep.parallel import each, ray_cluster
from data_prep.readers.find import find_sessions, open_reader
from data_prep.settings import PrepSettings
from fmcortex import __version__, storage
from fmcortex.data.dataset import MANIFEST
from fmcortex.data.files import file_sizes, session_files
from fmcortex.data.manifest import DatasetManifest, SessionEntry, SessionManifest
from fmcortex.errors import ConfigError, DataError, FmcortexError, StorageError

_BLOCK = 8 << 20
#: Files of version 2 of zarr that say what its arrays are, although hidden.
_ZARR_2 = (".zarray", ".zattrs", ".zgroup")


def prepare(
    source: str,
    to: str,
    settings: PrepSettings | None = None,
    workers: int = 0,
    progress: Callable[[str], None] | None = None,
    overwrite: bool = False,
) -> DatasetManifest:
    """Prepare the recordings at `source` as a dataset at `to`, or what is missing there.

    Args:
        source: a local folder of session folders, or one session's folder.
        to: any fsspec URL or local path; sessions already there are kept.
        settings: how to prepare them; the defaults if None.
        workers: sessions to prepare at a time, as Ray tasks; 0 works in this process.
        progress: called with one line as each session is done.
        overwrite: prepare sessions again that are at the target with other settings.

    Returns:
        The dataset's manifest.

    Raises:
        ConfigError: a session is at the target with other settings, or the settings do not fit.
        DataError: the input of one or more sessions is bad. The others are written, what was
            written of the bad ones is removed, and the dataset's manifest is not written.
        StorageError: the target cannot be read or written.
    """
    settings = settings or PrepSettings()
    say = progress or (lambda line: None)
    to = storage.absolute(to)
    folders = find_sessions(source, settings.sessions)
    if workers and to.startswith("memory:"):
        raise ConfigError(f"{to}: Ray workers cannot write to this process's memory; use workers=0")
    _check_writable(to)
    with ray_cluster(workers):
        outdated = _outdated(folders, to, settings, overwrite)
        fingerprints = _run(source_sha256, [(str(path),) for path in folders], workers, say, None)
        calls = []
        for folder, fingerprint in zip(folders, fingerprints, strict=True):
            manifest = None if folder.name in outdated else _whole(to, folder.name)
            if manifest is not None and manifest.source_sha256 == fingerprint:
                say(f"{folder.name}: up to date")
            else:
                calls.append((str(folder), to, settings, fingerprint))
        _run(prepare_session, calls, workers, say, _summary)
    return _write_manifest(to)


def prepare_session(
    folder: str, to: str, settings: PrepSettings, source_fingerprint: str
) -> SessionManifest:
    """Prepare one session; what an earlier, unfinished run left of it is removed first.

    Args:
        folder: the session's source folder.
        to: the dataset.
        settings: how to prepare it.
        source_fingerprint: `source_sha256` of the folder.

    Raises:
        DataError, ConfigError: as `prepare`; nothing was written, an older version is left.
        StorageError: as `prepare`; nothing of the session is left.
    """
    # Imported here: webdataset and zarr are slow to import and not needed to find out that all
    # is up to date.
    from data_prep.survey import survey
    from data_prep.writer import SessionWriter

    path = Path(folder)
    url = storage.join(to, "sessions", path.name)
    reader = open_reader(path, settings)
    found = survey(reader, settings)
    _forget(path.name, to)
    storage.remove(url)
    try:
        return SessionWriter(reader, found, url, settings).write(source_fingerprint)
    except FmcortexError:
        # Without its manifest the session does not count; this only frees the space.
        with suppress(StorageError):
            storage.remove(url)
        raise


def source_sha256(folder: str) -> str:
    """SHA-256 over the path, size and content of every file of a source folder.

    Contents rather than modification times: a copy of the source is the same source, and a file
    that was repaired with its time kept is not. It costs one more read of the recordings.

    Raises:
        DataError: a file cannot be read.
    """
    root = Path(folder)
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root)
        hidden = any(part.startswith(".") for part in name.parts)
        if not path.is_file() or (hidden and path.name not in _ZARR_2):
            continue
        content = hashlib.sha256()
        try:
            with open(path, "rb") as stream:
                while block := stream.read(_BLOCK):
                    content.update(block)
                size = stream.tell()
        except OSError as error:
            raise DataError(f"{path}: cannot read: {error.strerror}") from error
        digest.update(f"{name.as_posix()}\0{size}\0{content.hexdigest()}\n".encode())
    return digest.hexdigest()


def _run(
    function: Callable, calls: list, workers: int, say: Callable, summary: Callable | None
) -> list:
    """Results of the calls in their order; if any failed, one error that names each failure."""
    results: list = [None] * len(calls)
    failures: dict[int, FmcortexError] = {}
    for number, result in each(function, calls, workers):
        name = Path(calls[number][0]).name
        if isinstance(result, FmcortexError):
            failures[number] = result
            say(f"{name}: failed: {result}")
        elif summary is not None:
            say(f"{name}: {summary(result)}")
        results[number] = result
    if len(failures) == 1:
        raise next(iter(failures.values()))
    if failures:
        kinds = {type(error) for error in failures.values()}
        kind = kinds.pop() if len(kinds) == 1 else DataError
        listed = "; ".join(str(failures[number]) for number in sorted(failures))
        raise kind(f"{len(failures)} of {len(calls)} sessions failed: {listed}")
    return results


def _summary(manifest: SessionManifest) -> str:
    excluded = f", {len(manifest.excluded)} trials excluded" if manifest.excluded else ""
    return (
        f"{manifest.neurons} neurons, {len(manifest.trials)} training trials"
        f" ({manifest.train_minutes:.1f} min), {len(manifest.videos)} repeated videos,"
        f" {_bytes(manifest) / 1e6:.1f} MB{excluded}"
    )


def _bytes(manifest: SessionManifest) -> int:
    """Bytes of a session's files but its manifest."""
    return sum(file.bytes for file in session_files(manifest).values())


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


def _session_manifest(to: str, name: str) -> SessionManifest | None:
    """The manifest of a session at the target; None if there is none or it cannot be parsed."""
    url = storage.join(to, "sessions", name, MANIFEST)
    if not storage.exists(url):
        return None
    try:
        return SessionManifest.parse(storage.read_bytes(url), url)
    except DataError:
        return None


def _outdated(folders: list[Path], to: str, settings: PrepSettings, overwrite: bool) -> set[str]:
    """The sessions that are at the target with other settings."""
    outdated = set()
    for folder in folders:
        manifest = _session_manifest(to, folder.name)
        if manifest is None:
            continue
        # A setting that the manifest's version did not know yet was absent.
        changed = sorted(
            key
            for key in {*manifest.settings, *settings.content()}
            if manifest.settings.get(key) != settings.content().get(key)
        )
        if not changed:
            continue
        if not overwrite:
            raise ConfigError(
                f"{to}: session {folder.name} was prepared with another {', '.join(changed)};"
                " choose another target, or overwrite"
            )
        outdated.add(folder.name)
    return outdated


def _whole(to: str, name: str) -> SessionManifest | None:
    """The manifest of a session at the target whose files are all there, else None."""
    manifest = _session_manifest(to, name)
    if manifest is None:
        return None
    sizes = file_sizes(storage.join(to, "sessions", name))
    files = session_files(manifest)
    return manifest if all(sizes.get(path) == files[path].bytes for path in files) else None


def _forget(name: str, to: str) -> None:
    """Before a session is written anew, take away what says that it is there.

    The dataset's manifest goes first. Other workers may be removing it too.
    """
    session = storage.join(to, "sessions", name, MANIFEST)
    if not storage.exists(session):
        return
    for url in (storage.join(to, MANIFEST), session):
        with suppress(StorageError):
            storage.remove(url)
        if storage.exists(url):
            raise StorageError(f"{url}: cannot remove")


def _write_manifest(to: str) -> DatasetManifest:
    """Write the dataset's manifest, from the manifests of all sessions at the target."""
    root = storage.join(to, "sessions")
    fs, path = storage.filesystem(root)
    fs.invalidate_cache()  # Ray workers may have written since this process last looked
    with storage.reason(root, "list"):
        names = sorted(found.rstrip("/").rpartition("/")[2] for found in fs.ls(path, detail=False))
    entries = []
    for name in names:
        url = storage.join(root, name, MANIFEST)
        if not storage.exists(url):
            continue
        content = storage.read_bytes(url)
        manifest = SessionManifest.parse(content, url)
        entries.append(
            SessionEntry(
                session=name,
                manifest_sha256=storage.sha256(content),
                neurons=manifest.neurons,
                train_trials=len(manifest.trials),
                train_frames=manifest.train_frames,
                bytes=_bytes(manifest) + len(content),
            )
        )
    dataset = DatasetManifest(sessions=entries, tool_version=__version__)
    url = storage.join(to, MANIFEST)
    if storage.exists(url):
        with suppress(DataError):
            if DatasetManifest.parse(storage.read_bytes(url), url) == dataset:
                return dataset
    storage.write_json(url, dataset.model_dump(mode="json"))
    return dataset
