"""The second pass: one session's shards, zarr arrays and, last of all, its manifest."""

from __future__ import annotations

import io
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import webdataset
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from data_prep.alignment import align
from data_prep.readers.protocol import Reader, TrialRef
from data_prep.settings import PrepSettings
from data_prep.survey import RepeatedVideo, Scaling, Survey
from fmcortex import __version__, storage
from fmcortex.data.arrays import content_sha256, encode_npy, little_endian
from fmcortex.data.manifest import (
    Array,
    IndexedTrial,
    Member,
    SessionManifest,
    Shard,
    ShardIndex,
    Statistics,
    StoredFile,
    TrainTrial,
    Video,
)
from fmcortex.data.shards import MEMBERS, TrialArrays
from fmcortex.errors import DataError

_ZSTD_LEVEL = 3


class SessionWriter:
    """Writes a surveyed session to its folder, one shard or one video in memory at a time."""

    def __init__(self, reader: Reader, survey: Survey, url: str, settings: PrepSettings) -> None:
        self._reader = reader
        self._survey = survey
        self._url = url
        self._settings = settings
        self._files: dict[str, StoredFile] = {}

    def write(self, source_sha256: str) -> SessionManifest:
        """Write everything, the manifest last: without it the session does not count as written.

        Raises:
            StorageError: the target cannot be written.
            DataError: the source changed since it was surveyed.
        """
        info, survey = self._reader.info, self._survey
        trials, shards = self._write_shards()
        if survey.videos:
            self._write_zarr("videos.zarr", {}, {})  # so that zarr opens the folder as a group
        videos = [self._write_video(video) for video in survey.videos]
        table, statistics = self._write_neurons()
        manifest = SessionManifest(
            session=info.name,
            animal=info.animal,
            layout=self._reader.layout,
            neurons=info.neurons,
            frame_rate=self._settings.frame_rate,
            height=survey.height,
            width=survey.width,
            perspectives=list(info.perspectives),
            modulations=list(info.modulations),
            trials=trials,
            shards=shards,
            videos=videos,
            neuron_table=table,
            statistics=statistics,
            excluded=survey.excluded,
            files=self._files,
            settings=self._settings.content(),
            source_sha256=source_sha256,
            tool_version=__version__,
        )
        storage.write_json(
            storage.join(self._url, "manifest.json"), manifest.model_dump(mode="json")
        )
        return manifest

    def _put(self, path: str, content: bytes) -> StoredFile:
        storage.write_bytes(storage.join(self._url, path), content)
        self._files[path] = StoredFile(bytes=len(content), sha256=storage.sha256(content))
        return self._files[path]

    def _load(self, ref: TrialRef) -> TrialArrays:
        """One trial, normalised, as the survey saw it."""
        raw = self._reader.read(ref)
        trial = align(raw, self._reader.info, self._survey.pixels, self._settings)
        if isinstance(trial, str):
            raise DataError(f"{raw.stimulus_source}: the source changed while it was read")
        return self._survey.scaling.apply(trial)

    def _write_shards(self) -> tuple[list[TrainTrial], list[Shard]]:
        trials: list[TrainTrial] = []
        shards: list[Shard] = []
        for batch in self._batches():
            name = f"train-{len(shards):05d}"
            tar, index = _encode_shard(f"{name}.tar", batch)
            trials += [
                TrainTrial(key=key, shard=len(shards), frames=frames) for key, frames, _ in batch
            ]
            batch.clear()
            encoded = (index.model_dump_json(indent=1) + "\n").encode()
            tar_file = self._put(f"{name}.tar", tar)
            index_file = self._put(f"{name}.index.json", encoded)
            shards.append(
                Shard(
                    name=f"{name}.tar",
                    bytes=tar_file.bytes,
                    sha256=tar_file.sha256,
                    trials=len(index.trials),
                    index=f"{name}.index.json",
                    index_sha256=index_file.sha256,
                )
            )
        return trials, shards

    def _batches(self) -> Iterator[list[_Sample]]:
        """The training trials in source order, a list for each shard."""
        batch: list[_Sample] = []
        size = 0
        for ref in self._survey.training:
            trial = self._load(ref)
            members = {name: encode_npy(getattr(trial, name)) for name in MEMBERS}
            batch.append((ref.key, len(trial.stimulus), members))
            size += sum(map(len, members.values()))
            if len(batch) >= self._settings.trials_per_shard or size >= self._settings.shard_bytes:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _write_video(self, video: RepeatedVideo) -> Video:
        repeats = [self._load(ref) for ref in video.refs]
        arrays = {"stimulus": repeats[0].stimulus}
        for name in MEMBERS[1:]:
            arrays[name] = np.stack([getattr(repeat, name) for repeat in repeats])
        if len(repeats[0].stimulus) != video.frames:
            raise DataError(f"{video.video}: the source changed while it was read")
        root = f"videos.zarr/{video.video}"
        # A repeat is read whole; a chunk of it is at most all neurons of one repeat.
        chunks = {
            name: values.shape if name == "stimulus" else (1, *values.shape[1:])
            for name, values in arrays.items()
        }
        return Video.model_validate(
            {
                "name": video.video,
                "domain": video.domain,
                "tier": video.tier,
                "frames": video.frames,
                "repeats": len(repeats),
                "arrays": self._write_zarr(root, arrays, chunks),
            }
        )

    def _write_neurons(self) -> tuple[dict[str, Array], Statistics]:
        scaling: Scaling = self._survey.scaling
        columns = {**self._survey.neurons, "response_scale": scaling.response}
        chunks = {name: values.shape for name, values in columns.items()}
        table = self._write_zarr("neurons.zarr", columns, chunks)
        statistics = Statistics(
            response_scale=table.pop("response_scale"),
            perspective_mean=scaling.perspective_mean.tolist(),
            perspective_std=scaling.perspective_std.tolist(),
            modulation_mean=scaling.modulation_mean.tolist(),
            modulation_std=scaling.modulation_std.tolist(),
        )
        return table, statistics

    def _write_zarr(
        self, root: str, arrays: dict[str, np.ndarray], chunks: dict[str, tuple[int, ...]]
    ) -> dict[str, Array]:
        """Write a zarr group at `root` in the session's folder; its arrays' manifest entries."""
        files: dict[str, Any] = {}
        entries = {}
        with warnings.catch_warnings():
            # Text columns use a dtype that zarr v3 has not standardised yet.
            warnings.simplefilter("ignore")
            # Encoded in memory, so that every file goes through `storage` and appears whole.
            group = zarr.create_group(MemoryStore(store_dict=files))
            for name, values in arrays.items():
                values = little_endian(values)
                group.create_array(
                    name,
                    data=values,
                    chunks=chunks[name],
                    compressors=ZstdCodec(level=_ZSTD_LEVEL),
                    # A lost chunk reads as NaN rather than as a plausible zero.
                    fill_value=np.nan if values.dtype.kind == "f" else None,
                    config={"write_empty_chunks": True},
                )
                entries[name] = Array(
                    path=f"{root}/{name}",
                    dtype=values.dtype.str,
                    shape=list(values.shape),
                    sha256=content_sha256(values),
                )
        for path, content in sorted(files.items()):
            self._put(f"{root}/{path}", content.to_bytes())
        return entries


#: A trial's key, its frames, and its members as .npy files by array name.
_Sample = tuple[str, int, dict[str, bytes]]


def _encode_shard(name: str, samples: list[_Sample]) -> tuple[bytes, ShardIndex]:
    """A webdataset tar of the samples, the same bytes for the same samples, and its index."""
    stream = io.BytesIO()
    with webdataset.TarWriter(
        stream, encoder=False, compress=False, mtime=0, user="fmcortex", group="fmcortex"
    ) as writer:
        for key, _, members in samples:
            writer.write({"__key__": key, **{f"{n}.npy": data for n, data in members.items()}})
    # The offsets are read back from the tar itself rather than assumed.
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        places = {member.name: member for member in tar.getmembers()}
    trials = [
        IndexedTrial.model_validate(
            {
                "key": key,
                "members": {
                    n: Member(
                        offset=places[f"{key}.{n}.npy"].offset_data,
                        length=len(data),
                        crc32=zlib.crc32(data),
                    )
                    for n, data in members.items()
                },
            }
        )
        for key, _, members in samples
    ]
    return stream.getvalue(), ShardIndex(shard=name, trials=trials)
