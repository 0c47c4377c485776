"""The one place that chooses the device, the communication backend and the arithmetic."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fmcortex.errors import ConfigError


@dataclass(frozen=True)
class Compute:
    """Where and how a process computes.

    Attributes:
        device: that holds the parameters.
        precision: of the shared part's forward pass; the rest is float32.
    """

    device: torch.device
    precision: Literal["float32", "bf16"] = "float32"

    @property
    def backend(self) -> str:
        """The communication backend of `torch.distributed`."""
        return "nccl" if self.device.type == "cuda" else "gloo"

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the shared part runs."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def activate(self) -> None:
        """Make it the process's own device: collectives of objects use the current GPU."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def synchronize(self) -> None:
        """Wait for the device, so that a clock tells what it did."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def choose(
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["float32", "bf16"] = "float32",
    local_rank: int = 0,
) -> Compute:
    """The device of a process; `auto` takes a GPU where there is one.

    Args:
        device: the kind wanted.
        precision: of the shared part's forward pass.
        local_rank: of the process on its machine, which picks the GPU.

    Raises:
        ConfigError: a GPU is wanted where there is none.
    """
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ConfigError("training.device: cuda asked for, but PyTorch sees no GPU; use cpu")
    if device == "cpu" or not available:
        return Compute(torch.device("cpu"), precision)
    return Compute(torch.device("cuda", local_rank % torch.cuda.device_count()), precision)
