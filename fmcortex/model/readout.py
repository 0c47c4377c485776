"""The readout: where each neuron looks in the core's features, and what it weighs there."""

from __future__ import annotations

import torch
from torch import Generator, Tensor, nn

from fmcortex.model.parameters import Rule, per_stream, ruled, stacked
from fmcortex.model.past import Past, once
from fmcortex.model.sizes import ModelConfig
from fmcortex.model.tiles import Tiles, corners, read, sort


class Position(nn.Module):
    """A position for each neuron, in [-1, 1] across the feature map; Gaussian in training."""

    def __init__(self, units: int, std: float) -> None:
        super().__init__()
        rule = Rule(scale=float(units), decay=False)
        self.mu = ruled(torch.zeros(units, 2), rule)
        self.sigma = ruled(torch.eye(2).repeat(units, 1, 1) * std, rule)

    def forward(self, samples: int, noise: Generator | None = None) -> Tensor:
        """Positions (x, y) [N, U, 2], drawn once a sample where `noise` is given."""
        position = self.mu.expand(samples, -1, -1)
        if noise is not None:
            drawn = torch.randn(samples, *self.mu.shape, generator=noise).to(self.mu)
            position = position + torch.einsum("uij,nuj->nui", self.sigma, drawn)
        return torch.tanh(position)


class Feature(nn.Module):
    """Plain weights of each neuron over the features, per stream: [U, 1, C]."""

    def __init__(self, units: int, channels: int, streams: int) -> None:
        super().__init__()
        rule = Rule(scale=float(units), norm_dim=(2,))
        self.weights = per_stream(torch.zeros(units, 1, channels), streams, rule)


class Readout(nn.Module):
    """Features of the core to one raw output a neuron and stream."""

    def __init__(self, config: ModelConfig, units: int) -> None:
        super().__init__()
        self.channels = config.recurrent_out
        self.position = Position(units, config.position_std)
        self.feature = Feature(units, self.channels, config.streams)
        rule = Rule(scale=float(units), decay=False, norm_dim=(0,))
        self.biases = per_stream(torch.zeros(units, 1), config.streams, rule)

    def forward(
        self,
        core: Tensor,
        stream: int | None = None,
        noise: Generator | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Read the core out.

        Args:
            core: [N, S*C, T, h, w].
            stream: one stream, or None for all.
            noise: draws the positions in training; None in evaluation.
            past: of a stream; positions and weights are made ready once.

        Returns:
            Raw outputs [N, T, S, U].
        """
        samples, *_, height, width = core.shape

        def ready() -> tuple[Tiles, Tensor, Tensor, Tensor]:
            # Positions hold for the whole sequence.
            pixels, shares = corners(self.position(samples, noise), height, width)
            weights = stacked(self.feature.weights, stream)[:, :, 0]  # [S, U, C]
            biases = stacked(self.biases, stream)[..., 0]  # [S, U]
            return sort(pixels, height * width), shares, weights, biases

        tiles, shares, weights, biases = once(past, self, "ready", ready)
        raw = [
            read(part, tiles, shares, of_stream)
            for part, of_stream in zip(core.split(self.channels, dim=1), weights, strict=True)
        ]
        return torch.stack(raw, dim=2) + biases
