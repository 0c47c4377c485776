"""A tiny recording to prepare, for tests of what comes after."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def write_tiny(folder: Path) -> Path:
    """Session "s1" in the digital-twin layout: 6 training trials, a test video shown twice."""
    generator = np.random.default_rng(0)
    session = folder / "s1"

    def save(path: str, values: object) -> None:
        file = session / f"{path}.npy"
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
    return session
