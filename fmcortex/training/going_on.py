"""Where a run goes on: its newest checkpoint that can be read, and its MLflow run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from fmcortex import storage
from fmcortex.config import RunConfig
from fmcortex.errors import CheckpointError, ConfigError, StorageError
from fmcortex.tracking.resume import open_run as mlflow_run
from fmcortex.tracking.run import RunLog, tracking_uri
from fmcortex.tracking.run_file import RunFile, read_run_file, write_run_file
from fmcortex.tracking.store import sqlite_file
from fmcortex.training.checkpoint import MANIFEST, Checkpoint, list_checkpoints
from fmcortex.training.peers import Peers
from fmcortex.training.same_run import different_settings, refuse_other_settings

#: The manifest of a checkpoint that was set aside, which has no other.
CORRUPT = "manifest.corrupt.json"

Loaded = TypeVar("Loaded")


def load_newest(
    run: str,
    load: Callable[[Checkpoint], Loaded],
    peers: Peers,
    rank: int,
    warn: Callable[[str], None],
) -> Loaded | None:
    """What `load` reads from the newest checkpoint of a run that all ranks can read.

    Args:
        run: folder of the run.
        load: reads what this rank needs; raises CheckpointError where that is corrupt.
        peers: the other ranks, all of which must call this.
        rank: of this process.
        warn: hears of checkpoints that are passed over; on rank 0.

    Those that are passed over are set aside once an older one was read, so that they neither count
    as the newest nor as one of those that are kept.

    Returns:
        None without any checkpoint.

    Raises:
        CheckpointError: there are checkpoints, and none can be read; nothing is touched.
    """
    folders = peers.gather(list_checkpoints(run) if rank == 0 else [])[0]
    passed: list[str] = []
    first = ""
    for folder in folders:  # all ranks try the same ones
        loaded, problem = None, None
        try:
            checkpoint = Checkpoint(folder)
            if rank == 0 and checkpoint.remark:
                warn(checkpoint.remark)
            loaded = load(checkpoint)
        except (CheckpointError, StorageError) as error:
            problem = str(error)
        problems = [told for told in peers.gather(problem) if told]
        if not problems:
            if rank == 0:
                for corrupt in passed:
                    _set_aside(corrupt, warn)
            return loaded
        first = first or problems[0]
        passed.append(folder)
        if rank == 0 and folder != folders[-1]:
            warn(f"{problems[0]}; trying the checkpoint before it")
    if folders:
        one = len(folders) == 1
        raise CheckpointError(
            f"{run}: {'its checkpoint' if one else f'none of its {len(folders)} checkpoints'} can"
            f"{'not' * one} be read, and starting anew would replace {'it' if one else 'them'}: "
            f"{first}; restore {'it' if one else 'one'}, choose another output, or move "
            f"{storage.join(run, 'checkpoints')} away to start anew"
        )
    return None


def _set_aside(folder: str, warn: Callable[[str], None]) -> None:
    """Leave a corrupt checkpoint where it is, as none: for whoever wants to look into it."""
    manifest = storage.join(folder, MANIFEST)
    try:
        storage.write_bytes(storage.join(folder, CORRUPT), storage.read_bytes(manifest))
        storage.remove(manifest)
    except StorageError as error:
        warn(f"{error}; the corrupt checkpoint counts as one still")


def remove_unfinished(run: str) -> None:
    """Remove what interrupted saves have left: folders of checkpoints without a manifest.

    Those that were set aside stay.
    """
    whole = set(list_checkpoints(run))
    checkpoints = storage.join(run, "checkpoints")
    for name in storage.names(checkpoints):
        folder = storage.join(checkpoints, name)
        aside = storage.exists(storage.join(folder, CORRUPT))
        if name.startswith("step-") and folder not in whole and not aside:
            storage.remove(folder)


def absolute(config: RunConfig) -> RunConfig:
    """`config` with local folders made absolute, so that workers elsewhere mean the same."""
    url = config.data.url
    return config.model_copy(
        update={
            "output": storage.absolute(config.output),
            "data": config.data.model_copy(update={"url": url and storage.absolute(url)}),
        }
    )


def known_run(config: RunConfig, kind: str) -> RunFile:
    """What the output folder of a run says of it; nothing if it is new.

    Args:
        config: of the run.
        kind: pretrain, transfer or individual.

    Raises:
        ConfigError: the folder holds another run.
    """
    known = read_run_file(config.output)
    if known is None:
        return RunFile()
    if known.kind != kind:
        raise ConfigError(
            f"output: {config.output} holds a run of `{known.kind}`; choose another output, or "
            "remove that folder"
        )
    different = different_settings(known.config, config.model_dump(mode="json"))
    refuse_other_settings(config.output, different)
    return known


def open_run(
    config: RunConfig, kind: str, tags: Mapping[str, str] | None, known: RunFile
) -> RunLog:
    """The MLflow run of an output folder: a new one, or that of the run to continue.

    Args:
        config: of the run.
        kind: pretrain, transfer or individual.
        tags: of a new MLflow run.
        known: what the folder says of it (`known_run`).
    """
    uri = tracking_uri(config.tracking, config.output)
    # Without a run_id, an earlier call could write here but not reach MLflow.
    written = RunFile(
        config=config.model_dump(mode="json"), uri=uri, run_id=known.run_id, kind=kind
    )
    # Before the MLflow run, so that an unwritable output leaves nothing behind.
    write_run_file(config.output, written)
    run = mlflow_run(config, kind, tags, known.run_id)
    write_run_file(config.output, written.model_copy(update={"run_id": run.run_id}))
    return run


def finished_run(config: RunConfig, known: RunFile) -> RunLog | None:
    """The MLflow run of an output folder if it has ended well, not touched."""
    uri = tracking_uri(config.tracking, config.output)
    file = sqlite_file(uri)
    if known.uri != uri or known.run_id is None or (file is not None and not file.exists()):
        return None
    try:
        run = RunLog(uri, known.run_id)
        return run if run.status == "FINISHED" else None
    except Exception:  # MLflow's; opening the run anew says what it is
        return None
