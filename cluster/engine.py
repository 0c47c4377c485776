"""The shared part in a DeepSpeed engine: gradients summed over ranks, the optimizer sharded (ZeRO).

Each rank takes the gradients of its micro-batches itself and hands their sum to DeepSpeed as one
linear surrogate loss a step. So every rank joins the same collectives however many lanes it
carries, and what is communicated does not grow with them. The parts of the sessions never enter.

Between steps ZeRO 3 leaves each rank its share of the weights only. They are put together once a
step rather than once a layer and micro-batch: ranks with different numbers of lanes could not join
the same collectives otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fmcortex.config import TrainingConfig
from fmcortex.device import Compute
from fmcortex.model.network import SharedPart
from fmcortex.model.parameters import rule_of
from fmcortex.training.optimizer import load_optimizer_state, make_optimizer, optimizer_state


def import_deepspeed(on_cpu: bool | None = None) -> Any:
    """DeepSpeed, set up so that CPU runs need no compiler.

    Args:
        on_cpu: whether it is to compute on the CPU, whatever the machine has; None: if there is no
            GPU.

    On a CPU its communication would compile a shared-memory operator, half a minute on every new
    machine, and leave a lock behind where that is interrupted. And in every step of ZeRO 3 it would
    run `numactl` to count the CPU's devices, which fails where a folder of the PATH may not be
    read. One is what it counts without `numactl`.
    """
    if on_cpu is None:
        on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("LOCAL_SIZE", "1")
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    if on_cpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class Surrogate(nn.Module):
    """The parameters that DeepSpeed sees, and a loss whose gradients are those given.

    Args:
        parameters: by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        super().__init__()
        # As this module's own parameters: ZeRO 3 gathers what the module that is called owns.
        for name, p in parameters.items():
            self.register_parameter(name.replace(".", ":"), p)

    @property
    def by_name(self) -> dict[str, nn.Parameter]:
        """The parameters by their names in the shared part."""
        return {name.replace(":", "."): p for name, p in self.named_parameters()}

    def forward(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The sum of each parameter times its gradient; None stands for zeros."""
        terms = [
            (p * (0.0 if gradient is None else gradient)).sum()
            for p, gradient in zip(self.parameters(), gradients, strict=True)
        ]
        return torch.stack(terms).sum()


class DeepSpeedEngine:
    """The shared part on all ranks.

    To be made on every rank, after `torch.distributed` is up. With several ranks the weights of
    rank 0 count.

    Args:
        shared: the part, with the weights to start from.
        config: of the optimizer.
        compute: device of this rank.
        stage: of ZeRO: 0 replicates the optimizer, 1 shards its state, 2 the gradients too, 3 the
            weights too, between steps.
        start: state of the optimizer to continue from, as `state` gives it.
    """

    def __init__(
        self,
        shared: SharedPart,
        config: TrainingConfig,
        compute: Compute,
        stage: int,
        start: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._deepspeed = import_deepspeed(compute.device.type == "cpu")
        from deepspeed import utils

        self._fragments = utils
        self.config, self.stage = config, stage
        self._module = shared.to(compute.device)
        self.names = [name for name, _ in shared.named_parameters()]
        parameters = dict(shared.named_parameters())
        if stage == 3:
            parameters = {name: _copy(p) for name, p in parameters.items()}
        surrogate = Surrogate(parameters)
        self.optimizer = make_optimizer(parameters, config)
        self.engine, *_ = self._deepspeed.initialize(
            model=surrogate,
            optimizer=self.optimizer,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                # ZeRO 3 knows the mean only; `_backward` makes up for it.
                **({"gradient_allreduce_op": "sum"} if stage < 3 else {}),
                "gradient_clipping": 0.0,
                "zero_allow_untested_optimizer": True,
                "zero_optimization": {
                    "stage": stage,
                    "overlap_comm": False,
                    "reduce_bucket_size": 50_000_000,
                    "allgather_bucket_size": 50_000_000,
                    # One piece a group of parameters, so that a group is stepped once.
                    "sub_group_size": 1_000_000_000_000,
                    "stage3_param_persistence_threshold": 0,
                },
            },
        )
        # ZeRO looks the state of all groups up after it has stepped the first one.
        self.optimizer.allocate()
        self.parameters = surrogate.by_name
        self._whole = True
        if start:
            self._load(start)

    @property
    def module(self) -> SharedPart:
        """The shared part."""
        return self._module

    @property
    def _groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self.engine.optimizer.param_groups
        return groups

    def gather(self) -> None:
        """See `SharedEngine.gather`."""
        if self._whole:
            return
        with self._deepspeed.zero.GatheredParameters(list(self.parameters.values())):
            for name, p in self._module.named_parameters():
                p.data = self.parameters[name].detach().clone()
        self._whole = True

    def reduce(
        self, gradients: Mapping[str, Tensor], streams: Collection[int]
    ) -> dict[str, Tensor]:
        """See `SharedEngine.reduce`."""
        wanted = {
            name: p
            for name, p in self.parameters.items()
            if rule_of(p).stream is None or rule_of(p).stream in streams
        }
        if self.stage == 0:
            self._backward(gradients)
            return {name: p.grad for name, p in wanted.items() if p.grad is not None}
        # ZeRO would hand each rank its share alone, and clipping needs whole gradients: they are
        # summed here, in one piece, and DeepSpeed is given the sum (see `step`).
        shapes = {name: self._module.get_parameter(name) for name in wanted}
        flat = torch.cat(
            [
                gradients[name].flatten() if name in gradients else torch.zeros_like(p).flatten()
                for name, p in shapes.items()
            ]
        )
        dist.all_reduce(flat)
        parts = flat.split([p.numel() for p in shapes.values()])
        return {
            name: part.view_as(p) for (name, p), part in zip(shapes.items(), parts, strict=True)
        }

    def step(self, gradients: Mapping[str, Tensor], lr: float, streams: Collection[int]) -> None:
        """See `SharedEngine.step`."""
        for group in self._groups:
            group["lr"] = lr
            group["active"] = bool(streams) and (
                group["stream"] is None or group["stream"] in streams
            )
        if self.stage == 0:
            for name, gradient in gradients.items():
                self._fragments.safe_set_full_grad(self.parameters[name], gradient)
        else:
            # One rank has it all and the others nothing, so that DeepSpeed's sum is exact.
            self._backward(gradients if dist.get_rank() == 0 else {})
        self.engine.step()
        if self.stage == 3:
            for p in self._module.parameters():
                p.data = p.data.new_empty(0)
            self._whole = False

    def _backward(self, gradients: Mapping[str, Tensor]) -> None:
        """Let DeepSpeed sum gradients over all ranks; of ZeRO 1 to 3, into each rank's share."""
        surrogate = self.engine([gradients.get(name) for name in self.names])
        if self.stage == 3:
            surrogate = surrogate * dist.get_world_size()
        self.engine.backward(surrogate, scale_wrt_gas=False)

    def state(self) -> dict[str, Tensor]:
        """See `SharedEngine.state`."""
        if self.stage == 0:
            return optimizer_state(self.optimizer)
        self.gather()
        found = {}
        steps = {name: group["steps"] for group in self._groups for name in group["names"]}
        for name, p in self.parameters.items():
            for moment in self.optimizer.moments:
                value = None
                if self.engine.global_steps:
                    value = self._fragments.safe_get_full_optimizer_state(p, moment)
                shape = self._module.get_parameter(name)
                value = torch.zeros_like(shape) if value is None else value.view_as(shape)
                found[f"{moment}/{name}"] = value.detach().to("cpu", copy=True)
            found[f"steps/{name}"] = torch.tensor(steps[name])
        return found

    def _load(self, start: Mapping[str, Tensor]) -> None:
        if self.stage == 0:
            load_optimizer_state(self.optimizer, start)
            return
        # ZeRO links parameters to its state in a step; an empty one at rate 0 moves nothing.
        streams = {rule_of(p).stream or 0 for p in self.parameters.values()}
        self.reduce({}, streams)
        self.step({}, 0.0, streams)
        for name, p in self.parameters.items():
            for moment in self.optimizer.moments:
                value = start[f"{moment}/{name}"].to(device=p.device, dtype=p.dtype)
                self._fragments.safe_set_full_optimizer_state(p, value, moment)
        for group in self._groups:
            group["steps"] = int(start[f"steps/{group['names'][0]}"])


def _copy(p: nn.Parameter) -> nn.Parameter:
    copy = nn.Parameter(p.detach().clone())
    copy.rule = rule_of(p)  # type: ignore[attr-defined]
    return copy
