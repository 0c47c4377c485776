"""The second pass: a shard of trials with its index, and the movies that they showed."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass

import google_crc32c
import numpy as np
import webdataset

from data_prep.alignment import AlignedTrial, align
from data_prep.movie_writer import stored_movie, write_movie
from data_prep.readers.protocol import Reader, TrialRef
from data_prep.scaling import Scaling
from data_prep.settings import PrepSettings
from data_prep.survey import Survey, SurveyedTrial, repeated_videos
from fmcortex import storage
from fmcortex.data.arrays import encode_npy
from fmcortex.data.codecs import BLOCK_ROWS, CHUNK_FRAMES, ZSTD_LEVEL, compress
from fmcortex.data.files import check_file
from fmcortex.data.manifest import (
    VERSION,
    Block,
    IndexedTrial,
    MovieEntry,
    Shard,
    ShardIndex,
    StoredFile,
    Tier,
    TrialHeader,
)
from fmcortex.data.movies import movie_name
from fmcortex.data.shards import FRAMES, HEADER, block_member, small_members, times_member
from fmcortex.errors import ConfigError, DataError

_DTYPES = {"float32": "<f4", "float16": "<f2"}


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be: its name without suffix, its tier, and its trials in order."""

    name: str
    tier: Tier
    trials: list[SurveyedTrial]


@dataclass(frozen=True)
class WrittenShard:
    """A shard that is at the target, the bytes of its index, and the movies of its trials."""

    shard: Shard
    index_bytes: int
    movies: dict[str, MovieEntry]


def plan_shards(survey: Survey, settings: PrepSettings) -> list[ShardPlan]:
    """Which trials go into which shard: training trials in their order, repeats side by side."""
    videos = repeated_videos(survey.trials)
    tiers: dict[Tier, list[SurveyedTrial]] = {
        "train": [trial for trial in survey.trials if trial.tier == "train"],
        "validation": [t for video in videos if video.tier == "validation" for t in video.trials],
        "test": [t for video in videos if video.tier == "test" for t in video.trials],
    }
    plans: list[ShardPlan] = []
    for tier, trials in tiers.items():
        size = number = 0
        for trial in trials:
            full = (
                plans
                and plans[-1].tier == tier
                and (
                    len(plans[-1].trials) >= settings.trials_per_shard
                    or size + trial.bytes > settings.shard_bytes
                )
            )
            if full or not plans or plans[-1].tier != tier:
                plans.append(ShardPlan(f"{tier}-{number:05d}", tier, []))
                size, number = 0, number + 1
            plans[-1].trials.append(trial)
            size += trial.bytes
    return plans


def shard_inputs(
    plan: ShardPlan,
    scaling: Scaling,
    delays: list[float] | None,
    settings: PrepSettings,
    source_sha256: str,
) -> str:
    """SHA-256 over all that decides what the bytes of a shard are."""
    document = {
        "format": VERSION,
        "source": source_sha256,
        "settings": settings.of_trials(),
        "dtype": settings.response_dtype,
        "scaling": scaling.sha256,
        "delays": delays,
        "codec": [ZSTD_LEVEL, BLOCK_ROWS, CHUNK_FRAMES],
        "name": plan.name,
        "trials": [trial.model_dump(mode="json") for trial in plan.trials],
    }
    return storage.sha256(json.dumps(document, sort_keys=True).encode())


def whole_shard(
    to: str, session: str, plan: ShardPlan, inputs: str, run: str
) -> WrittenShard | None:
    """The shard if it is at the target, made from the same inputs, with all movies; else None.

    What an earlier run has left is read once more: disks and stores may have damaged it since.

    Raises:
        StorageError: the target cannot be read.
    """
    folder = storage.join(to, "sessions", session)
    url = storage.join(folder, f"{plan.name}.index.json")
    if not storage.exists(url):
        return None
    content = storage.read_bytes(url)
    try:
        index = ShardIndex.parse_sealed(content, url)
    except DataError:
        return None
    tar = StoredFile(bytes=index.bytes, sha256=index.sha256)
    size = storage.file_sizes(folder).get(f"{plan.name}.tar")
    if index.inputs_sha256 != inputs or check_file(folder, f"{plan.name}.tar", tar, size):
        return None
    movies: dict[str, MovieEntry] = {}
    for trial in plan.trials:
        entry = movies.get(trial.movie) or stored_movie(to, trial.movie, run)
        if entry is None:
            return None
        movies[trial.movie] = entry
    return WrittenShard(_entry(plan.name, index, content), len(content), movies)


def write_shard(
    reader: Reader,
    to: str,
    plan: ShardPlan,
    refs: dict[str, TrialRef],
    survey: Survey,
    scaling: Scaling,
    settings: PrepSettings,
    inputs: str,
    run: str,
) -> WrittenShard:
    """Read the trials of a shard again and write it, its movies first and its index last.

    Raises:
        StorageError: the target cannot be written.
        DataError: the source changed since it was surveyed.
        ConfigError: float16 cannot hold a response.
    """
    folder = storage.join(to, "sessions", reader.info.name)
    movies: dict[str, MovieEntry] = {}
    samples: list[tuple[TrialHeader, dict[str, bytes]]] = []
    for surveyed in plan.trials:
        raw = reader.read(refs[surveyed.key])
        trial = align(raw, reader.info, survey.pixels, settings)
        if isinstance(trial, str) or movie_name(trial.stimulus) != surveyed.movie:
            raise DataError(f"{raw.stimulus_source}: the source changed while it was read")
        if surveyed.movie not in movies:
            movies[surveyed.movie] = stored_movie(to, surveyed.movie, run) or write_movie(
                to, surveyed.movie, trial.stimulus, settings.frame_rate, run
            )
        samples.append(encode_trial(surveyed, trial, survey.delays, scaling, settings))
        assert raw.responses is not None
        _check_finite(samples[-1][0], trial, scaling, raw.responses[0].source)
    tar, index = _encode_shard(plan.name, samples, inputs)
    samples.clear()
    content = index.sealed()
    storage.write_bytes(storage.join(folder, f"{plan.name}.tar"), tar)
    storage.write_bytes(storage.join(folder, f"{plan.name}.index.json"), content)
    return WrittenShard(_entry(plan.name, index, content), len(content), movies)


def _check_finite(header: TrialHeader, trial: AlignedTrial, scaling: Scaling, source: str) -> None:
    if header.dtype == "<f2":
        largest = float(np.nanmax(np.abs(trial.responses / scaling.response)))
        if largest > np.finfo(np.float16).max / 2:
            raise ConfigError(
                f"{source}: a response of {largest:.3g} after scaling is too large for float16;"
                " use response_dtype=float32"
            )


def _entry(name: str, index: ShardIndex, content: bytes) -> Shard:
    return Shard(
        name=f"{name}.tar",
        bytes=index.bytes,
        sha256=index.sha256,
        trials=len(index.trials),
        index=f"{name}.index.json",
        index_sha256=storage.sha256(content),
    )


def encode_trial(
    surveyed: SurveyedTrial,
    trial: AlignedTrial,
    delays: list[float] | None,
    scaling: Scaling,
    settings: PrepSettings,
) -> tuple[TrialHeader, dict[str, bytes]]:
    """A trial's header and the members of its sample by name.

    The scans are kept where their delays are those of the session's other trials; otherwise, and
    where the source has none, the responses on the frames.
    """
    own = np.concatenate([s.delays for s in trial.scans]) if trial.scans else np.zeros(0)
    usual = np.zeros(len(own)) if delays is None else np.array(delays)
    scans = bool(trial.scans) and np.array_equal(own, usual)
    groups = [scan.values for scan in trial.scans] if scans else [trial.responses]
    header = TrialHeader(
        key=surveyed.key,
        movie=surveyed.movie,
        frames=len(trial.stimulus),
        groups=[(values.shape[1], len(values)) for values in groups],
        scans=scans,
        dtype=_DTYPES[settings.response_dtype],
        block_rows=BLOCK_ROWS,
    )
    perspectives = (trial.perspectives - scaling.perspective_mean) / scaling.perspective_std
    modulations = (trial.modulations - scaling.modulation_mean) / scaling.modulation_std
    key = surveyed.key
    small = {
        HEADER: header.encoded(),
        "modulations.npy": encode_npy(_stored(modulations, "<f4", f"trial {key}: behaviour")),
        "perspectives.npy": encode_npy(_stored(perspectives, "<f4", f"trial {key}: the pupil")),
    }
    if scans:
        small[FRAMES] = encode_npy(trial.frame_times.astype("<f8"))
        for group, scan in enumerate(trial.scans):
            small[times_member(group)] = encode_npy(scan.times.astype("<f8"))
    members = {name: small[name] for name in small_members(header)}
    first = 0
    for group, values in enumerate(groups):
        scaled = values / scaling.response[first : first + values.shape[1]]
        first += values.shape[1]
        stored = _stored(scaled, header.dtype, f"trial {key}: a response")
        for block in range(-(-len(stored) // BLOCK_ROWS)):
            rows = stored[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
            members[block_member(group, block)] = compress(rows)
    return header, members


def _stored(values: np.ndarray, dtype: str, what: str) -> np.ndarray:
    """Values as they are stored.

    Raises:
        DataError: one is too large for that.
    """
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    if np.isinf(stored).any():
        largest = np.nanmax(np.abs(values))
        raise DataError(
            f"{what} of {largest:.3g} after scaling is too large for {np.dtype(dtype).name}"
        )
    return stored


def _encode_shard(
    name: str, samples: Sequence[tuple[TrialHeader, dict[str, bytes]]], inputs: str
) -> tuple[bytes, ShardIndex]:
    """A webdataset tar of the samples, the same bytes for the same samples, and its index."""
    stream = io.BytesIO()
    with webdataset.TarWriter(
        stream, encoder=False, compress=False, mtime=0, user="fmcortex", group="fmcortex"
    ) as writer:
        for place, (_, members) in enumerate(samples):
            writer.write({"__key__": _sample_key(place), **members})
    content = stream.getvalue()
    # The offsets are read back from the tar itself rather than assumed.
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        offsets = {member.name: member.offset_data for member in tar.getmembers()}
    trials = []
    for place, (header, members) in enumerate(samples):
        blocks = {
            member: Block(
                offset=offsets[f"{_sample_key(place)}.{member}"],
                length=len(data),
                crc32c=google_crc32c.value(data),
            )
            for member, data in members.items()
        }
        responses = [
            [blocks[block_member(group, block)] for block in range(-(-rows // header.block_rows))]
            for group, (_, rows) in enumerate(header.groups)
        ]
        small = {member: blocks[member] for member in small_members(header)}
        trials.append(IndexedTrial(header=header, small=small, responses=responses))
    index = ShardIndex(
        shard=f"{name}.tar",
        bytes=len(content),
        sha256=storage.sha256(content),
        trials=trials,
        inputs_sha256=inputs,
    )
    return content, index


def _sample_key(place: int) -> str:
    """A sample's name in its tar. The trial's own may hold what webdataset would cut it at."""
    return f"{place:06d}"
