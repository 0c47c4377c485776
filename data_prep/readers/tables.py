"""Tables of trials and neurons, as .csv or .npz."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

import numpy as np

from data_prep.readers import npy
from fmcortex.errors import DataError
from fmcortex.plain_numbers import number, whole


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


def read_columns(path: Path, names: Collection[str] = ()) -> dict[str, np.ndarray]:
    """The columns of a .csv or .npz file, each an array [rows].

    Those of a .csv file are integers if all entries are, else floats if all are numbers, an empty
    entry among them or "nan" being NaN, else text. So is a column of whole numbers that are too
    large for floats to hold, such as ids, if some are empty.

    Args:
        path: the file.
        names: columns of names, which are text whatever they look like.

    Raises:
        DataError: it is missing or malformed, or the columns are of unequal length.
    """
    if path.suffix == ".npz":
        table = _npz_columns(path)
        return {k: v.astype(np.str_) if k in names else v for k, v in table.items()}
    header, rows = _read(path)
    columns = zip(*rows, strict=True) if rows else [()] * len(header)
    return {
        name: np.array(column, np.str_) if name in names else _typed(list(column))
        for name, column in zip(header, columns, strict=True)
    }


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
    for place, row in enumerate(lines[1:], 1):
        if len(row) != len(header):
            raise DataError(f"{path}: row {place} has {len(row)} entries, not {len(header)}")
    return header, [[entry.strip() for entry in row] for row in lines[1:]]


def _typed(entries: list[str]) -> np.ndarray:
    """A column as numbers, if 64 bits hold every entry as it is written; else as text."""
    integers = [whole(entry) for entry in entries]
    if None not in integers:
        for dtype in (np.int64, np.uint64):
            try:
                return np.array(integers, dtype)
            except OverflowError:
                continue
        return np.array(entries, np.str_)
    values = [np.nan if entry.lower() in ("", "nan") else number(entry) for entry in entries]
    exact = all(i is None or int(float(i)) == i for i in integers)
    if exact and None not in values:
        return np.array(values, np.float64)
    return np.array(entries, np.str_)
