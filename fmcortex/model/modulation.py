"""The modulation: behavioural state, a small LSTM over time (its MLP belongs to the session)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fmcortex.model.layers import MLP, Linear
from fmcortex.model.past import Past, once
from fmcortex.model.recurrent import GATES, lstm_update
from fmcortex.model.sizes import ModelConfig


class ModulationLSTM(nn.Module):
    """LSTM over the frames, per stream, with standardised weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inputs, self.hidden = config.modulation_features, config.modulation_lstm
        for name, bias in GATES.items():
            linear = Linear(
                self.inputs + self.hidden, self.hidden, streams=config.streams, bias=bias
            )
            setattr(self, f"proj_{name}", linear)

    def _joined(self, stream: int | None) -> tuple[Tensor, Tensor]:
        """Weights [4, S, hidden, in+hidden] and biases [4, S, hidden] of all gates."""
        gates: list[Linear] = [getattr(self, f"proj_{name}") for name in GATES]
        weight = torch.stack([gate.weight(stream)[..., 0, 0, 0] for gate in gates])
        biases = [gate.bias(stream) for gate in gates]
        bias = torch.stack([bias for bias in biases if bias is not None])
        shape = (-1, self.hidden)
        return weight.unflatten(1, shape), bias.unflatten(1, shape)

    def forward(self, x: Tensor, stream: int | None = None, past: Past | None = None) -> Tensor:
        """x [N, S*inputs, T] to the hidden states [N, S*hidden, T]; `past` is gone on from."""
        x = x.unflatten(1, (-1, self.inputs))  # [N, S, in, T]
        weight, bias = once(past, self, "weights", lambda: self._joined(stream))
        driven = torch.einsum("nsit,gshi->tgnsh", x, weight[..., : self.inputs])
        driven = driven + bias[:, None]
        if past is not None and (self, "state") in past:
            hidden, cell = past[self, "state"]
        else:
            hidden = driven.new_zeros(driven.shape[2:])  # [N, S, hidden]
            cell = hidden
        states = []
        for frame in driven.unbind(0):  # [4, N, S, hidden]
            total = frame + torch.einsum("nsi,gshi->gnsh", hidden, weight[..., self.inputs :])
            hidden, cell = lstm_update(total.unbind(0), cell)
            states.append(hidden)
        if past is not None:
            past[self, "state"] = hidden, cell
        return torch.stack(states, dim=-1).flatten(1, 2)


class SharedModulation(nn.Module):
    """The modulation's part that all mice share."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.lstm = ModulationLSTM(config)


class SessionModulation(nn.Module):
    """The modulation's part of one recording session."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mlp = MLP(
            config.modulations,
            config.modulation_features,
            config.modulation_layers,
            streams=config.streams,
        )


class Modulation(nn.Module):
    """Both parts, under the released names."""

    def __init__(self, shared: SharedModulation, session: SessionModulation) -> None:
        super().__init__()
        self.mlp, self.lstm = session.mlp, shared.lstm
