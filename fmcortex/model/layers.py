"""Building blocks of the network (Wang et al. 2025; shapes as in the released weights).

Streams are concatenated along channels, stream by stream, and convolved as groups. With
`stream=None` a layer computes all S streams, else only the one asked for (then S is 1 below).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fmcortex.model.parameters import Rule, chosen, per_stream, stacked
from fmcortex.model.past import Past, once

T = TypeVar("T")

#: Keeps the variance of a standard normal input: 1 / std(gelu(z)).
GELU_GAMMA = 1.7015043497085571


def nonlinearity(x: Tensor) -> Tensor:
    """GELU in its exact form, scaled so that a standard normal input keeps its variance."""
    return F.gelu(x) * GELU_GAMMA


def cat_groups(tensors: Sequence[Tensor], groups: int) -> Tensor:
    """Concatenate along channels group by group: [a1, b1, a2, b2, ...].

    Args:
        tensors: each [N, C_i, ...] with C_i divisible by `groups`.
        groups: the number of channel groups.

    Returns:
        [N, sum of C_i, ...]
    """
    if groups == 1:
        return torch.cat(list(tensors), dim=1)
    split = [x.unflatten(1, (groups, -1)) for x in tensors]  # [N, G, C_i/G, ...]
    return torch.cat(split, dim=2).flatten(1, 2)


def standardize(weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Weights with mean 0 and variance 1/fan_in over `dims`; fan_in is the size of `dims`."""
    variance, mean = torch.var_mean(weight, dims, unbiased=False, keepdim=True)
    fan_in = math.prod(weight.shape[dim] for dim in dims)
    return (weight - mean) / torch.sqrt(variance * fan_in + 1e-5)


def draw_kept(
    samples: int, channels: int, dropout: float, noise: Generator | None
) -> Tensor | None:
    """Which channels [N, C] are kept for a whole sequence; None where nothing is dropped.

    It is drawn on the CPU, so that it does not depend on the device.
    """
    if dropout == 0 or noise is None:
        return None
    return torch.rand(samples, channels, generator=noise) >= dropout


def channel_mask(kept: Tensor | None, dropout: float, like: Tensor) -> Tensor | None:
    """What `like`'s channels are multiplied by, [N, C]: 0, or 1 / (1 - dropout) where kept."""
    return None if kept is None else kept.to(like) / (1 - dropout)


def run(recompute: bool, function: Callable[..., T], *arguments: Any) -> T:
    """`function(*arguments)`; with `recompute`, only its tensor arguments are kept for backward.

    Its activations are then computed again in the backward pass, so it must draw nothing at
    random.
    """
    if not (recompute and torch.is_grad_enabled()):
        return function(*arguments)
    result: T = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result


class Conv(nn.Module):
    """Causal 3-D convolution with standardised weights, gains and biases, for several streams.

    Args:
        inputs: input channels of a stream.
        outputs: output channels of a stream.
        streams: number of streams; None for a layer that knows no streams.
        groups: groups of a stream's convolution.
        out_groups: shape of gains and biases, [out_groups, outputs/out_groups].
        temporal: frames that the kernel sees: the current one and those before it.
        spatial: height and width of the kernel, pixels.
        stride: spatial stride.
        replicate: pad with border pixels and first frames instead of zeros.
        gain: start of the gains; None for no gains.
        bias: start of the biases; None for no biases.
        plain: use the weights as they are (then there are no gains).
        zero: start the weights at zero instead of at random.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        streams: int | None = None,
        groups: int = 1,
        out_groups: int = 1,
        temporal: int = 1,
        spatial: int = 1,
        stride: int = 1,
        replicate: bool = False,
        gain: float | None = 1.0,
        bias: float | None = 0.0,
        plain: bool = False,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.groups, self.temporal, self.stride = groups, temporal, stride
        self.replicate, self.plain = replicate, plain
        self.padding = (spatial - stride) // 2
        shape = (outputs, inputs // groups, temporal, spatial, spatial)
        bound = math.sqrt((3 if plain else 1) / math.prod(shape[1:]))
        self.weights = per_stream(torch.zeros(shape), streams, Rule(norm_dim=(1, 2, 3, 4)))
        if not zero:
            for weight in self.weights:
                nn.init.uniform_(weight, -bound, bound)
        vector = torch.ones(out_groups, outputs // out_groups)
        rule = Rule(decay=False, norm_dim=(1,))
        self.gains = self.biases = None
        if gain is not None and not plain:
            self.gains = per_stream(vector * gain, streams, rule)
        if bias is not None:
            self.biases = per_stream(vector * bias, streams, rule)

    def weight(self, stream: int | None = None) -> Tensor:
        """The effective weights [S*outputs, inputs/groups, k_t, k, k]."""
        weight = torch.cat(chosen(self.weights, stream))
        if self.plain:
            return weight
        weight = standardize(weight, (1, 2, 3, 4))
        if self.gains is not None:
            weight = weight * stacked(self.gains, stream).view(-1, 1, 1, 1, 1)
        return weight

    def bias(self, stream: int | None = None) -> Tensor | None:
        """The biases [S*outputs], or None."""
        return None if self.biases is None else stacked(self.biases, stream).flatten()

    def forward(self, x: Tensor, stream: int | None = None, past: Past | None = None) -> Tensor:
        """Convolve x [N, S*inputs, T, H, W] to [N, S*outputs, T, H', W']; `past` of a stream."""
        streams = len(self.weights) if stream is None else 1
        before, pad = self.temporal - 1, self.padding
        if before and past is not None:
            x, before = self._after(x, past, before), 0
        if before or pad:
            sizes = (pad, pad, pad, pad, before, 0)
            x = F.pad(x, sizes, mode="replicate") if self.replicate else F.pad(x, sizes)
        return F.conv3d(
            x,
            once(past, self, "weight", lambda: self.weight(stream)),
            once(past, self, "bias", lambda: self.bias(stream)),
            stride=(1, self.stride, self.stride),
            groups=self.groups * streams,
        )

    def _after(self, x: Tensor, past: Past, before: int) -> Tensor:
        """`x` with the frames before it, which at the start are padding."""
        if (self, "frames") in past:
            x = torch.cat([past[self, "frames"], x], dim=2)
        else:
            sizes = (0, 0, 0, 0, before, 0)
            x = F.pad(x, sizes, mode="replicate") if self.replicate else F.pad(x, sizes)
        past[self, "frames"] = x[:, :, -before:].clone()  # without the rest of `x`
        return x


class Linear(Conv):
    """The 1 x 1 case of `Conv`, for features over time without space."""

    def forward(self, x: Tensor, stream: int | None = None, past: Past | None = None) -> Tensor:
        """Project x [N, S*inputs, T] to [N, S*outputs, T]."""
        return super().forward(x[..., None, None], stream, past)[..., 0, 0]


class MLP(nn.Module):
    """A plain linear layer that starts at zero, then standardised ones.

    Args:
        inputs: input features of a stream.
        features: features of each of the `layers` hidden layers.
        layers: number of hidden layers, each followed by the nonlinearity.
        streams: number of streams; None for a layer that knows no streams.
        outputs: features of a last, linear layer; None for no such layer.
    """

    def __init__(
        self,
        inputs: int,
        features: int,
        layers: int,
        streams: int | None = None,
        outputs: int | None = None,
    ) -> None:
        super().__init__()
        sizes = [inputs] + [features] * layers + ([] if outputs is None else [outputs])
        self.hidden = layers
        self.linears = nn.ModuleList(
            Linear(a, b, streams=streams, plain=i == 0, zero=i == 0)
            for i, (a, b) in enumerate(pairwise(sizes))
        )

    def forward(self, x: Tensor, stream: int | None = None, past: Past | None = None) -> Tensor:
        """x [N, S*inputs, T] to [N, S*(outputs or features), T]."""
        for i, linear in enumerate(self.linears):
            x = linear(x, stream, past)
            if i < self.hidden:
                x = nonlinearity(x)
        return x


class InterGroup(nn.Module):
    """A 1 x 1 projection of each channel group from all the other groups, never from itself."""

    others: Tensor

    def __init__(self, inputs: int, outputs: int, groups: int, streams: int, gain: float) -> None:
        super().__init__()
        self.groups = groups
        weight = torch.empty(groups, groups - 1, outputs // groups, inputs // groups)
        bound = math.sqrt(1 / (inputs // groups * (groups - 1)))
        self.weights = per_stream(weight, streams, Rule(norm_dim=(1, 3)))
        for w in self.weights:
            nn.init.uniform_(w, -bound, bound)
        gains = torch.full((groups, outputs // groups), gain)
        self.gains = per_stream(gains, streams, Rule(decay=False, norm_dim=(1,)))
        others = [[i for i in range(groups) if i != o] for o in range(groups)]
        self.register_buffer("others", torch.tensor(others), persistent=False)

    def weight(self, stream: int | None = None) -> Tensor:
        """The effective weights [S*outputs, inputs, 1, 1], with zero blocks on the diagonal."""
        weight = stacked(self.weights, stream)  # [S, G, G-1, out/G, in/G]
        weight = standardize(weight, (2, 4))
        weight = weight * stacked(self.gains, stream)[:, :, None, :, None]
        streams, groups, _, out, inputs = weight.shape
        index = self.others[None, :, :, None, None].expand(streams, -1, -1, out, inputs)
        full = weight.new_zeros(streams, groups, groups, out, inputs)
        full = full.scatter(2, index, weight)  # [S, G, G, out/G, in/G]
        full = full.transpose(2, 3).reshape(streams * groups * out, groups * inputs)
        return full[..., None, None]
