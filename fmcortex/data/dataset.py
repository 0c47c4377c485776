"""The reading side of a prepared dataset: sessions, training trials, repeated videos, neurons."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from fmcortex import storage
from fmcortex.data.arrays import read_array
from fmcortex.data.files import check_file, file_sizes, session_files
from fmcortex.data.manifest import (
    DatasetManifest,
    IndexedTrial,
    SessionManifest,
    Video,
)
from fmcortex.data.shards import TrialArrays, read_index, read_trial
from fmcortex.errors import DataError, FmcortexError

MANIFEST = "manifest.json"

#: Bytes of training trials that an open dataset keeps in memory.
CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class VideoArrays:
    """One repeated video.

    Attributes:
        stimulus: uint8 [T, H, W], grey levels 0 to 255.
        responses: float32 [R, T, U], divided by each neuron's response scale; NaN where a
            neuron is missing in a repeat.
        perspectives: float32 [R, T, P], standardised.
        modulations: float32 [R, T, M], standardised.
    """

    stimulus: np.ndarray
    responses: np.ndarray
    perspectives: np.ndarray
    modulations: np.ndarray


class _TrialCache:
    """The most recently used trials of a dataset, bounded in bytes; safe to share by threads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._trials: OrderedDict[tuple[str, int], TrialArrays] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[str, int]) -> TrialArrays | None:
        with self._lock:
            if key in self._trials:
                self._trials.move_to_end(key)
            return self._trials.get(key)

    def put(self, key: tuple[str, int], trial: TrialArrays) -> None:
        with self._lock:
            if key in self._trials or trial.nbytes > self._limit:
                return
            self._trials[key] = trial
            self._bytes += trial.nbytes
            while self._bytes > self._limit:
                self._bytes -= self._trials.popitem(last=False)[1].nbytes


class PreparedSession:
    """One session of a prepared dataset; nothing but its manifest is read until asked for."""

    def __init__(self, url: str, manifest: SessionManifest, cache: _TrialCache) -> None:
        self.url = url
        self.manifest = manifest
        self._cache = cache
        self._indices: dict[int, dict[str, IndexedTrial]] = {}

    def trial(self, number: int) -> TrialArrays:
        """Training trial `number` of `manifest.trials`, read by range and checked.

        Raises:
            IndexError: there is no such trial.
            DataError: the shard is missing or damaged; the message names shard and trial.
            StorageError: the shard cannot be read.
        """
        if not 0 <= number < len(self.manifest.trials):
            raise IndexError(f"trial {number} of {len(self.manifest.trials)}")
        key = (self.manifest.session, number)
        trial = self._cache.get(key)
        if trial is None:
            trial = self._read_trial(number)
            self._cache.put(key, trial)
        return trial

    def _read_trial(self, number: int) -> TrialArrays:
        manifest = self.manifest
        entry = manifest.trials[number]
        if entry.shard >= len(manifest.shards):
            raise DataError(f"{self.url}: trial {entry.key} is in no shard of the manifest")
        shard = manifest.shards[entry.shard]
        # Two threads may both read an index; either result is the same.
        index = self._indices.get(entry.shard)
        if index is None:
            index = self._indices[entry.shard] = read_index(self.url, shard)
        where = f"{storage.join(self.url, shard.name)}: trial {entry.key}"
        if entry.key not in index:
            raise DataError(f"{where}: not in the shard's index")
        trial = read_trial(self.url, shard, index[entry.key])
        frames = entry.frames
        expected = {
            "stimulus": ("|u1", (frames, manifest.height, manifest.width)),
            "responses": ("<f4", (frames, manifest.neurons)),
            "perspectives": ("<f4", (frames, len(manifest.perspectives))),
            "modulations": ("<f4", (frames, len(manifest.modulations))),
        }
        for name, (dtype, shape) in expected.items():
            values = getattr(trial, name)
            if (values.dtype.str, values.shape) != (dtype, shape):
                raise DataError(
                    f"{where}: {name} is {values.dtype.str} {values.shape},"
                    f" the manifest says {dtype} {shape}"
                )
        return trial

    def videos(self, tier: str = "test", domain: str | None = None) -> list[Video]:
        """The repeated videos of a tier, of one stimulus domain or of all, in manifest order."""
        return [
            video
            for video in self.manifest.videos
            if video.tier == tier and domain in (None, video.domain)
        ]

    def video(self, name: str) -> VideoArrays:
        """The repeated video called `name`, checked against its checksums.

        Raises:
            DataError: no such video, or one of its arrays is missing or damaged.
            StorageError: it cannot be read.
        """
        known = {video.name: video for video in self.manifest.videos}
        if name not in known:
            raise DataError(f"{self.url}: no video {name!r}; it has {_listed(list(known))}")
        arrays = known[name].arrays
        return VideoArrays(**{key: read_array(self.url, array) for key, array in arrays.items()})

    def neurons(self) -> dict[str, np.ndarray]:
        """The neuron table: an array [U] for each column (`unit_id`, `x`, `y`, `z`, `area`...).

        Raises:
            DataError: a column is missing or damaged.
            StorageError: it cannot be read.
        """
        table = self.manifest.neuron_table
        return {name: read_array(self.url, array) for name, array in table.items()}

    def response_scale(self) -> np.ndarray:
        """What each neuron's responses were divided by: float64 [U], in units of the source."""
        return read_array(self.url, self.manifest.statistics.response_scale)

    def verify(self) -> list[str]:
        """Check every byte of the session.

        Returns:
            One line for each problem, naming the file or array; empty if the session is whole.
        """
        sizes = file_sizes(self.url)
        found = [
            check_file(self.url, path, expected, sizes.get(path))
            for path, expected in session_files(self.manifest).items()
        ]
        problems = [problem for problem in found if problem is not None]
        for shard in self.manifest.shards:
            try:
                read_index(self.url, shard)
            except FmcortexError as error:
                problems.append(str(error))
        arrays = [array for video in self.manifest.videos for array in video.arrays.values()]
        arrays += self.manifest.neuron_table.values()
        for array in [*arrays, self.manifest.statistics.response_scale]:
            try:
                read_array(self.url, array)
            except FmcortexError as error:
                problems.append(str(error))
        return problems


class PreparedDataset:
    """A prepared dataset; open it with `open_dataset`. Safe to share by threads."""

    def __init__(self, url: str, manifest: DatasetManifest, cache_bytes: int = CACHE_BYTES) -> None:
        self.url = url
        self.manifest = manifest
        self._entries = {entry.session: entry for entry in manifest.sessions}
        self._sessions: dict[str, PreparedSession] = {}
        self._cache = _TrialCache(cache_bytes)
        self._lock = threading.Lock()

    @property
    def sessions(self) -> list[str]:
        """Names of the sessions, sorted."""
        return sorted(self._entries)

    def session(self, name: str) -> PreparedSession:
        """The session called `name`.

        Raises:
            DataError: no such session, or its manifest is missing or is not the one that the
                dataset's manifest names.
            StorageError: it cannot be read.
        """
        if name not in self._entries:
            known = _listed(self.sessions)
            raise DataError(f"{self.url}: no session {name!r} in this dataset; it has {known}")
        with self._lock:
            if name not in self._sessions:
                self._sessions[name] = self._open_session(name)
            return self._sessions[name]

    def _open_session(self, name: str) -> PreparedSession:
        folder = storage.join(self.url, "sessions", name)
        url = storage.join(folder, MANIFEST)
        if not storage.exists(url):
            raise DataError(f"{url}: session manifest is missing; run `fmcortex prep` again")
        content = storage.read_bytes(url)
        if storage.sha256(content) != self._entries[name].manifest_sha256:
            raise DataError(f"{url}: differs from its checksum in the dataset's manifest")
        manifest = SessionManifest.parse(content, url)
        if manifest.session != name:
            raise DataError(f"{url}: is the manifest of session {manifest.session}, not {name}")
        return PreparedSession(folder, manifest, self._cache)


def open_dataset(url: str, cache_bytes: int = CACHE_BYTES) -> PreparedDataset:
    """Open the prepared dataset at `url`.

    Args:
        url: any fsspec URL or local path.
        cache_bytes: bytes of training trials to keep in memory.

    Raises:
        DataError: `url` is not a prepared dataset, or its manifest is malformed.
        StorageError: it cannot be read.
    """
    manifest_url = storage.join(url, MANIFEST)
    if not storage.exists(manifest_url):
        raise DataError(f"{url}: not a prepared dataset (no {MANIFEST}); run `fmcortex prep`")
    manifest = DatasetManifest.parse(storage.read_bytes(manifest_url), manifest_url)
    return PreparedDataset(storage.absolute(url), manifest, cache_bytes)


def _listed(names: list[str], most: int = 20) -> str:
    """The first of `names` for an error message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
