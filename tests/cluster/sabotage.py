"""Ways to harm a rank at a chosen moment; each is called in the rank's process before it trains."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cluster.checkpoints
import cluster.loop
import cluster.watchdog
import fmcortex.data.loader
import fmcortex.training.checkpoint
import fmcortex.training.snapshot
import fmcortex.training.step
from cluster.engine import DeepSpeedEngine
from cluster.watchdog import Watchdog
from fmcortex import storage
from fmcortex.errors import StorageError
from fmcortex.training.step import Trainer

#: Steps at which the runs under test save; harm is done around the second.
EVERY, SECOND = 4, 8


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail() -> None:
    raise RuntimeError("sabotage")


def nth_call(owner: Any, name: str, number: int, act: Callable[[], None]) -> None:
    """Do `act` before the call of `owner.name` with that number, from 1."""
    original, calls = getattr(owner, name), [0]

    def patched(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == number:
            act()
        return original(*arguments, **options)

    setattr(owner, name, patched)


def around_write(part: str, act: Callable[[], None], wrote: float = 0.0) -> None:
    """Do `act` when the second checkpoint's file whose name ends in `part` is written.

    Args:
        part: end of the file's name.
        act: what is done.
        wrote: how much of the file is there by then, without care for atomicity.
    """
    original, whole = storage.write_bytes, f"step-{SECOND:08d}"

    def patched(url: str, content: bytes) -> None:
        if whole in url and url.endswith(part):
            if wrote:
                os.makedirs(os.path.dirname(url), exist_ok=True)
                with open(url, "wb") as stream:
                    stream.write(content[: int(len(content) * wrote)])
            act()
        original(url, content)

    storage.write_bytes = patched


#: Twelve moments and more: name -> (rank, None for all; what is patched there).
MOMENTS: dict[str, tuple[int | None, Callable[[], None]]] = {
    "before the first step, killed": (1, lambda: nth_call(Trainer, "step", 1, kill)),
    "in a step before the shared part moves, killed": (
        1,
        lambda: nth_call(DeepSpeedEngine, "step", SECOND - 1, kill),
    ),
    "between the shared part and the sessions, killed": (
        0,
        lambda: nth_call(fmcortex.training.step, "step_parameters", SECOND - 1, kill),
    ),
    "in a step, failed": (0, lambda: nth_call(DeepSpeedEngine, "reduce", SECOND - 2, fail)),
    "before saving, terminated": (1, lambda: nth_call(Trainer, "step", SECOND - 1, terminate)),
    "copying the state, killed": (1, lambda: nth_call(cluster.loop, "take_snapshot", 2, kill)),
    "before the first file, killed": (0, lambda: around_write("/shared.safetensors", kill)),
    "in the middle of a file, killed": (
        None,  # whichever rank holds that session
        lambda: around_write("mouse02-1-1.safetensors", kill, wrote=0.5),
    ),
    "while saving, terminated": (
        0,
        lambda: around_write("shared.optimizer.safetensors", terminate),
    ),
    "before the manifest, killed": (0, lambda: around_write("manifest.json", kill)),
    "in the middle of the manifest, killed": (
        0,
        lambda: around_write("manifest.json", kill, wrote=0.5),
    ),
    "after the manifest, before pruning, killed": (
        0,
        lambda: nth_call(cluster.checkpoints, "prune", 2, kill),
    ),
    "in the middle of pruning, killed": (0, lambda: nth_call(storage, "remove", 2, kill)),
    "after saving, failed": (1, lambda: nth_call(Trainer, "step", SECOND + 2, fail)),
}


def at_moment(moment: str, rank: int) -> None:
    """Interrupt the rank that `moment` names."""
    where, patch = MOMENTS[moment]
    if where in (None, rank):
        patch()


def meet(folder: str, rank: int) -> None:
    """Let rank 0, when it comes to remove the first old checkpoint, wait for a file `go-on`."""

    def wait() -> None:
        Path(folder, "reached").touch()
        while not Path(folder, "go-on").exists():
            time.sleep(0.01)

    if rank == 0:
        nth_call(cluster.checkpoints, "prune", 2, wait)


def sleep_for_ever() -> None:
    while True:
        time.sleep(1)


def impatient() -> Callable[[], None]:
    """What shortens the watchdog's limit, once it is called: all before may take its time."""
    made: list[Watchdog] = []
    armed = threading.Event()
    start, later = Watchdog.__enter__, faulthandler.dump_traceback_later

    def entered(dog: Watchdog) -> Watchdog:
        made.append(dog)
        return start(dog)

    def arm(timeout: float, **options: Any) -> None:
        later(timeout, **options)
        if timeout < 60:
            armed.set()

    def shorten() -> None:
        made[0].seconds = 4.0
        armed.wait()

    Watchdog.__enter__ = entered  # type: ignore[method-assign]
    faulthandler.dump_traceback_later = arm
    return shorten


def hang(how: str, rank: int) -> None:
    """Make rank 1 hang while it reads the clips of a later step."""
    cluster.watchdog.GRACE = 1.0
    if rank != 1:
        return
    shorten = impatient()
    if how == "asleep":

        def sleep() -> None:
            shorten()
            sleep_for_ever()

        nth_call(fmcortex.data.loader, "read_batch", 12, sleep)
    else:  # a foreign function that never gives back the interpreter's lock

        def hold() -> None:
            shorten()
            ctypes.PyDLL(None).sleep(100)

        nth_call(DeepSpeedEngine, "reduce", 6, hold)


def refuse_writes(first: int, last: int, rank: int) -> None:
    """Let the store refuse every file of the checkpoints after steps `first` to `last`."""
    cluster.checkpoints.BACK_OFF = (0.01, 0.02)
    refused = [f"step-{step:08d}" for step in range(first, last + 1)]
    original = storage.write_bytes

    def patched(url: str, content: bytes) -> None:
        if any(step in url for step in refused):
            raise StorageError(f"{url}: cannot write: the store is away")
        original(url, content)

    storage.write_bytes = patched


def infinite_response(session: str, neuron: int, step: int, rank: int) -> None:
    """Let a neuron's recorded response be infinite in one step."""
    original = fmcortex.data.loader.read_batch

    def patched(dataset: Any, draw: Any, *arguments: Any) -> Any:
        batch = original(dataset, draw, *arguments)
        if draw.session == session and draw.step == step:
            batch.responses[0, -1, neuron] = float("inf")
        return batch

    fmcortex.data.loader.read_batch = patched
