"""SGD with unit-wise adaptive clipping (released recipe of Wang et al. 2025).

The gradient of a parameter is prepared as a whole (scaled, then clipped by the norms of its units),
after it has been averaged over mice; the step that follows is element-wise, so it may run on any
partition of the parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fmcortex.config import TrainingConfig
from fmcortex.errors import CheckpointError
from fmcortex.model.parameters import Rule, rule_of

#: Settings of a group that all optimizers know.
COMMON = {"weight_decay": 0.0, "active": True, "steps": 0}


def norms(value: Tensor, dims: tuple[int, ...] | None) -> Tensor:
    """L2 norms of `value` over `dims` (all, where None), with the dimensions kept."""
    return torch.linalg.vector_norm(value, dim=dims, keepdim=True)


def unit_factors(
    d: Tensor, parameter: Tensor, norm_dim: tuple[int, ...] | None, clip: float, eps: float
) -> Tensor:
    """What adaptive clipping multiplies each unit's gradient with: at most 1.

    min(1, max(clip * |p|, eps * sqrt(numel(p))) / |d|), the norms being taken over `norm_dim` and
    numel being that of the whole parameter.

    Args:
        d: whole averaged and scaled gradient, of the shape of `parameter`.
        parameter: the whole parameter.
        norm_dim: the dimensions of a unit; None for all.
        clip: the largest ratio of a unit's gradient to its weights.
        eps: the least norm of the weights, per square root of their number.

    Returns:
        Of the shape of `parameter`, with size 1 along `norm_dim`.
    """
    least = eps * parameter.numel() ** 0.5
    limit = (norms(parameter, norm_dim) * clip).clip(min=least)
    norm = norms(d, norm_dim)
    return torch.where(norm > limit, limit / norm, 1.0)


def prepare_gradient(
    gradient: Tensor, parameter: Tensor, rule: Rule, clip: float | None, eps: float
) -> Tensor:
    """Scale a whole averaged gradient and clip it unit by unit (see `unit_factors`).

    Args:
        gradient: of the shape of `parameter`.
        parameter: the whole parameter.
        rule: its scale and its norm dimensions.
        clip: None leaves out the clipping.
        eps: see `unit_factors`.

    Returns:
        A new tensor of the same shape.
    """
    d = gradient * rule.scale
    return d if clip is None else d * unit_factors(d, parameter, rule.norm_dim, clip, eps)


@dataclass(frozen=True)
class Prepared:
    """Gradients that are ready to be stepped with.

    Attributes:
        gradients: by parameter name.
        squares: sum of their squares, a float64 scalar.
        clipped: units that adaptive clipping has shortened, a float64 scalar.
        units: that it has looked at.
    """

    gradients: dict[str, Tensor]
    squares: Tensor
    clipped: Tensor
    units: int


def prepare_gradients(
    gradients: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    clip: float | None,
    eps: float,
) -> Prepared:
    """Scale and clip whole averaged gradients, given by parameter name, as `prepare_gradient`."""
    device = next((g.device for g in gradients.values()), torch.device("cpu"))
    squares = torch.zeros((), dtype=torch.float64, device=device)
    clipped, units, ready = squares.clone(), 0, {}
    for name, gradient in gradients.items():
        p, rule = parameters[name].detach(), rule_of(parameters[name])
        d = gradient * rule.scale
        if clip is not None:
            factors = unit_factors(d, p, rule.norm_dim, clip, eps)
            d = d * factors
            clipped += (factors < 1).sum()
            units += factors.numel()
        squares += norms(d, None).double().square().sum()
        ready[name] = d
    return Prepared(ready, squares, clipped, units)


class Stepped(torch.optim.Optimizer, ABC):
    """What our optimizers share: groups that rest, and state that is made before the first step.

    A group with `active=False` is left as it is, its state too. `steps` of a group counts its
    steps; all its parameters are stepped together.

    Attributes:
        moments: names of the tensors kept for each parameter, of its shape.
    """

    moments: tuple[str, ...] = ()

    def allocate(self) -> None:
        """Make the moments of all parameters now rather than in their first step."""
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {name: torch.zeros_like(p) for name in self.moments}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step every parameter of an active group that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not group["active"] or not params:
                continue
            group["steps"] += 1
            for p in params:
                state = self.state[p]
                for name in self.moments:
                    if name not in state:
                        state[name] = torch.zeros_like(p)
                self._step_one(p, p.grad, state, group)
        return loss

    @abstractmethod
    def _step_one(
        self, p: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        """Step one parameter and its state in place."""


class SGD(Stepped):
    """Nesterov SGD whose weight decay, added after the momentum, is not accumulated in it.

    The momentum starts at zero (Wang et al. 2025, released optimizer).
    """

    moments = ("momentum_buffer",)

    def __init__(
        self, params: Iterable[Any], lr: float = 0.1, momentum: float = 0.9, nesterov: bool = True
    ) -> None:
        own = {"momentum": momentum, "nesterov": nesterov}
        super().__init__(params, {"lr": lr, **own, **COMMON})

    def _step_one(
        self, p: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        m = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        d = gradient.add(m, alpha=group["momentum"]) if group["nesterov"] else m
        if group["weight_decay"]:
            d = d.add(p, alpha=group["weight_decay"])
        p.sub_(d, alpha=group["lr"])


class AdamW(Stepped):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2).

    The count of steps, for the correction of the bias, is that of the group: a parameter that was
    not trained in a step does not age.
    """

    moments = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, **COMMON})

    def _step_one(
        self, p: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        first, second = group["betas"]
        state["exp_avg"].lerp_(gradient, 1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        mean = state["exp_avg"] / (1 - first ** group["steps"])
        root = (state["exp_avg_sq"] / (1 - second ** group["steps"])).sqrt()
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.addcdiv_(mean, root.add_(group["eps"]), value=-group["lr"])


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


def make_optimizer(parameters: Mapping[str, Tensor], config: TrainingConfig) -> Stepped:
    """The optimizer that `config` names, of parameters by name."""
    groups = parameter_groups(parameters, config.decay)
    if config.optimizer == "adamw":
        return AdamW(groups, betas=config.betas, eps=config.adam_eps)
    return SGD(groups, momentum=config.momentum, nesterov=config.nesterov)


def optimizer_state(optimizer: Stepped) -> dict[str, Tensor]:
    """The whole state on the CPU: `<moment>/<parameter>`, and `steps/<parameter>`.

    Zeros where a parameter was never stepped.
    """
    found = {}
    for group in optimizer.param_groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            state = optimizer.state.get(p, {})
            for moment in optimizer.moments:
                value = state[moment].detach() if moment in state else torch.zeros_like(p)
                found[f"{moment}/{name}"] = value.to("cpu", copy=True)
            found[f"steps/{name}"] = torch.tensor(group["steps"])
    return found


def load_optimizer_state(optimizer: Stepped, values: Mapping[str, Tensor]) -> None:
    """Set the state from what `optimizer_state` gave.

    Raises:
        CheckpointError: it is of other parameters or of another optimizer.
    """
    for group in optimizer.param_groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            shapes = {f"{moment}/{name}": p.shape for moment in optimizer.moments}
            for key, shape in {**shapes, f"steps/{name}": torch.Size()}.items():
                if key not in values or values[key].shape != shape:
                    found = list(values[key].shape) if key in values else "missing"
                    raise CheckpointError(
                        f"optimizer's state: {key} is {found}, not {list(shape)}; it is not of "
                        "this network, or of another optimizer"
                    )
            optimizer.state[p] = {
                moment: values[f"{moment}/{name}"].to(device=p.device, dtype=p.dtype, copy=True)
                for moment in optimizer.moments
            }
            group["steps"] = int(values[f"steps/{name}"])
