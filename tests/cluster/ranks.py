"""Runs the loop of several ranks without Ray: what each process does."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cluster.loop import Nobody, train_rank
from fmcortex.config import RunConfig
from fmcortex.training.optimizer import optimizer_state
from fmcortex.training.step import Trainer

Sabotage = Callable[[int], None]


class Told(Nobody):
    """Stops when the process is sent a signal; keeps what is said."""

    def __init__(self) -> None:
        self.asked = False
        self.lines: list[str] = []
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.hear)

    def hear(self, number: int, frame: object) -> None:
        self.asked = True

    def say(self, line: str) -> None:
        self.lines.append(line)

    def stop_asked(self) -> bool:
        return self.asked


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def rank_main(
    rank: int,
    ranks: int,
    port: int,
    config: dict[str, Any],
    folder: str,
    last: int | None,
    sabotage: Sabotage | None,
    environment: dict[str, str],
) -> None:
    """Train as one of `ranks`, and leave the state in `folder`."""
    torch.set_num_threads(1)
    os.environ.update(
        environment,
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK="0",
    )
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    counted = count_bytes()  # before DeepSpeed takes hold of the collectives
    of_step: dict[str, int] = {}
    original = Trainer.step

    def step(self: Trainer, *arguments: Any) -> Any:
        counted.clear()
        report = original(self, *arguments)
        of_step.clear()
        of_step.update(counted)
        return report

    Trainer.step = step  # type: ignore[method-assign]
    if sabotage is not None:
        sabotage(rank)
    told = Told()
    start = train_rank(RunConfig.model_validate(config), rank, ranks, outside=told, last=last)
    trainer = start.trainer
    trainer.engine.gather()
    state = {f"shared/{k}": v for k, v in trainer.engine.module.named_parameters()}
    state |= {f"shared/{k}": v for k, v in trainer.engine.state().items()}
    for name, part in trainer.sessions.items():
        state |= {f"{name}/{k}": v for k, v in part.named_parameters()}
        state |= {f"{name}/{k}": v for k, v in optimizer_state(trainer.optimizers[name]).items()}
    state = {k: v.detach().clone().contiguous() for k, v in state.items()}
    notes = {k: str(v) for k, v in of_step.items()}
    save_file(state, f"{folder}/{rank}.safetensors", {**notes, "said": "\n".join(told.lines)})
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
    config: RunConfig,
    ranks: int,
    folder: Path,
    last: int | None = None,
    sabotage: Sabotage | None = None,
) -> list[dict[str, torch.Tensor]]:
    """Train on `ranks` processes, from the newest checkpoint on; the state of each afterwards.

    Args:
        config: of the run.
        ranks: how many.
        folder: for what they leave; must not exist.
        last: the step after which they save and stop; None for the run's last.
        sabotage: is called in each process before it trains, with its rank.
    """
    folder.mkdir(parents=True)
    arguments = (
        ranks,
        free_port(),
        config.model_dump(mode="json"),
        str(folder),
        last,
        sabotage,
        dict(os.environ),  # the server has those of its own start
    )
    _start_server()
    mp.start_processes(rank_main, arguments, ranks, start_method="forkserver")
    return [load_file(folder / f"{rank}.safetensors") for rank in range(ranks)]


def _start_server() -> None:
    """Start the process that ranks are forked from, if it is not there: it imports all once."""
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11 does not hand sys.path on, and passes in silence over what it cannot import.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        multiprocessing.set_forkserver_preload(["preload"])
        forkserver.ensure_running()


def bytes_of_step(folder: Path, rank: int = 0) -> dict[str, int]:
    """Bytes that a rank of `run_ranks` handed to each collective in its last step."""
    with safe_open(folder / f"{rank}.safetensors", "pt") as file:
        return {k: int(v) for k, v in (file.metadata() or {}).items() if k != "said"}


def said(folder: Path, rank: int = 0) -> list[str]:
    """What a rank of `run_ranks` said to the user."""
    with safe_open(folder / f"{rank}.safetensors", "pt") as file:
        return (file.metadata() or {})["said"].splitlines()
