"""Reader of the Sensorium 2023 layout, that of the public dynamic benchmark.

One folder a session, time on the last axis, each trial padded with NaN after its end (behaviour
also with numbers, which are passed over: in the published recordings, it goes on)::

    data/videos/<i>.npy         [H, W, T_max] grey levels 0 to 255
    data/responses/<i>.npy      [U, T_max]
    data/behavior/<i>.npy       [2 or 3, T_max] pupil size, treadmill speed, change of pupil size
    data/pupil_center/<i>.npy   [2, T_max]
    meta/trials/tiers.npy       text [trials]
    meta/trials/{stimulus_type,video_ids}.npy     optional, [trials]
    meta/neurons/{unit_ids,cell_motor_coordinates}.npy and any other [U] or [U, k]
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.readers import npy
from data_prep.readers.leftovers import entries
from data_prep.readers.protocol import RawTrial, SessionInfo, Signal, TrialRef, animal_of
from fmcortex.data.manifest import DOMAINS, Tier
from fmcortex.errors import DataError

_COLUMNS = ("videos", "responses", "behavior", "pupil_center")
_MODULATIONS = ("pupil_radius", "treadmill_speed", "pupil_radius_change")


def tier_of(name: str, path: Path) -> Tier | None:
    """The tier of a trial that the source calls `name`; None for a trial that is not used."""
    if name in ("none", ""):
        return None
    if name == "train":
        return "train"
    if name in ("oracle", "validation"):
        return "validation"
    if "test" in name:
        return "test"
    raise DataError(f"{path}: unknown tier {name!r}; known: train, oracle, *test*, none")


class Sensorium2023Reader:
    """Reads one session of the Sensorium 2023 layout."""

    layout = "sensorium2023"

    def __init__(self, folder: Path) -> None:
        """Read the session's metadata.

        Raises:
            DataError: a column or a metadata file is missing or malformed.
        """
        self._folder = folder
        for column in _COLUMNS:
            if not (folder / "data" / column).is_dir():
                raise DataError(f"{folder}: no column data/{column}")
        units = npy.load_numbers(folder / "meta" / "neurons" / "unit_ids.npy", 1)
        self._tiers_path = folder / "meta" / "trials" / "tiers.npy"
        self._tiers = self._per_trial("tiers")
        if self._tiers is None:
            raise DataError(f"{self._tiers_path}: file is missing")
        self._types = self._per_trial("stimulus_type")
        self._videos = self._per_trial("video_ids")
        listed = npy.in_order(npy.stems(folder / "data" / "behavior"))
        if not listed:
            raise DataError(f"{folder}: no trials in data/behavior")
        path = folder / "data" / "behavior" / f"{listed[0]}.npy"
        shape, _ = npy.header(path)
        if len(shape) != 2 or shape[0] not in (2, 3):
            raise DataError(f"{path}: has shape {list(shape)}, not [2 or 3, time]")
        self.info = SessionInfo(
            name=folder.name,
            animal=animal_of(folder.name),
            source=str(folder),
            neurons=len(units),
            perspectives=("pupil_x", "pupil_y"),
            modulations=_MODULATIONS[: shape[0]],
            nan_is_missing=False,
        )

    def _per_trial(self, name: str) -> list[str] | None:
        """The entries of a file of meta/trials as text, or None if there is no such file."""
        path = self._folder / "meta" / "trials" / f"{name}.npy"
        if not path.exists():
            return None
        values = npy.load(path)
        tiers = getattr(self, "_tiers", None)
        if values.ndim != 1 or (tiers is not None and len(values) != len(tiers)):
            raise DataError(f"{path}: has shape {list(values.shape)}, not one entry a trial")
        return [str(value) for value in values]

    def trials(self) -> list[TrialRef]:
        """The trials of `tiers.npy`; see `Reader.trials`."""
        assert self._tiers is not None
        present = {column: npy.stems(self._folder / "data" / column) for column in _COLUMNS}
        refs = []
        for number, name in enumerate(self._tiers):
            tier = tier_of(name, self._tiers_path)
            if tier is None:
                continue
            key = str(number)
            for column in _COLUMNS:
                # The public data withholds the responses of some test trials.
                withheld = column == "responses" and tier == "test"
                if key not in present[column] and not withheld:
                    raise DataError(f"{self._path(column, key)}: file is missing")
            video = self._videos[number] if self._videos else None
            refs.append(TrialRef(key, tier, self._domain(number, name), video))
        return refs

    def _domain(self, number: int, tier: str) -> str:
        if self._types is None:
            return "unknown" if "bonus" in tier else "natural_movie"
        if self._types[number] not in DOMAINS:
            path = self._folder / "meta" / "trials" / "stimulus_type.npy"
            raise DataError(
                f"{path}: trial {number}: unknown stimulus type {self._types[number]!r};"
                f" known: {', '.join(DOMAINS)}"
            )
        return self._types[number]

    def _path(self, column: str, key: str) -> Path:
        return self._folder / "data" / column / f"{key}.npy"

    def read(self, ref: TrialRef) -> RawTrial:
        """Read one trial without its padding; see `Reader.read`."""
        path = self._path("videos", ref.key)
        padded = npy.load_numbers(path, 3)
        stimulus = _video(padded, path)
        if ref.tier != "train" and ref.video is None:
            ref = replace(ref, video=npy.content_name(stimulus))
        frames = len(stimulus)
        responses_path = self._path("responses", ref.key)
        responses = None
        if ref.tier != "test" or responses_path.exists():
            values = npy.load_numbers(responses_path, 2)
            if ref.tier != "test" or bool(np.any(np.nan_to_num(values))):
                values = _on_frames(values, frames, responses_path)
                responses = (Signal(values, str(responses_path)),)
        signals = []
        for column in ("pupil_center", "behavior"):
            source = self._path(column, ref.key)
            values = npy.load_numbers(source, 2)
            end = _end(values)
            if end < frames <= values.shape[1] or end == values.shape[1] == padded.shape[2]:
                # Missing at the trial's end, which the rule for gaps judges, not padding; or not
                # padded at all.
                values = values[:, :frames].T
            else:
                values = _on_frames(values, frames, source)
            signals.append((Signal(values, str(source)),))
        perspectives, modulations = signals
        return RawTrial(ref, stimulus, str(path), responses, perspectives, modulations)

    def neurons(self) -> dict[str, np.ndarray]:
        """The arrays of meta/neurons; see `Reader.neurons`."""
        table: dict[str, np.ndarray] = {}
        for path in entries(self._folder / "meta" / "neurons", "*.npy"):
            name = "unit_id" if path.stem == "unit_ids" else path.stem
            table.update(npy.neuron_columns(path, name, self.info.neurons))
        return table


def _end(values: np.ndarray) -> int:
    """Where the padding of an array with time on the last axis begins."""
    if values.dtype.kind != "f":
        return values.shape[-1]
    finite = ~np.isnan(values).all(axis=tuple(range(values.ndim - 1)))
    return int(np.flatnonzero(finite)[-1]) + 1 if finite.any() else 0


def _on_frames(values: np.ndarray, frames: int, path: Path) -> np.ndarray:
    """`values` [k, T_max] without padding as [T, k]; it must end with the video."""
    end = _end(values)
    if end != frames:
        raise DataError(f"{path}: unequal lengths: {end} frames here, {frames} in the video")
    return values[:, :frames].T


def _video(values: np.ndarray, path: Path) -> np.ndarray:
    """A video [H, W, T_max] as uint8 [T, H, W] without its padding."""
    values = values[..., : _end(values)].transpose(2, 0, 1)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    finite = np.isfinite(values).all(axis=(1, 2))
    if not finite.all():
        raise DataError(f"{path}: NaN inside the trial, first at frame {int(np.argmin(finite))}")
    if values.size and (values.min() < 0 or values.max() > 255):
        raise DataError(
            f"{path}: grey levels from {values.min():g} to {values.max():g}, not within 0 to 255"
        )
    return np.ascontiguousarray(np.rint(values).astype(np.uint8))
