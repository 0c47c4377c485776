"""Reader of the Sensorium 2022 layout, that of the public benchmark of static images.

One folder a session, an image and one value of everything else a trial::

    data/images/<i>.npy         [1, H, W] or [H, W] grey levels 0 to 255
    data/responses/<i>.npy      [U], summed over the time that the image was shown
    data/behavior/<i>.npy       [3] pupil size, change of pupil size, treadmill speed
    data/pupil_center/<i>.npy   [2]
    meta/trials/tiers.npy       text [trials]
    meta/trials/frame_image_id.npy     optional, [trials]: equal where the image is
    meta/neurons/{unit_ids,cell_motor_coordinates}.npy and any other [U] or [U, k]

A trial becomes a clip of `image_frames` (settings) identical frames, over which responses and
behaviour hold. So a model is asked for the same mean response in every frame: its time course is
not in the data, and a score on such clips is one of images alone. The default is the 0.5 s that
the benchmark's images were shown.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from data_prep.readers import npy
from data_prep.readers.leftovers import entries
from data_prep.readers.protocol import RawTrial, SessionInfo, Signal, TrialRef, animal_of
from data_prep.readers.sensorium2023 import tier_of
from data_prep.settings import PrepSettings
from fmcortex.errors import DataError

_COLUMNS = ("images", "responses", "behavior", "pupil_center")
_MODULATIONS = ("pupil_radius", "pupil_radius_change", "treadmill_speed")


class Sensorium2022Reader:
    """Reads one session of the Sensorium 2022 layout."""

    layout = "sensorium2022"

    def __init__(self, folder: Path, settings: PrepSettings | None = None) -> None:
        """Read the session's metadata.

        Args:
            folder: the session's folder.
            settings: tell the frames of a clip; the defaults if None.

        Raises:
            DataError: a column or a metadata file is missing or malformed.
        """
        self._folder = folder
        self._frames = (settings or PrepSettings()).image_frames
        for column in _COLUMNS:
            if not (folder / "data" / column).is_dir():
                raise DataError(f"{folder}: no column data/{column}")
        units = npy.load_numbers(folder / "meta" / "neurons" / "unit_ids.npy", 1)
        self._tiers_path = folder / "meta" / "trials" / "tiers.npy"
        self._tiers = npy.load(self._tiers_path)
        if self._tiers.ndim != 1 or self._tiers.dtype.kind != "U":
            raise DataError(
                f"{self._tiers_path}: {self._tiers.dtype} {list(self._tiers.shape)}, not one text"
                " a trial"
            )
        path = folder / "meta" / "trials" / "frame_image_id.npy"
        self._images = npy.load(path) if path.exists() else None
        if self._images is not None and self._images.shape != self._tiers.shape:
            raise DataError(f"{path}: has shape {list(self._images.shape)}, not one entry a trial")
        self.info = SessionInfo(
            name=folder.name,
            animal=animal_of(folder.name),
            source=str(folder),
            neurons=len(units),
            perspectives=("pupil_x", "pupil_y"),
            modulations=_MODULATIONS,
            nan_is_missing=False,
        )

    def _path(self, column: str, key: str) -> Path:
        return self._folder / "data" / column / f"{key}.npy"

    def trials(self) -> list[TrialRef]:
        """The trials of `tiers.npy`; see `Reader.trials`."""
        present = {column: npy.stems(self._folder / "data" / column) for column in _COLUMNS}
        refs = []
        for number, name in enumerate(self._tiers.tolist()):
            tier = tier_of(name, self._tiers_path)
            if tier is None:
                continue
            key = str(number)
            for column in _COLUMNS:
                # The public data withholds the responses of some test trials.
                if key not in present[column] and (column, tier) != ("responses", "test"):
                    raise DataError(f"{self._path(column, key)}: file is missing")
            image = None if self._images is None else f"image-{self._images[number]}"
            refs.append(TrialRef(key, tier, "natural_image", image))
        return refs

    def read(self, ref: TrialRef) -> RawTrial:
        """Read one trial as a clip; see `Reader.read`."""
        path = self._path("images", ref.key)
        image = _image(path)
        if ref.tier != "train" and ref.video is None:
            ref = replace(ref, video=npy.content_name(image[None]))
        responses = None
        responses_path = self._path("responses", ref.key)
        if ref.tier != "test" or responses_path.exists():
            held = self._held("responses", ref.key, self.info.neurons)
            if ref.tier != "test" or bool(np.any(np.nan_to_num(held.values))):
                responses = (held,)
        return RawTrial(
            ref,
            np.repeat(image[None], self._frames, axis=0),
            str(path),
            responses,
            (self._held("pupil_center", ref.key, 2),),
            (self._held("behavior", ref.key, len(_MODULATIONS)),),
        )

    def _held(self, column: str, key: str, width: int) -> Signal:
        """The one value of each channel, for all frames of the clip."""
        path = self._path(column, key)
        values = npy.load_numbers(path, 1)
        if len(values) != width:
            raise DataError(f"{path}: {len(values)} values, not {width}")
        return Signal(np.repeat(values[None], self._frames, axis=0), str(path))

    def neurons(self) -> dict[str, np.ndarray]:
        """The arrays of meta/neurons; see `Reader.neurons`."""
        table: dict[str, np.ndarray] = {}
        for path in entries(self._folder / "meta" / "neurons", "*.npy"):
            name = "unit_id" if path.stem == "unit_ids" else path.stem
            table.update(npy.neuron_columns(path, name, self.info.neurons))
        return table


def _image(path: Path) -> np.ndarray:
    """An image as uint8 [H, W]."""
    shape, _ = npy.header(path)
    image = npy.load_numbers(path, len(shape))
    if image.ndim == 3 and len(image) == 1:
        image = image[0]
    if image.ndim != 2:
        raise DataError(f"{path}: has shape {list(shape)}, not [1, height, width]")
    if image.dtype == np.uint8:
        return image
    if not np.isfinite(image).all():
        raise DataError(f"{path}: NaN in the image")
    if image.size and (image.min() < 0 or image.max() > 255):
        raise DataError(
            f"{path}: grey levels from {image.min():g} to {image.max():g}, not within 0 to 255"
        )
    return np.rint(image).astype(np.uint8)
