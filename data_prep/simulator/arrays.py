"""Writing arrays without pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def save(path: Path, array: np.ndarray) -> None:
    """Write `array` as .npy at `path`, making its folder; text must be fixed-width unicode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array, allow_pickle=False)
