"""What responses are divided by, and what behaviour is centred on and divided by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from data_prep.settings import PrepSettings
from data_prep.survey import Survey


@dataclass(frozen=True)
class Scaling:
    """The statistics of the training trials by which a session is scaled.

    Attributes:
        response: float64 [U].
        perspective_mean, perspective_std: float64 [P].
        modulation_mean, modulation_std: float64 [M].
    """

    response: np.ndarray
    perspective_mean: np.ndarray
    perspective_std: np.ndarray
    modulation_mean: np.ndarray
    modulation_std: np.ndarray

    @property
    def sha256(self) -> str:
        """Of all values."""
        digest = hashlib.sha256()
        for values in vars(self).values():
            digest.update(np.ascontiguousarray(values, "<f8").data)
        return digest.hexdigest()


def scaling_of(survey: Survey, settings: PrepSettings) -> Scaling:
    """The scaling that the settings ask for, from what the survey found."""
    divide_by = settings.response_normalisation
    responses = None if divide_by == "none" else getattr(survey.responses, divide_by)
    return Scaling(
        np.ones(len(survey.responses.mean)) if responses is None else _divisor(responses),
        np.array(survey.perspectives.mean),
        _divisor(survey.perspectives.std),
        np.array(survey.modulations.mean),
        _divisor(survey.modulations.std),
    )


def _divisor(values: list[float]) -> np.ndarray:
    """To divide by: a channel that never varies, or a silent neuron, stays unscaled."""
    found = np.array(values)
    return np.where(found > 0, found, 1.0)
