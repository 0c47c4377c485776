"""Independent random generators, so that adding a mouse or a video changes nothing else."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a generator is for; part of its seed."""

    TRAINING_MOVIE = 1
    VALIDATION_MOVIE = 2
    TEST_MOVIE = 3
    OTHER_DOMAIN = 4
    CLIPS = 5
    PLAN = 6
    POPULATION = 7
    CALIBRATION = 8
    BEHAVIOUR = 9
    EYE = 10
    BLINKS = 11
    IMAGING = 12
    VARIABILITY = 13
    LENGTH = 14


def generator(seed: int, purpose: Purpose, *numbers: int) -> np.random.Generator:
    """The generator of `purpose`, further told apart by `numbers` (session, video, ...)."""
    return np.random.default_rng(np.random.SeedSequence([seed, int(purpose), *numbers]))
