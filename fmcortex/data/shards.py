"""Trials in tar shards: a window of one read by range, or the whole of one from a stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from fmcortex import storage
from fmcortex.data.arrays import decode_npy
from fmcortex.data.blocks import BlockFile
from fmcortex.data.cache import RangeCache
from fmcortex.data.codecs import decompress
from fmcortex.data.manifest import IndexedTrial, Shard, ShardIndex, TrialHeader
from fmcortex.data.memory import MemoryCache
from fmcortex.data.scans import interpolate, rows_around
from fmcortex.data.unpacked import UnpackedFile
from fmcortex.errors import DataError

HEADER = "header.json"
FRAMES = "frames.npy"
ARRAYS = ("stimulus", "responses", "perspectives", "modulations")


@dataclass(frozen=True)
class TrialArrays:
    """A trial or a window of one, on its stimulus frames.

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


@dataclass(frozen=True)
class SmallArrays:
    """What is small of a trial.

    Attributes:
        perspectives: float32 [T, P].
        modulations: float32 [T, M].
        frames: seconds [T] of the frames since the first; None where rows are frames.
        times: seconds [n] of the rows of each group of responses; none where rows are frames.
    """

    perspectives: np.ndarray
    modulations: np.ndarray
    frames: np.ndarray | None
    times: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.perspectives, self.modulations, *self.times)
        return sum(a.nbytes for a in arrays) + (0 if self.frames is None else self.frames.nbytes)


def small_members(header: TrialHeader) -> list[str]:
    """The members of a trial that are no responses, in the order in which they lie in the tar.

    webdataset writes members sorted; so sorted, the responses come last.
    """
    names = [HEADER, "modulations.npy", "perspectives.npy"]
    if header.scans:
        return [FRAMES, *names, *map(times_member, range(len(header.groups)))]
    return names


def times_member(group: int) -> str:
    """The member that holds the times of a group's rows."""
    return f"response-times-{group:03d}.npy"


def block_member(group: int, block: int) -> str:
    """The member that holds a block of a group's responses."""
    return f"responses-{group:03d}-{block:05d}.zst"


def block_shape(header: TrialHeader, group: int, block: int) -> tuple[int, int]:
    """Rows and neurons of a block."""
    neurons, rows = header.groups[group]
    return min(header.block_rows, rows - block * header.block_rows), neurons


def decode_small(
    header: TrialHeader, members: Mapping[str, bytes | memoryview], where: str
) -> SmallArrays:
    """The small arrays of a trial from the bytes of its members.

    Raises:
        DataError: naming `where` and the member: it lacks, or is not what the header says.
    """

    def array(name: str, dtype: str, *shape: int) -> np.ndarray:
        if name not in members:
            raise DataError(f"{where}: no member {name}")
        values = decode_npy(members[name], f"{where}: {name}")
        if values.dtype.str != dtype or values.shape[: len(shape)] != shape:
            raise DataError(
                f"{where}: {name} is {values.dtype.str} {list(values.shape)}, not {dtype} of"
                f" length {', '.join(map(str, shape))}"
            )
        return values

    return SmallArrays(
        array("perspectives.npy", "<f4", header.frames),
        array("modulations.npy", "<f4", header.frames),
        array(FRAMES, "<f8", header.frames) if header.scans else None,
        tuple(
            array(times_member(g), "<f8", rows)
            for g, (_, rows) in enumerate(header.groups)
            if header.scans
        ),
    )


def decode_sample(
    sample: Mapping[str, bytes], delays: np.ndarray | None, where: str = "sample"
) -> tuple[TrialHeader, TrialArrays]:
    """A trial from a stream of samples, as webdataset reads them from a shard.

    Args:
        sample: the content of each member by its name.
        delays: the session's imaging delays, seconds [U], or None.
        where: for messages.

    Returns:
        The header, which names the movie, and the arrays, of which `stimulus` is empty.

    Raises:
        DataError: a member lacks or is not what the header says.
    """
    if HEADER not in sample:
        raise DataError(f"{where}: no member {HEADER}")
    header = TrialHeader.parse(sample[HEADER], f"{where}: {HEADER}")
    small = decode_small(header, sample, where)

    def rows(group: int, first: int, last: int) -> np.ndarray:
        blocks = []
        for block in range(-(-header.groups[group][1] // header.block_rows)):
            name = block_member(group, block)
            if name not in sample:
                raise DataError(f"{where}: no member {name}")
            shape = block_shape(header, group, block)
            blocks.append(decompress(sample[name], header.dtype, shape, f"{where}: {name}"))
        return np.concatenate(blocks)[first:last]

    responses = np.empty((header.frames, sum(k for k, _ in header.groups)), np.float32)
    fill_responses(header, small, delays, rows, 0, responses)
    empty = np.empty((0, 0, 0), np.uint8)
    return header, TrialArrays(empty, responses, small.perspectives, small.modulations)


def fill_responses(
    header: TrialHeader,
    small: SmallArrays,
    delays: np.ndarray | None,
    rows: Callable[[int, int, int], np.ndarray],
    start: int,
    out: np.ndarray,
) -> None:
    """Write the responses of frames `start` on into `out`, float32 [T, U].

    Args:
        header: of the trial.
        small: of the trial.
        delays: seconds [U] of the neurons' imaging delays, or None.
        rows: gives rows `first` to before `last` of a group, [m, U_g].
        start: first frame.
        out: for T frames.
    """
    first = 0
    for group, (neurons, _) in enumerate(header.groups):
        part = out[:, first : first + neurons]
        if small.frames is not None:
            own = None if delays is None else delays[first : first + neurons]
            early, late = (0.0, 0.0) if own is None else (own.min(), own.max())
            at, times = small.frames[start : start + len(out)], small.times[group]
            low, high = rows_around(times, at, early, late)
            interpolate(rows(group, low, high), times[low:high], at, own, part)
        else:
            part[...] = rows(group, start, start + len(out))
        first += neurons


def read_index(folder: str, shard: Shard) -> ShardIndex:
    """The index of `shard` in the session at `folder`.

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
    if (index.shard, len(index.trials)) != (shard.name, shard.trials):
        raise DataError(f"{url}: index is not that of {shard.name} with {shard.trials} trials")
    return index


class StoredTrial:
    """A trial in a shard, of which windows are read.

    Args:
        url: of the shard.
        shard: the manifest's entry of it.
        indexed: the trial's entry in its index.
        disk: cache of ranges of remote files.
        memory: cache of decoded blocks.
    """

    def __init__(
        self, url: str, shard: Shard, indexed: IndexedTrial, disk: RangeCache, memory: MemoryCache
    ) -> None:
        self.header = header = indexed.header
        self._where = f"{url}: trial {header.key}"
        self._memory = memory
        self._names = small_members(header)
        if list(indexed.small) != self._names or any(
            len(blocks) != -(-rows // header.block_rows)
            for blocks, (_, rows) in zip(indexed.responses, header.groups, strict=True)
        ):
            raise DataError(f"{self._where}: the index lacks members of it")
        blocks = [*indexed.small.values(), *(b for group in indexed.responses for b in group)]
        self._starts = np.cumsum([len(self._names), *map(len, indexed.responses)]).tolist()
        self._key = (url, blocks[0].offset)
        self._file = BlockFile(url, blocks, shard.sha256, "shard", self._where, disk)
        self._sizes = [block.length for block in indexed.small.values()]
        # Of each block of responses: its group, and its number in it.
        self._places = [(g, b) for g, own in enumerate(indexed.responses) for b in range(len(own))]
        rows = [rows for _, rows in header.groups]
        self._first_rows = np.cumsum([len(self._names), *rows]).tolist()
        self._unpacked: UnpackedFile | None = None
        if disk.unpacked:
            item = np.dtype(header.dtype).itemsize
            lines = [(1, size) for size in self._sizes]
            for place in self._places:
                count, neurons = block_shape(header, *place)
                lines.append((count, neurons * item))
            self._unpacked = UnpackedFile(self._file, lines, self._unpack, disk)

    def window(self, start: int, out: TrialArrays, delays: np.ndarray | None) -> None:
        """Write frames from `start` on into `out`, all but the stimulus.

        Raises:
            DataError: naming the shard and the trial; the shard is missing, cut short or damaged.
            StorageError: the shard cannot be read.
        """
        small = self._small()
        stop = start + len(out.responses)
        for name in ("perspectives", "modulations"):
            values, wanted = getattr(small, name)[start:stop], getattr(out, name)
            if values.shape != wanted.shape:
                raise DataError(
                    f"{self._where}: {name} have {values.shape[1]} channels, the manifest says"
                    f" {wanted.shape[1]}"
                )
            wanted[...] = values
        if sum(neurons for neurons, _ in self.header.groups) != out.responses.shape[1]:
            raise DataError(f"{self._where}: has not the manifest's number of neurons")
        fill_responses(self.header, small, delays, self._rows, start, out.responses)

    def _small(self) -> SmallArrays:
        small = self._memory.get((*self._key, "small"))
        if small is None:
            members = dict(zip(self._names, self._small_members(), strict=True))
            header = TrialHeader.parse(bytes(members[HEADER]), f"{self._where}: {HEADER}")
            if header != self.header:
                raise DataError(f"{self._where}: {HEADER} differs from the index")
            small = decode_small(header, members, self._where)
            self._memory.put((*self._key, "small"), small)
        assert isinstance(small, SmallArrays)
        return small

    def _small_members(self) -> list[memoryview]:
        if self._unpacked is None:
            return self._file.read(0, len(self._names))
        content = self._unpacked.read(0, len(self._names)).data
        edges = [0, *accumulate(self._sizes)]
        return [content[start:end] for start, end in pairwise(edges)]

    def _rows(self, group: int, first: int, last: int) -> np.ndarray:
        """Rows `first` to before `last` of a group, as stored."""
        if self._unpacked is not None:
            line = self._first_rows[group]
            values = self._unpacked.read(line + first, line + last).view(self.header.dtype)
            return values.reshape(last - first, -1)
        size = self.header.block_rows
        numbers = range(first // size, -(-last // size))
        found = {number: self._memory.get((*self._key, group, number)) for number in numbers}
        missing = [number for number, block in found.items() if block is None]
        if missing:
            begin = self._starts[group]
            span = range(missing[0], missing[-1] + 1)
            contents = self._file.read(begin + span.start, begin + span.stop)
            for number, content in zip(span, contents, strict=True):
                if found[number] is None:
                    block = self._block(group, number, content)
                    self._memory.put((*self._key, group, number), block)
                    found[number] = block
        blocks = [block for block in found.values() if isinstance(block, np.ndarray)]
        whole = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
        return whole[first - numbers.start * size : last - numbers.start * size]

    def _block(self, group: int, number: int, content: memoryview) -> np.ndarray:
        """A block of responses; read-only, since it may be shared through the cache."""
        shape = block_shape(self.header, group, number)
        where = f"{self._where}: {block_member(group, number)}"
        block = decompress(content, self.header.dtype, shape, where)
        block.flags.writeable = False
        return block

    def _unpack(self, number: int, content: memoryview) -> np.ndarray:
        """The bytes of any block."""
        if number < len(self._names):
            return np.frombuffer(content, np.uint8)
        block = self._block(*self._places[number - len(self._names)], content)
        return block.reshape(-1).view(np.uint8)
