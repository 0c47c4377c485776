"""A small prepared dataset of three simulated mice."""

import pytest

from data_prep.job import prepare
from data_prep.simulator.settings import SimulationSettings
from data_prep.simulator.simulate import simulate


@pytest.fixture(scope="session")
def three_mice(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ten neurons each, one minute of training data, two natural test movies of four repeats."""
    folder = tmp_path_factory.mktemp("three_mice")
    settings = SimulationSettings(
        mice=3,
        neurons=10,
        minutes=1,
        trial_seconds=5,
        test_repeats=4,
        validation_repeats=2,
        domains=(),
        layout="digital_twin",
    )
    simulate(settings, str(folder / "source"))
    prepare(str(folder / "source"), str(folder / "prepared"))
    return str(folder / "prepared")
