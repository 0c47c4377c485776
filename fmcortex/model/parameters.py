"""What the optimizer must know of each parameter (Wang et al. 2025, released optimizer)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Rule:
    """How one parameter is stepped.

    Attributes:
        scale: multiplies the gradient.
        decay: whether weight decay applies.
        norm_dim: the dimensions over which norms for adaptive clipping are taken; None for all.
        stream: the stream that it belongs to; None where all streams share it.
    """

    scale: float = 1.0
    decay: bool = True
    norm_dim: tuple[int, ...] | None = None
    stream: int | None = None


class RuledParameter(nn.Parameter):
    """A parameter that carries its `Rule` as the attribute `rule`."""

    rule: Rule


def ruled(value: Tensor, rule: Rule) -> RuledParameter:
    """A trainable parameter that starts at `value` and carries `rule`."""
    parameter = nn.Parameter(value)
    parameter.rule = rule  # type: ignore[attr-defined]
    return parameter  # type: ignore[return-value]


def rule_of(parameter: Tensor) -> Rule:
    """The rule of `parameter`; the default one where it carries none."""
    return getattr(parameter, "rule", Rule())


def per_stream(value: Tensor, streams: int | None, rule: Rule) -> nn.ParameterList:
    """One parameter a stream, each starting as a copy of `value`; None: one that has no stream."""
    return nn.ParameterList(
        ruled(value.clone(), Rule(rule.scale, rule.decay, rule.norm_dim, stream))
        for stream in ([None] if streams is None else range(streams))
    )


def chosen(parameters: nn.ParameterList, stream: int | None) -> list[Tensor]:
    """The parameters of one stream, or of all."""
    return list(parameters) if stream is None else [parameters[stream]]


def stacked(parameters: nn.ParameterList, stream: int | None) -> Tensor:
    """The parameters of one stream, or of all, along a new first dimension."""
    return torch.stack(chosen(parameters, stream))
