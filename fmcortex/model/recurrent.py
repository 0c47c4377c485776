"""The recurrent part of the core: Conv-LSTM, or CvT-LSTM with attention over space.

Only what depends on the hidden state is computed frame by frame. The projections of the features
and of the modulation, the standardised weights and the output are computed for all frames at once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from fmcortex.model.layers import Conv, InterGroup, cat_groups, channel_mask, draw_kept, run
from fmcortex.model.parameters import Rule, per_stream, stacked
from fmcortex.model.past import Past, once
from fmcortex.model.sizes import ModelConfig

#: Start of the gates' biases: input, forget, cell, output.
GATES = {"i": -1.0, "f": 1.0, "g": 0.0, "o": 0.0}


def fuse(parts: list[Tensor], groups: int) -> Tensor:
    """Join the output channels of equally grouped weights, so that one convolution computes all.

    Args:
        parts: K tensors [C, ...] of the weights or biases of K convolutions.
        groups: the groups of each of them.

    Returns:
        [K*C, ...]; within each group the channels of the parts follow one another.
    """
    split = [part.unflatten(0, (groups, -1)) for part in parts]
    return torch.cat(split, dim=1).flatten(0, 1)


def unfuse(x: Tensor, parts: int, groups: int) -> tuple[Tensor, ...]:
    """The outputs [N, C, H, W] of each of the `parts` convolutions joined by `fuse`."""
    split = x.unflatten(1, (groups, parts, -1))  # [N, G, K, C/G, H, W]
    return tuple(part.flatten(1, 2) for part in split.unbind(2))


def lstm_update(gates: tuple[Tensor, ...], cell: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM's new hidden state and cell from the four gates' inputs (i, f, g, o)."""
    i, f, g, o = gates
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def segment_length(frames: int) -> int:
    """Frames between the states that are kept when the rest is computed again: least memory."""
    return math.isqrt(max(frames - 1, 0)) + 1  # the root, rounded up


class Recurrent(nn.Module, ABC):
    """What both recurrences share: their input projections, the loop over frames, the output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.streams, self.groups = config.streams, config.recurrent_groups
        self.inputs, self.hidden = config.recurrent_in, config.recurrent_hidden
        self.dropout = config.dropout
        self.recompute = False  # see SharedPart.checkpoint_activations
        projections = 2 + (self.groups > 1)
        gain = projections**-0.5
        project = nn.ModuleList()
        if self.groups > 1:
            project.append(InterGroup(self.hidden, self.inputs, self.groups, config.streams, gain))
        for features, bias in ((config.feedforward_out, 0.0), (config.modulation_lstm, None)):
            project.append(
                Conv(
                    features,
                    self.inputs,
                    streams=config.streams,
                    out_groups=self.groups,
                    gain=gain,
                    bias=bias,
                )
            )
        self.proj_x = project
        self.out = Conv(self.hidden, config.recurrent_out, streams=config.streams)

    def gate(self, inputs: int, bias: float, spatial: int) -> Conv:
        """A grouped convolution from `inputs` channels to one gate."""
        return Conv(
            inputs,
            self.hidden,
            streams=self.streams,
            groups=self.groups,
            out_groups=self.groups,
            spatial=spatial,
            bias=bias,
        )

    def gates(self) -> list[Conv]:
        """The four gates' convolutions, in the order i, f, g, o."""
        return [getattr(self, f"proj_{name}") for name in GATES]

    def fused_gates(self, stream: int | None, groups: int) -> tuple[Tensor, Tensor]:
        """Weights and biases of the four gates as one grouped 2-D convolution."""
        weight = fuse([gate.weight(stream)[:, :, 0] for gate in self.gates()], groups)
        biases = [gate.bias(stream) for gate in self.gates()]
        return weight, fuse([bias for bias in biases if bias is not None], groups)

    def forward(
        self,
        features: Tensor,
        modulation: Tensor,
        stream: int | None = None,
        noise: Generator | None = None,
        past: Past | None = None,
    ) -> Tensor:
        """Step through time.

        Args:
            features: [N, S*F, T, h, w] of the feedforward part.
            modulation: [N, S*M, T].
            stream: one stream, or None for all.
            noise: draws the dropout masks in training.
            past: whose state is gone on from.

        Returns:
            [N, S*out, T, h, w]
        """
        streams = self.streams if stream is None else 1
        groups = streams * self.groups
        driven = self.proj_x[-2](features, stream, past)  # [N, S*in, T, h, w]
        driven = driven + self.proj_x[-1](modulation[..., None, None], stream, past)
        first = self.proj_x[0]
        inter = None
        if isinstance(first, InterGroup):
            inter = once(past, first, "weight", lambda: first.weight(stream))
        samples, _, _, height, width = driven.shape
        if past is not None and (self, "state") in past:
            hidden, cell = past[self, "state"]
        else:
            hidden = driven.new_zeros(samples, streams * self.hidden, height, width)
            cell = hidden
        kept = [
            draw_kept(samples, streams * size, self.dropout, noise)
            for size in (self.inputs, self.hidden)
        ]
        masks = [channel_mask(one, self.dropout, driven) for one in kept]
        weights = once(past, self, "weights", lambda: self.prepare(stream, groups))
        length = segment_length(driven.shape[2]) if self.recompute else driven.shape[2]
        states: list[Tensor] = []
        for part in driven.split(length, dim=2):
            some, cell = run(
                self.recompute, self._segment, part, hidden, cell, groups, inter, *masks, *weights
            )
            states += some
            hidden = some[-1]
        if past is not None:
            past[self, "state"] = hidden, cell
        return self.out(torch.stack(states, dim=2), stream, past)

    def _segment(
        self,
        driven: Tensor,
        hidden: Tensor,
        cell: Tensor,
        groups: int,
        inter: Tensor | None,
        mask_in: Tensor | None,
        mask_out: Tensor | None,
        *weights: Tensor,
    ) -> tuple[list[Tensor], Tensor]:
        """Hidden states [N, S*hidden, h, w] of each of some frames, and the last cell.

        They are stacked outside, where all are: gradients are then summed in the same order
        whatever the length of the segments.
        """
        states = []
        for x in driven.unbind(2):  # [N, S*in, h, w]
            if inter is not None:
                x = x + F.conv2d(hidden, inter, groups=groups // self.groups)
            x = torch.tanh(x)
            if mask_in is not None:
                x = x * mask_in[:, :, None, None]
            gates = self.step(cat_groups([x, hidden], groups), weights, groups)
            hidden, cell = lstm_update(gates, cell)
            if mask_out is not None:
                hidden = hidden * mask_out[:, :, None, None]
            states.append(hidden)
        return states, cell

    @abstractmethod
    def prepare(self, stream: int | None, groups: int) -> tuple[Tensor, ...]:
        """The effective weights of one step, computed once a sequence."""

    @abstractmethod
    def step(self, xh: Tensor, weights: tuple[Tensor, ...], groups: int) -> tuple[Tensor, ...]:
        """The four gates' inputs [N, S*hidden, h, w] from xh [N, S*(in+hidden), h, w]."""


class ConvLSTM(Recurrent):
    """Conv-LSTM: each gate is a grouped 3 x 3 convolution of the input and the hidden state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.padding = config.recurrent_spatial // 2
        for name, bias in GATES.items():
            gate = self.gate(self.inputs + self.hidden, bias, config.recurrent_spatial)
            setattr(self, f"proj_{name}", gate)

    def prepare(self, stream: int | None, groups: int) -> tuple[Tensor, ...]:
        return self.fused_gates(stream, groups)

    def step(self, xh: Tensor, weights: tuple[Tensor, ...], groups: int) -> tuple[Tensor, ...]:
        weight, bias = weights
        fused = F.conv2d(xh, weight, bias, padding=self.padding, groups=groups)
        return unfuse(fused, len(GATES), groups)


class CvTLSTM(Recurrent):
    """CvT-LSTM: the gates also see an attention over all positions, per stream and group."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.padding = config.recurrent_spatial // 2
        common = config.recurrent_common
        self.conv = self._project(self.inputs + self.hidden, common, config.recurrent_spatial)
        self.proj_q = self._project(common, common)
        self.proj_k = self._project(common, common)
        self.proj_v = self._project(common, common)
        scales = torch.ones(self.groups, common // self.groups)
        self.scales = per_stream(scales, self.streams, Rule(decay=False, norm_dim=(1,)))
        for name, bias in GATES.items():
            setattr(self, f"proj_{name}", self.gate(2 * common, bias, 1))

    def _project(self, inputs: int, outputs: int, spatial: int = 1) -> Conv:
        return Conv(
            inputs,
            outputs,
            streams=self.streams,
            groups=self.groups,
            spatial=spatial,
            gain=None,
            bias=None,
        )

    def prepare(self, stream: int | None, groups: int) -> tuple[Tensor, ...]:
        projections = [self.proj_q, self.proj_k, self.proj_v]
        qkv = fuse([project.weight(stream)[:, :, 0] for project in projections], groups)
        scales = stacked(self.scales, stream).flatten(0, 1)[None, :, None]  # [1, S*G, 1, C/G]
        return self.conv.weight(stream)[:, :, 0], qkv, scales, *self.fused_gates(stream, groups)

    def step(self, xh: Tensor, weights: tuple[Tensor, ...], groups: int) -> tuple[Tensor, ...]:
        conv, qkv, scales, gates, biases = weights
        z = F.conv2d(xh, conv, padding=self.padding, groups=groups)  # [N, S*common, h, w]
        fused = F.conv2d(z, qkv, groups=groups)
        heads = fused.unflatten(1, (groups, 3, -1)).flatten(-2)  # [N, S*G, 3, C/G, h*w]
        q, k, v = heads.transpose(-1, -2).unbind(2)  # each [N, S*G, h*w, C/G]
        q = F.normalize(q, dim=-1) * scales
        k = F.normalize(k, dim=-1)
        a = F.scaled_dot_product_attention(q, k, v, scale=1.0)
        a = a.transpose(-1, -2).flatten(1, 2).view_as(z)
        fused = F.conv2d(cat_groups([z, a], groups), gates, biases, groups=groups)
        return unfuse(fused, len(GATES), groups)


def recurrent(config: ModelConfig) -> Recurrent:
    """The recurrence that `config` names."""
    return ConvLSTM(config) if config.recurrent == "convlstm" else CvTLSTM(config)
