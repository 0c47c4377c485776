"""Many small tasks of several jobs, in this process or as Ray tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fmcortex.errors import ConfigError, DataError, FmcortexError, WorkerError


@dataclass
class Task:
    """A call of a function of a module, so that Ray workers can import it.

    Attributes:
        function: that is called.
        arguments: of the call.
        then: called in the driver with the result; returns the tasks that it makes possible.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    then: Callable[[Any], list[Task]]


class Job(Protocol):
    """Tasks that belong together: where one fails, the others are not done."""

    name: str
    error: FmcortexError | None

    def start(self) -> list[Task]:
        """The first tasks."""
        ...

    def failed(self, error: FmcortexError) -> None:
        """A task failed, and none of the job is running any more."""
        ...


@dataclass
class _State:
    job: Job
    running: int = 0
    error: FmcortexError | None = None
    waiting: deque[Task] = field(default_factory=deque)


def run(jobs: Sequence[Job], workers: int) -> None:
    """Do all tasks of all jobs; the failure of one job does not stop the others.

    Jobs are worked on in their order, and the next is begun only when the earlier ones leave a
    worker idle, so that few of them are unfinished at a time.

    Args:
        jobs: that are done.
        workers: tasks at a time, of the Ray that is connected; 0 calls one after the other in this
            process.

    Raises:
        ConfigError: no Ray is connected.
        Exception: any but `FmcortexError` of a task is a defect and ends the run.
    """
    if workers == 0:
        for job in jobs:
            _run_here(job)
    else:
        _run_on_ray(jobs, workers)


def raise_failures(jobs: Sequence[Job]) -> None:
    """If any job failed, raise one error that names each failure."""
    failures = [job.error for job in jobs if job.error is not None]
    if len(failures) == 1:
        raise failures[0]
    if failures:
        kinds = {type(error) for error in failures}
        kind: type[FmcortexError] = kinds.pop() if len(kinds) == 1 else DataError
        listed = "; ".join(map(str, failures))
        raise kind(f"{len(failures)} of {len(jobs)} sessions failed: {listed}")


def _run_here(job: Job) -> None:
    try:
        waiting = deque(job.start())
        while waiting:
            task = waiting.popleft()
            waiting.extend(task.then(task.function(*task.arguments)))
    except FmcortexError as error:
        job.failed(error)


def _run_on_ray(jobs: Sequence[Job], workers: int) -> None:
    import ray

    if not ray.is_initialized():
        raise ConfigError("workers: no Ray is connected; pass within=ray_session(workers), or 0")
    ahead = deque(jobs)
    active: list[_State] = []
    running: dict[Any, tuple[_State, Task]] = {}
    while ahead or active:
        while len(running) < workers:
            state = next((s for s in active if s.waiting and s.error is None), None)
            if state is None:
                if not ahead:
                    break
                job = ahead.popleft()
                state = _State(job)
                _advance(state, job.start)
                active.append(state)
            else:
                task = state.waiting.popleft()
                remote = ray.remote(num_cpus=1, max_retries=1)(task.function)
                running[remote.remote(*task.arguments)] = state, task
                state.running += 1
            active = _settled(active)
        active = _settled(active)
        if running:
            ready, _ = ray.wait(list(running))
            for reference in ready:
                state, task = running.pop(reference)
                state.running -= 1
                _advance(state, lambda r=reference, t=task: t.then(_result(r, t)))  # type: ignore[misc]
        active = _settled(active)


def _advance(state: _State, step: Callable[[], list[Task]]) -> None:
    try:
        state.waiting.extend(step())
    except FmcortexError as error:
        state.error = state.error or error


def _settled(active: list[_State]) -> list[_State]:
    """The jobs that go on; those that failed are told once none of their tasks runs."""
    left = []
    for state in active:
        if state.running or (state.waiting and state.error is None):
            left.append(state)
        elif state.error is not None:
            state.job.failed(state.error)
    return left


def _result(reference: Any, task: Task) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if not isinstance(error.cause, FmcortexError):
            raise
        raise error.cause from None
    except ray.exceptions.RayError as error:
        # The worker died, most often for want of memory.
        first = str(error).strip().splitlines()[0]
        raise WorkerError(f"{task.arguments[0]}: the Ray worker died: {first}") from error
