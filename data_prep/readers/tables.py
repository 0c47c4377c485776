"""Tables of trials and neurons, as .csv or .npz."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from data_prep.readers import npy
from fmcortex.errors import DataError


def read_rows(path: Path, required: set[str], optional: set[str]) -> list[dict[str, str]]:
    """The rows of a .csv file whose first line names the columns.

    Raises:
        DataError: it is missing, no text, or has other columns, or a row of another length.
    """
    header, rows = _read(path)
    lacking, unknown = required - set(header), set(header) - required - optional
    if lacking:
        raise DataError(f"{path}: no column {', '.join(sorted(lacking))}")
    if unknown:
        known = ", ".join(sorted(required | optional))
        raise DataError(f"{path}: unknown column {sorted(unknown)[0]!r}; known: {known}")
    return [dict(zip(header, row, strict=True)) for row in rows]


def read_columns(path: Path) -> dict[str, np.ndarray]:
    """The columns of a .csv or .npz file, each an array [rows].

    Those of a .csv file are integers if all entries are, else floats, else text; an empty entry
    among numbers is NaN.

    Raises:
        DataError: it is missing or malformed, or the columns are of unequal length.
    """
    if path.suffix == ".npz":
        return _npz_columns(path)
    header, rows = _read(path)
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return {name: _typed(list(column)) for name, column in zip(header, columns, strict=True)}


def _npz_columns(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            table = {name: np.asarray(archive[name]) for name in archive.files}
    except npy.BAD_ARCHIVE as error:
        raise DataError(f"{path}: not a .npz file of plain arrays: {error}") from error
    lengths = {name: values.shape for name, values in table.items()}
    if any(len(shape) != 1 for shape in lengths.values()) or len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {list(shape)}" for name, shape in lengths.items())
        raise DataError(f"{path}: columns are not all of one axis and one length: {listed}")
    for name, values in table.items():
        if values.dtype.kind not in "biufU":
            raise DataError(f"{path}: {name} is {values.dtype}, neither numbers nor text")
    return table


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            lines = [row for row in csv.reader(stream, strict=True) if row]
    except FileNotFoundError as error:
        raise DataError(f"{path}: file is missing") from error
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot read as a table: {error}") from error
    if not lines:
        raise DataError(f"{path}: is empty; its first line names the columns")
    header = [name.strip() for name in lines[0]]
    if len(set(header)) != len(header):
        raise DataError(f"{path}: a column occurs twice")
    for number, row in enumerate(lines[1:], 1):
        if len(row) != len(header):
            raise DataError(f"{path}: row {number} has {len(row)} entries, not {len(header)}")
    return header, [[entry.strip() for entry in row] for row in lines[1:]]


def _typed(entries: list[str]) -> np.ndarray:
    try:
        return np.array([int(entry) for entry in entries], np.int64)
    except (ValueError, OverflowError):
        pass
    try:
        return np.array([float(entry) if entry else np.nan for entry in entries])
    except ValueError:
        return np.array(entries)
