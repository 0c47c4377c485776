"""What trains the shared part: an interface, and its implementation in a single process."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor

from fmcortex.config import TrainingConfig
from fmcortex.model.network import SharedPart
from fmcortex.model.parameters import rule_of
from fmcortex.training.optimizer import SGD, parameter_groups, prepare_gradient


class SharedEngine(Protocol):
    """Holds the shared part and steps it.

    The caller runs `module` and takes its gradients itself, so that a rank may carry any number of
    micro-batches a step, and the engine communicates once a step whatever that number is.
    """

    @property
    def module(self) -> SharedPart:
        """The shared part; the same weights on every rank."""

    def step(self, gradients: Mapping[str, Tensor], lr: float, streams: Collection[int]) -> None:
        """Sum the gradients over all ranks, scale and clip them, and step.

        Args:
            gradients: this rank's sum, by parameter name; a parameter may be missing.
            lr: learning rate.
            streams: those that some rank has trained; parameters of the others are left as
                they are, and so are their momenta.
        """

    def momenta(self) -> dict[str, Tensor]:
        """The whole momenta, by name, on the CPU. On several ranks, all must call it."""


class LocalEngine:
    """The shared part in one process.

    Args:
        shared: the part.
        config: of the optimizer.
        frozen: leave the shared part as it is (transfer to a new mouse).
    """

    def __init__(self, shared: SharedPart, config: TrainingConfig, frozen: bool = False) -> None:
        self._module, self.config, self.frozen = shared, config, frozen
        shared.requires_grad_(not frozen)
        self.optimizer = session_optimizer(shared, config)

    @property
    def module(self) -> SharedPart:
        return self._module

    def step(self, gradients: Mapping[str, Tensor], lr: float, streams: Collection[int]) -> None:
        if not self.frozen:
            step_session(self.optimizer, self.config, lr, gradients)

    def momenta(self) -> dict[str, Tensor]:
        return momenta(self.optimizer)


def session_optimizer(module: torch.nn.Module, config: TrainingConfig) -> SGD:
    """The optimizer of parameters that live whole on this rank."""
    groups = parameter_groups(dict(module.named_parameters()), config.decay)
    return SGD(groups, momentum=config.momentum, nesterov=config.nesterov)


def step_session(
    optimizer: SGD, config: TrainingConfig, lr: float, gradients: Mapping[str, Tensor]
) -> None:
    """Scale and clip averaged gradients, given by parameter name, and step those parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        for name, p in zip(group["names"], group["params"], strict=True):
            if name in gradients:
                p.grad = prepare_gradient(
                    gradients[name], p.detach(), rule_of(p), config.clip, config.eps
                )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def momenta(optimizer: SGD) -> dict[str, Tensor]:
    """The momenta by parameter name, on the CPU; zeros where a parameter was never stepped."""
    found = {}
    for group in optimizer.param_groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            value = optimizer.state[p].get("momentum_buffer") if p in optimizer.state else None
            found[name] = (torch.zeros_like(p) if value is None else value).detach().cpu().clone()
    return found


def load_momenta(optimizer: SGD, values: Mapping[str, Tensor]) -> None:
    """Set the momenta by parameter name."""
    for group in optimizer.param_groups:
        for name, p in zip(group["names"], group["params"], strict=True):
            if name in values:
                value = values[name].to(device=p.device, dtype=p.dtype).clone()
                optimizer.state[p]["momentum_buffer"] = value
