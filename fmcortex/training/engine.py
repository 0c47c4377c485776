"""What trains the shared part: an interface, and its implementation in a single process."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from torch import Tensor

from fmcortex.config import TrainingConfig
from fmcortex.model.network import SharedPart
from fmcortex.training.optimizer import Stepped, make_optimizer, optimizer_state


class SharedEngine(Protocol):
    """Holds the shared part and steps it.

    The caller runs `module` and takes its gradients itself, so that a rank may carry any number of
    micro-batches a step, and the engine communicates once a step whatever that number is. A step
    is `gather`, the micro-batches, `reduce`, `step`; on several ranks all must call them.
    """

    @property
    def module(self) -> SharedPart:
        """The shared part; its weights are whole, and the same on every rank, after `gather`."""

    def gather(self) -> None:
        """Make the weights of `module` whole."""

    def reduce(
        self, gradients: Mapping[str, Tensor], streams: Collection[int]
    ) -> dict[str, Tensor]:
        """Sum gradients over all ranks.

        Args:
            gradients: this rank's sum, by parameter name; a parameter may be missing.
            streams: those that some rank has trained.

        Returns:
            The whole gradient, the same on every rank, of each parameter of these streams.
        """

    def step(self, gradients: Mapping[str, Tensor], lr: float, streams: Collection[int]) -> None:
        """Step with what `reduce` gave, scaled and clipped.

        Args:
            gradients: by parameter name.
            lr: learning rate.
            streams: whose parameters are stepped; all others are left as they are, and so is their
                state. None of them: the gradients are dropped.
        """

    def state(self) -> dict[str, Tensor]:
        """The whole state of the optimizer on the CPU, named as `optimizer_state` does."""


class LocalEngine:
    """The shared part in one process.

    Args:
        shared: the part.
        config: of the optimizer.
        frozen: leave the shared part as it is (transfer to a new mouse).
    """

    def __init__(self, shared: SharedPart, config: TrainingConfig, frozen: bool = False) -> None:
        self._module, self.frozen = shared, frozen
        shared.requires_grad_(not frozen)
        self.optimizer = make_optimizer(dict(shared.named_parameters()), config)

    @property
    def module(self) -> SharedPart:
        return self._module

    def gather(self) -> None:
        pass

    def reduce(
        self, gradients: Mapping[str, Tensor], streams: Collection[int]
    ) -> dict[str, Tensor]:
        return dict(gradients)

    def step(self, gradients: Mapping[str, Tensor], lr: float, streams: Collection[int]) -> None:
        if streams and not self.frozen:
            step_parameters(self.optimizer, gradients, lr)

    def state(self) -> dict[str, Tensor]:
        return optimizer_state(self.optimizer)


def step_parameters(optimizer: Stepped, gradients: Mapping[str, Tensor], lr: float) -> None:
    """Step those parameters that have a gradient in `gradients`, which are by name."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        for name, p in zip(group["names"], group["params"], strict=True):
            p.grad = gradients.get(name)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
