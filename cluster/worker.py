"""What each Ray Train worker runs: one rank of a pretraining."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Any

import torch

from cluster.loop import train_rank
from fmcortex import storage
from fmcortex.config import RunConfig
from fmcortex.errors import FmcortexError
from fmcortex.home import do_without_home
from fmcortex.tracking.run import RunLog
from fmcortex.tracking.system import system_metrics

#: Where a worker leaves an error that a restart would only repeat.
ERROR_FILE = "error.json"
#: Seconds between questions whether the run shall stop.
ASK_EVERY = 0.5


def train(arguments: dict[str, Any]) -> None:
    """The Ray Train loop of one worker.

    Args:
        arguments: `config` (a dumped RunConfig), `uri` and `run_id` of the MLflow run, `board`
            (an actor that hears of the progress, and knows whether the run shall stop).

    An error that the user must act on is left in the run's folder and raised; after the restart
    that follows, every worker sees it and returns at once.
    """
    import ray.train

    do_without_home()  # the command's own machine may be another
    config = RunConfig.model_validate(arguments["config"])
    failure = storage.join(config.output, ERROR_FILE)
    if storage.exists(failure):
        return
    torch.set_num_threads(config.cluster.cpus_per_worker)
    context = ray.train.get_context()
    rank = context.get_world_rank()
    local_rank = context.get_local_rank()
    log = RunLog(arguments["uri"], arguments["run_id"]) if local_rank == 0 else None
    try:
        with OnBoard(arguments["board"], rank) as outside, ExitStack() as stack:
            if log is not None:  # once a machine
                nodes = context.get_world_size() // context.get_local_world_size()
                node = f"node{context.get_node_rank()}" if nodes > 1 else None
                every = config.tracking.system_seconds
                stack.enter_context(system_metrics(log, every, node))
            train_rank(
                config,
                rank,
                context.get_world_size(),
                local_rank,
                outside,
                log if rank == 0 else None,
            )
    except FmcortexError as error:
        storage.write_json(failure, {"kind": type(error).__name__, "message": str(error)})
        raise


class OnBoard:
    """The driver's board, as a rank sees it (see `Outside`).

    Args:
        board: the driver's actor.
        rank: of this process; rank 0 asks whether the run shall stop.
    """

    def __init__(self, board: Any, rank: int) -> None:
        self.board, self.rank, self._asked = board, rank, False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="board", daemon=True)

    def __enter__(self) -> OnBoard:
        if self.rank == 0:
            self._thread.start()
        return self

    def _ask(self) -> None:
        import ray

        while not self._end.wait(ASK_EVERY):
            try:
                self._asked = self._asked or ray.get(self.board.stop_asked.remote(), timeout=10)
            except Exception:  # the driver may be busy; it is asked again
                continue

    def start(self, done: int, note: str) -> None:
        self.board.start.remote(done, note)

    def stage(self, what: str) -> None:
        if self.rank == 0:
            self.board.stage.remote(what)

    def tell(self, done: int, note: str) -> None:
        self.board.tell.remote(done, note)

    def say(self, line: str) -> None:
        self.board.say.remote(line)

    def stop_asked(self) -> bool:
        return self._asked

    def __exit__(self, *exception: object) -> None:
        self._end.set()
