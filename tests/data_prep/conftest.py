"""Tiny recordings of both layouts, with the arrays they were made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

NEURONS, HEIGHT, WIDTH = 5, 6, 8


class Recording:
    """A source session on disk and the true arrays of its trials, time first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trials: dict[str, dict[str, np.ndarray]] = {}

    def rewrite(self, path: str, change: Callable[[np.ndarray], np.ndarray]) -> Path:
        """Replace an array file by what `change` makes of it; the file's path."""
        file = self.folder / path
        np.save(file, change(np.load(file)))
        return file


def save(folder: Path, path: str, values: object) -> None:
    file = folder / f"{path}.npy"
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, np.asarray(values))


def arrays(
    generator: np.random.Generator, frames: int, modulations: int = 2
) -> dict[str, np.ndarray]:
    return {
        "stimulus": generator.integers(0, 256, (frames, HEIGHT, WIDTH)).astype(np.uint8),
        "responses": generator.gamma(2.0, 1.5, (frames, NEURONS)),
        "perspectives": generator.normal(40, 3, (frames, 2)),
        "modulations": generator.normal(20, 5, (frames, modulations)),
    }


@pytest.fixture
def sensorium(tmp_path: Path) -> Callable[..., Recording]:
    """Make a Sensorium 2023 session: 6 training trials, an oracle and a test video, repeated."""

    def make(
        name: str = "dynamic29156-11-10-Video-8744",
        modulations: int = 2,
        video_ids: bool = False,
        types: bool = False,
        seed: int = 0,
    ) -> Recording:
        generator = np.random.default_rng(seed)
        recording = Recording(tmp_path / "source" / name)
        tiers = ["train", "oracle", "train", "live_test_bonus", "train", "none", "oracle"]
        tiers += ["train", "live_test_bonus", "train", "final_test_main", "train"]
        repeated: dict[str, np.ndarray] = {}
        for number, tier in enumerate(tiers):
            trial = arrays(generator, 10 + number % 3 if tier == "train" else 12, modulations)
            if tier in ("oracle", "live_test_bonus"):
                trial["stimulus"] = repeated.setdefault(tier, trial["stimulus"])
            recording.trials[str(number)] = trial
            for column, values in {
                "videos": trial["stimulus"].transpose(1, 2, 0).astype(np.float32),
                "responses": trial["responses"].T,
                "pupil_center": trial["perspectives"].T,
                "behavior": trial["modulations"].T,
            }.items():
                padding = [(0, 0)] * (values.ndim - 1) + [(0, 15 - values.shape[-1])]
                padded = np.pad(values, padding, constant_values=np.nan)
                save(recording.folder, f"data/{column}/{number}", padded)
        meta = recording.folder / "meta"
        save(meta, "trials/tiers", tiers)
        if video_ids:
            numbers = {"oracle": 900, "live_test_bonus": 901}
            save(meta, "trials/video_ids", [numbers.get(t, n) for n, t in enumerate(tiers)])
        if types:
            bonus = {"live_test_bonus": "drifting_gabor"}
            save(meta, "trials/stimulus_type", [bonus.get(t, "natural_movie") for t in tiers])
        save(meta, "neurons/unit_ids", np.arange(NEURONS) * 7 + 3)
        save(meta, "neurons/cell_motor_coordinates", generator.normal(0, 100, (NEURONS, 3)))
        save(meta, "neurons/area", ["V1", "V1", "LM", "AL", "RL"])
        return recording

    return make


@pytest.fixture
def twin(tmp_path: Path) -> Callable[..., Recording]:
    """Make a digital twin session: 4 training trials, a validation one, 2 evaluation videos."""

    def make(name: str = "8-5", seed: int = 1) -> Recording:
        generator = np.random.default_rng(seed)
        recording = Recording(tmp_path / "source" / name)

        def put(prefix: str, key: str, trial: dict[str, np.ndarray]) -> None:
            recording.trials[key] = trial
            save(recording.folder, f"{prefix}stimuli/{key}", trial["stimulus"][..., None])
            save(recording.folder, f"{prefix}units/{key}", trial["responses"].astype("f4"))
            save(recording.folder, f"{prefix}perspectives/{key}", trial["perspectives"])
            save(recording.folder, f"{prefix}modulations/{key}", trial["modulations"])

        for number in range(5):
            put("", str(number), arrays(generator, 9))
            save(recording.folder, f"training/{number}", number != 2)
            save(recording.folder, f"samples/{number}", 9)
        for video in ("random_dots-1", "validation_natural_movie-0"):
            first = arrays(generator, 7)
            for repeat in range(3):
                trial = {**arrays(generator, 7), "stimulus": first["stimulus"]}
                if repeat == 1:
                    trial["responses"][:, 4] = np.nan
                put("evaluation/", f"{video}/{repeat}", trial)
        save(recording.folder, "neurons/unit_ids", np.arange(NEURONS) + 100)
        save(recording.folder, "neurons/coordinates", generator.normal(0, 100, (NEURONS, 3)))
        return recording

    return make
