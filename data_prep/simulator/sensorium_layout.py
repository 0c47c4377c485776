"""The files of the public dynamic benchmark, "Sensorium 2023".

    data/videos/<i>.npy         [H, W, T] float32, grey levels 0-255
    data/responses/<i>.npy      [U, T] float32
    data/behavior/<i>.npy       [2, T] float32: pupil radius, running speed
    data/pupil_center/<i>.npy   [2, T] float32: x, y
    meta/trials/tiers.npy       [trials] str
    meta/neurons/unit_ids.npy, cell_motor_coordinates.npy [U, 3] um, area.npy, layer.npy
    meta/statistics/<kind>/all/{mean,std,min,max,median}.npy   over training trials

T is the longest trial; a shorter one ends in NaN. Long gaps of the pupil are NaN within a trial.
The tiers are `train`; `oracle`, repeated movies for validation; `live_test_main` and
`final_test_main`, repeated natural movies; `live_test_bonus` and `final_test_bonus`, the repeated
videos of the other domains. Two files are ours and optional to a reader:
`meta/trials/stimulus_type.npy` (the domain of each trial) and `meta/trials/video_ids.npy` (equal
where trials show the same video).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_prep.simulator.arrays import save
from data_prep.simulator.plan import Video
from data_prep.simulator.session import Recorded, Session

SUMMARIES: dict[str, Callable[..., np.ndarray]] = {
    "mean": np.nanmean,
    "std": np.nanstd,
    "min": np.nanmin,
    "max": np.nanmax,
    "median": np.nanmedian,
}


def tier_of(video: Video) -> str:
    """The benchmark's name of a video's tier; test videos take turns between its two halves."""
    if video.tier != "test":
        return {"train": "train", "validation": "oracle"}[video.tier]
    half = "live" if video.numbers[-1] % 2 == 0 else "final"
    return f"{half}_test_{'main' if video.domain == 'natural_movie' else 'bonus'}"


class SensoriumWriter:
    """Writes a session's trials as they come, then what is known only at the end."""

    def __init__(self, folder: Path, session: Session) -> None:
        self.folder = folder
        self.session = session
        self.frames = max(trial.video.frames for trial in session.plan.trials)
        self.count = 0
        self.levels = np.zeros(256, np.int64)
        self.training: dict[str, list[np.ndarray]] = {
            "responses": [],
            "behavior": [],
            "pupil_center": [],
        }

    def add(self, recorded: Recorded) -> None:
        """Write one trial."""
        small = {
            "responses": recorded.responses.T,
            "behavior": np.stack([recorded.pupil_radius, recorded.treadmill]),
            "pupil_center": recorded.pupil_centre.T,
        }
        for kind, array in small.items():
            save(self.folder / "data" / kind / f"{self.count}.npy", self._padded(array))
        video = self._padded(recorded.video.transpose(1, 2, 0))
        save(self.folder / "data" / "videos" / f"{self.count}.npy", video)
        self.count += 1
        if recorded.trial.video.tier == "train":
            self.levels += np.bincount(recorded.video.ravel(), minlength=256)
            for kind, array in small.items():
                self.training[kind].append(array)

    def finish(self) -> None:
        """Write the tables of trials and neurons, and the statistics."""
        meta = self.folder / "meta"
        videos = [trial.video for trial in self.session.plan.trials]
        save(meta / "trials" / "tiers.npy", np.array([tier_of(video) for video in videos]))
        save(meta / "trials" / "stimulus_type.npy", np.array([video.domain for video in videos]))
        save(meta / "trials" / "video_ids.npy", np.array([video.name for video in videos]))
        population = self.session.population
        save(meta / "neurons" / "unit_ids.npy", population.unit_id)
        save(meta / "neurons" / "cell_motor_coordinates.npy", population.coordinates)
        save(meta / "neurons" / "area.npy", population.area)
        save(meta / "neurons" / "layer.npy", population.layer)
        for kind, arrays in self.training.items():
            values = np.concatenate(arrays, axis=1)
            for name, summary in SUMMARIES.items():
                value = summary(values, axis=1).astype(np.float32)
                save(meta / "statistics" / kind / "all" / f"{name}.npy", value)
        for name, level in _level_statistics(self.levels).items():
            path = meta / "statistics" / "videos" / "all" / f"{name}.npy"
            save(path, np.array(level, np.float32))

    def _padded(self, array: np.ndarray) -> np.ndarray:
        """`array` [..., T] as float32 with NaN up to the longest trial."""
        padded = np.empty((*array.shape[:-1], self.frames), np.float32)
        padded[..., : array.shape[-1]] = array
        padded[..., array.shape[-1] :] = np.nan
        return padded


def _level_statistics(levels: np.ndarray) -> dict[str, float]:
    """Statistics of all pixels from the histogram of their 256 levels."""
    grey = np.arange(256)
    total = levels.sum()
    mean = float(levels @ grey / total)
    present = np.flatnonzero(levels)
    return {
        "mean": mean,
        "std": float(np.sqrt(levels @ (grey - mean) ** 2 / total)),
        "min": float(present[0]),
        "max": float(present[-1]),
        "median": float(np.searchsorted(np.cumsum(levels), total / 2)),
    }
