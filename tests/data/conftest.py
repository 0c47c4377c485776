"""A tiny prepared dataset of one session, for tests of the reading side."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.job import prepare
from data_prep.settings import PrepSettings


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """The folder of a dataset with session "s1": 6 training trials in 2 shards, one test video."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "source" / "s1"

    def save(path: str, values: object) -> None:
        file = folder / f"{path}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.asarray(values))

    def trial(prefix: str, key: str, stimulus: np.ndarray) -> None:
        frames = len(stimulus)
        save(f"{prefix}stimuli/{key}", stimulus)
        save(f"{prefix}units/{key}", generator.gamma(2, 1, (frames, 3)).astype("f4"))
        save(f"{prefix}perspectives/{key}", generator.normal(size=(frames, 2)))
        save(f"{prefix}modulations/{key}", generator.normal(size=(frames, 2)))

    for number in range(6):
        trial("", str(number), generator.integers(0, 256, (8, 4, 6, 1)).astype(np.uint8))
        save(f"training/{number}", True)
        save(f"samples/{number}", 8)
    stimulus = generator.integers(0, 256, (5, 4, 6, 1)).astype(np.uint8)
    for repeat in range(2):
        trial("evaluation/", f"natural_movie-0/{repeat}", stimulus)
    prepare(str(folder), str(tmp_path / "prepared"), PrepSettings(trials_per_shard=3))
    return tmp_path / "prepared"
