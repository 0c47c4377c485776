"""What responses are divided by, and what behaviour is centred on and divided by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_prep.checks import varies
from data_prep.settings import PrepSettings

if TYPE_CHECKING:
    from data_prep.survey import ChannelMoments, Survey


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
    return Scaling(
        response_divisor(survey.responses, settings.response_normalisation),
        np.array(survey.perspectives.mean),
        _spread(survey.perspectives),
        np.array(survey.modulations.mean),
        _spread(survey.modulations),
    )


def response_divisor(responses: ChannelMoments, divide_by: str) -> np.ndarray:
    """To divide responses by; a neuron that cannot be normalised stays unscaled."""
    if divide_by == "std":
        return _spread(responses)
    mean = np.array(responses.mean)
    return np.where(mean > 0, mean, 1.0) if divide_by == "mean" else np.ones(len(mean))


def constant(channels: ChannelMoments) -> np.ndarray:
    """Which channels [k] do not vary, but for rounding, and so are left unscaled."""
    return ~varies(np.array(channels.mean), np.array(channels.std))


def _spread(channels: ChannelMoments) -> np.ndarray:
    """The standard deviation to divide by; a channel that does not vary stays unscaled."""
    return np.where(constant(channels), 1.0, np.array(channels.std))
