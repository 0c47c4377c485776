"""`run.json` in a run's folder: its configuration, and the MLflow run that records it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fmcortex import storage
from fmcortex.errors import ConfigError
from fmcortex.names import Name
from fmcortex.tracking.store import sqlite_file, to_stderr

RUN_FILE = "run.json"


class RunFile(BaseModel):
    """What a run's folder says of it.

    Attributes:
        config: as it was asked for.
        uri: of the MLflow store; None of a run that never got so far.
        run_id: of the MLflow run; None likewise.
        kind: pretrain, transfer or individual.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    config: dict[str, Any] = Field(default_factory=dict)
    uri: str | None = Field(None, min_length=1)
    run_id: Name | None = None
    kind: str = "pretrain"


def run_file_of(folder: str) -> str:
    """URL of the file."""
    return storage.join(folder, RUN_FILE)


def read_run_file(folder: str) -> RunFile | None:
    """What a folder's `run.json` says; None if it has none.

    Of a folder that was copied or moved together with its SQLite store, the store is that beside
    it, not the original.

    Raises:
        ConfigError: it is of another form; the message names the file and the key.
        StorageError: it cannot be read.
    """
    path = run_file_of(folder)
    if not storage.exists(path):
        return None
    try:
        return _located(folder, RunFile.model_validate_json(storage.read_bytes(path)))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{path}: not as fmcortex writes it: {f'{key}: ' if key else ''}{message}; name "
            "another folder, or move that file away"
        ) from error


def _located(folder: str, known: RunFile) -> RunFile:
    """`known` with the store that lies where it lay, seen from the folder."""
    file, output = sqlite_file(known.uri or ""), known.config.get("output")
    if file is None or not isinstance(output, str) or not storage.is_local(folder):
        return known
    here, there = Path(storage.absolute(folder)), Path(output)
    if here == there or not there.is_absolute():
        return known
    beside = Path(os.path.normpath(here / os.path.relpath(file, there)))
    if not beside.exists() or (file.exists() and beside.samefile(file)):
        return known
    to_stderr(f"{folder}: was copied or moved from {there}; its MLflow store is now {beside}")
    return known.model_copy(update={"uri": f"sqlite:///{beside}"})


def write_run_file(folder: str, known: RunFile) -> None:
    """Write it, whole or not at all."""
    storage.write_json(run_file_of(folder), known.model_dump(exclude_none=True))
