"""Runs the training step on several ranks without Ray: what each process does."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from cluster.placement import configured_costs, place_lanes
from cluster.worker import build_trainer
from fmcortex.config import RunConfig
from fmcortex.data.dataset import open_dataset
from fmcortex.data.loader import ClipLoader
from fmcortex.device import choose
from fmcortex.training.engine import momenta
from fmcortex.training.fit import neurons_of, plan_of


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def rank_main(
    rank: int, ranks: int, port: int, config: dict[str, Any], folder: str, first: int, last: int
) -> None:
    """Train steps `first` to `last` as one of `ranks`, and leave the state in `folder`."""
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK="0",
    )
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    counted = count_bytes()  # before DeepSpeed takes hold of the collectives
    run = RunConfig.model_validate(config)
    dataset = open_dataset(run.data.url)
    plan = plan_of(run, dataset)
    costs = configured_costs(neurons_of(dataset, plan.sessions), run.cluster.costs)
    placement = place_lanes(plan.lanes, costs, ranks)
    trainer, begin = build_trainer(run, dataset, plan, placement, choose("cpu"), rank)
    assert begin == first
    loader = ClipLoader(dataset, plan, placement.lanes[rank], first, last)
    for step, batches in enumerate(loader, start=first):
        if step == last - 1:
            counted.clear()
        trainer.step(step, batches)
    counted = dict(counted)
    moments = trainer.engine.momenta()
    state = {f"shared/{k}": v for k, v in trainer.engine.module.named_parameters()}
    state |= {f"shared/{k}/m": v for k, v in moments.items()}
    for name, part in trainer.sessions.items():
        state |= {f"{name}/{k}": v for k, v in part.named_parameters()}
        state |= {f"{name}/{k}/m": v for k, v in momenta(trainer.optimizers[name]).items()}
    state = {k: v.detach().clone().contiguous() for k, v in state.items()}
    save_file(state, f"{folder}/{rank}.safetensors", {k: str(v) for k, v in counted.items()})
    dist.destroy_process_group()


def count_bytes() -> dict[str, int]:
    """Count, from now on, the bytes of tensors that this rank hands to each collective."""
    counted: dict[str, int] = {}

    def wrap(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            tensors = [
                t
                for a in (*args, *options.values())
                for t in (a if isinstance(a, list | tuple) else [a])
                if isinstance(t, torch.Tensor)
            ]
            counted[name] = counted.get(name, 0) + sum(t.nbytes for t in tensors)
            return original(*args, **options)

        return call

    for name in (
        "all_reduce",
        "reduce",
        "broadcast",
        "all_gather",
        "all_gather_into_tensor",
        "reduce_scatter",
        "reduce_scatter_tensor",
        "all_to_all_single",
        "send",
        "isend",
    ):
        setattr(dist, name, wrap(name, getattr(dist, name)))
    return counted


def run_ranks(
    config: RunConfig, ranks: int, folder: Path, first: int = 0, last: int | None = None
) -> list[dict[str, torch.Tensor]]:
    """Train on `ranks` processes; the state of each afterwards."""
    folder.mkdir(parents=True)
    arguments = (
        ranks,
        free_port(),
        config.model_dump(mode="json"),
        str(folder),
        first,
        config.training.steps if last is None else last,
    )
    mp.start_processes(rank_main, arguments, ranks, start_method="spawn")
    return [load_file(folder / f"{rank}.safetensors") for rank in range(ranks)]
