"""What a model was trained on: the identity of each session's prepared data, and its kind.

Sessions of different frame rate, size of the stimulus or normalisation of the responses are not of
one kind: one core that is trained on both learns neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from pydantic import Field

from fmcortex import storage
from fmcortex.data.dataset import PreparedDataset
from fmcortex.data.manifest import Document, SessionManifest, Sha256
from fmcortex.errors import ConfigError

Kind = dict[str, str]

#: Settings of a preparation that change how values are stored, not the values.
STORAGE_ONLY = ("trials_per_shard", "shard_bytes")


class TrainedOn(Document):
    """A session as it was prepared when it was trained on.

    Attributes:
        identity: of the data: recordings, settings, training trials, scales.
        source: of the recordings.
        frame_rate: stimulus frames per second, Hz.
        height: of the stimulus, pixels.
        width: of the stimulus, pixels.
        normalisation: of the responses.
    """

    identity: Sha256
    source: Sha256
    frame_rate: float = Field(gt=0)
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    normalisation: str

    @property
    def kind(self) -> Kind:
        """What sessions that are trained together have in common."""
        return kind_of(self.frame_rate, self.height, self.width, self.normalisation)


def kind_of(frame_rate: float, height: int, width: int, normalisation: object) -> Kind:
    """What sessions that are trained together have in common, as text.

    Args:
        frame_rate: of the stimulus, Hz.
        height: of the stimulus, pixels.
        width: of the stimulus, pixels.
        normalisation: of the responses; None where it is not known.
    """
    return {
        "frame rate": f"{frame_rate:g} Hz",
        "size": f"{height} x {width} pixels",
        "response normalisation": str(normalisation or "unknown"),
    }


def kind_of_session(manifest: SessionManifest) -> Kind:
    """The same of a prepared session."""
    normalisation = manifest.settings.get("response_normalisation")
    return kind_of(manifest.frame_rate, manifest.height, manifest.width, normalisation)


def trained_on(manifest: SessionManifest) -> TrainedOn:
    """A session of a prepared dataset, as it is now.

    Its identity is that of what is trained: stored in other shards, or prepared anew from the same
    recordings by a later version, it is the same.
    """
    settings = {k: v for k, v in manifest.settings.items() if k not in STORAGE_ONLY}
    content = {
        "source": manifest.source_sha256,
        "settings": settings,
        "neurons": manifest.neurons,
        "frames": [manifest.frame_rate, manifest.height, manifest.width],
        "channels": [manifest.perspectives, manifest.modulations],
        "trials": [[trial.key, trial.frames, trial.movie] for trial in manifest.trials],
        "statistics": manifest.statistics.model_dump(mode="json"),
    }
    return TrainedOn(
        identity=storage.sha256(json.dumps(content, sort_keys=True).encode()),
        source=manifest.source_sha256,
        frame_rate=manifest.frame_rate,
        height=manifest.height,
        width=manifest.width,
        normalisation=str(manifest.settings.get("response_normalisation", "unknown")),
    )


def trained_sessions(dataset: PreparedDataset, names: Sequence[str]) -> dict[str, TrainedOn]:
    """The same of several sessions, by name."""
    return {name: trained_on(dataset.session(name).manifest) for name in names}


def check_alike(kinds: Mapping[str, Kind], todo: str) -> None:
    """Refuse sessions of different kinds.

    Args:
        kinds: by session's name.
        todo: what a user can do, for the message.

    Raises:
        ConfigError: naming two sessions and what differs.
    """
    first, *rest = sorted(kinds) or [""]
    for name in rest:
        for what, value in kinds[first].items():
            if value != kinds[name][what]:
                raise ConfigError(
                    f"sessions {first} and {name} are of different {what} ({value}, "
                    f"{kinds[name][what]}); {todo}"
                )


def changed_sessions(before: Mapping[str, TrainedOn], now: Mapping[str, TrainedOn]) -> list[str]:
    """The sessions in both whose data changed, each with what did, in words."""
    found = []
    for name in sorted(before.keys() & now.keys()):
        old, new = before[name], now[name]
        if old.identity == new.identity:
            continue
        what = [f"{k} {v}, before {old.kind[k]}" for k, v in new.kind.items() if v != old.kind[k]]
        if old.source != new.source:
            what.append("other recordings")
        found.append(f"{name} ({'; '.join(what) or 'other settings'})")
    return found
