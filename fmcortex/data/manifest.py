"""The manifest: the one description of the prepared dataset's format.

A prepared dataset is a folder on any fsspec URL::

    manifest.json                      DatasetManifest, written last
    movies/<movie>/                    a distinct movie, once, whichever sessions showed it: a
        zarr.json, c/0/0/0             sharded zarr 3 array uint8 [T, H, W]
        index.json                     MovieFile: where its chunks lie, and their checksums
    sessions/<session>/
        manifest.json                  SessionManifest, written after the session's other files
        train-00000.tar                webdataset shard of trials of a tier
        train-00000.index.json         ShardIndex: where each member lies, and its checksum
        neurons.zarr/...               the neuron table, a one-dimensional array a column
        survey.json                    what was found on the first reading of the source
        sources.json                   SourceList: the files it was made from
        origin.json                    which folder that was; no part of what is prepared
        writing.json                   while it is being written: the files that are, or will be

A movie's name is the SHA-256 of its size and pixels (`fmcortex.data.movies.movie_name`), on the
stimulus's frames and at the size of the prepared dataset.

A trial is a webdataset sample. Its members are `header.json` (TrialHeader), `perspectives.npy`
float32 [T, P] and `modulations.npy` float32 [T, M] on the frame times, and the responses in one
or more groups of neurons g: `responses-<g>-<b>.zst`, block b of at most `block_rows` rows of
[n, U_g], float32 or float16, as a zstd frame. Where `response-times-<g>.npy` float64 [n] is
there, a row is one scan: the times of the rows, in seconds since the first frame, to which each
neuron's imaging delay is to be added. `frames.npy` float64 [T] then has the times of the frames,
and a response on a frame is interpolated linearly between the scans around it
(`fmcortex.data.scans`), as the paper does before training; stored so, the responses take a fifth
of the bytes. Without times a row is one frame.

Responses are divided by `Statistics.response_scale`; perspectives and modulations are
standardised by their training mean and standard deviation. H and W are pixels, T stimulus frames,
U neurons.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from fmcortex.errors import DataError
from fmcortex.names import InsidePath, Name, Path
from fmcortex.seal import put_seal, seal_holds

VERSION: Literal[2] = 2

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

    def encoded(self) -> bytes:
        """The document as indented JSON, the same bytes for the same content."""
        return (self.model_dump_json(indent=1) + "\n").encode()

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
            if first["loc"] == ("version",) and first["type"] == "literal_error":
                expected = first.get("ctx", {}).get("expected")
                raise DataError(
                    f"{where}: format version: {first['input']!r}, this program reads {expected};"
                    " make it again, or use the version that wrote it"
                ) from error
            # A bad key is told by the message.
            path = first["loc"][:-2] if first["loc"][-1:] == ("[key]",) else first["loc"]
            field = ".".join(str(part) for part in path) or "document"
            field = field.encode("unicode_escape").decode()  # other keys are from outside, too
            message = first["msg"].removeprefix("Value error, ")
            raise DataError(f"{where}: {field}: {message}") from error


class Sealed(Document):
    """A document with the checksum of itself in it (`fmcortex.seal`)."""

    seal: str = Field("", description="SHA-256 of this document with an empty seal")

    def sealed(self) -> bytes:
        """The document as it is stored, with the checksum of itself in it."""
        return put_seal(self.model_copy(update={"seal": ""}).encoded())

    @classmethod
    def parse_sealed(
        cls, content: bytes, where: str, advice: str = "run `fmcortex prep` again"
    ) -> Self:
        """Read the stored document, every byte of which is as it was written.

        Args:
            content: of the document.
            where: it is, for messages.
            advice: what to do about a damaged one.

        Raises:
            DataError: naming `where`: it is malformed or damaged, or has no seal.
        """
        document = cls.parse(content, where)
        if not seal_holds(content):
            raise DataError(f"{where}: differs from its own checksum; {advice}")
        return document


class StoredFile(Document):
    """What a file was when it was written."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class Block(Document):
    """`length` bytes at `offset` of a file, and their CRC-32C."""

    offset: int = Field(ge=0)
    length: int = Field(gt=0)
    crc32c: int = Field(ge=0, lt=2**32)


class MovieEntry(Document):
    """A movie as a session needs it to read windows of it: its size and its file.

    Chunk i is `chunk_frames` frames from frame `i * chunk_frames` on, the last filled up.
    """

    frames: int = Field(gt=0)
    height: int = Field(gt=0, description="pixels")
    width: int = Field(gt=0, description="pixels")
    chunk_frames: int = Field(gt=0)
    differences: bool = Field(description="chunks hold differences to the frame before, modulo 256")
    bytes: int = Field(gt=0)
    sha256: Sha256
    chunks: list[Block]


class MovieFile(Sealed):
    """The index beside a movie, written last: without it the movie is not there.

    `hashes` are perceptual hashes of frames (`data_prep.near_duplicates`), 64 bits in 16
    hexadecimal digits each: near-duplicates are found without decoding anything.
    """

    version: Literal[2] = VERSION
    movie: Sha256
    entry: MovieEntry
    array: StoredFile = Field(description="zarr.json")
    hashes: list[Annotated[str, StringConstraints(pattern="^[0-9a-f]{16}$")]]


class TrialHeader(Document):
    """`header.json` of a sample: what its other members are.

    Attributes:
        key: the trial's name in the source.
        movie: the movie that was shown.
        frames: T.
        groups: of each group of responses, its neurons U_g and rows n.
        scans: whether rows are scans with times of their own, or frames.
        dtype: of the responses, "<f4" or "<f2".
        block_rows: rows of a block, of which the last has what is left.
    """

    key: str
    movie: Sha256
    frames: int = Field(gt=0)
    groups: list[tuple[int, int]] = Field(min_length=1)
    scans: bool
    dtype: Literal["<f4", "<f2"]
    block_rows: int = Field(gt=0)


class IndexedTrial(Document):
    """One sample of a shard: its members, in the order in which they lie in the tar.

    `small` are header.json, perspectives, modulations and the times; `responses` the blocks of
    each group.
    """

    header: TrialHeader
    small: dict[str, Block]
    responses: list[list[Block]]


class ShardIndex(Sealed):
    """The index beside each tar, which makes it readable by range and its truncation visible.

    `inputs_sha256` is over all that the shard was made from: where that is the same, and the tar
    is there, it need not be made again.
    """

    version: Literal[2] = VERSION
    shard: Name
    bytes: int = Field(gt=0)
    sha256: Sha256
    trials: list[IndexedTrial] = Field(min_length=1)
    inputs_sha256: Sha256


class Shard(Document):
    """One tar of trials of a tier."""

    name: Name
    bytes: int = Field(gt=0)
    sha256: Sha256
    trials: int = Field(gt=0)
    index: Name
    index_sha256: Sha256


class Trial(Document):
    """One trial: its name in the source, the shard's number and its place in it, its movie.

    `filled` is the part of its behaviour that was missing and interpolated over.
    """

    key: str
    shard: int = Field(ge=0)
    place: int = Field(ge=0)
    frames: int = Field(gt=0)
    movie: Sha256
    domain: str
    filled: float = Field(0.0, ge=0, le=1)


class Array(Document):
    """A zarr array at `path` in the session's folder.

    `sha256` is that of its values in C order, little-endian, so a lost chunk cannot pass.
    """

    path: Path
    dtype: str
    shape: list[int]
    sha256: Sha256


class Video(Document):
    """A movie of the validation or test tier, and the trials that showed it."""

    name: Name
    domain: str
    tier: Literal["validation", "test"]
    movie: Sha256
    frames: int = Field(gt=0)
    shown: list[Trial] = Field(min_length=1)

    @property
    def repeats(self) -> int:
        """How often it was shown."""
        return len(self.shown)


class Excluded(Document):
    """A trial that was left out, and why."""

    trial: str
    tier: Tier
    reason: str


class Statistics(Document):
    """What the values were divided by and centred on, from training trials only."""

    response_scale: Array
    imaging_delay: Array | None = Field(
        None, description="seconds after a scan's time at which each neuron was imaged"
    )
    perspective_mean: list[float]
    perspective_std: list[float]
    modulation_mean: list[float]
    modulation_std: list[float]


class SessionManifest(Sealed):
    """One recording session of a prepared dataset."""

    version: Literal[2] = VERSION
    session: Name
    animal: str
    layout: str
    neurons: int = Field(gt=0)
    frame_rate: float = Field(gt=0, description="stimulus frames per second, Hz")
    height: int = Field(gt=0, description="pixels")
    width: int = Field(gt=0, description="pixels")
    perspectives: list[str]
    modulations: list[str]
    trials: list[Trial] = Field(description="of the training tier")
    shards: list[Shard]
    videos: list[Video]
    movies: dict[Sha256, MovieEntry]
    neuron_table: dict[Name, Array]
    statistics: Statistics
    excluded: list[Excluded]
    files: dict[Path, StoredFile] = Field(
        default_factory=dict,
        description="every file of the session but its shards and this manifest, by path in its"
        " folder",
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
    bytes: int = Field(gt=0, description="of the session's folder; movies are apart")


class DatasetManifest(Sealed):
    """The root document of a prepared dataset."""

    version: Literal[2] = VERSION
    sessions: list[SessionEntry]
    movies: int = Field(ge=0, description="distinct movies of all sessions")
    movie_bytes: int = Field(ge=0)
    tool_version: str


class SourceFile(Document):
    """A file that a session was made from."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class SourceList(Sealed):
    """Where a session came from: files by path in its source folder."""

    version: Literal[2] = VERSION
    files: dict[InsidePath, SourceFile]
