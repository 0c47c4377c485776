"""Activity that `fmcortex deconvolve` made of fluorescence, as it lies beside a recording.

A folder with one folder a field, or only the field's files themselves::

    <field>/values.npy      float32 [n, k]
    <field>/times.npy       seconds [n], those of the fluorescence
    neurons.csv             of each neuron: the decay, the noise, the signal
    deconvolution.json      what it was made from and how
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict

from data_prep.readers.clock import Clock
from data_prep.readers.leftovers import is_leftover
from data_prep.readers.signal_files import SignalFile
from data_prep.readers.signals_schema import read_json
from fmcortex.errors import ConfigError, DataError
from fmcortex.names import is_name

#: The folder of it in an NWB session's, and in one of signals.
DECONVOLVED = "deconvolved"
SIGNALS = "signals/responses"
RECORD = "deconvolution.json"


def _field_name(name: str) -> str:
    if name != "." and not is_name(name):
        raise ValueError(f"{name!r} is not the name of a field")
    return name


#: A folder of the activity's, or "." for itself.
FieldName = Annotated[str, AfterValidator(_field_name)]


class SourceRecord(BaseModel):
    """A file of fluorescence.

    Attributes:
        bytes: its size.
        sha256: of its content; None of a file at a URL.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int
    sha256: str | None


class FieldRecord(BaseModel):
    """One field.

    Attributes:
        source: file and path in it of its fluorescence.
        samples: of its fluorescence.
        columns: those of its fluorescence that were deconvolved.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    samples: int
    columns: list[int]


class Record(BaseModel):
    """What the activity was made from, and how.

    Attributes:
        version: of this record.
        tool_version: of fmcortex.
        oasis_version: of OASIS.
        method: of the estimates, counted up when the same settings give other activity; 1 where
            the record is of a version that did not say.
        settings: of the deconvolution.
        sources: the files of the fluorescence.
        fields: by name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    tool_version: str
    oasis_version: str
    method: int = 1
    settings: dict[str, Any]
    sources: dict[str, SourceRecord]
    fields: dict[FieldName, FieldRecord]


def read_record(folder: Path) -> Record:
    """The record of the activity in `folder`.

    Raises:
        DataError: it is missing or malformed.
    """
    return read_json(folder / RECORD, Record)


def check_made_from(folder: Path, files: Mapping[str, str]) -> None:
    """Refuse activity in a session's `folder` that was made of other fluorescence than is there.

    Args:
        folder: of the session.
        files: SHA-256 of its files by path.

    Raises:
        DataError: it was made of other content of a file.
    """
    for name in (DECONVOLVED, SIGNALS):
        if not (folder / name / RECORD).is_file():
            continue
        for path, source in read_record(folder / name).sources.items():
            if source.sha256 is not None and files.get(path, source.sha256) != source.sha256:
                raise DataError(
                    f"{folder / name}: was made of another {path}; run `fmcortex deconvolve"
                    f" {folder}` again, or remove it"
                )


def check_only_ours(folder: Path, record: Record) -> None:
    """Refuse to replace the activity in `folder` where others have put something beside it.

    Raises:
        ConfigError: naming the first such file.
    """
    ours = {folder / RECORD, folder / "neurons.csv"}
    for name in record.fields:
        ours |= {folder / name / "values.npy", folder / name / "times.npy"}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path not in ours and not is_leftover(path.name):
            raise ConfigError(
                f"{path}: was not made by `fmcortex deconvolve`, which is to replace its folder;"
                " move it away"
            )


def is_whole(folder: Path, record: Record) -> bool:
    """Whether the activity in `folder` is all that its record says, as far as sizes tell."""
    try:
        for name, field in record.fields.items():
            path = folder / name
            if SignalFile(path.parent, path.name).columns != len(field.columns):
                return False
    except DataError:
        return False
    return (folder / "neurons.csv").is_file()


class DeconvolvedSeries:
    """A field's activity, of which rows are read as they are needed.

    Attributes:
        source: its folder, for messages.
        clock: its times on the stimulus's clock.
    """

    def __init__(
        self, folder: Path, name: str, field: FieldRecord | None, times: np.ndarray, offset: float
    ) -> None:
        """Open the activity of field `name`, and check that it belongs to its fluorescence.

        Args:
            folder: of the activity.
            name: of the field.
            field: what was made, None if nothing was made of this field.
            times: of the fluorescence, as stored, of its samples that have one.
            offset: added to the times.

        Raises:
            DataError: it is missing, or was made from another recording.
        """
        path = folder / name
        if field is None:
            raise DataError(f"{path}: is missing; run `fmcortex deconvolve` again")
        file = SignalFile(folder, name)
        known = field.samples == len(times) and np.isin(file.times, times).all()
        if not known or file.columns != len(field.columns):
            raise DataError(
                f"{path}: was made from another recording; run `fmcortex deconvolve` again"
            )
        self.source = file.source
        self.clock = Clock(file.times, file.source, offset)
        self._file, self._columns = file, np.array(field.columns)

    def rows(self, part: slice) -> np.ndarray:
        """The activity [m, k] at some samples.

        Raises:
            DataError: the file cannot be read.
        """
        return self._file.rows(part)

    def place(self, columns: np.ndarray) -> np.ndarray:
        """Where columns of the fluorescence are in the activity.

        Raises:
            DataError: some were not deconvolved.
        """
        missing = columns[~np.isin(columns, self._columns)]
        if len(missing):
            raise DataError(
                f"{self.source}: column {missing[0]} of the fluorescence was not deconvolved;"
                " run `fmcortex deconvolve` again"
            )
        return np.searchsorted(self._columns, columns)
