"""Reading training trials from tar shards by range, each array against its checksum."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from fmcortex import storage
from fmcortex.data.arrays import decode_npy
from fmcortex.data.manifest import IndexedTrial, Shard, ShardIndex
from fmcortex.errors import DataError

MEMBERS = ("stimulus", "responses", "perspectives", "modulations")


@dataclass(frozen=True)
class TrialArrays:
    """One training trial. The arrays are read-only: they may be shared through a cache.

    Attributes:
        stimulus: uint8 [T, H, W], grey levels 0 to 255.
        responses: float32 [T, U], divided by each neuron's response scale.
        perspectives: float32 [T, P], standardised.
        modulations: float32 [T, M], standardised.
    """

    stimulus: np.ndarray
    responses: np.ndarray
    perspectives: np.ndarray
    modulations: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes of the four arrays."""
        return sum(int(getattr(self, name).nbytes) for name in MEMBERS)


def read_index(folder: str, shard: Shard) -> dict[str, IndexedTrial]:
    """The index of `shard` in the session at `folder`, by trial key.

    Raises:
        DataError: the index is missing, differs from the manifest's checksum, or names another
            shard or another number of trials.
        StorageError: it cannot be read.
    """
    url = storage.join(folder, shard.index)
    if not storage.exists(url):
        raise DataError(f"{url}: shard index is missing")
    content = storage.read_bytes(url)
    if storage.sha256(content) != shard.index_sha256:
        raise DataError(f"{url}: shard index differs from the checksum in the manifest")
    index = ShardIndex.parse(content, url)
    trials = {trial.key: trial for trial in index.trials}
    if index.shard != shard.name or len(trials) != shard.trials:
        raise DataError(f"{url}: index is not that of {shard.name} with {shard.trials} trials")
    return trials


def read_trial(folder: str, shard: Shard, trial: IndexedTrial) -> TrialArrays:
    """Read the arrays of one trial from its shard with one ranged read.

    Raises:
        DataError: naming the shard and the trial; the shard is missing or cut short, an array
            differs from its checksum or is not a .npy array.
        StorageError: the shard cannot be read.
    """
    url = storage.join(folder, shard.name)
    where = f"{url}: trial {trial.key}"
    if set(trial.members) != set(MEMBERS):
        raise DataError(f"{where}: the index lacks one of {', '.join(MEMBERS)}")
    start = min(member.offset for member in trial.members.values())
    end = max(member.offset + member.length for member in trial.members.values())
    content = memoryview(_read_range(url, start, end, where))
    arrays = {}
    for name in MEMBERS:
        member = trial.members[name]  # type: ignore[index]
        part = content[member.offset - start : member.offset - start + member.length]
        if len(part) != member.length:
            raise DataError(f"{where}: shard is cut short: {name} ends past the end of the file")
        if zlib.crc32(part) != member.crc32:
            raise DataError(f"{where}: {name} differs from its checksum; the shard is damaged")
        arrays[name] = decode_npy(part, f"{where}: {name}")
    return TrialArrays(**arrays)


def _read_range(url: str, start: int, end: int, where: str) -> bytes:
    """Bytes `start` to `end` of the file at `url`; fewer where the file ends before."""
    fs, path = storage.filesystem(url)
    with storage.reason(url, "read"):
        try:
            return bytes(fs.cat_file(path, start=start, end=end))
        except FileNotFoundError as error:
            raise DataError(f"{where}: shard is missing") from error
        except OSError:
            # S3 refuses a range that starts past the end: tell that from a failing network.
            if fs.size(path) <= start:
                return b""
            raise
