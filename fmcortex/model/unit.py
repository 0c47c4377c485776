"""From raw outputs to responses, and the loss of a recorded response."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Unit = Literal["poisson", "elu"]


def response(raw: Tensor, unit: Unit = "poisson") -> Tensor:
    """The predicted response of each neuron: exp(r), or elu(r) + 1."""
    return torch.exp(raw) if unit == "poisson" else F.elu(raw) + 1


def unit_loss(raw: Tensor, recorded: Tensor, unit: Unit = "poisson") -> Tensor:
    """Loss of each neuron and frame, of the shape of `raw`.

    Poisson: exp(r) - r*y, the negative log likelihood less what does not depend on r; else the
    squared error.
    """
    if unit == "poisson":
        return torch.exp(raw) - raw * recorded
    return (response(raw, unit) - recorded) ** 2
