"""The same windows of the same recording, read in the ways that people read them today.

Every way holds the same values and gives the same batch: stimuli uint8 [N, T, H, W], perspectives
[N, T, 2], modulations [N, T, 2] and responses float32 [N, T, U].
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from fmcortex import storage
from fmcortex.data.dataset import PreparedDataset, PreparedSession, open_dataset
from fmcortex.data.loader import read_batch
from fmcortex.data.plan import Clip, Draw
from fmcortex.data.shards import TrialArrays

Batch = list[torch.Tensor]
#: Reads the clips of a draw, so many frames each.
Read = Callable[[Draw, int], Batch]


def ours(url: str, folder: Path, cached: bool, memory: int = 512) -> tuple[PreparedDataset, Read]:
    """fmcortex, with its cache on disk or without, and so many MB of decoded blocks."""
    disk = 20 << 30 if cached else 0
    dataset = open_dataset(url, memory << 20, disk, str(folder / "cache"))

    def read(draw: Draw, frames: int) -> Batch:
        batch = read_batch(dataset, draw, frames)
        return [batch.stimuli, batch.perspectives, batch.modulations, batch.responses]

    return dataset, read


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
    names = ("stimulus", "perspectives", "modulations", "responses")

    def one(clip: Clip, frames: int) -> list[np.ndarray]:
        found = []
        part = slice(clip.start, clip.start + frames)
        for name in names:
            path = storage.join(url, name, f"{clip.trial}.npy")
            if storage.is_local(path):
                values = np.load(path)
            else:
                values = np.load(io.BytesIO(storage.read_bytes(path)))
            found.append(np.moveaxis(values[..., part], -1, 0) if floats else values[part])
        found[0] = found[0].astype(np.uint8)
        return found

    return lambda draw, frames: _stack([one(clip, frames) for clip in draw.clips])


def write_mds(session: PreparedSession, to: Path) -> None:
    """mosaicml-streaming's shards: a trial a sample, zstd-compressed."""
    from streaming import MDSWriter

    columns = dict.fromkeys(("stimulus", "perspectives", "modulations", "responses"), "ndarray")
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
        names = ("stimulus", "perspectives", "modulations", "responses")
        return [sample[name][part] for name in names]

    return lambda draw, frames: _stack([one(clip, frames) for clip in draw.clips])


def write_zarr(session: PreparedSession, to: str) -> None:
    """A zarr group of a session: an array a kind, trials end to end, zarr's own compression.

    Chunks are of 25 frames, as long as ours; zarr's own guess is of a few frames and slower.
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
    names = ("stimulus", "perspectives", "modulations", "responses")
    arrays = [group[name] for name in names]
    starts = np.cumsum([0, *(trial.frames for trial in session.manifest.trials)])

    def one(clip: Clip, frames: int) -> list[np.ndarray]:
        first = int(starts[clip.trial]) + clip.start
        return [np.asarray(array[first : first + frames]) for array in arrays]

    return lambda draw, frames: _stack([one(clip, frames) for clip in draw.clips])


def _stack(clips: list[list[np.ndarray]]) -> Batch:
    """Clips as tensors; `np.stack` copies once, as the collation of a DataLoader does."""
    return [torch.from_numpy(np.stack(parts)) for parts in zip(*clips, strict=True)]


def as_trial(batch: Batch, clip: int) -> TrialArrays:
    """One clip of a batch, to compare."""
    stimuli, perspectives, modulations, responses = (values[clip].numpy() for values in batch)
    return TrialArrays(stimuli, responses, perspectives, modulations)
