"""Writing one checkpoint from many ranks: each its own sessions, rank 0 the shared part."""

from __future__ import annotations

import torch.distributed as dist

from cluster.engine import DeepSpeedEngine
from fmcortex.config import RunConfig
from fmcortex.errors import StorageError
from fmcortex.training.checkpoint import (
    SHARED,
    CheckpointManifest,
    StoredFile,
    part_file,
    prune,
    step_folder,
    write_manifest,
    write_tensors,
)
from fmcortex.training.engine import momenta
from fmcortex.training.step import Trainer


def save_checkpoint(config: RunConfig, trainer: Trainer, step: int, rank: int) -> str:
    """Write the state after `step` steps; every rank must call it.

    The manifest is written once all ranks have written their files.

    Returns:
        The checkpoint's folder.

    Raises:
        StorageError: on every rank, if any rank cannot write.
    """
    folder = step_folder(config.output, step)
    engine = trainer.engine
    assert isinstance(engine, DeepSpeedEngine)
    shared = engine.momenta()  # a collective
    files: dict[str, StoredFile] = {}
    error = None
    try:
        if rank == 0:
            files |= write_tensors(folder, part_file(SHARED), engine.module.state_dict())
            files |= write_tensors(folder, part_file(SHARED, momenta=True), shared)
        for name, part in trainer.sessions.items():
            files |= write_tensors(folder, part_file(name), part.state_dict())
            moments = momenta(trainer.optimizers[name])
            files |= write_tensors(folder, part_file(name, momenta=True), moments)
    except StorageError as problem:
        error = str(problem)
    units = {name: part.units for name, part in trainer.sessions.items()}
    told: list[tuple[dict[str, StoredFile], dict[str, int], str | None]] = [
        ({}, {}, None)
    ] * dist.get_world_size()
    dist.all_gather_object(told, (files, units, error))
    problems = [problem for *_, problem in told if problem]
    if not problems and rank == 0:
        try:
            write_manifest(
                folder,
                CheckpointManifest(
                    step=step,
                    model=config.model,
                    units={k: v for _, some, _ in told for k, v in some.items()},
                    files={k: v for some, *_ in told for k, v in some.items()},
                    config=config.model_dump(mode="json"),
                ),
            )
            prune(config.output, config.checkpoint.keep)
        except StorageError as problem:
            problems = [str(problem)]
    verdict = [problems]
    dist.broadcast_object_list(verdict, src=0)
    if verdict[0]:
        raise StorageError(verdict[0][0])
    return folder
