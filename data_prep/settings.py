"""Settings of `fmcortex prep`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fmcortex.config import Seed


class PrepSettings(BaseModel):
    """How recordings become a prepared dataset."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    layout: Literal["auto", "signals", "nwb", "sensorium2022", "sensorium2023", "digital_twin"] = (
        Field("auto", description="layout of the source folders; auto recognises each session's")
    )
    sessions: list[str] | None = Field(
        None, description="names of the session folders to prepare; all if absent"
    )
    frame_rate: float = Field(
        30.0,
        gt=0,
        le=1000,
        description="stimulus frames per second of the prepared dataset, Hz; a source that tells"
        " its frame times has this rate, to 1%, or a multiple of it, of which every n-th frame is"
        " kept",
    )
    height: int | None = Field(
        None, gt=0, le=65_536, description="reduce the stimulus to this height, pixels"
    )
    width: int | None = Field(
        None, gt=0, le=65_536, description="reduce the stimulus to this width, pixels"
    )
    resize: Literal["area", "bilinear"] = Field(
        "area", description="how the stimulus is reduced: by area averaging, or bilinearly"
    )
    response_dtype: Literal["float32", "float16"] = Field(
        "float32",
        description="how responses are stored; float16 halves them and keeps three digits",
    )
    response_normalisation: Literal["mean", "std", "none"] = Field(
        "mean",
        description="divide each neuron's responses by their mean or standard deviation over the"
        " training trials, or not at all",
    )
    silent_neurons: Literal["error", "keep"] = Field(
        "error",
        description="a neuron without any response in training: refuse the session, or keep the"
        " neuron unscaled",
    )
    missing_neurons: Literal["error", "leave_out"] = Field(
        "error",
        description="a neuron that is NaN in all training trials: refuse the session, or prepare"
        " it without the neuron, which takes one more reading of it",
    )
    max_pupil_gap_frames: int = Field(
        10,
        ge=0,
        le=1_000_000,
        description="longest gap in pupil or treadmill that is filled by linear interpolation,"
        " frames of the camera, or of the stimulus where the source has behaviour on these; a"
        " trial with a longer one is excluded and counted",
    )
    treadmill_lowpass_hz: float | None = Field(
        None,
        gt=0,
        le=100_000,
        description="low-pass filter the channels called treadmill* at this frequency, Hz (-6 dB),"
        " with a Hamming window; not where absent, as for layouts that are filtered already",
    )
    image_frames: int = Field(
        15,
        gt=0,
        le=100_000,
        description="frames that a static image becomes (Sensorium 2022); its responses hold over"
        " them",
    )
    split: Literal["source", "made"] = Field(
        "source",
        description="tiers as the source has them, or made here, so that movies that are alike"
        " are all in one tier, in all sessions of the dataset",
    )
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="of the movies of a split made here, for validation"
    )
    test_fraction: float = Field(
        0.1, ge=0, lt=1, description="of the movies of a split made here, for testing"
    )
    split_seed: Seed = Field(0, description="of a split made here")
    mixed: bool = Field(
        False,
        description="let sessions of different frame rate, size or normalisation into one dataset",
    )
    check_source: Literal["content", "size"] = Field(
        "content",
        description="how a later run finds out that a source changed: by reading all of it, or by"
        " the names and sizes of its files",
    )
    trials_per_shard: int = Field(64, gt=0, le=1_000_000, description="most trials in a shard")
    shard_bytes: int = Field(
        128 << 20,
        gt=0,
        le=1 << 40,
        description="a shard is closed before its arrays exceed this many bytes",
    )

    @model_validator(mode="after")
    def _both_sizes(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise ValueError("height and width go together: give both or neither")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing for training")
        return self

    def content(self) -> dict[str, Any]:
        """The settings that the content of a prepared session depends on, JSON-ready.

        Which sessions were selected, and how the layout was found out, is not among them.
        """
        found = self.model_dump(
            mode="json", exclude={"layout", "sessions", "mixed", "check_source"}
        )
        if self.missing_neurons == "error":
            del found["missing_neurons"]  # as of datasets that are older than the setting
        return found

    def of_trials(self) -> dict[str, Any]:
        """Those of `content` that decide what a trial is, before it is scaled and stored."""
        later = {"response_normalisation", "silent_neurons", "response_dtype"}
        later |= {"trials_per_shard", "shard_bytes"}
        return {key: value for key, value in self.content().items() if key not in later}
