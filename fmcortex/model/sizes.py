"""Sizes of the network, and the named configurations."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fmcortex.errors import ConfigError

#: One entry a block of the feedforward part.
Blocks = Annotated[
    tuple[Annotated[int, Field(ge=1, le=65_536)], ...], Field(min_length=1, max_length=64)
]


class ModelConfig(BaseModel):
    """Every size of the network; the defaults are those of the released CvT-LSTM model.

    Channel counts are per stream. Sizes that belong to one recording (its neurons) are not here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    streams: int = Field(4, ge=1, le=256, description="parallel copies of the shared weights")
    recurrent: Literal["cvtlstm", "convlstm"] = "cvtlstm"

    perspectives: int = Field(2, ge=1, le=65_536, description="pupil inputs of the perspective")
    modulations: int = Field(2, ge=1, le=65_536, description="behaviour inputs of the modulation")

    retina_height: int = Field(128, ge=2, le=16_384, description="pixels")
    retina_width: int = Field(192, ge=2, le=16_384, description="pixels")
    retina_degrees: float = Field(75.0, gt=0, le=90, description="angle at the retina's edge")
    periphery: Literal["dark", "extend"] = "dark"
    eye_features: int = Field(16, ge=1, le=65_536)
    eye_layers: int = Field(3, ge=1, le=64)

    modulation_features: int = Field(16, ge=1, le=65_536)
    modulation_layers: int = Field(1, ge=1, le=64)
    modulation_lstm: int = Field(16, ge=1, le=65_536)

    input_spatial: int = Field(6, ge=1, le=65_536)
    input_stride: int = Field(2, ge=1, le=65_536)
    block_channels: Blocks = (32, 64, 128)
    block_groups: Blocks = (1, 2, 4)
    block_layers: Blocks = (2, 2, 2)
    block_temporals: Blocks = (3, 3, 3)
    block_spatials: Blocks = (3, 3, 3)
    block_pools: Blocks = (2, 2, 1)
    feedforward_out: int = Field(128, ge=1, le=65_536)

    recurrent_in: int = Field(256, ge=1, le=65_536)
    recurrent_hidden: int = Field(256, ge=1, le=65_536)
    recurrent_common: int = Field(512, ge=1, le=65_536, description="CvT-LSTM only")
    recurrent_out: int = Field(128, ge=1, le=65_536)
    recurrent_groups: int = Field(8, ge=1, le=65_536)
    recurrent_spatial: int = Field(3, ge=1, le=65_536)

    unit: Literal["poisson", "elu"] = Field("poisson", description="elu: squared error")
    dropout: float = Field(0.0, ge=0, lt=1, description="fraction of channels dropped in training")
    position_std: float = Field(0.4, ge=0, le=1e3, description="start of the position noise")
    monitor_std: float = Field(0.05, ge=0, le=1e3, description="start of the monitor noise")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        blocks = len(self.block_channels)
        for name in ("groups", "layers", "temporals", "spatials", "pools"):
            if len(getattr(self, f"block_{name}")) != blocks:
                raise ValueError(f"block_{name} must have one entry a block, {blocks} in all")
        for channels, groups in zip(self.block_channels, self.block_groups, strict=True):
            if channels % groups:
                raise ValueError(f"block_channels {channels} is not divisible by {groups} groups")
        groups = self.recurrent_groups
        for name in ("in", "hidden", "common"):
            if getattr(self, f"recurrent_{name}") % groups:
                raise ValueError(f"recurrent_{name} is not divisible by {groups} recurrent_groups")
        if any(size % 2 == 0 for size in self.block_spatials):
            raise ValueError("block_spatials must be odd, so that a block keeps its input's size")
        if self.recurrent_spatial % 2 == 0:
            raise ValueError("recurrent_spatial must be odd, so that the state keeps its size")
        if (self.input_spatial - self.input_stride) % 2:
            raise ValueError("input_spatial - input_stride must be even")
        height, width = self.core_size()
        if height < 1 or width < 1:
            raise ValueError("the retina is too small for input_stride and block_pools")
        return self

    def core_size(self) -> tuple[int, int]:
        """Height and width of the core's feature map, pixels."""
        height = self.retina_height // self.input_stride
        width = self.retina_width // self.input_stride
        for pool in self.block_pools:
            height, width = height // pool, width // pool
        return height, width


_CPU = {
    "retina_height": 36,
    "retina_width": 64,
    "eye_features": 8,
    "eye_layers": 2,
    "modulation_features": 8,
    "modulation_lstm": 8,
}

#: The paper's two models, and two that train on a CPU.
PRESETS: dict[str, ModelConfig] = {
    "paper": ModelConfig(),
    "paper-convlstm": ModelConfig(recurrent="convlstm"),
    "small": ModelConfig.model_validate(
        {
            **_CPU,
            "streams": 2,
            "block_channels": (16, 32, 64),
            "feedforward_out": 64,
            "recurrent_in": 64,
            "recurrent_hidden": 64,
            "recurrent_common": 128,
            "recurrent_out": 64,
            "recurrent_groups": 4,
        }
    ),
    "tiny": ModelConfig.model_validate(
        {
            **_CPU,
            "streams": 2,
            "recurrent": "convlstm",
            "block_channels": (8, 16),
            "block_groups": (1, 2),
            "block_layers": (1, 1),
            "block_temporals": (3, 3),
            "block_spatials": (3, 3),
            "block_pools": (2, 1),
            "feedforward_out": 16,
            "recurrent_in": 16,
            "recurrent_hidden": 16,
            "recurrent_common": 32,
            "recurrent_out": 16,
            "recurrent_groups": 2,
        }
    ),
}


def preset(name: str) -> ModelConfig:
    """The named configuration.

    Raises:
        ConfigError: there is none of this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"model.preset: unknown model {name!r}; one of {', '.join(PRESETS)}")
    return PRESETS[name]
