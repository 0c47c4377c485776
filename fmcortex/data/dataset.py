"""The reading side of a prepared dataset: sessions, windows of trials, repeated videos, neurons."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fmcortex import storage
from fmcortex.data.arrays import read_array
from fmcortex.data.cache import RangeCache, default_cache_folder
from fmcortex.data.files import session_problems
from fmcortex.data.manifest import DatasetManifest, SessionManifest, ShardIndex, Trial, Video
from fmcortex.data.memory import MemoryCache
from fmcortex.data.movies import Movie
from fmcortex.data.shards import StoredTrial, TrialArrays, read_index
from fmcortex.errors import DataError

MANIFEST = "manifest.json"

#: Bytes of decoded blocks that an open dataset keeps in memory.
CACHE_BYTES = 256 << 20
#: Bytes of a remote dataset that are kept on the local disk.
DISK_BYTES = 20 << 30
#: At most so many times its bytes a dataset takes on the local disk when it is kept unpacked.
UNPACKED = 4


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


class PreparedSession:
    """One session of a prepared dataset; nothing but its manifest is read until asked for.

    Args:
        dataset: URL of the dataset.
        url: of the session's folder.
        manifest: of the session.
        disk: cache of ranges of remote files.
        memory: cache of decoded blocks.
    """

    def __init__(
        self,
        dataset: str,
        url: str,
        manifest: SessionManifest,
        disk: RangeCache,
        memory: MemoryCache,
    ) -> None:
        self.url = url
        self.manifest = manifest
        self._dataset, self._disk, self._memory = dataset, disk, memory
        self._indices: dict[int, ShardIndex] = {}
        self._stored: dict[tuple[int, int], StoredTrial] = {}
        self._movies: dict[str, Movie] = {}

    def trial(self, number: int) -> TrialArrays:
        """The whole of training trial `number` of `manifest.trials`.

        Raises:
            IndexError, DataError, StorageError: as `window`.
        """
        if not 0 <= number < len(self.manifest.trials):
            raise IndexError(f"trial {number} of {len(self.manifest.trials)}")
        return self.window(number, 0, self.manifest.trials[number].frames)

    def arrays_of(self, trial: Trial) -> TrialArrays:
        """The whole of a trial of the manifest, of whatever tier.

        Raises:
            DataError, StorageError: as `window`.
        """
        return self._window(trial, 0, trial.frames)

    def window(
        self, number: int, start: int, frames: int, out: TrialArrays | None = None
    ) -> TrialArrays:
        """Frames `start` to `start + frames` of training trial `number` of `manifest.trials`.

        Of the shard and the movie only the blocks that the window needs are read and decoded.

        Args:
            number: of the trial, from 0.
            start: first frame.
            frames: how many.
            out: arrays to write into; new ones if None.

        Returns:
            `out`, or the new arrays.

        Raises:
            IndexError: there is no such trial, or it has no such frames.
            DataError: a shard or a movie is missing or damaged; the message names it and the trial.
            StorageError: it cannot be read.
        """
        if not 0 <= number < len(self.manifest.trials):
            raise IndexError(f"trial {number} of {len(self.manifest.trials)}")
        return self._window(self.manifest.trials[number], start, frames, out)

    def arrays(self, frames: int) -> TrialArrays:
        """Empty arrays of this session for `frames` frames."""
        manifest = self.manifest
        return TrialArrays(
            np.empty((frames, manifest.height, manifest.width), np.uint8),
            np.empty((frames, manifest.neurons), np.float32),
            np.empty((frames, len(manifest.perspectives)), np.float32),
            np.empty((frames, len(manifest.modulations)), np.float32),
        )

    def _window(
        self, trial: Trial, start: int, frames: int, out: TrialArrays | None = None
    ) -> TrialArrays:
        if start < 0 or frames < 1 or start + frames > trial.frames:
            raise IndexError(
                f"frames {start} to {start + frames} of trial {trial.key} of {trial.frames}"
            )
        out = out or self.arrays(frames)
        self._stored_trial(trial).window(start, out, self.imaging_delay)
        self._movie(trial).window(start, frames, out.stimulus)
        return out

    def _stored_trial(self, trial: Trial) -> StoredTrial:
        # Two threads may both make one; either is the same.
        key = trial.shard, trial.place
        if key not in self._stored:
            shards = self.manifest.shards
            if trial.shard >= len(shards):
                raise DataError(f"{self.url}: trial {trial.key} is in no shard of the manifest")
            shard = shards[trial.shard]
            url = storage.join(self.url, shard.name)
            if trial.shard not in self._indices:
                self._indices[trial.shard] = read_index(self.url, shard)
            trials = self._indices[trial.shard].trials
            if trial.place >= len(trials) or trials[trial.place].header.key != trial.key:
                raise DataError(f"{url}: trial {trial.key}: not in the shard's index")
            found = StoredTrial(url, shard, trials[trial.place], self._disk, self._memory)
            if (found.header.frames, found.header.movie) != (trial.frames, trial.movie):
                raise DataError(f"{url}: trial {trial.key}: index and manifest differ")
            self._stored[key] = found
        return self._stored[key]

    def _movie(self, trial: Trial) -> Movie:
        manifest = self.manifest
        if trial.movie not in self._movies:
            entry = manifest.movies.get(trial.movie)
            if entry is None:
                raise DataError(f"{self.url}: movie {trial.movie} is not in the manifest")
            size = trial.frames, manifest.height, manifest.width
            if (entry.frames, entry.height, entry.width) != size:
                raise DataError(f"{self.url}: movie {trial.movie} has not the size {size}")
            movie = Movie(self._dataset, trial.movie, entry, self._disk, self._memory)
            self._movies[trial.movie] = movie
        return self._movies[trial.movie]

    @cached_property
    def imaging_delay(self) -> np.ndarray | None:
        """Seconds after a scan's time at which each neuron was imaged: float64 [U]."""
        array = self.manifest.statistics.imaging_delay
        return None if array is None else read_array(self.url, array)

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
            DataError: no such video, or its movie or a shard is missing or damaged.
            StorageError: it cannot be read.
        """
        known = {video.name: video for video in self.manifest.videos}
        if name not in known:
            raise DataError(f"{self.url}: no video {name!r}; it has {_listed(list(known))}")
        shown = known[name].shown
        repeats = [self._window(trial, 0, trial.frames) for trial in shown]
        return VideoArrays(
            repeats[0].stimulus,
            *(
                np.stack([getattr(repeat, kind) for repeat in repeats])
                for kind in ("responses", "perspectives", "modulations")
            ),
        )

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
        return session_problems(self.url, self.manifest)


class PreparedDataset:
    """A prepared dataset; open it with `open_dataset`. Safe to share by threads.

    Attributes:
        disk: the cache of a remote dataset on the local disk, with its counts.
    """

    def __init__(
        self,
        url: str,
        manifest: DatasetManifest,
        cache_bytes: int = CACHE_BYTES,
        disk: RangeCache | None = None,
    ) -> None:
        self.url = url
        self.disk = disk or RangeCache("", 0)
        self.manifest = manifest
        self._entries = {entry.session: entry for entry in manifest.sessions}
        self._sessions: dict[str, PreparedSession] = {}
        self._memory = MemoryCache(cache_bytes)
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
        return PreparedSession(self.url, folder, manifest, self.disk, self._memory)


def open_dataset(
    url: str,
    cache_bytes: int = CACHE_BYTES,
    disk_bytes: int = DISK_BYTES,
    cache_folder: str | None = None,
    unpacked: bool | None = None,
) -> PreparedDataset:
    """Open the prepared dataset at `url`.

    Args:
        url: any fsspec URL or local path.
        cache_bytes: bytes of decoded blocks to keep in memory.
        disk_bytes: bytes of a remote dataset to keep on the local disk; 0 for none. All processes
            of a machine share them.
        cache_folder: where; None for `default_cache_folder()`.
        unpacked: whether that is kept decompressed, of a local dataset as well; None for those
            remote ones that fit so.

    Raises:
        DataError: `url` is not a prepared dataset, or its manifest is malformed or damaged.
        StorageError: it cannot be read.
    """
    manifest_url = storage.join(url, MANIFEST)
    if not storage.exists(manifest_url):
        raise DataError(f"{url}: not a prepared dataset (no {MANIFEST}); run `fmcortex prep`")
    manifest = DatasetManifest.parse_sealed(storage.read_bytes(manifest_url), manifest_url)
    if unpacked is None:
        stored = manifest.movie_bytes + sum(entry.bytes for entry in manifest.sessions)
        unpacked = not storage.is_local(url) and UNPACKED * stored <= disk_bytes
    disk = RangeCache(cache_folder or default_cache_folder(), disk_bytes, unpacked)
    return PreparedDataset(storage.absolute(url), manifest, cache_bytes, disk)


def _listed(names: list[str], most: int = 20) -> str:
    """The first of `names` for an error message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
