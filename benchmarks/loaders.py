"""The same windows of the same recording, read in the ways that people read them today.

Every way holds the same values and writes them into the same batch of `fmcortex.data.loader`, with
one copy: nobody's loader of those shown here needs less.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from fmcortex import storage
from fmcortex.data.dataset import PreparedSession, open_dataset
from fmcortex.data.loader import Batch, fill_batch
from fmcortex.data.plan import Clip

#: Reads the clips of a batch's draw into it.
Read = Callable[[Batch], None]
#: Reads so many frames of a clip: stimulus, perspectives, modulations, responses.
Window = Callable[[Clip, int], list[np.ndarray]]
NAMES = ("stimulus", "perspectives", "modulations", "responses")


def ours(url: str, folder: Path, unpacked: bool, memory: int = 64) -> Read:
    """fmcortex, with so many MB of decoded blocks in memory.

    A few, as if it were a larger dataset, of which what is in memory is rarely asked for again.
    """
    dataset = open_dataset(url, memory << 20, 20 << 30, str(folder / "cache"), unpacked)
    return lambda batch: fill_batch(dataset, batch)


def trials_of(session: PreparedSession) -> int:
    """Training trials of a session."""
    return len(session.manifest.trials)


def write_npy(session: PreparedSession, to: Path, floats: bool) -> None:
    """A file per trial and kind of data: as Sensorium 2023 (all float32, time last), or uint8."""
    for number in range(trials_of(session)):
        arrays = vars(session.trial(number))
        for name, values in arrays.items():
            if floats:
                values = np.ascontiguousarray(np.moveaxis(values, 0, -1), np.float32)
            (to / name).mkdir(parents=True, exist_ok=True)
            np.save(to / name / f"{number}.npy", values)


def npy(url: str, floats: bool) -> Read:
    """Load the whole files of a trial, then cut: the per-trial loaders of the public code."""

    def one(clip: Clip, frames: int) -> list[np.ndarray]:
        found = []
        part = slice(clip.start, clip.start + frames)
        for name in NAMES:
            path = storage.join(url, name, f"{clip.trial}.npy")
            if storage.is_local(path):
                values = np.load(path)
            else:
                values = np.load(io.BytesIO(storage.read_bytes(path)))
            found.append(np.moveaxis(values[..., part], -1, 0) if floats else values[part])
        return found

    return _written(one)


def write_mds(session: PreparedSession, to: Path) -> None:
    """mosaicml-streaming's shards: a trial a sample, zstd-compressed."""
    from streaming import MDSWriter

    columns = dict.fromkeys(NAMES, "ndarray")
    with MDSWriter(out=str(to), columns=columns, compression="zstd:1", hashes=["xxh64"]) as writer:
        for number in range(trials_of(session)):
            writer.write(vars(session.trial(number)))


def mds(url: str, folder: Path) -> Read:
    """mosaicml-streaming, by random access, its copies of remote shards in `folder`."""
    from streaming import StreamingDataset

    remote = None if storage.is_local(url) else url
    local = url if remote is None else str(folder)
    dataset: Any = StreamingDataset(remote=remote, local=local, shuffle=False, batch_size=1)

    def one(clip: Clip, frames: int) -> list[np.ndarray]:
        sample = dataset[clip.trial]
        part = slice(clip.start, clip.start + frames)
        return [sample[name][part] for name in NAMES]

    return _written(one)


def write_zarr(session: PreparedSession, to: str) -> None:
    """A zarr group of a session: an array a kind, trials end to end, zarr's own compression.

    Chunks are of 25 frames; zarr's own guess is of a few frames and slower.
    """
    group = zarr.create_group(to)
    frames = sum(trial.frames for trial in session.manifest.trials)
    start = 0
    for number in range(trials_of(session)):
        arrays = vars(session.trial(number))
        for name, values in arrays.items():
            if number == 0:
                shape = (frames, *values.shape[1:])
                chunks = (25, *values.shape[1:])
                group.create_array(name, shape=shape, chunks=chunks, dtype=values.dtype)
            group[name][start : start + len(values)] = values
        start += len(values)


def plain_zarr(url: str, session: PreparedSession) -> Read:
    """Slices of those arrays."""
    group: Any = zarr.open_group(url, mode="r")
    arrays = [group[name] for name in NAMES]
    starts = np.cumsum([0, *(trial.frames for trial in session.manifest.trials)])

    def one(clip: Clip, frames: int) -> list[np.ndarray]:
        first = int(starts[clip.trial]) + clip.start
        return [np.asarray(array[first : first + frames]) for array in arrays]

    return _written(one)


def _written(one: Window) -> Read:
    """Writes windows into the batch, cast as it needs them."""

    def read(batch: Batch) -> None:
        tensors = (batch.stimuli, batch.perspectives, batch.modulations, batch.responses)
        for number, clip in enumerate(batch.draw.clips):
            for tensor, values in zip(tensors, one(clip, batch.stimuli.shape[1]), strict=True):
                np.copyto(tensor[number].numpy(), values, casting="unsafe")

    return read
