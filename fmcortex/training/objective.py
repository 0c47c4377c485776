"""The training objective of one mouse."""

from __future__ import annotations

import torch
from torch import Tensor

from fmcortex.model.unit import Unit, unit_loss


def objective(raw: Tensor, recorded: Tensor, burnin: int, unit: Unit = "poisson") -> Tensor:
    """Mean loss over samples, the frames after the burn-in, and neurons.

    Args:
        raw: [N, T, U] raw outputs.
        recorded: [N, T, U] responses; NaN where one is missing, which then does not count.
        burnin: frames at the start of each sequence that do not count.
        unit: the unit's kind.

    Returns:
        A scalar.
    """
    raw, recorded = raw[:, burnin:].float(), recorded[:, burnin:]
    missing = recorded.isnan()
    loss = unit_loss(raw, recorded.masked_fill(missing, 0.0), unit)
    return loss.masked_fill(missing, 0.0).sum() / (~missing).sum().clip(min=1)


def is_finite(loss: Tensor) -> bool:
    """Whether a loss can be trained on."""
    return bool(torch.isfinite(loss))
