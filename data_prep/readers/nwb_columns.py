"""Columns of the tables of an NWB file, with enumerated ones as the text that they stand for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from data_prep.readers.hdf5_data import Data
from data_prep.readers.hdf5_links import UNREADABLE, dereference, listed, member
from fmcortex.errors import DataError


def kind(group: Any) -> str:
    """The neurodata type of a group; empty if it is none."""
    try:
        name = group.attrs.get("neurodata_type", "")
    except UNREADABLE:
        return ""
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)


def text(values: Iterable[Any], source: str) -> list[str]:
    """Entries of a column as text.

    Raises:
        DataError: naming `source`: one is not UTF-8.
    """
    try:
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    except UnicodeDecodeError as error:
        raise DataError(f"{source}: text is not UTF-8: {error}") from error


def read_column(table: Any, name: str, source: str) -> np.ndarray | None:
    """A column of one number or text a row, [n]; None if there is none, or if it is of other kind.

    Args:
        table: a group.
        name: of the column.
        source: file and path of the table, for messages.

    Raises:
        DataError: it cannot be read, or its numbers stand for text that is not there.
    """
    found = member(table, name, source)
    if found is None:
        return None
    data = Data(found, f"{source}/{name}")
    if len(data.shape) != 1 or member(table, f"{name}_index", source) is not None:
        return None
    names = _names(data)
    if data.dtype.kind not in "biufSO":
        return None
    values = data[:]
    if names is not None:
        return _named(values, names, data.source)
    if values.dtype.kind in "biuf":
        return values
    if not all(isinstance(value, bytes | str) for value in values):
        return None  # such as references
    return np.array(text(values, data.source), np.str_)


def need_column(table: Any, name: str, source: str, kinds: str) -> np.ndarray:
    """As `read_column`, of a column that must be there.

    Args:
        table, name, source: as there.
        kinds: of numpy's dtypes that it may have, that which is expected first.

    Raises:
        DataError: as there, or it is missing or of other kind.
    """
    found = member(table, name, source)
    if found is None:
        has = listed(table) or "none"
        raise DataError(f"{source}: no column {listed([name])}; it has {has}")
    values = read_column(table, name, source)
    if values is None or values.dtype.kind not in kinds:
        what = {"f": "numbers", "i": "integers"}.get(kinds[0], "text")
        data = Data(found, f"{source}/{name}")
        raise DataError(f"{data.source}: is {data.dtype} {list(data.shape)}, not {what}, one a row")
    return values


def _names(data: Data) -> dict[int, str] | None:
    """What the numbers of a column stand for; None if they are numbers.

    pynwb writes an `EnumData` column as small integers, with a reference to a second dataset that
    has their names in order; HDF5 itself has a dtype whose numbers have names.
    """
    import h5py

    enumerated = h5py.check_enum_dtype(data.dtype)
    if enumerated is not None:
        return {number: name for name, number in enumerated.items()}
    try:
        elements = data.attrs.get("elements")
    except UNREADABLE as error:
        raise DataError(f"{data.source}: cannot read its attribute elements: {error}") from error
    if elements is None:
        if kind(data) == "EnumData":
            raise DataError(f"{data.source}: is enumerated, and does not say what it stands for")
        return None
    where = f"{data.source}: elements"
    elements = Data(dereference(elements, data.file, where), where)
    if len(elements.shape) != 1 or elements.dtype.kind not in "SO":
        raise DataError(f"{elements.source}: are {elements.dtype}, not text")
    return dict(enumerate(text(elements[:], elements.source)))


def _named(values: np.ndarray, names: dict[int, str], source: str) -> np.ndarray:
    if values.dtype.kind not in "iu":
        raise DataError(f"{source}: is enumerated and has {values.dtype}, not integers")
    numbers, places = np.unique(values, return_inverse=True)
    unknown = [number for number in numbers.tolist() if number not in names]
    if unknown:
        raise DataError(f"{source}: {unknown[0]} stands for nothing; {len(names)} names are known")
    return np.array([names[number] for number in numbers.tolist()], np.str_)[places]
