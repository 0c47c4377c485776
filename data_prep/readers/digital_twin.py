"""Reader of the digital twin layout: a folder a column, a file a trial.

One folder a session, time on the first axis::

    training/<i>.npy       bool: training tier, or single trials of the validation tier
    samples/<i>.npy        int, frames T of the trial
    stimuli/<i>.npy        uint8 [T, H, W, 1]
    perspectives/<i>.npy   [T, 2] pupil position
    modulations/<i>.npy    [T, 2] pupil size, treadmill speed (a third: change of pupil size)
    units/<i>.npy          [T, U] responses divided by their training mean, NaN = missing
    evaluation/<kind>/<video>/<repeat>.npy   kind: stimuli, perspectives, modulations, units
    neurons/{unit_ids,coordinates,area,layer}.npy     optional, [U] or [U, k]

A video of the evaluation is called `<domain>-<n>`; it is of the test tier, or of the validation
tier where its name starts with `validation_`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.readers import npy
from data_prep.readers.leftovers import entries
from data_prep.readers.protocol import RawTrial, SessionInfo, Signal, TrialRef, animal_of
from fmcortex.errors import DataError

_KINDS = ("stimuli", "perspectives", "modulations", "units")
_COLUMNS = ("training", "samples", *_KINDS)
_MODULATIONS = ("pupil_radius", "treadmill_speed", "pupil_radius_change")
_PERSPECTIVES = ("pupil_x", "pupil_y")
_VALIDATION = "validation_"


class DigitalTwinReader:
    """Reads one session of the digital twin layout."""

    layout = "digital_twin"

    def __init__(self, folder: Path) -> None:
        """Read the session's metadata.

        Raises:
            DataError: a column is missing or malformed.
        """
        self._folder = folder
        for column in _COLUMNS:
            if not (folder / column).is_dir():
                raise DataError(f"{folder}: no column {column}")
        self._keys = npy.in_order(set().union(*(npy.stems(folder / name) for name in _COLUMNS)))
        if not self._keys:
            raise DataError(f"{folder}: no trials in units")
        self.info = SessionInfo(
            name=folder.name,
            animal=animal_of(folder.name),
            source=str(folder),
            neurons=self._width("units", None),
            perspectives=_PERSPECTIVES[: self._width("perspectives", (2,))],
            modulations=_MODULATIONS[: self._width("modulations", (2, 3))],
            nan_is_missing=True,
        )

    def _width(self, column: str, allowed: tuple[int, ...] | None) -> int:
        """Length of the last axis of the first trial's array in `column`."""
        path = self._folder / column / f"{self._keys[0]}.npy"
        shape, _ = npy.header(path)
        if len(shape) != 2 or (allowed is not None and shape[1] not in allowed):
            wanted = " or ".join(map(str, allowed)) if allowed else "neurons"
            raise DataError(f"{path}: has shape {list(shape)}, not [time, {wanted}]")
        return shape[1]

    def trials(self) -> list[TrialRef]:
        """The trials of the columns, then those of the evaluation; see `Reader.trials`."""
        present = {column: npy.stems(self._folder / column) for column in _COLUMNS}
        refs = []
        for key in self._keys:
            for column in _COLUMNS:
                if key not in present[column]:
                    raise DataError(f"{self._folder / column / key}.npy: file is missing")
            path = self._folder / "training" / f"{key}.npy"
            training = npy.load(path)
            if training.dtype != np.bool_ or training.size != 1:
                raise DataError(f"{path}: not one bool, but {training.dtype} {training.shape}")
            refs.append(
                TrialRef(key, "train" if training.item() else "validation", "natural_movie")
            )
        return refs + self._evaluation()

    def _evaluation(self) -> list[TrialRef]:
        root = self._folder / "evaluation"
        if not root.is_dir():
            return []
        for kind in _KINDS:
            if not (root / kind).is_dir():
                raise DataError(f"{self._folder}: no column evaluation/{kind}")
        videos = {path.name for kind in _KINDS for path in entries(root / kind) if path.is_dir()}
        refs = []
        for video in sorted(videos):
            validation = video.startswith(_VALIDATION)
            domain, dash, _ = video.removeprefix(_VALIDATION).rpartition("-")
            present = {kind: npy.stems(root / kind / video) for kind in _KINDS}
            for repeat in npy.in_order(set().union(*present.values())):
                for kind in _KINDS:
                    if repeat not in present[kind]:
                        raise DataError(f"{root / kind / video / repeat}.npy: file is missing")
                refs.append(
                    TrialRef(
                        key=f"{video}/{repeat}",
                        tier="validation" if validation else "test",
                        domain=domain if dash else "unknown",
                        video=video,
                    )
                )
        return refs

    def read(self, ref: TrialRef) -> RawTrial:
        """Read one trial; see `Reader.read`."""
        root = self._folder / "evaluation" if "/" in ref.key else self._folder
        paths = {kind: root / kind / f"{ref.key}.npy" for kind in _KINDS}
        path = paths["stimuli"]
        stimulus = npy.load_numbers(path, 4)
        if stimulus.dtype != np.uint8 or stimulus.shape[3] != 1:
            raise DataError(
                f"{path}: {stimulus.dtype} {list(stimulus.shape)},"
                " not uint8 [time, height, width, 1]"
            )
        stimulus = stimulus[..., 0]
        if "/" not in ref.key:
            samples_path = root / "samples" / f"{ref.key}.npy"
            samples = npy.load(samples_path)
            if samples.dtype.kind not in "iu" or samples.size != 1:
                raise DataError(f"{samples_path}: not one integer")
            if samples.item() != len(stimulus):
                raise DataError(
                    f"{path}: unequal lengths: {len(stimulus)} frames here,"
                    f" {samples.item()} in {samples_path}"
                )
            if ref.tier != "train":
                ref = TrialRef(ref.key, ref.tier, ref.domain, npy.content_name(stimulus))
        signals = {
            kind: Signal(npy.load_numbers(paths[kind], 2), str(paths[kind])) for kind in _KINDS[1:]
        }
        return RawTrial(
            ref,
            stimulus,
            str(path),
            (signals["units"],),
            (signals["perspectives"],),
            (signals["modulations"],),
        )

    def neurons(self) -> dict[str, np.ndarray]:
        """The arrays of the folder neurons; see `Reader.neurons`."""
        table: dict[str, np.ndarray] = {"unit_id": np.arange(self.info.neurons)}
        for path in entries(self._folder / "neurons", "*.npy"):
            name = "unit_id" if path.stem == "unit_ids" else path.stem
            table.update(npy.neuron_columns(path, name, self.info.neurons))
        return table
