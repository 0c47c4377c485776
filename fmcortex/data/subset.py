"""Nested subsets of a session's training data."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from fmcortex.errors import ConfigError


def seed_of(*parts: object) -> int:
    """A 63-bit seed that depends on all `parts`, the same on every machine and in every run."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def nested_trials(
    session: str, frames: Sequence[int], frame_rate: float, minutes: float | None
) -> list[int]:
    """The trials that make up the first `minutes` of a session, in a fixed random order.

    A larger `minutes` gives a superset. Trials are added until the sum reaches `minutes`, the last
    one whole.

    Args:
        session: its name, which alone decides the order.
        frames: of each training trial.
        frame_rate: stimulus frames per second, Hz.
        minutes: of training data; None for all.

    Returns:
        Indices of trials, ascending.

    Raises:
        ConfigError: the session has less than `minutes`.
    """
    if minutes is None:
        return list(range(len(frames)))
    wanted = minutes * 60 * frame_rate
    if sum(frames) < wanted * (1 - 1e-9):
        have = sum(frames) / frame_rate / 60
        raise ConfigError(
            f"data.minutes: {minutes:g} minutes asked for, but session {session} has {have:.2f}"
        )
    order = np.random.default_rng(seed_of("subset", session)).permutation(len(frames))
    total = np.cumsum([frames[i] for i in order])
    count = int(np.searchsorted(total, wanted * (1 - 1e-9))) + 1
    return sorted(int(i) for i in order[:count])
