"""Sizes: the paper's numbers, and what does not fit together is refused."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from fmcortex.config import load_config
from fmcortex.errors import ConfigError
from fmcortex.model.network import Network
from fmcortex.model.sizes import PRESETS, ModelConfig, preset


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("name", "core"), [("paper", 4.53e6), ("paper-convlstm", 4.79e6)])
def test_the_paper_models_have_the_released_numbers_of_parameters(name: str, core: float) -> None:
    with torch.device("meta"):
        network = Network.build(preset(name), 100)
        more = Network.build(preset(name), 101)
    assert count(network.core) == pytest.approx(core, abs=0.005e6)
    assert count(network.perspective) == 693
    assert count(network.modulation) == 8896
    assert count(network.readout) == 100 * 522
    assert count(more) - count(network) == 522


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    config = preset(name)
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="frozen"):
        config.streams = 9


def test_the_default_is_the_released_model() -> None:
    config = ModelConfig()
    assert config == preset("paper")
    assert (config.streams, config.recurrent, config.recurrent_groups) == (4, "cvtlstm", 8)
    assert (config.retina_height, config.retina_width, config.retina_degrees) == (128, 192, 75)
    assert config.core_size() == (16, 24)
    assert preset("paper-convlstm").model_copy(update={"recurrent": "cvtlstm"}) == config


def test_an_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="unknown model 'large'; one of paper, paper-convlstm, "):
        preset("large")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"retina_height": 13, "retina_width": 21},
        {"input_spatial": 5, "input_stride": 1, "retina_height": 7},
        {"input_spatial": 7, "input_stride": 3},
        {"block_pools": (1, 3)},
    ],
)
def test_core_size_is_that_of_the_features(small: ModelConfig, changes: dict) -> None:
    config = ModelConfig.model_validate({**small.model_dump(), **changes})
    network = Network.build(config, 1)
    retina = torch.zeros(1, 2, config.retina_height, config.retina_width)
    features = network.core.feedforward(retina)
    channels = config.streams * config.feedforward_out
    assert features.shape == (1, channels, 2, *config.core_size())
    hidden = torch.zeros(1, config.streams * config.modulation_lstm, 2)
    core = network.core.recurrent(features, hidden)
    assert core.shape == (1, config.streams * config.recurrent_out, 2, *config.core_size())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_layers": (2, 2)}, "block_layers must have one entry a block, 3 in all"),
        ({"block_channels": (32, 64, 130)}, "block_channels 130 is not divisible by 4 groups"),
        ({"recurrent_in": 252}, "recurrent_in is not divisible by 8 recurrent_groups"),
        ({"recurrent_hidden": 4}, "recurrent_hidden is not divisible by 8"),
        ({"recurrent_common": 500}, "recurrent_common is not divisible by 8"),
        ({"input_spatial": 5}, "input_spatial - input_stride must be even"),
        ({"retina_height": 7}, "the retina is too small for input_stride and block_pools"),
        ({"streams": 0}, "streams"),
        ({"retina_degrees": math.nan}, "retina_degrees"),
        ({"retina_degrees": 91}, "retina_degrees"),
        ({"dropout": 1.0}, "dropout"),
        ({"recurrent": "lstm"}, "recurrent"),
        ({"unit": "relu"}, "unit"),
        ({"channels": 3}, "Extra inputs are not permitted"),
    ],
)
def test_sizes_that_do_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig.model_validate(changes)


@pytest.mark.parametrize("override", ["model.block_groups=[0,1,1]", "model.block_pools=[0,2,1]"])
def test_blocks_of_nothing(override: str) -> None:
    with pytest.raises(ConfigError, match="block_"):
        load_config(None, [override])


@pytest.mark.parametrize("changes", [{"block_spatials": (3, 2, 3)}, {"recurrent_spatial": 4}])
def test_kernels_that_would_change_the_size(changes: dict) -> None:
    with pytest.raises(ValidationError, match="spatial"):
        ModelConfig.model_validate(changes)
