"""Simulated recordings to benchmark on."""

from __future__ import annotations

from pathlib import Path

from data_prep.job import prepare
from data_prep.simulator.settings import SimulationSettings
from data_prep.simulator.simulate import simulate


def prepared(folder: Path, neurons: list[int], **settings: object) -> str:
    """A prepared dataset of a mouse of so many neurons each, in `folder`."""
    for i, count in enumerate(neurons):
        values: dict[str, object] = {
            "mice": len(neurons),
            "neurons": count,
            "minutes": 0.7,
            "trial_seconds": 3,
            "short_trials": 0,
            "test_videos": 1,
            "test_repeats": 2,
            "validation_videos": 1,
            "validation_repeats": 2,
            "domains": (),
            "layout": "digital_twin",
            **settings,
        }
        simulate(SimulationSettings.model_validate(values), folder / "recordings", sessions=[i])
    prepare(str(folder / "recordings"), str(folder / "prepared"))
    return str(folder / "prepared")
