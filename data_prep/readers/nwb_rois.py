"""The fields of an NWB file: their series of responses and the table of their ROIs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers import nwb_file
from data_prep.readers.deconvolved import DECONVOLVED, DeconvolvedSeries, read_record
from data_prep.readers.hdf5_data import Data
from data_prep.readers.hdf5_links import UNREADABLE, child, dereference, find, is_group, member
from data_prep.readers.nwb_columns import kind, need_column, read_column, text
from data_prep.readers.nwb_schema import NwbSession
from fmcortex.errors import DataError

_FIELD = 1_000_000
#: Columns that decide which ROIs are taken and what they are called, and their dtypes.
_NEEDED = {"mask_type": "U", "unit_id": "iu"}
_METRES = ("meters", "metre", "meter", "m")


@dataclass(frozen=True)
class Field:
    """One field's responses.

    Attributes:
        number: its place among the series, from 1.
        name: of its series.
        series: its RoiResponseSeries.
        columns: the columns of its data that are taken, ints [k].
        table: columns [k] of its segmentation.
    """

    number: int
    name: str
    series: nwb_file.Series
    columns: np.ndarray
    table: dict[str, np.ndarray]


def read_fields(file: Any, source: str, session: NwbSession, path: str) -> list[Field]:
    """The fields that have ROIs of the types to take, in the order of their names.

    Args:
        file: that is open.
        source: its path or URL, for messages.
        session: what `nwb.json` says.
        path: of the series' group, or of the only series, in the file.

    Raises:
        DataError: there are none, or one is malformed.
    """
    group = child(file, path, source)
    if _is_series(group):
        parent, _, name = path.strip("/").rpartition("/")
        found = {name: group}
    else:
        parent = path.strip("/")
        names = sorted(group, key=_natural) if is_group(group) else []
        inner = {name: member(group, name, source) for name in names}
        found = {name: series for name, series in inner.items() if _is_series(series)}
    if not found:
        raise DataError(f"{source}: {path}: no RoiResponseSeries in it")
    unknown = sorted(set(session.field_delays_seconds) - set(found))
    if unknown:
        raise DataError(f"{source}: field_delays_seconds: no series {unknown[0]} in the file")
    fields = [
        _field(number, name, group, f"{source}: {parent}/{name}", session)
        for number, (name, group) in enumerate(found.items(), 1)
    ]
    fields = [field for field in fields if len(field.columns)]
    if not fields:
        types = ", ".join(session.mask_types or [])
        raise DataError(f"{source}: {path}: no ROIs of the mask types {types}")
    return fields


def _is_series(found: Any) -> bool:
    """Whether an object is a RoiResponseSeries, or of a type that is derived from it."""
    return kind(found) == "RoiResponseSeries" or (is_group(found) and "rois" in found)


def _natural(name: str) -> list[Any]:
    """Order in which field 10 follows field 9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _field(number: int, name: str, group: Any, where: str, session: NwbSession) -> Field:
    offset = session.offsets_seconds.get("responses", 0.0)
    offset += session.field_delays_seconds.get(name, 0.0)
    series = nwb_file.Series(group, where, offset)
    region = member(group, "rois", where)
    if region is None:
        raise DataError(f"{where}: no rois, which say what its columns are")
    rois = Data(region, f"{where}/rois")
    if len(rois.shape) != 1 or rois.dtype.kind not in "iu":
        raise DataError(f"{rois.source}: is {rois.dtype} {list(rois.shape)}, not integers")
    rows = rois[:].astype(np.int64)
    if len(rows) != series.columns:
        raise DataError(
            f"{where}: {series.columns} columns of data, {len(rows)} rois; are the axes in order?"
        )
    try:
        reference = rois.attrs.get("table")
    except UNREADABLE:
        reference = None
    segmentation = dereference(reference, rois.file, f"{rois.source}: table")
    table = _table(segmentation, rows, where)
    columns = np.arange(len(rows))
    if session.mask_types is not None and "mask_type" in table:
        columns = columns[np.isin(table["mask_type"], session.mask_types)]
    taken = {key: values[columns] for key, values in table.items()}
    return Field(number, name, series, columns, taken)


def _table(segmentation: Any, rows: np.ndarray, where: str) -> dict[str, np.ndarray]:
    """The columns of a PlaneSegmentation with one number or text a ROI, and its depth."""
    path = f"{where}: {getattr(segmentation, 'name', '')}"
    if not is_group(segmentation) or "id" not in segmentation:
        raise DataError(f"{where}: rois refer to no segmentation with ids, but to {path}")
    ids = need_column(segmentation, "id", path, "iu")
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(ids):
        raise DataError(f"{where}: rois name rows beyond the {len(ids)} of their segmentation")
    table = {"roi_id": ids[rows]}
    for name in _column_names(segmentation, path):
        if name in _NEEDED:
            values: np.ndarray | None = need_column(segmentation, name, path, _NEEDED[name])
        else:
            values = read_column(segmentation, name, path)
        if values is None:
            continue
        if len(values) != len(ids):
            raise DataError(f"{path}: column {name} has {len(values)} rows, not {len(ids)}")
        table[name] = values[rows]
    if "z" not in table:
        depth = _depth(segmentation, path)
        if depth is not None:
            table["z"] = np.full(len(rows), depth)
    return table


def _column_names(segmentation: Any, path: str) -> list[str]:
    """The columns that a segmentation says it has.

    Raises:
        DataError: it has one of them not, or has not said that it has one that tells which ROIs
            to take.
    """
    try:
        names = text(np.atleast_1d(segmentation.attrs.get("colnames", [])), path)
    except UNREADABLE as error:
        raise DataError(f"{path}: its attribute colnames cannot be read: {error}") from error
    for name in names:
        if name not in segmentation:
            raise DataError(f"{path}: has no column {name}, which its colnames list")
    return [*names, *(name for name in _NEEDED if name in segmentation and name not in names)]


def _depth(segmentation: Any, path: str) -> float | None:
    """The depth of the imaging plane in micrometres, if it is known."""
    found = find(segmentation, "imaging_plane/origin_coords", path)
    if found is None:
        return None
    origin = Data(found, f"{path}/imaging_plane/origin_coords")
    if origin.shape != (3,) or origin.dtype.kind not in "fiu":
        raise DataError(f"{origin.source}: is {origin.dtype} {list(origin.shape)}, not x, y, z")
    try:
        (unit,) = text([origin.attrs.get("unit", "meters")], origin.source)
    except UNREADABLE as error:
        raise DataError(f"{origin.source}: its attribute unit cannot be read: {error}") from error
    depth = float(origin[:][2])
    if not np.isfinite(depth):
        raise DataError(f"{origin.source}: z is {depth}")
    return depth * (1e6 if unit in _METRES else 1.0)


@dataclass(frozen=True)
class Responses:
    """The responses of one field.

    Attributes:
        series: that holds them.
        columns: those of its data that are the field's neurons, ints [k].
    """

    series: nwb_file.Series | DeconvolvedSeries
    columns: np.ndarray


def deconvolved(fields: list[Field], folder: Path) -> list[Responses]:
    """The activity that was made of fields of fluorescence, in the session's `folder`.

    Raises:
        DataError: that of a field is missing, or was made from another recording.
    """
    folder = folder / DECONVOLVED
    record = read_record(folder)
    result = []
    for field in fields:
        raw, made = field.series, record.fields.get(field.name)
        series = DeconvolvedSeries(folder, field.name, made, raw.clock.stored, raw.offset)
        result.append(Responses(series, series.place(field.columns)))
    return result


def read_neurons(fields: list[Field]) -> dict[str, np.ndarray]:
    """One table of the neurons of all fields, of the columns that all have."""
    names = [name for name in fields[0].table if all(name in field.table for field in fields)]
    table = {name: np.concatenate([field.table[name] for field in fields]) for name in names}
    counts = [len(field.columns) for field in fields]
    table["field"] = np.repeat([field.number for field in fields], counts)
    if "unit_id" not in table:
        ids = table["roi_id"]
        unique = len(np.unique(ids)) == len(ids)
        table["unit_id"] = ids if unique else table["field"] * _FIELD + ids
    return table
