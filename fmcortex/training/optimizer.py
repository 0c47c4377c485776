"""SGD with unit-wise adaptive clipping (released recipe of Wang et al. 2025).

The gradient of a parameter is prepared as a whole (scaled, then clipped by the norms of its units),
after it has been averaged over mice; the step that follows is element-wise, so it may run on any
partition of the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from fmcortex.model.parameters import Rule, rule_of


def norms(value: Tensor, dims: tuple[int, ...] | None) -> Tensor:
    """L2 norms of `value` over `dims` (all, where None), with the dimensions kept."""
    return torch.linalg.vector_norm(value, dim=dims, keepdim=True)


def prepare_gradient(
    gradient: Tensor, parameter: Tensor, rule: Rule, clip: float | None, eps: float
) -> Tensor:
    """Scale a whole averaged gradient and clip it unit by unit.

    d = gradient * scale, then d * min(1, max(clip * |p|, eps * sqrt(numel(p))) / |d|), the norms
    being taken over `rule.norm_dim` and numel being that of the whole parameter.

    Args:
        gradient: of the shape of `parameter`.
        parameter: the whole parameter.
        rule: its scale and its norm dimensions.
        clip: the largest ratio of a unit's gradient to its weights; None leaves out the clipping.
        eps: the least norm of the weights, per square root of their number.

    Returns:
        A new tensor of the same shape.
    """
    d = gradient * rule.scale
    if clip is None:
        return d
    least = eps * parameter.numel() ** 0.5
    limit = (norms(parameter, rule.norm_dim) * clip).clip(min=least)
    norm = norms(d, rule.norm_dim)
    return d * torch.where(norm > limit, limit / norm, 1.0)


class SGD(torch.optim.Optimizer):
    """Nesterov SGD whose weight decay, added after the momentum, is not accumulated in it.

    A group with `active=False` is left as it is, its momentum too. The momentum starts at zero.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.1, momentum: float = 0.9, nesterov: bool = True
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": 0.0,
            "active": True,
        }
        super().__init__(params, defaults)

    def allocate(self) -> None:
        """Make the momenta of all parameters now rather than in their first step."""
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every parameter of an active group that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            if not group["active"]:
                continue
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                m = state["momentum_buffer"].mul_(group["momentum"]).add_(p.grad)
                d = p.grad.add(m, alpha=group["momentum"]) if group["nesterov"] else m
                if group["weight_decay"]:
                    d = d.add(p, alpha=group["weight_decay"])
                p.sub_(d, alpha=group["lr"])
        return loss


def parameter_groups(parameters: Mapping[str, Tensor], decay: float) -> list[dict[str, Any]]:
    """Groups of equal weight decay and stream, in a fixed order.

    Args:
        parameters: by name.
        decay: the weight decay of those parameters whose rule allows one.

    Returns:
        One dict a group with `params`, `names`, `weight_decay` and `stream`.
    """
    groups: dict[tuple[float, int], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        rule = rule_of(parameter)
        key = (decay if rule.decay else 0.0, -1 if rule.stream is None else rule.stream)
        group = groups.setdefault(
            key, {"params": [], "names": [], "weight_decay": key[0], "stream": rule.stream}
        )
        group["params"].append(parameter)
        group["names"].append(name)
    return [groups[key] for key in sorted(groups)]
