"""Small networks in which every part has an effect."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fmcortex.model.network import Network
from fmcortex.model.sizes import ModelConfig, preset

Build = Callable[..., Network]


@pytest.fixture
def small() -> ModelConfig:
    """Two streams, a Conv-LSTM, a retina of 12 x 18 pixels."""
    return preset("tiny").model_copy(update={"retina_height": 12, "retina_width": 18})


@pytest.fixture
def alive(small: ModelConfig) -> Build:
    """Builds networks whose weights are all moved from where they start, as by training."""

    def build(units: int = 5, seed: int = 0, **changes: object) -> Network:
        config = ModelConfig.model_validate({**small.model_dump(), **changes})
        network = Network.build(config, units)
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in network.parameters():
                p.copy_(p + 0.2 * torch.randn(p.shape, generator=noise))
        return network

    return build
