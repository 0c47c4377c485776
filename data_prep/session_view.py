"""A session as it is prepared: with tiers of ours, and without neurons that have no values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data_prep.checks import check_trial
from data_prep.readers.find import open_reader
from data_prep.readers.protocol import RawTrial, Reader, SessionInfo, Signal, TrialRef
from data_prep.retiered import Retiered
from data_prep.settings import PrepSettings
from fmcortex.data.manifest import Tier

#: Tiers of a session's trials by key, where they are made here; None of one to be left out.
Tiers = Mapping[str, Tier | None] | None


@dataclass(frozen=True)
class View:
    """What is changed of a session as its reader gives it.

    Attributes:
        tiers: of a split made here.
        left_out: neurons that are left out, counted from 0 as the source has them.
    """

    tiers: Tiers = None
    left_out: tuple[int, ...] = ()


def open_session(folder: str, settings: PrepSettings, view: View) -> Reader:
    """The reader of a session, as it is to be prepared.

    Raises:
        DataError: it is malformed.
    """
    reader = open_reader(Path(folder), settings)
    reader = reader if view.tiers is None else Retiered(reader, view.tiers)
    return WithoutNeurons(reader, view.left_out) if view.left_out else reader


class WithoutNeurons:
    """A reader without some neurons of the session."""

    def __init__(self, reader: Reader, left_out: tuple[int, ...]) -> None:
        self._reader = reader
        self._kept = np.ones(reader.info.neurons, bool)
        self._kept[list(left_out)] = False
        self.info: SessionInfo = replace(reader.info, neurons=int(self._kept.sum()))

    @property
    def layout(self) -> str:
        """That of the source."""
        return self._reader.layout

    def trials(self) -> list[TrialRef]:
        """See `Reader.trials`."""
        return self._reader.trials()

    def read(self, ref: TrialRef) -> RawTrial:
        """See `Reader.read`."""
        raw = self._reader.read(ref)
        check_trial(raw, self._reader.info, None)
        if raw.responses is None:
            return raw
        first, signals = 0, []
        for signal in raw.responses:
            columns = signal.values.shape[1]
            mine = self._kept[first : first + columns]
            first += columns
            if mine.any():
                signals.append(_columns(signal, mine))
        return replace(raw, responses=tuple(signals))

    def neurons(self) -> dict[str, np.ndarray]:
        """See `Reader.neurons`."""
        return {name: values[self._kept] for name, values in self._reader.neurons().items()}


def _columns(signal: Signal, kept: np.ndarray) -> Signal:
    delays = None if signal.delays is None else signal.delays[kept]
    return replace(signal, values=signal.values[:, kept], delays=delays)


def neurons_with_values(reader: Reader, refs: Sequence[TrialRef]) -> np.ndarray:
    """Which neurons [U] have any value in the training trials among `refs`.

    Raises:
        DataError: a trial is malformed; the message names the file.
    """
    found = np.zeros(reader.info.neurons, bool)
    for ref in refs:
        if ref.tier != "train" or ref.left_out is not None:
            continue
        raw = reader.read(ref)
        check_trial(raw, reader.info, None)
        if raw.responses is not None:
            there = [~np.isnan(signal.values).all(axis=0) for signal in raw.responses]
            found |= np.concatenate(there)
    return found
