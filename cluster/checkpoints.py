"""Checkpoints of many ranks: each writes what it holds, in the background; the manifest is last.

A save has two stages, each in a thread: all ranks write their files; then rank 0 writes the
manifest of all of them. The ranks agree between steps that a stage has ended, so that all see the
same.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from fmcortex.config import RunConfig
from fmcortex.data.identity import TrainedOn
from fmcortex.errors import DataError, StorageError
from fmcortex.training.checkpoint import (
    CheckpointManifest,
    StoredFile,
    prune,
    step_folder,
    write_manifest,
)
from fmcortex.training.peers import Peers
from fmcortex.training.snapshot import Snapshot, write_snapshot

#: Seconds to wait before a file is tried again.
BACK_OFF = (1.0, 4.0, 10.0)
#: Niceness of the thread that writes.
BACKGROUND = 10

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Saved:
    """How a save ended, the same on every rank.

    Attributes:
        step: that was to be saved.
        folder: of the checkpoint.
        seconds: from the snapshot to the manifest.
        problem: why it failed; None if it did not.
        failures: saves in a row, this one included, that have failed.
    """

    step: int
    folder: str
    seconds: float
    problem: str | None
    failures: int


@dataclass(frozen=True)
class _Broken:
    """A state that cannot be saved, however often it is tried."""

    problem: str


class Saver:
    """Saves snapshots while training goes on; one at a time.

    All ranks must make the same calls between the same steps.

    Args:
        config: of the run.
        rank: of this process.
        peers: the other ranks.
        kept: steps of older checkpoints that are never removed.
        beat: hears of everything that is written, from the writing thread.
        data: what each session is that is trained on.
    """

    def __init__(
        self,
        config: RunConfig,
        rank: int,
        peers: Peers,
        kept: Sequence[int] = (),
        beat: Callable[[str], None] = lambda what: None,
        data: Mapping[str, TrainedOn] | None = None,
    ) -> None:
        self.data = dict(data or {})
        self.config, self.rank, self.peers, self.kept, self.beat = config, rank, peers, kept, beat
        self.failures = 0
        self._pool = ThreadPoolExecutor(1, "checkpoint", initializer=_step_back)
        self._work: Future[object] | None = None
        self._snapshot: Snapshot | None = None
        self._declaring = False
        self._began = 0.0

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._snapshot is not None

    @property
    def written(self) -> bool:
        """Whether this rank has nothing to wait for in the present stage."""
        return self._work is None or self._work.done()

    def start(self, snapshot: Snapshot) -> None:
        """Begin to save; there must be no other save under way."""
        assert not self.busy
        self._snapshot, self._declaring, self._began = snapshot, False, time.monotonic()
        self._work = self._pool.submit(self._write, snapshot)

    def advance(self) -> Saved | None:
        """Go on to the next stage, once all ranks have `written`; waits for those that have not.

        Returns:
            How the save ended, if it has.

        Raises:
            DataError: on all ranks: some of the state is not finite, and was not saved.
        """
        snapshot = self._snapshot
        assert snapshot is not None
        if not self._declaring:
            told = self.peers.gather((self._result(), snapshot.units))
            for entries, _ in told:
                if isinstance(entries, _Broken):
                    raise DataError(entries.problem)
            problems = [entries for entries, _ in told if isinstance(entries, str)]
            if problems:
                return self._ended(problems[0])
            self._declaring = True
            self._work = None
            if self.rank == 0:
                units = {name: n for _, some in told for name, n in some.items()}
                files = {name: entry for entries, _ in told for name, entry in entries.items()}
                self._work = self._pool.submit(self._declare, snapshot, units, files)
            return None
        result = self._result()
        return self._ended(self.peers.gather(result)[0])

    def finish(self) -> Saved | None:
        """Wait until the save under way, if there is one, has ended."""
        ended = None
        while self.busy:
            ended = self.advance()
        return ended

    def close(self) -> None:
        """End the writing thread; what it is writing is left without a manifest."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _result(self) -> object:
        """What this rank's work gave; the message, if it failed."""
        if self._work is None:
            return None
        try:
            return self._work.result()
        except StorageError as error:
            return str(error)
        except DataError as error:
            return _Broken(str(error))

    def _ended(self, problem: object) -> Saved:
        snapshot = self._snapshot
        assert snapshot is not None
        self.failures = self.failures + 1 if problem else 0
        self._snapshot = self._work = None
        return Saved(
            step=snapshot.step,
            folder=step_folder(self.config.output, snapshot.step),
            seconds=time.monotonic() - self._began,
            problem=str(problem) if problem else None,
            failures=self.failures,
        )

    def _write(self, snapshot: Snapshot) -> dict[str, StoredFile]:
        folder = step_folder(self.config.output, snapshot.step)
        entries: dict[str, StoredFile] = {}
        for name, tensors in snapshot.files.items():
            one = Snapshot(snapshot.step, {name: tensors}, {}, {}, 0)
            entries |= self._patiently(partial(write_snapshot, folder, one))
            self.beat(f"writing {name}")
        return entries

    def _declare(
        self, snapshot: Snapshot, units: dict[str, int], files: dict[str, StoredFile]
    ) -> None:
        config = self.config
        manifest = CheckpointManifest(
            step=snapshot.step,
            model=config.model,
            units=units,
            files=files,
            config=config.model_dump(mode="json"),
            drawn=snapshot.drawn,
            data=self.data,
            skipped=snapshot.skipped,
            kept=list(self.kept),
        )
        folder = step_folder(config.output, snapshot.step)
        self._patiently(partial(write_manifest, folder, manifest))
        with suppress(StorageError):  # what cannot be removed now is removed after the next save
            prune(config.output, config.checkpoint.keep, self.kept)

    def _patiently(self, write: Callable[[], Loaded]) -> Loaded:
        """Write, and try again after a while where that fails: stores have bad minutes."""
        for seconds in BACK_OFF:
            try:
                return write()
            except StorageError as error:
                self.beat(f"trying again: {error}")
                time.sleep(seconds)
        return write()


def _step_back() -> None:
    """Let this thread use what training leaves of the processor (on Linux, where threads have a
    priority of their own).

    Ray starts its workers at a lower priority still, and only root may raise one.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        if os.getpriority(os.PRIO_PROCESS, thread) < BACKGROUND:
            with suppress(OSError):  # a sandbox may refuse; the files are what counts
                os.setpriority(os.PRIO_PROCESS, thread, BACKGROUND)


def any_rank(peers: Peers, *flags: bool) -> list[bool]:
    """Whether each flag is set on some rank."""
    told = peers.sum(torch.tensor([float(flag) for flag in flags]))
    return [value > 0 for value in told.tolist()]
