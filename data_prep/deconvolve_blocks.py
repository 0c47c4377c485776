"""The activity of a session on disk: blocks of neurons while it is made, then all of it."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.deconvolution import LONGEST_GAP, SHORTEST
from data_prep.readers.fluorescence import Traces
from fmcortex import storage
from fmcortex.errors import ConfigError, DataError, StorageError

#: Neurons of a block, and the bytes that their traces may take.
BLOCK_NEURONS = 256
BLOCK_BYTES = 256 << 20
#: Of the table of neurons.
COLUMNS = ("field", "column", "decay_seconds", "noise", "signal")
_ROWS_BYTES = 64 << 20
_INPUTS = "inputs.json"
_LEAVE_OUT = "missing_neurons=leave_out leaves the neuron out; error, the default, does not"


def blocks_of(traces: Traces) -> list[tuple[int, int]]:
    """From which to which of a field's neurons each block is."""
    most = max(1, BLOCK_BYTES // (8 * len(traces.times)))
    blocks, first = [], 0
    while first < len(traces.columns):
        # What lies between two neurons of a block is read with them.
        near = int(np.searchsorted(traces.columns, traces.columns[first] + most))
        last = min(first + BLOCK_NEURONS, near)
        blocks.append((first, last))
        first = last
    return blocks


def begin(parts: Path, inputs: dict[str, Any]) -> None:
    """Make the folder of blocks, without those that were made of other inputs.

    Raises:
        ConfigError: somebody else's folder is there.
        StorageError: it cannot be written.
    """
    blocks = {"neurons": BLOCK_NEURONS, "bytes": BLOCK_BYTES}
    content = json.dumps({**inputs, "blocks": blocks}, sort_keys=True).encode()
    path = parts / _INPUTS
    if path.exists() and path.read_bytes() == content:
        return
    theirs = [] if path.exists() or not parts.exists() else sorted(os.listdir(parts))
    if any(not name.startswith(_INPUTS) for name in theirs):
        raise ConfigError(f"{parts}: was not made by `fmcortex deconvolve`; move it away")
    shutil.rmtree(parts, ignore_errors=True)
    try:
        parts.mkdir()
    except OSError as error:
        raise StorageError(f"{parts}: cannot write: {error.strerror}") from error
    storage.write_bytes(str(path), content)


def has_block(parts: Path, field: int, first: int) -> bool:
    """Whether the block of field `field` that begins with neuron `first` is there."""
    return _paths(parts, field, first)[0].exists()


def write_block(parts: Path, field: int, first: int, activity: np.ndarray, fit: np.ndarray) -> None:
    """Write a block: activity float32 [n, m], and decay, noise and signal of each neuron [m, 3].

    Raises:
        StorageError: it cannot be written.
    """
    values, fitted = _paths(parts, field, first)
    save(fitted, fit)
    save(values, activity)  # last: it tells that the block is there


def read_blocks(parts: Path, field: int, traces: Traces) -> tuple[list[np.ndarray], np.ndarray]:
    """The blocks [n, m] of a field, mapped into memory, and the fit of all its neurons [k, 3]."""
    paths = [_paths(parts, field, first) for first, _ in blocks_of(traces)]
    blocks = [np.load(values, mmap_mode="r", allow_pickle=False) for values, _ in paths]
    return blocks, np.concatenate([np.load(fit, allow_pickle=False) for _, fit in paths])


def kept_samples(
    blocks: list[np.ndarray], traces: Traces, leave_out: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Which samples [n] all neurons have that are taken, and which neurons [k] are.

    Where some lack a few samples, at the ends of a part, these are left out for all.

    Args:
        blocks: the activity, NaN where it is missing.
        traces: of the field.
        leave_out: whether to leave out neurons of which too many samples are missing.

    Raises:
        DataError: some neurons have many samples that others lack, or a neuron has none, and
            they are not to be left out; or no neuron is left.
    """
    taken = np.concatenate([np.isfinite(block).any(axis=0) for block in blocks])
    if leave_out:
        known = _known(blocks, taken)
        most = known > taken.sum() / 2
        lacking = [_lacks_many(block, most) for block in blocks]
        taken &= ~np.concatenate(lacking)
        if not taken.any():
            raise DataError(f"{traces.source}: no neuron has samples that can be deconvolved")
        return most & (_known(blocks, taken) == taken.sum()), taken
    if not taken.all():
        column = traces.columns[np.argmin(taken)]
        raise DataError(
            f"{traces.source}: column {column}: no {SHORTEST} samples without a gap of more than"
            f" {LONGEST_GAP}, which deconvolution needs; {_LEAVE_OUT}"
        )
    known = _known(blocks, taken)
    kept = known == len(taken)
    apart = np.flatnonzero((known > 0) & ~kept)
    for run in np.split(apart, np.flatnonzero(np.diff(apart) > 1) + 1):
        if len(run) > LONGEST_GAP:
            missing = ~np.isfinite(np.concatenate([block[run[0]] for block in blocks]))
            raise DataError(
                f"{traces.source}: column {traces.columns[np.argmax(missing)]}: cannot be"
                f" deconvolved from {traces.times[run[0]]:.6g} to {traces.times[run[-1]]:.6g} s,"
                f" where other neurons can: more than {LONGEST_GAP} samples are missing in a row,"
                f" or fewer than {SHORTEST} lie between such gaps; mark that time as missing in"
                f" all, or {_LEAVE_OUT}"
            )
    return kept, taken


def _known(blocks: list[np.ndarray], taken: np.ndarray) -> np.ndarray:
    """How many of the neurons that are taken have each sample [n]."""
    known, first = np.zeros(len(blocks[0]), np.int64), 0
    for block in blocks:
        mine = taken[first : first + block.shape[1]]
        known += (np.isfinite(block) & mine).sum(axis=1)
        first += block.shape[1]
    return known


def _lacks_many(block: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Which neurons [m] lack more than `LONGEST_GAP` samples in a row that most have."""
    lacking = ~np.isfinite(block) & most[:, None]
    longest = run = np.zeros(block.shape[1], np.int64)
    for sample in lacking:
        run = np.where(sample, run + 1, 0)
        longest = np.maximum(longest, run)
    return longest > LONGEST_GAP


def write_rows(path: Path, blocks: list[np.ndarray], rows: np.ndarray, taken: np.ndarray) -> None:
    """Write some rows of the blocks, side by side, as one .npy file, a part in memory at a time.

    The columns that are not among `taken` [k] are NaN.

    Raises:
        StorageError: it cannot be written.
    """
    columns = sum(block.shape[1] for block in blocks)
    step = max(1, _ROWS_BYTES // (4 * columns))
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(rows), columns)}
    try:
        with open(path, "wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for start in range(0, len(rows), step):
                some = rows[start : start + step]
                part = np.concatenate([block[some] for block in blocks], axis=1)
                part[:, ~taken] = np.nan
                stream.write(part.tobytes())
    except OSError as error:
        raise StorageError(f"{path}: cannot write: {error.strerror}") from error


def write_table(path: Path, fields: list[Traces], fits: list[np.ndarray]) -> None:
    """Write the fit of every neuron as a CSV file.

    Raises:
        StorageError: it cannot be written.
    """
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(COLUMNS)
    for traces, fit in zip(fields, fits, strict=True):
        for column, row in zip(traces.columns, fit, strict=True):
            writer.writerow([traces.name, column, *(f"{value:.6g}" for value in row)])
    storage.write_bytes(str(path), stream.getvalue().encode())


def save(path: Path, values: np.ndarray) -> None:
    """Write a .npy file, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    stream = io.BytesIO()
    np.save(stream, values, allow_pickle=False)
    storage.write_bytes(str(path), stream.getvalue())


def put_in_place(whole: Path, target: Path) -> None:
    """Let the folder `whole` take the place of `target`.

    Raises:
        StorageError: it cannot.
    """
    old = whole.with_name("old")
    shutil.rmtree(old, ignore_errors=True)
    try:
        with suppress(FileNotFoundError):
            os.replace(target, old)
        os.replace(whole, target)
    except OSError as error:
        raise StorageError(f"{target}: cannot write: {error.strerror}") from error


def _paths(parts: Path, field: int, first: int) -> tuple[Path, Path]:
    stem = parts / f"{field}-{first}"
    return stem.with_suffix(".npy"), stem.with_suffix(".fit.npy")
