"""Checkpoints: one layout for any number of ranks, written so that a whole one can be told.

    checkpoints/step-00000040/
        shared.safetensors                 weights of the shared part, released names
        shared.optimizer.safetensors       its optimizer's state: <moment>/<parameter>
        sessions/<session>.safetensors     weights of a session's part
        sessions/<session>.optimizer.safetensors
        manifest.json                      sizes and SHA-256 of all files, written last

A folder without a manifest, or with a file that differs from it, is no checkpoint. Nothing in it
depends on the number of ranks, the ZeRO stage or the precision. Random draws are a function of seed
and step, so that no generator's state is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import safetensors
import safetensors.torch
from pydantic import Field
from torch import Tensor

from fmcortex import storage
from fmcortex.data.manifest import Document, Sha256
from fmcortex.errors import CheckpointError, DataError, StorageError
from fmcortex.model.network import Network, SessionPart, SharedPart
from fmcortex.model.sizes import ModelConfig

MANIFEST = "manifest.json"
SHARED = "shared"


class StoredFile(Document):
    """A file of a checkpoint."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class CheckpointManifest(Document):
    """What a checkpoint holds."""

    version: int = Field(2, ge=2, le=2)
    step: int = Field(ge=0, description="steps done")
    model: ModelConfig
    units: dict[str, int] = Field(description="neurons of each session")
    files: dict[str, StoredFile]
    config: dict[str, Any] = Field(description="of the run")
    drawn: dict[str, int] = Field(
        default_factory=dict, description="micro-batches that each session has drawn"
    )
    skipped: int = Field(0, ge=0, description="steps left out because a loss was not finite")
    kept: list[int] = Field(
        default_factory=list,
        description="steps of older checkpoints that are kept: the run went on with other sessions",
    )


def part_file(part: str, optimizer: bool = False) -> str:
    """The file of the weights, or of the optimizer's state, of `shared` or of a session's name."""
    name = part if part == SHARED else f"sessions/{part}"
    return f"{name}.optimizer.safetensors" if optimizer else f"{name}.safetensors"


def write_tensors(folder: str, name: str, tensors: Mapping[str, Tensor]) -> dict[str, StoredFile]:
    """Write one file of a checkpoint.

    Returns:
        The file's entry for the manifest.
    """
    whole = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    content = safetensors.torch.save(whole)
    storage.write_bytes(storage.join(folder, name), content)
    return {name: StoredFile(bytes=len(content), sha256=storage.sha256(content))}


def write_manifest(folder: str, manifest: CheckpointManifest) -> None:
    """Declare the checkpoint whole; to be called once all its files are written."""
    content = (manifest.model_dump_json(indent=1) + "\n").encode()
    storage.write_bytes(storage.join(folder, MANIFEST), content)


def step_folder(run: str, step: int) -> str:
    """The folder of the checkpoint after `step` steps of the run in `run`."""
    return storage.join(run, "checkpoints", f"step-{step:08d}")


def list_checkpoints(run: str) -> list[str]:
    """The folders of `run`'s checkpoints that have a manifest, newest first.

    Raises:
        StorageError: the store cannot be asked.
    """
    folder = storage.join(run, "checkpoints")
    steps = [name for name in storage.names(folder) if re.fullmatch(r"step-\d{8}", name)]
    folders = [storage.join(folder, name) for name in reversed(steps)]
    return [f for f in folders if storage.exists(storage.join(f, MANIFEST))]


def prune(run: str, keep: int, spare: Collection[int] = ()) -> None:
    """Remove all but the newest `keep` checkpoints and those of the steps in `spare`.

    The manifest goes first.
    """
    spared = {step_folder(run, step) for step in spare}
    for folder in list_checkpoints(run)[keep:]:
        if folder in spared:
            continue
        storage.remove(storage.join(folder, MANIFEST))
        storage.remove(folder)


class Checkpoint:
    """A whole checkpoint, open for reading.

    Args:
        folder: any fsspec URL.

    Raises:
        CheckpointError: there is no checkpoint in `folder`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder.rstrip("/")
        where = storage.join(self.folder, MANIFEST)
        try:
            self.manifest = CheckpointManifest.parse(storage.read_bytes(where), where)
        except StorageError as error:
            raise CheckpointError(
                f"{self.folder}: not a checkpoint (no {MANIFEST}); name a folder "
                "checkpoints/step-N of a run, or the run's folder"
            ) from error
        except DataError as error:
            raise CheckpointError(str(error)) from error

    @property
    def model(self) -> ModelConfig:
        """Sizes of the network."""
        return self.manifest.model

    @property
    def step(self) -> int:
        """Steps done."""
        return self.manifest.step

    @property
    def sessions(self) -> list[str]:
        """The sessions it has parts of."""
        return sorted(self.manifest.units)

    def tensors(self, part: str, optimizer: bool = False) -> dict[str, Tensor]:
        """The weights, or the optimizer's state, of `shared` or of a session.

        Raises:
            CheckpointError: the file is missing or differs from the manifest.
        """
        name = part_file(part, optimizer)
        entry = self.manifest.files.get(name)
        if entry is None:
            known = ", ".join(self.sessions) or "none"
            raise CheckpointError(f"{self.folder}: no {name} in it (its sessions: {known})")
        return safetensors.torch.load(self._read(name, entry))

    def _read(self, name: str, entry: StoredFile) -> bytes:
        try:
            content = storage.read_bytes(storage.join(self.folder, name))
        except StorageError as error:
            raise CheckpointError(str(error)) from error
        if len(content) != entry.bytes or storage.sha256(content) != entry.sha256:
            raise CheckpointError(f"{self.folder}/{name}: differs from the manifest; it is corrupt")
        return content

    def shared(self) -> SharedPart:
        """The shared part."""
        shared = SharedPart(self.model)
        shared.load_state_dict(self.tensors(SHARED))
        return shared

    def session(self, name: str) -> SessionPart:
        """The part of a session."""
        tensors = self.tensors(name)
        part = SessionPart(self.model, self.manifest.units[name])
        part.load_state_dict(tensors)
        return part

    def network(self, name: str) -> Network:
        """The whole network of a session."""
        return Network(self.shared(), self.session(name))

    def verify(self) -> None:
        """Read every file.

        Raises:
            CheckpointError: naming the first that is missing or corrupt.
        """
        for name, entry in self.manifest.files.items():
            self._read(name, entry)


def newest(run: str, warn: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
    """The newest checkpoint of a run that verifies; `warn` hears of those passed over."""
    for folder in list_checkpoints(run):
        try:
            checkpoint = Checkpoint(folder)
            checkpoint.verify()
        except CheckpointError as error:
            warn(f"{error}; trying the checkpoint before it")
            continue
        return checkpoint
    return None


def latest_step(run: str) -> int:
    """Steps done at the newest checkpoint that has a manifest, unread; 0 without any."""
    found = list_checkpoints(run)
    return int(found[0].rsplit("-", 1)[1]) if found else 0


def open_checkpoint(where: str) -> Checkpoint:
    """The checkpoint in a folder, or the newest one of a run's folder.

    Raises:
        CheckpointError: there is none.
    """
    if storage.exists(storage.join(where, MANIFEST)):
        return Checkpoint(where)
    found = newest(where)
    if found is None:
        raise CheckpointError(
            f"{where}: no checkpoint here; name a run's folder or one of its checkpoints/step-N"
        )
    return found
