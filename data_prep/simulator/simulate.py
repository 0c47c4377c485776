"""Simulating an experiment: one folder of recordings per mouse, with its ground truth beside it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Protocol

from data_prep.simulator.digital_twin_layout import DigitalTwinWriter
from data_prep.simulator.plan import make_plan
from data_prep.simulator.sensorium_layout import SensoriumWriter
from data_prep.simulator.session import Recorded, Session, session_name
from data_prep.simulator.settings import SimulationSettings
from data_prep.simulator.signals_layout import SignalsWriter
from data_prep.simulator.truth import TruthWriter
from fmcortex import storage
from fmcortex.errors import ConfigError, DataError, FmcortexError, StorageError


class Writer(Protocol):
    """What writes a session: each trial as it comes, then what is known only at the end."""

    def add(self, recorded: Recorded) -> None:
        """Write one trial."""

    def finish(self) -> None:
        """Write what concerns all trials."""


WRITERS: dict[str, Callable[[Path, Session], Writer]] = {
    "sensorium2023": SensoriumWriter,
    "digital_twin": DigitalTwinWriter,
    "signals": SignalsWriter,
}


def simulate(
    settings: SimulationSettings,
    out: str | Path,
    progress: Callable[[str], None] | None = None,
    sessions: Iterable[int] | None = None,
    workers: int = 1,
) -> list[Path]:
    """Simulate mice and write their recordings to `out/<session>`, each whole or not at all.

    A session is a pure function of the settings and its index: mice can be added later. A run that
    is killed leaves at most a hidden folder `out/.<session>.<hex>.partial`, which may be removed.

    Args:
        settings: of the experiment.
        out: a local folder.
        progress: called with a line for each session written.
        sessions: indices (from 0) of the sessions to write; all of `settings.mice` if None.
        workers: processes that simulate sessions side by side.

    Returns:
        The session folders, in the order of their indices.

    Raises:
        DataError: a session's folder exists already, or a video file is unfit.
        ConfigError: `out` is not a local folder, or `sessions` or `workers` makes no sense.
        StorageError: `out` cannot be written.
    """
    if not storage.is_local(str(out)):
        raise ConfigError(f"{out}: simulated recordings are written to a local folder only")
    folder = Path(storage.absolute(str(out)))
    indices = sorted(set(range(settings.mice) if sessions is None else sessions))
    if any(index < 0 for index in indices):
        raise ConfigError(f"sessions: {indices[0]} is negative; sessions count from 0")
    if any(index >= settings.mice for index in indices):
        raise ConfigError(
            f"sessions: there is no mouse {indices[-1]} of {settings.mice}; they count from 0"
        )
    if workers < 1:
        raise ConfigError(f"workers: {workers} must be 1 or more")
    for index in indices:
        path = folder / session_name(index)
        if path.exists():
            raise DataError(f"{path}: exists already; remove it or choose another folder")
    if indices:
        make_plan(settings, indices[0])  # complains about video files before any work is done
    report = progress or (lambda line: None)
    if workers == 1 or len(indices) < 2:
        results = (_write_session(settings, index, folder) for index in indices)
        return _collect(results, len(indices), report)
    # Spawned, not forked: the caller may hold threads (Ray, BLAS).
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(indices)), mp_context=context) as pool:
        futures = [pool.submit(_write_session, settings, index, folder) for index in indices]
        try:
            return _collect((future.result() for future in futures), len(indices), report)
        except BrokenProcessPool as error:
            raise FmcortexError("simulate: a worker process was killed (out of memory?)") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _collect(
    results: Iterable[tuple[Path, str]], total: int, report: Callable[[str], None]
) -> list[Path]:
    paths = []
    for number, (path, line) in enumerate(results, start=1):
        report(f"[{number}/{total}] {line}")
        paths.append(path)
    return paths


def _write_session(settings: SimulationSettings, index: int, folder: Path) -> tuple[Path, str]:
    """Simulate one session under a temporary name and rename it when it is whole."""
    name = session_name(index)
    final = folder / name
    # Hidden, so that nobody takes what a killed run leaves for a session.
    temporary = folder / f".{name}.{uuid.uuid4().hex}.partial"
    try:
        (temporary / "truth").mkdir(parents=True)
        session = Session(settings, index)
        writers: list[Writer] = [
            WRITERS[settings.layout](temporary, session),
            TruthWriter(temporary / "truth", session),
        ]
        for recorded in session.record():
            for writer in writers:
                writer.add(recorded)
        for writer in writers:
            writer.finish()
        if final.exists():
            raise DataError(f"{final}: was written by another run meanwhile")
        os.rename(temporary, final)
    except OSError as error:
        raise StorageError(f"{final}: cannot write: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    minutes = sum(
        trial.video.frames for trial in session.plan.trials if trial.video.tier == "train"
    ) / (60 * settings.frame_rate)
    line = f"{name}: {settings.neurons} neurons, {len(session.plan.trials)} trials, "
    return final, line + f"{minutes:.1f} minutes of training"
