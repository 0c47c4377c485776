"""A session whose trials have tiers of ours instead of the source's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from data_prep.readers.protocol import RawTrial, Reader, SessionInfo, TrialRef
from fmcortex.data.manifest import Tier
from fmcortex.data.movies import movie_name

#: Why a trial is left out whose movie is on both sides of the split.
ASTRIDE = "its movie is like one in training and one held out"


class Retiered:
    """A reader whose trials have tiers of ours; those whose tier is None are left out."""

    def __init__(self, reader: Reader, tiers: Mapping[str, Tier | None]) -> None:
        self._reader, self._tiers = reader, tiers
        self._refs: dict[str, TrialRef] = {}

    @property
    def layout(self) -> str:
        """That of the source."""
        return self._reader.layout

    @property
    def info(self) -> SessionInfo:
        """That of the source."""
        return self._reader.info

    def trials(self) -> list[TrialRef]:
        """See `Reader.trials`."""
        self._refs = {ref.key: ref for ref in self._reader.trials()}
        found = []
        for ref in self._refs.values():
            if ref.key in self._tiers:
                tier = self._tiers[ref.key]
                own = replace(ref, left_out=ASTRIDE) if tier is None else replace(ref, tier=tier)
                found.append(own)
        return found

    def read(self, ref: TrialRef) -> RawTrial:
        """See `Reader.read`."""
        raw = self._reader.read(self._refs[ref.key])
        # A video is called after its content: the source may leave those of training unnamed.
        name = f"movie-{movie_name(raw.stimulus)[:24]}"
        return replace(raw, ref=replace(ref, video=name))

    def neurons(self) -> dict[str, np.ndarray]:
        """See `Reader.neurons`."""
        return self._reader.neurons()
