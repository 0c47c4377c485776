"""The end of a session: its neuron table, where it came from and, last of all, its manifest."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import ZstdCodec
from zarr.storage import MemoryStore

from data_prep.journal import (
    MANIFEST,
    OWN,
    SOURCES,
    SURVEY,
    done,
    note,
    remove_written,
)
from data_prep.readers.protocol import Reader
from data_prep.scaling import Scaling
from data_prep.settings import PrepSettings
from data_prep.shard_writer import ShardPlan, WrittenShard
from data_prep.survey import Survey, SurveyedTrial, repeated_videos
from fmcortex import __version__, storage
from fmcortex.data.arrays import content_sha256, little_endian
from fmcortex.data.files import ORIGIN, session_files
from fmcortex.data.manifest import (
    VERSION,
    Array,
    Sealed,
    SessionManifest,
    Sha256,
    SourceList,
    Statistics,
    StoredFile,
    Trial,
    Video,
)


class Origin(Sealed):
    """`origin.json`: which folder a session was made from, by the SHA-256 of its path."""

    version: Literal[2] = VERSION
    folder_sha256: Sha256


def origin_of(folder: str) -> Origin:
    """What tells a source folder from another one that is called alike."""
    return Origin(folder_sha256=storage.sha256(os.fsencode(os.path.realpath(folder))))


def finish_session(
    reader: Reader,
    source: str,
    to: str,
    survey: Survey,
    scaling: Scaling,
    settings: PrepSettings,
    plans: Sequence[ShardPlan],
    written: Sequence[WrittenShard],
    sources: SourceList,
    source_sha256: str,
) -> SessionManifest:
    """Write what is left of a session, the manifest last.

    What this job wrote before and the manifest does not name is removed.

    Raises:
        StorageError: the target cannot be written.
    """
    info = reader.info
    folder = storage.join(to, "sessions", info.name)
    files = {
        w.shard.index: StoredFile(bytes=w.index_bytes, sha256=w.shard.index_sha256) for w in written
    }
    files[SURVEY] = _stored(survey.sealed())  # written before the shards
    files[SOURCES] = _put(folder, SOURCES, sources.sealed())
    columns = {**reader.neurons(), "response_scale": scaling.response}
    if survey.delays is not None:
        columns["imaging_delay"] = np.array(survey.delays)
    table = _write_table(folder, columns, files)
    places = {
        trial.key: (number, place)
        for number, plan in enumerate(plans)
        for place, trial in enumerate(plan.trials)
    }
    manifest = SessionManifest(
        session=info.name,
        animal=info.animal,
        layout=reader.layout,
        neurons=info.neurons,
        frame_rate=settings.frame_rate,
        height=survey.height,
        width=survey.width,
        perspectives=list(info.perspectives),
        modulations=list(info.modulations),
        trials=[_trial(trial, places) for trial in survey.trials if trial.tier == "train"],
        shards=[shard.shard for shard in written],
        videos=[
            Video(
                name=video.name,
                domain=video.trials[0].domain,
                tier=video.tier,
                movie=video.trials[0].movie,
                frames=video.trials[0].frames,
                shown=[_trial(trial, places) for trial in video.trials],
            )
            for video in repeated_videos(survey.trials)
        ],
        movies=dict(sorted((k, v) for shard in written for k, v in shard.movies.items())),
        statistics=Statistics(
            response_scale=table.pop("response_scale"),
            imaging_delay=table.pop("imaging_delay", None),
            perspective_mean=scaling.perspective_mean.tolist(),
            perspective_std=scaling.perspective_std.tolist(),
            modulation_mean=scaling.modulation_mean.tolist(),
            modulation_std=scaling.modulation_std.tolist(),
        ),
        neuron_table=table,
        excluded=survey.excluded,
        files=files,
        settings=settings.content(),
        source_sha256=source_sha256,
        tool_version=__version__,
    )
    # Left by runs that were killed, or of other settings.
    remove_written(folder, [*session_files(manifest), *OWN])
    storage.write_bytes(storage.join(folder, ORIGIN), origin_of(source).sealed())
    storage.write_bytes(storage.join(folder, MANIFEST), manifest.sealed())
    done(folder)
    return manifest


def _trial(trial: SurveyedTrial, places: dict[str, tuple[int, int]]) -> Trial:
    shard, place = places[trial.key]
    return Trial(
        key=trial.key,
        shard=shard,
        place=place,
        frames=trial.frames,
        movie=trial.movie,
        domain=trial.domain,
        filled=trial.filled,
    )


def _stored(content: bytes) -> StoredFile:
    return StoredFile(bytes=len(content), sha256=storage.sha256(content))


def _put(folder: str, path: str, content: bytes) -> StoredFile:
    storage.write_bytes(storage.join(folder, path), content)
    return _stored(content)


def _write_table(
    folder: str, columns: dict[str, np.ndarray], stored: dict[str, StoredFile]
) -> dict[str, Array]:
    """Write the zarr group of the neuron table; its arrays' manifest entries."""
    files: dict[str, Any] = {}
    entries = {}
    with warnings.catch_warnings():
        # Text columns use a dtype that zarr v3 has not standardised yet.
        warnings.simplefilter("ignore")
        # Encoded in memory, so that every file goes through `storage` and appears whole.
        group = zarr.create_group(MemoryStore(store_dict=files))
        for name, values in columns.items():
            values = little_endian(values)
            group.create_array(
                name,
                data=values,
                chunks=values.shape,
                compressors=ZstdCodec(level=3),
                # A lost chunk reads as NaN rather than as a plausible zero.
                fill_value=np.nan if values.dtype.kind == "f" else None,
                config={"write_empty_chunks": True},
            )
            entries[name] = Array(
                path=f"neurons.zarr/{name}",
                dtype=values.dtype.str,
                shape=list(values.shape),
                sha256=content_sha256(values),
            )
    note(folder, [f"neurons.zarr/{path}" for path in files])
    for path, content in sorted(files.items()):
        path = f"neurons.zarr/{path}"
        stored[path] = _put(folder, path, content.to_bytes())
    return entries
