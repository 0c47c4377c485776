"""New parts with weights that depend on the run's seed and the part's name only."""

from __future__ import annotations

import torch

from fmcortex.data.subset import seed_of
from fmcortex.model.network import SessionPart, SharedPart
from fmcortex.model.sizes import ModelConfig


def build_shared(config: ModelConfig, seed: int) -> SharedPart:
    """A new shared part."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("shared", seed))
        return SharedPart(config)


def build_session(config: ModelConfig, units: int, seed: int, session: str) -> SessionPart:
    """A new part of `session`, which has `units` neurons."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("session", seed, session))
        return SessionPart(config, units)
