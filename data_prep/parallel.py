"""One function over all sessions, in this process or as Ray tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fmcortex.errors import DataError, FmcortexError

Call = tuple[Any, ...]


def each(
    function: Callable[..., Any], calls: Sequence[Call], workers: int
) -> Iterator[tuple[int, Any]]:
    """Call `function` with each of `calls`; a failing call does not stop the others.

    Args:
        function: a function of a module, so that Ray workers can import it.
        calls: the arguments of each call.
        workers: Ray tasks at a time; 0 calls one after the other in this process.

    Yields:
        The number of a call and its result, or the `FmcortexError` that it raised, in the order
        in which they end. Any other exception is a defect and is raised.
    """
    if workers == 0:
        for number, arguments in enumerate(calls):
            try:
                yield number, function(*arguments)
            except FmcortexError as error:
                yield number, error
        return
    yield from _each_as_ray_task(function, calls)


def _each_as_ray_task(
    function: Callable[..., Any], calls: Sequence[Call]
) -> Iterator[tuple[int, Any]]:
    import ray

    task = ray.remote(num_cpus=1, max_retries=1)(function)
    pending = {task.remote(*arguments): number for number, arguments in enumerate(calls)}
    while pending:
        ready, _ = ray.wait(list(pending))
        for reference in ready:
            number = pending.pop(reference)
            try:
                yield number, ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, FmcortexError):
                    raise
                yield number, error.cause
            except ray.exceptions.RayError as error:
                # The worker died, most often for want of memory.
                first = str(error).strip().splitlines()[0]
                yield number, DataError(f"{calls[number][0]}: the Ray worker died: {first}")


@contextmanager
def ray_cluster(workers: int) -> Iterator[None]:
    """A Ray cluster of `workers` CPUs for the block, unless one is connected or `workers` is 0."""
    if workers == 0:
        yield
        return
    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        yield
    finally:
        ray.shutdown()
