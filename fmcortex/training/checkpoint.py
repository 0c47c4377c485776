"""Checkpoints: one layout for any number of ranks, written so that a whole one can be told.

    checkpoints/step-00000040/
        shared.safetensors                 weights of the shared part, released names
        shared.optimizer.safetensors       its optimizer's state: <moment>/<parameter>
        sessions/<session>.safetensors     weights of a session's part
        sessions/<session>.optimizer.safetensors
        manifest.json                      sizes and SHA-256 of all files, written last, and its
                                           own seal (`fmcortex.seal`)

A folder without a manifest, or with a file that differs from it, is no checkpoint. A manifest that
differs from its seal is damaged; those of earlier versions have none. Nothing in a checkpoint
depends on the number of ranks, the ZeRO stage or the precision. Random draws are a function of seed
and step, so that no generator's state is kept.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Self, TypeVar

import safetensors
import safetensors.torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fmcortex import storage
from fmcortex.data.identity import TrainedOn
from fmcortex.data.manifest import Document, Sealed, Sha256
from fmcortex.errors import CheckpointError, DataError, StorageError, without_secrets
from fmcortex.model.network import Network, SessionPart, SharedPart
from fmcortex.model.sizes import ModelConfig
from fmcortex.names import OPTIMIZER, SHARED, Name, check_session
from fmcortex.seal import seal_holds

MANIFEST = "manifest.json"

Part = TypeVar("Part", bound=nn.Module)


class StoredFile(Document):
    """A file of a checkpoint."""

    bytes: int = Field(ge=0)
    sha256: Sha256


class CheckpointManifest(Sealed):
    """What a checkpoint holds."""

    version: int = Field(2, ge=2, le=2)
    step: int = Field(ge=0, description="steps done")
    model: ModelConfig
    units: dict[Name, Annotated[int, Field(ge=1)]] = Field(description="neurons of each session")
    files: dict[str, StoredFile]
    config: dict[str, Any] = Field(description="of the run")
    drawn: dict[str, int] = Field(
        default_factory=dict, description="micro-batches that each session has drawn"
    )
    data: dict[str, TrainedOn] = Field(
        default_factory=dict, description="what each session was when it was trained on"
    )
    skipped: int = Field(0, ge=0, description="steps left out because a loss was not finite")
    kept: list[int] = Field(
        default_factory=list,
        description="steps of older checkpoints that are kept: the run went on with other sessions",
    )

    @model_validator(mode="after")
    def _only_its_own(self) -> Self:
        """Files are written and read by these names: none may lead outside of the checkpoint."""
        parts = (SHARED, *self.units)
        known = {part_file(part, optimizer) for part in parts for optimizer in (False, True)}
        for name in self.files:
            if name not in known:
                raise ValueError(f"files: {name!r} is no file of a checkpoint of these sessions")
        return self


def part_file(part: str, optimizer: bool = False) -> str:
    """The file of the weights, or of the optimizer's state, of `shared` or of a session's name.

    Raises:
        DataError: a session cannot have that name.
    """
    name = part
    if part != SHARED:
        check_session(part, "checkpoint: session")
        name = f"sessions/{part}"
    return f"{name}{OPTIMIZER}.safetensors" if optimizer else f"{name}.safetensors"


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
    """Declare the checkpoint whole; to be called once all its files are written.

    It does not have the password of the tracking store: a checkpoint is passed on.
    """
    tracking = manifest.config.get("tracking")
    if isinstance(tracking, dict) and isinstance(uri := tracking.get("uri"), str):
        shared = {**manifest.config, "tracking": {**tracking, "uri": without_secrets(uri)}}
        manifest = manifest.model_copy(update={"config": shared})
    storage.write_bytes(storage.join(folder, MANIFEST), manifest.sealed())


def step_folder(run: str, step: int) -> str:
    """The folder of the checkpoint after `step` steps of the run in `run`."""
    return storage.join(run, "checkpoints", f"step-{step:08d}")


def list_checkpoints(run: str) -> list[str]:
    """The folders of `run`'s checkpoints that have a manifest, newest first.

    Raises:
        StorageError: the store cannot be asked.
    """
    return [f for f in _step_folders(run) if storage.exists(storage.join(f, MANIFEST))]


def _step_folders(run: str) -> list[str]:
    """The folders of all steps of `run`, newest first, whether they hold a checkpoint or not."""
    folder = storage.join(run, "checkpoints")
    steps = [name for name in storage.names(folder) if re.fullmatch(r"step-\d{8}", name)]
    return [storage.join(folder, name) for name in reversed(steps)]


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

    Attributes:
        sealed: whether its manifest has a seal, which holds; those of earlier versions have none.
        newer: a folder of a later step of its run that has no manifest; None if there is none, or
            the checkpoint was asked for by its own folder.

    Raises:
        CheckpointError: there is no checkpoint in `folder`, or its manifest is damaged.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder.rstrip("/")
        where = storage.join(self.folder, MANIFEST)
        try:
            content = storage.read_bytes(where)
        except StorageError as error:
            raise CheckpointError(
                f"{self.folder}: not a checkpoint (no {MANIFEST}); name a folder "
                "checkpoints/step-N of a run, or the run's folder"
            ) from error
        holds = seal_holds(content)
        if holds is False:
            raise CheckpointError(f"{where}: differs from its own checksum; damaged, or edited")
        self.sealed = holds is True
        self.newer: str | None = None
        try:
            self.manifest = CheckpointManifest.parse(content, where)
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

    def setting(self, section: str, key: str) -> Any:
        """A setting of the run; None where its configuration, of whatever form, has none."""
        found = self.manifest.config.get(section)
        return found.get(key) if isinstance(found, dict) else None

    @property
    def remark(self) -> str | None:
        """What a user should know who takes it, in one line; None if there is nothing."""
        found = []
        if self.newer is not None:
            found.append(
                f"{self.newer}: no {MANIFEST} there, so that it was not saved to its end, or is "
                f"damaged; step {self.step} is used"
            )
        if not self.sealed:
            found.append(
                f"{self.folder}: its {MANIFEST} has no seal, as earlier versions wrote it; whether "
                "it was changed cannot be told"
            )
        return "; ".join(found) or None

    def tensors(self, part: str, optimizer: bool = False) -> dict[str, Tensor]:
        """The weights, or the optimizer's state, of `shared` or of a session.

        Raises:
            CheckpointError: the file is missing, differs from the manifest, or holds no tensors.
            DataError: `part` cannot be a session's name.
        """
        name = part_file(part, optimizer)
        entry = self.manifest.files.get(name)
        if entry is None:
            known = ", ".join(self.sessions) or "none"
            raise CheckpointError(f"{self.folder}: no {name} in it (its sessions: {known})")
        content = self._read(name, entry)
        try:
            return safetensors.torch.load(content)
        except Exception as error:  # safetensors has no class of errors of its own for all of them
            line = " ".join(str(error).split())[:200]
            raise CheckpointError(f"{self.folder}/{name}: not safetensors: {line}") from error

    def _read(self, name: str, entry: StoredFile) -> bytes:
        try:
            content = storage.read_bytes(storage.join(self.folder, name))
        except StorageError as error:
            raise CheckpointError(str(error)) from error
        if len(content) != entry.bytes or storage.sha256(content) != entry.sha256:
            raise CheckpointError(f"{self.folder}/{name}: differs from the manifest; it is corrupt")
        return content

    def shared(self) -> SharedPart:
        """The shared part.

        Raises:
            CheckpointError: as `tensors`, or the weights do not fit the manifest's sizes.
        """
        tensors = self.tensors(SHARED)
        with self._fitting(SHARED):
            return _filled(SharedPart(self.model), tensors)

    def session(self, name: str) -> SessionPart:
        """The part of a session.

        Raises:
            CheckpointError: as `tensors`, or the weights do not fit the manifest's sizes.
        """
        tensors = self.tensors(name)
        with self._fitting(name):
            return _filled(SessionPart(self.model, self.manifest.units[name]), tensors)

    @contextmanager
    def _fitting(self, part: str) -> Iterator[None]:
        try:
            yield
        # Sizes that no network can be built of raise whatever torch thinks fit.
        except (RuntimeError, ValueError, TypeError, ArithmeticError, MemoryError) as error:
            line = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"{self.folder}/{part_file(part)}: does not fit the sizes in {MANIFEST}: {line}"
            ) from error

    def network(self, name: str) -> Network:
        """The whole network of a session."""
        return Network(self.shared(), self.session(name))

    def verify(self) -> None:
        """Read every file.

        Raises:
            CheckpointError: naming the first that is missing or corrupt.
        """
        for part in (SHARED, *self.manifest.units):
            if part_file(part) not in self.manifest.files:
                raise CheckpointError(f"{self.folder}: no {part_file(part)} in its {MANIFEST}")
        for name, entry in self.manifest.files.items():
            self._read(name, entry)


def _filled(part: Part, tensors: Mapping[str, Tensor]) -> Part:
    """`part` with `tensors` as its state.

    Raises:
        ValueError: naming the first tensor that does not fit.
    """
    expected = part.state_dict()
    for name in (*expected, *tensors):
        if name not in tensors:
            raise ValueError(f"no {name} in it")
        if name not in expected:
            raise ValueError(f"{name} is none of the network's")
        value, like = tensors[name], expected[name]
        if value.shape != like.shape or value.is_floating_point() != like.is_floating_point():
            raise ValueError(
                f"{name} is {value.dtype} {list(value.shape)}, not {like.dtype} {list(like.shape)}"
            )
    part.load_state_dict(dict(tensors))
    return part


def latest_step(run: str) -> int:
    """Steps done at the newest checkpoint that has a manifest, unread; 0 without any."""
    found = list_checkpoints(run)
    return int(found[0].rsplit("-", 1)[1]) if found else 0


def open_checkpoint(where: str) -> Checkpoint:
    """The checkpoint in a folder, or the newest one of a run's folder, once all of it was read.

    An older one is never taken in its place: it is another model.

    Raises:
        CheckpointError: there is none, or it is damaged; the message names the part, and the
            checkpoint before it.
    """
    if storage.exists(storage.join(where, MANIFEST)):
        folders = [where.rstrip("/")]
    else:
        folders = list_checkpoints(where)
    if not folders:
        raise CheckpointError(
            f"{where}: no checkpoint here; name a run's folder or one of its checkpoints/step-N"
        )
    try:
        found = Checkpoint(folders[0])
        found.verify()
    except CheckpointError as error:
        before = f"; to use the checkpoint before it, name {folders[1]}" if folders[1:] else ""
        raise CheckpointError(f"{error}{before}") from error
    if found.folder != where.rstrip("/"):
        latest = _step_folders(where)[0]
        found.newer = latest if latest != found.folder else None
    return found
