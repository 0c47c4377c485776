"""What `session.json` of the signals layout says; `SessionFile.model_json_schema()` prints it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fmcortex.errors import DataError

RESPONSES = "responses"
#: Of which `fmcortex deconvolve` makes the responses.
FLUORESCENCE = "fluorescence"
_Model = TypeVar("_Model", bound=BaseModel)


class SignalEntry(BaseModel):
    """One signal: samples of some channels at times of their own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    channels: list[str] = Field(
        default=[],
        description="names of the columns of its values; none for the responses, whose columns"
        " are the neurons",
    )
    offset_seconds: float = Field(
        0.0,
        ge=-1e10,
        le=1e10,
        description="added to the signal's times to bring them to the stimulus's clock",
    )


class SessionFile(BaseModel):
    """A session's description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    layout: Literal["signals"]
    version: Literal[1]
    name: str | None = Field(None, description="the session's name, that of its folder")
    animal: str | None = Field(None, description="the animal; taken from the name if absent")
    frame_rate: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="stimulus frames per second if they are even; trials.csv then has a column"
        " start. If absent, frames/<trial>.npy holds the time of every frame",
    )
    signals: dict[str, SignalEntry] = Field(
        description="the signals by name: `responses`, or the `fluorescence` that they are made of,"
        " and at least one of behaviour"
    )
    perspectives: list[str] = Field(
        min_length=1, description="channels of the pupil's position, such as pupil_x and pupil_y"
    )
    modulations: list[str] = Field(
        min_length=1,
        description="channels of the behavioural state, such as pupil_radius, treadmill_speed;"
        " those called treadmill* may be filtered",
    )

    @model_validator(mode="after")
    def _channels(self) -> Self:
        of_neurons = [name for name in (RESPONSES, FLUORESCENCE) if name in self.signals]
        if not of_neurons:
            raise ValueError("signals: `responses` is missing, or `fluorescence` instead")
        for name in of_neurons:
            if self.signals[name].channels:
                raise ValueError(f"signals.{name}: has no channels, its columns are the neurons")
        if len({self.signals[name].offset_seconds for name in of_neurons}) > 1:
            raise ValueError(
                f"signals.{FLUORESCENCE}.offset_seconds: is not that of the responses, which are"
                " made of it and have its times"
            )
        found: set[str] = set()
        for name, signal in self.signals.items():
            if name not in of_neurons and not signal.channels:
                raise ValueError(f"signals.{name}: channels are missing")
            for channel in signal.channels:
                if channel in found:
                    raise ValueError(f"channel {channel!r} is in the signals twice")
                found.add(channel)
        for use in ("perspectives", "modulations"):
            listed = getattr(self, use)
            for channel in listed:
                if channel not in found:
                    raise ValueError(f"{use}: no signal has a channel {channel!r}")
            if len(set(listed)) != len(listed):
                raise ValueError(f"{use}: a channel is listed twice")
        return self

    def opened(self) -> dict[str, SignalEntry]:
        """The signals that a dataset is made of: responses, whichever is listed, and behaviour."""
        found = {RESPONSES: self.signals.get(RESPONSES) or self.signals[FLUORESCENCE]}
        behaviour = {k: v for k, v in self.signals.items() if k not in (RESPONSES, FLUORESCENCE)}
        return found | behaviour


def read_session_file(path: Path) -> SessionFile:
    """The description in `path`.

    Raises:
        DataError: it is missing, no JSON, or not as the schema says; the message names the key.
    """
    return read_json(path, SessionFile)


def read_json(path: Path, model: type[_Model]) -> _Model:
    """The JSON file `path` as `model`.

    Raises:
        DataError: as `read_session_file`.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: file is missing") from error
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = "unknown key"
        raise DataError(f"{path}: {place + ': ' if place else ''}{message}") from error
