"""A run of one simulated mouse, evaluated: what a report is made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.job import prepare
from data_prep.simulator.settings import SimulationSettings
from data_prep.simulator.simulate import simulate
from fmcortex.config import load_config
from fmcortex.data.dataset import open_dataset
from fmcortex.evaluation.evaluate import evaluate_session
from fmcortex.training.checkpoint import open_checkpoint
from fmcortex.training.single import train_single


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run/` and `evaluations/foundation.json`; the dataset lies beside it."""
    root = tmp_path_factory.mktemp("reported")
    settings = SimulationSettings(
        mice=1,
        neurons=8,
        minutes=0.5,
        trial_seconds=4,
        test_repeats=4,
        validation_repeats=2,
        domains=("drifting_gabor",),
        layout="digital_twin",
    )
    simulate(settings, str(root / "source"))
    prepare(str(root / "source"), str(root / "prepared"))
    folder = root / "results"
    overrides = [
        f"data.url={root / 'prepared'}",
        f"output={folder / 'run'}",
        "model.preset=tiny",
        "data.frames=20",
        "data.batch=1",
        "training.epochs=1",
        "training.warmup_epochs=0",
        "training.steps_per_epoch=3",
        "training.device=cpu",
    ]
    train_single(load_config(None, overrides), "individual")
    opened, dataset = open_checkpoint(str(folder / "run")), open_dataset(str(root / "prepared"))
    scores = [evaluate_session(opened.network(n), dataset.session(n)) for n in dataset.sessions]
    (folder / "evaluations").mkdir()
    text = json.dumps([score.model_dump() for score in scores])
    (folder / "evaluations" / "foundation.json").write_text(text)
    return folder
