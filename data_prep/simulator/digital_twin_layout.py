"""The files of the "digital twin" layout: a folder per column, a file per trial.

    training/<i>.npy        bool, true: all trials here are training trials
    samples/<i>.npy         int, frames T of the trial
    stimuli/<i>.npy         [T, H, W, 1] uint8
    perspectives/<i>.npy    [T, 2]: pupil x, y
    modulations/<i>.npy     [T, 2]: pupil radius, treadmill speed
    units/<i>.npy           [T, U] float32, divided by the neuron's mean over training trials
    evaluation/<kind>/<video>/<repeat>.npy   the same four kinds of the repeated videos
    neurons/{unit_ids,coordinates,area,layer}.npy

A video is named `<domain>-<n>`; names that begin with `validation_` are of the validation tier, the
others of the test tier. Long gaps of the pupil are NaN.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_prep.simulator.arrays import save
from data_prep.simulator.session import Recorded, Session


class DigitalTwinWriter:
    """Writes a session's trials as they come; responses only once their training mean is known."""

    def __init__(self, folder: Path, session: Session) -> None:
        self.folder = folder
        self.session = session
        self.count = 0
        self.responses: list[tuple[Path, np.ndarray]] = []
        self.total = np.zeros(len(session.population))
        self.frames = 0

    def add(self, recorded: Recorded) -> None:
        """Write one trial."""
        video = recorded.trial.video
        arrays = {
            "stimuli": recorded.video[..., None],
            "perspectives": recorded.pupil_centre,
            "modulations": np.stack([recorded.pupil_radius, recorded.treadmill], axis=1),
        }
        if video.tier == "train":
            root, name = self.folder, f"{self.count}.npy"
            save(root / "training" / name, np.array(True))
            save(root / "samples" / name, np.array(video.frames))
            self.total += recorded.responses.sum(axis=0, dtype=np.float64)
            self.frames += video.frames
            self.count += 1
        else:
            root, name = self.folder / "evaluation", f"{video.name}/{recorded.trial.repeat}.npy"
        for kind, array in arrays.items():
            save(root / kind / name, array)
        self.responses.append((root / "units" / name, recorded.responses))

    def finish(self) -> None:
        """Write the responses and the table of neurons."""
        mean = self.total / max(self.frames, 1)
        scale = np.where(mean > 0, mean, 1).astype(np.float32)
        for path, responses in self.responses:
            save(path, responses / scale)
        population = self.session.population
        save(self.folder / "neurons" / "unit_ids.npy", population.unit_id)
        save(self.folder / "neurons" / "coordinates.npy", population.coordinates)
        save(self.folder / "neurons" / "area.npy", population.area)
        save(self.folder / "neurons" / "layer.npy", population.layer)
