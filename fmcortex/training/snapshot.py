"""A rank's state, copied so that it can be written while training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fmcortex.errors import DataError
from fmcortex.training.checkpoint import SHARED, StoredFile, part_file, write_tensors
from fmcortex.training.optimizer import optimizer_state
from fmcortex.training.step import Trainer


@dataclass(frozen=True)
class Snapshot:
    """What a rank writes into a checkpoint.

    Attributes:
        step: steps done.
        files: tensors on the CPU, by file name and name.
        units: neurons of the sessions among them.
        drawn: micro-batches that each session of the run has drawn.
        skipped: steps that were left out.
    """

    step: int
    files: dict[str, dict[str, Tensor]]
    units: dict[str, int]
    drawn: dict[str, int]
    skipped: int


def take_snapshot(trainer: Trainer, step: int, shared: bool = True) -> Snapshot:
    """Copy this rank's state after `step` steps; every rank must call it.

    Args:
        trainer: of this rank.
        step: steps done.
        shared: whether this rank writes the shared part.
    """
    trainer.engine.gather()
    state = trainer.engine.state()
    files = {}
    if shared:
        files[part_file(SHARED)] = _copied(trainer.engine.module)
        files[part_file(SHARED, optimizer=True)] = state
    own = {n: part for n, part in trainer.sessions.items() if trainer.peers.counts(n)}
    for name, part in own.items():
        files[part_file(name)] = _copied(part)
        files[part_file(name, optimizer=True)] = optimizer_state(trainer.optimizers[name])
    return Snapshot(
        step=step,
        files=files,
        units={name: part.units for name, part in own.items()},
        drawn=trainer.plan.drawn(step),
        skipped=trainer.skipped,
    )


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().to("cpu", copy=True) for k, v in module.state_dict().items()}


def write_snapshot(
    folder: str, snapshot: Snapshot, on_file: Callable[[str], None] = lambda name: None
) -> dict[str, StoredFile]:
    """Write the files of a snapshot into a checkpoint's folder, without its manifest.

    Args:
        folder: of the checkpoint.
        snapshot: of this rank.
        on_file: hears of each file that is written.

    Returns:
        The files' entries for the manifest.

    Raises:
        DataError: a value of a file is not finite; neither that file nor any after it is written.
        StorageError: a file cannot be written.
    """
    entries: dict[str, StoredFile] = {}
    for name, tensors in snapshot.files.items():
        check_finite(name, tensors, snapshot.step)
        entries |= write_tensors(folder, name, tensors)
        on_file(name)
    return entries


def check_finite(name: str, tensors: Mapping[str, Tensor], step: int) -> None:
    """Refuse weights, or a state of the optimizer, that nothing sensible can be made of.

    Args:
        name: of the file that they are for.
        tensors: by name.
        step: steps done.

    Raises:
        DataError: naming the first tensor at fault.
    """
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            many = int((~torch.isfinite(value)).sum())
            raise DataError(
                f"after step {step} {many} of {value.numel()} values of {key} in {name} are not "
                "finite, so the state is not saved; lower training.lr, or set training.clip_norm, "
                "and go on from the checkpoint before"
            )
