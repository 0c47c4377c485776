"""The shared part in a DeepSpeed engine: gradients summed over ranks, the optimizer sharded (ZeRO).

Each rank takes the gradients of its micro-batches itself and hands their sum to DeepSpeed as one
linear surrogate loss a step. So every rank joins the same collectives however many lanes it
carries, and what is communicated does not grow with them. The parts of the sessions never enter.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from fmcortex.config import TrainingConfig
from fmcortex.device import Compute
from fmcortex.model.network import SharedPart
from fmcortex.model.parameters import rule_of
from fmcortex.training.engine import momenta, session_optimizer
from fmcortex.training.optimizer import prepare_gradient


def import_deepspeed() -> Any:
    """DeepSpeed, set up so that CPU runs need no compiler.

    On a CPU its communication would compile a shared-memory operator, half a minute on every new
    machine, and leave a lock behind where that is interrupted.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class DeepSpeedEngine:
    """The shared part on all ranks.

    To be made on every rank, after `torch.distributed` is up. With several ranks the weights of
    rank 0 count.

    Args:
        shared: the part, with the weights to start from.
        config: of the optimizer.
        compute: device of this rank.
        stage: of ZeRO: 0 replicates the optimizer, 1 shards its state, 2 the gradients too.
        start: momenta to continue from, by name.
    """

    def __init__(
        self,
        shared: SharedPart,
        config: TrainingConfig,
        compute: Compute,
        stage: int,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        deepspeed = import_deepspeed()
        from deepspeed import utils

        self._fragments = utils
        self.config, self.stage = config, stage
        shared.to(compute.device)
        optimizer = session_optimizer(shared, config)
        self.engine, *_ = deepspeed.initialize(
            model=shared,
            optimizer=optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_allreduce_op": "sum",
                "gradient_clipping": 0.0,
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {
                    "stage": stage,
                    "overlap_comm": False,
                    "reduce_bucket_size": 50_000_000,
                    "allgather_bucket_size": 50_000_000,
                },
            },
        )
        # ZeRO looks the state of all groups up after it has stepped the first one.
        optimizer.allocate()
        self.parameters = dict(shared.named_parameters())
        if start:
            self._load(start)

    @property
    def module(self) -> SharedPart:
        """The shared part."""
        module: SharedPart = self.engine.module
        return module

    @property
    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.engine.optimizer.param_groups
        return groups

    def _backward(self, gradients: Mapping[str, Tensor]) -> None:
        """Give every parameter its gradient, zero where there is none, and sum over the ranks."""
        surrogate = sum(
            (p * gradients[name]).sum() if name in gradients else (p * 0.0).sum()
            for name, p in self.parameters.items()
        )
        self.engine.backward(surrogate, scale_wrt_gas=False)

    def step(self, gradients: Mapping[str, Tensor], lr: float, streams: Collection[int]) -> None:
        """See `SharedEngine.step`."""
        self._backward(gradients)
        for p in self.parameters.values():
            if rule_of(p).stream in streams:
                summed = self._fragments.safe_get_full_grad(p)
                prepared = prepare_gradient(
                    summed, p.detach(), rule_of(p), self.config.clip, self.config.eps
                )
                self._fragments.safe_set_full_grad(p, prepared)
        for group in self._groups:
            group["lr"] = lr
            group["active"] = group["stream"] in streams
        self.engine.step()

    def momenta(self) -> dict[str, Tensor]:
        """See `SharedEngine.momenta`."""
        if self.stage == 0:
            return momenta(self.engine.optimizer)
        found = {}
        for name, p in self.parameters.items():
            value = None
            if self.engine.global_steps:
                value = self._fragments.safe_get_full_optimizer_state(p, "momentum_buffer")
            found[name] = (torch.zeros_like(p) if value is None else value).detach().cpu().clone()
        return found

    def _load(self, start: Mapping[str, Tensor]) -> None:
        # ZeRO links parameters to its state in a step; an empty one at rate 0 moves nothing.
        streams = {rule_of(p).stream or 0 for p in self.parameters.values()}
        self.step({}, 0.0, streams)
        for name, p in self.parameters.items():
            value = start[name].to(p)
            if self.stage == 0:
                self.engine.optimizer.state[p]["momentum_buffer"] = value.clone()
            else:
                self._fragments.safe_set_full_optimizer_state(p, value, "momentum_buffer")
