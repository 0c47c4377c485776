"""The fields of an NWB file: their series of responses and the table of their ROIs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.readers import nwb_file
from data_prep.readers.deconvolved import DECONVOLVED, DeconvolvedSeries, read_record
from data_prep.readers.nwb_schema import NwbSession
from fmcortex.errors import DataError

_FIELD = 1_000_000
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
    group = nwb_file.child(file, path, source)
    if nwb_file.kind(group) == "RoiResponseSeries":
        found = {path.rpartition("/")[2]: group}
    else:
        found = {
            name: group[name]
            for name in sorted(group, key=_natural)
            if nwb_file.kind(group[name]) == "RoiResponseSeries"
        }
    if not found:
        raise DataError(f"{source}: {path}: no RoiResponseSeries in it")
    unknown = sorted(set(session.field_delays_seconds) - set(found))
    if unknown:
        raise DataError(f"{source}: field_delays_seconds: no series {unknown[0]} in the file")
    fields = [
        _field(file, number, name, group, source, session)
        for number, (name, group) in enumerate(found.items(), 1)
    ]
    fields = [field for field in fields if len(field.columns)]
    if not fields:
        types = ", ".join(session.mask_types or [])
        raise DataError(f"{source}: {path}: no ROIs of the mask types {types}")
    return fields


def _natural(name: str) -> list[Any]:
    """Order in which field 10 follows field 9."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _field(
    file: Any, number: int, name: str, group: Any, source: str, session: NwbSession
) -> Field:
    where = f"{source}: {name}"
    offset = session.offsets_seconds.get("responses", 0.0)
    offset += session.field_delays_seconds.get(name, 0.0)
    series = nwb_file.Series(group, where, offset)
    if "rois" not in group:
        raise DataError(f"{where}: no rois, which say what its columns are")
    rows = np.asarray(group["rois"][:], np.int64)
    if len(rows) != series.columns:
        raise DataError(
            f"{where}: {series.columns} columns of data, {len(rows)} rois; are the axes in order?"
        )
    try:
        segmentation = file[group["rois"].attrs["table"]]
        segmentation_ids = np.asarray(segmentation["id"][:])
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{where}: rois refer to no segmentation with ids: {error}") from error
    table = _table(segmentation, segmentation_ids, rows, where)
    columns = np.arange(len(rows))
    if session.mask_types is not None and "mask_type" in table:
        columns = columns[np.isin(table["mask_type"], session.mask_types)]
    taken = {key: values[columns] for key, values in table.items()}
    return Field(number, name, series, columns, taken)


def _table(
    segmentation: Any, ids: np.ndarray, rows: np.ndarray, where: str
) -> dict[str, np.ndarray]:
    """The columns of a PlaneSegmentation with one number or text a ROI, and its depth."""
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(ids):
        raise DataError(f"{where}: rois name rows beyond the {len(ids)} of their segmentation")
    table = {"roi_id": ids[rows]}
    for name in nwb_file.text(segmentation.attrs.get("colnames", [])):
        column = segmentation.get(name)
        if column is None or column.ndim != 1 or f"{name}_index" in segmentation:
            continue
        if len(column) != len(ids):
            raise DataError(f"{where}: column {name} has {len(column)} rows, not {len(ids)}")
        values = column[:][rows]
        if values.dtype.kind in "biuf":
            table[name] = values
        elif len(values) == 0 or isinstance(values[0], (bytes, str)):
            table[name] = np.array(nwb_file.text(values), np.str_)
    plane = segmentation.get("imaging_plane", {})
    if "origin_coords" in plane and "z" not in table:
        origin = plane["origin_coords"]
        (unit,) = nwb_file.text([origin.attrs.get("unit", "meters")])
        depth = float(origin[2]) * (1e6 if unit in _METRES else 1.0)
        table["z"] = np.full(len(rows), depth)
    return table


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
