"""Ranks of a benchmark: processes over gloo on this machine, without Ray."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

#: What a rank does when it is asked something.
Answer = Callable[[Any], Any]

#: The collectives through which tensors leave a rank.
COLLECTIVES = (
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
)


class Group:
    """Ranks that wait to be asked; several groups may be there at once and work in turn.

    Args:
        make: is called in each process, once `torch.distributed` is up, with its rank, the
            number of ranks and `arguments`; what it returns answers each question. Picklable.
        ranks: how many.
        arguments: for `make`.
    """

    def __init__(self, make: Callable[..., Answer], ranks: int, *arguments: Any) -> None:
        context = multiprocessing.get_context("forkserver")
        port = _free_port()
        self._pipes, self._processes = [], []
        for rank in range(ranks):
            mine, theirs = context.Pipe()
            process = context.Process(
                target=_main, args=(theirs, make, rank, ranks, port, arguments), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(mine)
            self._processes.append(process)

    def ask(self, question: Any = None) -> list[Any]:
        """The answers of all ranks.

        Raises:
            RuntimeError: a rank has failed; with its traceback.
        """
        for pipe in self._pipes:
            pipe.send(question)
        answers = []
        for pipe in self._pipes:
            fine, answer = pipe.recv()
            if not fine:
                self.close()
                raise RuntimeError(f"a rank has failed:\n{answer}")
            answers.append(answer)
        return answers

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()


def run_ranks(work: Callable[..., Any], ranks: int, *arguments: Any) -> list[Any]:
    """What `work(rank, ranks, *arguments)` returns on each of `ranks` processes."""
    group = Group(_once, ranks, work, *arguments)
    try:
        return group.ask()
    finally:
        group.close()


def _once(rank: int, ranks: int, work: Callable[..., Any], *arguments: Any) -> Answer:
    return lambda question: work(rank, ranks, *arguments)


def _main(
    pipe: Connection,
    make: Callable[..., Answer],
    rank: int,
    ranks: int,
    port: int,
    arguments: tuple[Any, ...],
) -> None:
    warnings.simplefilter("ignore", FutureWarning)  # of what DeepSpeed calls
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK="0",
    )
    try:
        dist.init_process_group("gloo", rank=rank, world_size=ranks)
        answer = make(rank, ranks, *arguments)
        while True:
            pipe.send((True, answer(pipe.recv())))
    except EOFError:
        pass
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def count_bytes() -> dict[str, int]:
    """Count, from now on, the bytes of tensors that this rank hands to each collective.

    To be called before DeepSpeed or DistributedDataParallel are set up. What the latter sends from
    C++ is counted only with a communication hook, which sends it from Python.
    """
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

    for name in COLLECTIVES:
        setattr(dist, name, wrap(name, getattr(dist, name)))
    return counted
