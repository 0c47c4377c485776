"""The model registry, with an SQLite store and without any network or pickle."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmcortex.errors import CheckpointError, ConfigError, FmcortexError
from fmcortex.model.sizes import preset
from fmcortex.tracking.registry import RegisteredModel, register, resolve
from fmcortex.tracking.run import RunLog
from fmcortex.tracking.store import client
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.checkpoint import (
    SHARED,
    Checkpoint,
    CheckpointManifest,
    open_checkpoint,
    part_file,
    write_manifest,
    write_tensors,
)

UNITS = {"mouse01-1-1": 5, "mouse02-1-1": 3}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of random weights, with an optimizer state."""
    folder = str(tmp_path_factory.mktemp("run") / "checkpoints" / "step-00000040")
    model = preset("tiny")
    parts: dict[str, Any] = {SHARED: build_shared(model, 0)}
    parts |= {name: build_session(model, units, 0, name) for name, units in UNITS.items()}
    files = {}
    for name, part in parts.items():
        files |= write_tensors(folder, part_file(name), part.state_dict())
        files |= write_tensors(folder, part_file(name, optimizer=True), part.state_dict())
    config: dict[str, Any] = {"data": {"url": "https://ann:HIDDEN@somewhere/data?sig=HIDDEN"}}
    manifest = CheckpointManifest(step=40, model=model, units=UNITS, files=files, config=config)
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="session")
def registered(checkpoint: str, store: str) -> RegisteredModel:
    return register(checkpoint, "cortex", "best", store)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FMCORTEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def as_default(store: str) -> Iterator[None]:
    """MLflow as a user has it who points it at the store."""
    import mlflow

    mlflow.set_tracking_uri(store)
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


def test_version_says_where_it_comes_from(
    registered: RegisteredModel, checkpoint: str, store: str
) -> None:
    assert registered.version == "1"
    assert registered.uri == "models:/cortex@best"
    version = client(store).get_model_version_by_alias("cortex", "best")
    opened = Checkpoint(checkpoint)
    assert version.tags["step"] == "40"
    assert version.tags["sessions"] == "mouse01-1-1, mouse02-1-1"
    assert version.tags["shared_sha256"] == opened.manifest.files["shared.safetensors"].sha256
    assert version.tags["checkpoint"] == opened.folder
    assert client(store).get_run(registered.run_id).info.status == "FINISHED"


def test_resolved_model_is_the_checkpoint_without_optimizer(
    registered: RegisteredModel, checkpoint: str, store: str
) -> None:
    folder = resolve("models:/cortex@best", store)
    assert resolve("models:/cortex/1", store) == folder
    found, original = open_checkpoint(folder), Checkpoint(checkpoint)
    found.verify()
    assert sorted(found.manifest.files) == [
        "sessions/mouse01-1-1.safetensors",
        "sessions/mouse02-1-1.safetensors",
        "shared.safetensors",
    ]
    for part in (SHARED, *UNITS):
        for name, tensor in original.tensors(part).items():
            assert found.tensors(part)[name].equal(tensor)
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert found.manifest.config == {"data": {"url": "https://somewhere/data?sig=..."}}
    assert not [path for path in files if b"HIDDEN" in path.read_bytes()]


def test_nothing_in_the_store_is_pickled(registered: RegisteredModel, store: str) -> None:
    artifacts = Path(store.removeprefix("sqlite:///")).parent / "artifacts"
    files = [path for path in artifacts.rglob("*") if path.is_file()]
    assert any(path.name == "pyfunc_model.py" for path in files)
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]


@pytest.mark.usefixtures("as_default", "registered")
def test_mlflow_alone_predicts_as_the_network_does(checkpoint: str) -> None:
    import mlflow

    generator = np.random.default_rng(0)
    inputs = {
        "stimuli": generator.integers(0, 256, (2, 6, 36, 64), np.uint8),
        "perspectives": generator.normal(size=(2, 6, 2)).astype(np.float32),
        "modulations": generator.normal(size=(2, 6, 2)).astype(np.float32),
    }
    model = mlflow.pyfunc.load_model("models:/cortex@best")
    for session in UNITS:
        predicted = model.predict(inputs, params={"session": session})
        expected = Checkpoint(checkpoint).network(session).eval().predict(*inputs.values())
        assert predicted.shape == (2, 6, UNITS[session])
        np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(
        model.predict(inputs), model.predict(inputs, params={"session": "mouse01-1-1"})
    )
    with pytest.raises(CheckpointError, match="mouse09"):
        model.predict(inputs, params={"session": "mouse09"})
    one = {name: values[0] for name, values in inputs.items()}
    alone = model.predict({name: values.tolist() for name, values in one.items()})
    np.testing.assert_allclose(alone, model.predict(inputs)[0], rtol=1e-5, atol=1e-6)


WRONG: dict[str, tuple[Any, str]] = {
    "float video": (
        lambda i: {**i, "stimuli": i["stimuli"][0] / 255},
        r"stimuli: expected uint8 .*, got float64 \[6, 36, 64\]$",
    ),
    "flat perspectives": (
        lambda i: {**i, "perspectives": i["perspectives"][0]},
        r"perspectives: expected shape \[2, 6, 2\], got \[6, 2\]$",
    ),
    "missing input": (lambda i: {"stimuli": i["stimuli"]}, "perspectives, modulations missing"),
    "ragged input": (
        lambda i: {**i, "modulations": [[1.0, 2.0], [3.0]]},
        "modulations: not an array: ",
    ),
    "text": (lambda i: {**i, "modulations": ["a"]}, "modulations: values are <U1, not numbers"),
    "no dict": (lambda i: i["stimuli"], "input is a ndarray, not a dict of stimuli, persp"),
}


@pytest.mark.usefixtures("as_default", "registered")
@pytest.mark.parametrize("case", WRONG)
def test_what_mlflow_cannot_predict_is_said_in_one_short_line(
    case: str,
) -> None:
    import mlflow

    change, message = WRONG[case]
    generator = np.random.default_rng(0)
    inputs = {
        "stimuli": generator.integers(0, 256, (2, 6, 36, 64), np.uint8),
        "perspectives": generator.normal(size=(2, 6, 2)).astype(np.float32),
        "modulations": generator.normal(size=(2, 6, 2)).astype(np.float32),
    }
    model = mlflow.pyfunc.load_model("models:/cortex@best")
    with pytest.raises(FmcortexError, match=message) as caught:
        model.predict(change(inputs))
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def other_step(checkpoint: str, folder: Path, step: int) -> str:
    """The same weights, of another step: another model."""
    shutil.copytree(checkpoint, folder)
    old = Checkpoint(str(folder)).manifest
    write_manifest(str(folder), old.model_copy(update={"step": step}))
    return str(folder)


def test_next_version_takes_the_alias_and_an_existing_run(
    registered: RegisteredModel, checkpoint: str, store: str, tmp_path: Path
) -> None:
    run = RunLog.start(store, "training", "pretrain")
    run.end()
    run_folder = tmp_path / "run"
    other_step(checkpoint, run_folder / "checkpoints" / "step-00000041", 41)
    second = register(str(run_folder), "cortex", None, store, run_id=run.run_id)
    assert (second.version, second.run_id, second.known) == ("2", run.run_id, False)
    assert second.uri == "models:/cortex/2"
    assert client(store).get_model_version_by_alias("cortex", "best").version == 1
    third = other_step(checkpoint, tmp_path / "step-00000042", 42)
    register(third, "cortex", "newest", store)
    assert client(store).get_model_version_by_alias("cortex", "newest").version == 3
    assert client(store).get_run(run.run_id).info.status == "FINISHED"


def test_the_same_checkpoint_is_registered_once(
    registered: RegisteredModel, checkpoint: str, store: str, tmp_path: Path
) -> None:
    runs = len(client(store).search_runs(experiment_ids=["0", "1", "2"]))
    copy = tmp_path / "elsewhere"
    shutil.copytree(checkpoint, copy)
    again = register(str(copy), "cortex", "again", store)
    assert (again.version, again.known, again.run_id) == ("1", True, registered.run_id)
    assert again.uri == "models:/cortex@again"
    assert client(store).get_model_version_by_alias("cortex", "again").version == 1
    assert len(client(store).search_runs(experiment_ids=["0", "1", "2"])) == runs
    assert register(checkpoint, "another", None, store).version == "1"  # another model's first


def test_a_run_that_is_gone_does_not_hold_the_model(
    checkpoint: str, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunLog.start(store, "training", "pretrain")
    run.client.delete_run(run.run_id)
    for run_id, why in ((run.run_id, "was deleted there"), ("0" * 32, "not found")):
        made = register(checkpoint, f"of-{run_id[:4]}", None, store, run_id=run_id)
        assert made.run_id != run_id
        assert why in capsys.readouterr().err


def test_a_copied_store_leaves_the_original_alone(
    checkpoint: str, store_in: Callable[[Path], str], tmp_path: Path
) -> None:
    old = tmp_path / "old"
    run = RunLog.start(store_in(old), "training", "pretrain")
    run.text("x", "x.txt")
    run.end()
    shutil.copytree(old, tmp_path / "new")
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    made = register(
        checkpoint, "m", "best", f"sqlite:///{tmp_path}/new/mlflow.db", run_id=run.run_id
    )
    assert made.run_id != run.run_id
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before
    assert list((tmp_path / "new" / "artifacts").rglob("shared.safetensors"))


def test_what_a_registry_holds_is_read_by_the_names_of_the_manifest(
    registered: RegisteredModel, store: str, tmp_path: Path
) -> None:
    """Files that nobody asked for stay where they are."""
    artifacts = Path(store.removeprefix("sqlite:///")).parent / "artifacts"
    model = client(store).get_model_version("cortex", "1").source.rpartition("/")[2]
    (place,) = [p.parent for p in artifacts.rglob("shared.safetensors") if model in p.parts]
    more = place / "more.txt"
    more.write_text("x")
    try:
        folder = Path(resolve("models:/cortex/1", store))
    finally:
        more.unlink()
    assert not (folder / "more.txt").exists()
    assert folder.name.startswith("cortex-1-")


@pytest.mark.parametrize("name", ["my cortex", "-x", "m\u00fcnchen"])
def test_names_of_models_never_become_paths(
    checkpoint: str, store: str, cache: Path, name: str
) -> None:
    made = register(checkpoint, name, None, store)
    folder = Path(resolve(made.uri, store))
    assert folder.parent == cache
    assert folder.name.startswith("model-")


def test_a_registered_model_that_is_no_checkpoint(store: str, tmp_path: Path) -> None:
    """Versions that others made: one line each."""
    made = client(store)
    made.create_registered_model("theirs")
    for number, source in enumerate((f"file://{tmp_path}", "file:///nowhere", "s4://x/y"), 1):
        made.create_model_version("theirs", source)
        with pytest.raises(CheckpointError, match=r"models:/theirs/|not a checkpoint") as caught:
            resolve(f"models:/theirs/{number}", store)
        assert "\n" not in str(caught.value)


def test_mlflows_default_store_is_left_as_it_was(
    registered: RegisteredModel, checkpoint: str, store: str
) -> None:
    import mlflow

    assert not mlflow.is_tracking_uri_set()
    resolve("models:/cortex@best", store)
    assert not mlflow.is_tracking_uri_set()
    assert "MLFLOW_TRACKING_URI" not in os.environ
    mlflow.set_tracking_uri("sqlite:///elsewhere.db")
    try:
        register(checkpoint, "other", None, store)
        assert mlflow.get_tracking_uri() == "sqlite:///elsewhere.db"
        assert not Path("elsewhere.db").exists()
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("reference", ["/runs/one", "s3://bucket/run", "runs/pretrain"])
def test_paths_are_returned_as_they_are(reference: str, tmp_path: Path) -> None:
    assert resolve(reference, f"sqlite:///{tmp_path}/never.db") == reference
    assert not (tmp_path / "never.db").exists()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("models:/cortex@nobody", "alias nobody not found"),
        ("models:/cortex/99", "version=99"),
        ("models:/nothing@best", "nothing not found"),
        ("models:/cortex", "expected models:/name@alias"),
        ("models:/../x@y", "expected models:/name@alias"),
        ("models:/cortex/latest", "expected models:/name@alias"),
    ],
)
def test_unknown_references_are_refused_in_one_line(
    store: str, reference: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(reference, store)
    assert "\n" not in str(caught.value)


def test_damaged_cache_is_noticed(registered: RegisteredModel, store: str) -> None:
    folder = Path(resolve("models:/cortex@best", store))
    weights = folder / "shared.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="corrupt"):
        resolve("models:/cortex@best", store)


def test_corrupt_checkpoint_is_not_registered(checkpoint: str, store: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    (copy / "sessions" / "mouse02-1-1.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"mouse02-1-1.safetensors: differs"):
        register(str(copy), "broken", None, store)
    with pytest.raises(ConfigError, match="broken"):
        resolve("models:/broken/1", store)


def test_nothing_is_written_outside_of_its_own_folder(
    checkpoint: str, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint from elsewhere, whole and sealed, with a path for the name of a session."""
    copy, temporary = tmp_path / "a" / "b" / "c" / "copy", tmp_path / "a" / "tmp"
    shutil.copytree(checkpoint, copy)
    temporary.mkdir()
    (tmp_path / "a" / "x").mkdir()
    shutil.copy(copy / "sessions/mouse01-1-1.safetensors", tmp_path / "a/b/c/x.safetensors")
    old, name = Checkpoint(str(copy)).manifest, "../../../../x/pwned"
    files = {"shared.safetensors": old.files["shared.safetensors"]}
    files[f"sessions/{name}.safetensors"] = old.files["sessions/mouse01-1-1.safetensors"]
    write_manifest(str(copy), old.model_copy(update={"units": {name: 5}, "files": files}))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match=r"manifest.json: units: '../../../../x/pwned'"):
        register(str(copy), "forged", None, store)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ConfigError, match="forged"):
        resolve("models:/forged/1", store)


@pytest.mark.parametrize(
    ("name", "alias"), [("a/b", None), ("", None), ("a:b", None), ("a", "v3"), ("a", "latest")]
)
def test_bad_names_are_refused_before_anything_is_written(
    checkpoint: str, tmp_path: Path, name: str, alias: str | None
) -> None:
    with pytest.raises(ConfigError):
        register(checkpoint, name, alias, f"sqlite:///{tmp_path}/never.db")
    assert not (tmp_path / "never.db").exists()
