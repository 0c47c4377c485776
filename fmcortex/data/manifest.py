"""The manifest: the one description of the prepared dataset's format.

A prepared dataset is a folder on any fsspec URL::

    manifest.json                      DatasetManifest, written last
    sessions/<session>/
        manifest.json                  SessionManifest, written after the session's other files
        train-00000.tar                webdataset shard of training trials
        train-00000.index.json         ShardIndex: where each member lies, and its checksum
        videos.zarr/<video>/...        repeated videos of the validation and test tiers
        neurons.zarr/...               the neuron table, a one-dimensional array a column

A training trial is a webdataset sample with the members `stimulus.npy` uint8 [T, H, W],
`responses.npy` float32 [T, U], `perspectives.npy` float32 [T, P] and `modulations.npy`
float32 [T, M], all on the stimulus frame times. A repeated video is a zarr group with the arrays
`stimulus` uint8 [T, H, W], `responses` float32 [R, T, U] (NaN where a repeat is missing),
`perspectives` float32 [R, T, P] and `modulations` float32 [R, T, M].

Responses are divided by `Statistics.response_scale`; perspectives and modulations are
standardised by their training mean and standard deviation. H and W are pixels, T stimulus frames,
U neurons, R repeats.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fmcortex.errors import DataError

VERSION: Literal[1] = 1

#: File names are joined to URLs, so a name may not climb out of its folder.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)]
_PART = "[A-Za-z0-9][A-Za-z0-9._-]*"
#: A path inside a session's folder; no part of it may climb out.
Path = Annotated[str, StringConstraints(pattern=f"^{_PART}(/{_PART})*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

Tier = Literal["train", "validation", "test"]

#: The stimulus domains of Wang et al. 2025: natural movies, and five never seen in training.
DOMAINS = (
    "natural_movie",
    "natural_image",
    "drifting_gabor",
    "gaussian_dots",
    "pink_noise",
    "random_dots",
)


class Document(BaseModel):
    """A JSON document that refuses unknown fields and bad values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def parse(cls, content: bytes, where: str) -> Self:
        """Read the document from JSON.

        Raises:
            DataError: naming `where` and the first field at fault.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "document"
            raise DataError(f"{where}: {field}: {first['msg']}") from error


class Member(Document):
    """Where one array of a trial lies in its tar: a .npy file of `length` bytes at `offset`."""

    offset: int = Field(ge=0)
    length: int = Field(gt=0)
    crc32: int = Field(ge=0, lt=2**32)


class IndexedTrial(Document):
    """One sample of a shard: its members by array name, without the .npy suffix."""

    key: Name
    members: dict[Literal["stimulus", "responses", "perspectives", "modulations"], Member]


class ShardIndex(Document):
    """The index beside each tar, which makes it readable by range and its truncation visible."""

    version: Literal[1] = VERSION
    shard: Name
    trials: list[IndexedTrial]


class Shard(Document):
    """One tar of training trials."""

    name: Name
    bytes: int = Field(gt=0)
    sha256: Sha256
    trials: int = Field(gt=0)
    index: Name
    index_sha256: Sha256


class TrainTrial(Document):
    """One training trial: its key in the shard, the shard's number, its frames."""

    key: Name
    shard: int = Field(ge=0)
    frames: int = Field(gt=0)


class Array(Document):
    """A zarr array at `path` in the session's folder.

    `sha256` is that of its values in C order, little-endian, so a lost chunk cannot pass.
    """

    path: Path
    dtype: str
    shape: list[int]
    sha256: Sha256


class Video(Document):
    """A video shown repeatedly in the validation or test tier."""

    name: Name
    domain: str
    tier: Literal["validation", "test"]
    frames: int = Field(gt=0)
    repeats: int = Field(gt=0)
    arrays: dict[Literal["stimulus", "responses", "perspectives", "modulations"], Array]


class Excluded(Document):
    """A trial that was left out, and why."""

    trial: str
    tier: Tier
    reason: str


class Statistics(Document):
    """What the values were divided by and centred on, from training trials only."""

    response_scale: Array
    perspective_mean: list[float]
    perspective_std: list[float]
    modulation_mean: list[float]
    modulation_std: list[float]


class StoredFile(Document):
    """What a file was when it was written."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class SessionManifest(Document):
    """One recording session of a prepared dataset."""

    version: Literal[1] = VERSION
    session: Name
    animal: str
    layout: str
    neurons: int = Field(gt=0)
    frame_rate: float = Field(gt=0, description="stimulus frames per second, Hz")
    height: int = Field(gt=0, description="pixels")
    width: int = Field(gt=0, description="pixels")
    perspectives: list[str]
    modulations: list[str]
    trials: list[TrainTrial]
    shards: list[Shard]
    videos: list[Video]
    neuron_table: dict[str, Array]
    statistics: Statistics
    excluded: list[Excluded]
    files: dict[Path, StoredFile] = Field(
        default_factory=dict,
        description="every file of the session but this manifest, by path in its folder",
    )
    settings: dict[str, Any]
    source_sha256: Sha256
    tool_version: str

    @property
    def train_frames(self) -> int:
        """Stimulus frames of all training trials."""
        return sum(trial.frames for trial in self.trials)

    @property
    def train_minutes(self) -> float:
        """Minutes of training data."""
        return self.train_frames / self.frame_rate / 60


class SessionEntry(Document):
    """A session as the dataset's manifest names it."""

    session: Name
    manifest_sha256: Sha256
    neurons: int = Field(gt=0)
    train_trials: int = Field(gt=0)
    train_frames: int = Field(gt=0)
    bytes: int = Field(gt=0)


class DatasetManifest(Document):
    """The root document of a prepared dataset."""

    version: Literal[1] = VERSION
    sessions: list[SessionEntry]
    tool_version: str
