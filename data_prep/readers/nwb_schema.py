"""What `nwb.json` beside an NWB file may say, with the names of DANDI 000402 as defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_prep.readers.leftovers import entries
from data_prep.readers.signals_schema import read_json
from fmcortex.errors import DataError

NWB_JSON = "nwb.json"


class NwbSession(BaseModel):
    """Where in the file a session's parts are, and what NWB has no place for."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    url: str | None = Field(
        None,
        min_length=1,
        description="the file, as anything that fsspec opens; if absent, the one .nwb file of the"
        " folder",
    )
    responses: str | None = Field(
        None,
        min_length=1,
        description="group of one RoiResponseSeries a field, or one such series; if absent, what"
        " `fmcortex deconvolve` made of the fluorescence",
    )
    fluorescence: str = Field(
        "processing/ophys/Fluorescence",
        description="likewise, the raw fluorescence; the release has no deconvolved traces",
    )
    mask_types: list[str] | None = Field(
        ["soma"],
        description="the ROIs to take, by the column mask_type of their segmentation; those of a"
        " segmentation without that column, or all if null",
    )
    field_delays_seconds: dict[str, Annotated[float, Field(ge=-3600, le=3600)]] = Field(
        default={},
        description="for a RoiResponseSeries by name: when its field was imaged after the series's"
        " timestamps",
    )
    pupil_position: str = Field(
        "acquisition/EyeTracking/eye_position", description="series [n, 2]: x, y"
    )
    pupil_radius: str = Field(
        "acquisition/PupilTracking/pupil_major_radius", description="series [n]"
    )
    treadmill: str = Field("acquisition/treadmill_velocity", description="series [n]")
    offsets_seconds: dict[
        Literal["responses", "pupil", "treadmill"], Annotated[float, Field(ge=-1e10, le=1e10)]
    ] = Field(
        default={}, description="added to the times of a signal to bring them to the stimulus's"
    )
    stimulus: str | None = Field(
        None,
        min_length=1,
        description="the ImageSeries of what was shown; if absent, the only one of acquisition and"
        " stimulus/presentation",
    )
    stimulus_file: str | None = Field(
        None,
        description="its frames, uint8 .npy [n, H, W] in the session's folder, where the series"
        " names a video file outside",
    )
    stimulus_axes: Literal["frame,height,width", "frame,width,height"] = Field(
        "frame,height,width", description="axes of the frames of a series that holds them itself"
    )
    intervals: dict[str, str] = Field(
        default={"Clip": "natural_movie", "Monet2": "unknown", "Trippy": "unknown"},
        min_length=1,
        description="tables of trials below intervals/, and the domain of the videos of each;"
        " tables that a file lacks are passed over",
    )
    condition: str = Field(
        "condition_hash", description="column of the tables: equal where the stimulus is"
    )
    tier_column: str | None = Field(
        None, min_length=1, description="column of the tables with train, validation, test or none"
    )
    repeats_for_test: int = Field(
        4,
        ge=2,
        le=1_000_000,
        description="without a tier column: a condition shown so often or more is of the test"
        " tier, any other of the training tier",
    )

    @model_validator(mode="after")
    def _plain_name(self) -> Self:
        name = self.stimulus_file
        if name is not None and (not name.endswith(".npy") or "/" in name or "\\" in name):
            raise ValueError("stimulus_file: not the name of a .npy file in the session's folder")
        return self


def read_nwb_json(folder: Path) -> NwbSession:
    """What `nwb.json` of a session's folder says; the defaults if there is none.

    Raises:
        DataError: it is malformed; the message names the key.
    """
    path = folder / NWB_JSON
    return read_json(path, NwbSession) if path.exists() else NwbSession()


def nwb_source(folder: Path, session: NwbSession) -> str:
    """The path or URL of a session's NWB file.

    Raises:
        DataError: no URL is given, and the folder has not one .nwb file.
    """
    if session.url:
        return session.url
    found = entries(folder, "*.nwb")
    if len(found) != 1:
        raise DataError(
            f"{folder}: {len(found)} .nwb files; a session is a folder of one, or of an"
            f" {NWB_JSON} with its url"
        )
    return str(found[0])
