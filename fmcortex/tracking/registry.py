"""The MLflow model registry: versions of a model made of a checkpoint, found again by an alias.

A version holds the checkpoint's weights as safetensors and a manifest of them, without the
optimizer's state, and the code that MLflow runs to predict with it (`pyfunc_model`). Nothing is
pickled, and `resolve` gives the checkpoint back.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fmcortex import storage
from fmcortex.data.cache import default_cache_folder
from fmcortex.errors import CheckpointError, ConfigError, without_secrets
from fmcortex.names import is_name
from fmcortex.tracking.run import RunLog, environment, to_share
from fmcortex.tracking.store import client, is_of_store, moved_artifacts, to_stderr, why
from fmcortex.training.checkpoint import (
    MANIFEST,
    SHARED,
    Checkpoint,
    CheckpointManifest,
    open_checkpoint,
    part_file,
    write_manifest,
)

MODEL_URI = "models:/"
#: The folder of the checkpoint in a registered model.
ARTIFACT = "checkpoint"
#: Tag of a version: by this, weights that are registered already are found.
CONTENT = "content_sha256"
#: What must be installed where the model is run; MLflow would spend a minute on finding it out.
REQUIREMENTS = ("fmcortex", "mlflow", "numpy", "pydantic", "safetensors", "torch")


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry.

    Attributes:
        name: of the model.
        version: from "1".
        alias: that now points to this version; None if none was set.
        source: folder of the checkpoint that it was made of.
        run_id: of the MLflow run that holds it.
        known: whether it was there before, of the same weights.
    """

    name: str
    version: str
    alias: str | None
    source: str
    run_id: str
    known: bool = False

    @property
    def uri(self) -> str:
        """How it is referred to."""
        return f"{MODEL_URI}{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")


@contextmanager
def _as_default(uri: str) -> Iterator[None]:
    """Make `uri` MLflow's default store for a while: logging a model looks at nothing else."""
    import mlflow

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri(uri)
    try:
        with warnings.catch_warnings(record=True):  # advice on type hints and examples
            yield
    finally:
        mlflow.set_tracking_uri(before)  # type: ignore[arg-type]  # None unsets it


def register(
    checkpoint: str | Checkpoint,
    name: str,
    alias: str | None,
    uri: str,
    run_id: str | None = None,
    experiment: str = "fmcortex",
) -> RegisteredModel:
    """Make a checkpoint the next version of a registered model, unless it is one already.

    Args:
        checkpoint: a checkpoint's folder, or a run's folder for its newest; or one that was
            opened and verified.
        name: of the model; made if there is none.
        alias: to set to the new version; None for none.
        uri: of the MLflow store.
        run_id: of the MLflow run that shall hold the model; None for a new one, which is also made
            where that run was deleted, or its store was copied or moved since.
        experiment: of a new run.

    Raises:
        CheckpointError: there is no checkpoint, or a file of it is missing or corrupt.
        ConfigError: the store refuses the name, the alias or the run.
    """
    _check_name(name, alias)
    opened = open_checkpoint(checkpoint) if isinstance(checkpoint, str) else checkpoint
    store = client(uri)
    known = _same_version(store, name, opened)
    if known is not None:
        with _refused(f"register {name}"):
            if alias:
                store.set_registered_model_alias(name, alias, known.version)
        return RegisteredModel(
            name, str(known.version), alias, opened.folder, str(known.run_id), known=True
        )
    run_id = _usable(store, uri, run_id)
    with tempfile.TemporaryDirectory(prefix="fmcortex-register-") as folder:
        staged = Path(folder) / ARTIFACT
        manifest = _without_optimizer(opened, staged)
        made = None
        if run_id is None:
            labels = {"kind": "register", "checkpoint": opened.folder, **environment()}
            made = RunLog.start(uri, experiment, f"register {name}", labels)
            run_id = made.run_id
        version = None
        try:
            with _refused(f"register {name}"):
                model_id = _log_model(uri, run_id, name, manifest, staged)
                version = _add_version(uri, store, name, model_id, run_id, opened)
                if alias:
                    store.set_registered_model_alias(name, alias, version)
        finally:
            if made is not None:
                made.end(failed=version is None)
    assert version is not None
    return RegisteredModel(name, version, alias, opened.folder, run_id)


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Say in one line what MLflow, or the place of its artifacts, does not take."""
    try:
        yield
    except Exception as error:
        if not is_of_store(error):
            raise
        raise ConfigError(f"{what}: MLflow: {why(error)}") from error


def _content_sha256(manifest: CheckpointManifest) -> str:
    """Over all that makes a model what it is: its sizes and weights."""
    names = [part_file(SHARED), *(part_file(session) for session in manifest.units)]
    sums = {name: manifest.files[name].sha256 for name in names if name in manifest.files}
    content = {"model": manifest.model.model_dump(mode="json"), "step": manifest.step, **sums}
    return storage.sha256(json.dumps(content, sort_keys=True).encode())


def _same_version(store: Any, name: str, opened: Checkpoint) -> Any:
    """The version of a model that was made of the same weights; None if there is none."""
    wanted = _content_sha256(opened.manifest)
    with _refused(f"register {name}"):
        found = store.search_model_versions(filter_string=f"name = '{_quoted(name)}'")
    same = [one for one in found if (one.tags or {}).get(CONTENT) == wanted]
    return min(same, key=lambda one: int(one.version)) if same else None


def _usable(store: Any, uri: str, run_id: str | None) -> str | None:
    """The run that shall hold a model; None, with a word, if it cannot."""
    if run_id is None:
        return None
    from mlflow.exceptions import MlflowException

    try:
        info = store.get_run(run_id).info
    except MlflowException as error:
        to_stderr(f"MLflow: run {run_id}: {why(error)}; the model is in a new one")
        return None
    if info.lifecycle_stage != "active":
        to_stderr(f"MLflow: run {run_id} was deleted there; the model is in a new one")
        return None
    # Followed, what MLflow records of a copied store would be written into the original.
    return None if moved_artifacts(uri, info.artifact_uri) is not None else run_id


def _check_name(name: str, alias: str | None) -> None:
    if not name or re.search(r"[/:@]", name):
        raise ConfigError(f"model name {name!r}: must not be empty or contain / : @")
    if alias is not None and (
        not re.fullmatch(r"[A-Za-z0-9_-]+", alias) or re.fullmatch(r"v\d+|latest", alias.lower())
    ):
        raise ConfigError(
            f"alias {alias!r}: use letters, digits, - and _, and neither `latest` nor v1, v2, ..."
        )


def _without_optimizer(source: Checkpoint, folder: Path) -> CheckpointManifest:
    """Write the weights of `source`, and a manifest of them for others, to `folder`."""
    names = [part_file(SHARED), *(part_file(session) for session in source.sessions)]
    missing = [name for name in names if name not in source.manifest.files]
    if missing:
        raise CheckpointError(f"{source.folder}: no {missing[0]} in it; it cannot be registered")
    for name in names:  # each of `part_file`, never out of the folder
        content = storage.read_bytes(storage.join(source.folder, name))
        storage.write_bytes(storage.join(str(folder), name), content)
    files = {name: source.manifest.files[name] for name in names}
    config = to_share(source.manifest.config)
    manifest = source.manifest.model_copy(update={"files": files, "config": config})
    write_manifest(str(folder), manifest)
    Checkpoint(str(folder)).verify()  # a checkpoint that was pruned while it was read
    return manifest


def _log_model(uri: str, run_id: str, name: str, manifest: CheckpointManifest, folder: Path) -> str:
    """Upload the staged checkpoint as a logged model of a run; its id."""
    with _as_default(uri):
        import mlflow

        import fmcortex.tracking.pyfunc_model as code

        store = client(uri)
        model = store.create_logged_model(
            store.get_run(run_id).info.experiment_id, name=name, source_run_id=run_id
        )
        mlflow.pyfunc.log_model(
            model_id=model.model_id,
            python_model=code.__file__,
            artifacts={ARTIFACT: str(folder)},
            signature=_signature(manifest),
            metadata={"inputs": _inputs(manifest)},
            pip_requirements=[
                f"{package}=={metadata.version(package)}" for package in REQUIREMENTS
            ],
        )
        return str(model.model_id)


def _inputs(manifest: CheckpointManifest) -> dict[str, str]:
    """What `predict` takes, for people to read."""
    sizes = manifest.model
    return {
        "stimuli": "uint8 [N, T, H, W], grey levels 0 to 255",
        "perspectives": f"float32 [N, T, {sizes.perspectives}], standardised",
        "modulations": f"float32 [N, T, {sizes.modulations}], standardised",
    }


def _signature(manifest: CheckpointManifest) -> Any:
    """One tensor out; the session is a parameter.

    The inputs are checked by the model: what MLflow says of arrays that do not fit a schema holds
    kilobytes of their values, and it knows no video without a batch.
    """
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    return ModelSignature(
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, -1, -1))]),
        params=ParamSchema([ParamSpec("session", DataType.string, min(manifest.units))]),
    )


def _add_version(
    uri: str, store: Any, name: str, model_id: str, run_id: str, source: Checkpoint
) -> str:
    """Make the logged model the next version of the registered model `name`."""
    if not store.search_registered_models(filter_string=f"name = '{_quoted(name)}'"):
        store.create_registered_model(name, description="fmcortex foundation model")
    sessions = source.sessions
    tags = {
        "checkpoint": without_secrets(source.folder),
        "step": str(source.step),
        "sessions": ", ".join(sessions)[:4000],
        "session_count": str(len(sessions)),
        "shared_sha256": source.manifest.files[part_file(SHARED)].sha256,
        CONTENT: _content_sha256(source.manifest),
    }
    found = environment()
    tags |= {key: found[key] for key in ("git_commit", "fmcortex") if key in found}
    with _as_default(uri):  # an SQLite store looks the logged model up in the default one
        version = store.create_model_version(
            name,
            source=f"{MODEL_URI}{model_id}",
            run_id=run_id,
            tags=tags,
            model_id=model_id,
        )
    return str(version.version)


def resolve(reference: str, uri: str) -> str:
    """The folder of a checkpoint, whatever names it.

    A registered model is downloaded once, to the cache folder (`FMCORTEX_CACHE`, or
    `fmcortex` in the user's cache folder).

    Args:
        reference: `models:/name@alias`, `models:/name/3`, or a path or URL, returned as it is.
        uri: of the MLflow store.

    Raises:
        ConfigError: the reference is malformed, or the registry has no such model, version or
            alias.
        CheckpointError: what was downloaded is no whole checkpoint.
    """
    if not reference.startswith(MODEL_URI):
        return reference
    form = re.fullmatch(
        r"models:/(?P<name>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>\d+))", reference
    )
    if form is None:
        raise ConfigError(f"{reference}: expected models:/name@alias or models:/name/version")
    store = client(uri, make=False)
    from mlflow.exceptions import MlflowException

    try:
        if form["alias"]:
            found = store.get_model_version_by_alias(form["name"], form["alias"])
        else:
            found = store.get_model_version(form["name"], form["version"])
    except MlflowException as error:
        raise ConfigError(f"{reference}: not in the registry at {uri}: {why(error)}") from error
    # The time of its making tells a version from one of the same number in a store made anew.
    version = str(found.version)
    key = storage.sha256(f"{uri} {form['name']} {version} {found.creation_timestamp}".encode())[:12]
    # What a registry calls a model is no name of a folder unless it may be one.
    called = f"{form['name']}-{version}"
    folder = _cache() / (f"{called}-{key}" if is_name(called) else f"model-{key}")
    if not folder.exists():
        _download(f"{MODEL_URI}{form['name']}/{version}", uri, folder)
    checkpoint = Checkpoint(str(folder))
    checkpoint.verify()  # the cache may have been damaged since
    return checkpoint.folder


def _download(model: str, uri: str, folder: Path) -> None:
    """Download the checkpoint in a registered model to `folder`, whole or not at all.

    File by file, as the checkpoint's manifest names them: what else a store lists is not asked
    for, and nothing is written to a path that it gives.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        _download_file(model, uri, MANIFEST, temporary)
        for name in Checkpoint(str(temporary)).manifest.files:
            _download_file(model, uri, name, temporary)
        Checkpoint(str(temporary)).verify()
        if not folder.exists():  # another process may have been faster
            os.replace(temporary, folder)
    except Exception as error:
        if not is_of_store(error):
            raise
        raise CheckpointError(f"{model}: cannot download its checkpoint: {why(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _download_file(model: str, uri: str, name: str, folder: Path) -> None:
    """Download a file of the checkpoint in a registered model to `name` in `folder`."""
    import mlflow

    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="download-", dir=folder) as place, _as_default(uri):
        found = mlflow.artifacts.download_artifacts(
            f"{model}/artifacts/{ARTIFACT}/{name}",
            dst_path=place,
            tracking_uri=uri,
            registry_uri=uri,
        )
        # A store on this machine may give the path of its own file.
        inside = Path(found).resolve().is_relative_to(Path(place).resolve())
        (shutil.move if inside else shutil.copyfile)(found, target)


def _cache() -> Path:
    return Path(default_cache_folder()) / "models"


def _quoted(name: str) -> str:
    return name.replace("'", "\\'")
