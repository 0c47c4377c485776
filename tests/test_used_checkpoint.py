"""Which checkpoint a command takes: the one that was asked for, which it says, or none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fmcortex.cli import cli
from fmcortex.data.dataset import open_dataset
from fmcortex.model.sizes import preset
from fmcortex.tracking.run_file import RunFile, read_run_file, write_run_file
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.checkpoint import (
    SHARED,
    CheckpointManifest,
    part_file,
    step_folder,
    write_manifest,
    write_tensors,
)

SESSION = "mouse01-1-1"
MODEL = preset("tiny").model_copy(update={"retina_height": 12, "retina_width": 18})


@pytest.fixture(scope="module")
def saved(prepared: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with random weights at steps 10 and 20, and no MLflow run."""
    run = tmp_path_factory.mktemp("runs") / "run"
    units = open_dataset(prepared).session(SESSION).manifest.neurons
    for step in (10, 20):
        folder, files = step_folder(str(run), step), {}
        parts = {SHARED: build_shared(MODEL, step)}
        for name, part in {**parts, SESSION: build_session(MODEL, units, step, SESSION)}.items():
            files |= write_tensors(folder, part_file(name), part.state_dict())
            files |= write_tensors(folder, part_file(name, optimizer=True), part.state_dict())
        write_manifest(
            folder,
            CheckpointManifest(
                step=step, model=MODEL, units={SESSION: units}, files=files, config={}
            ),
        )
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "runs" / "run")
    return tmp_path / "runs" / "run"


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def commands(source: Path, prepared: str, to: Path) -> dict[str, Result]:
    """What every command says that takes a checkpoint."""
    store = f"sqlite:///{to}/mlflow.db"
    small = ["data.frames=16", "data.batch=1", "training.burnin=4", "training.epochs=1"]
    small += ["training.steps_per_epoch=1", "training.warmup_epochs=0", f"data.url={prepared}"]
    words = [word for one in small for word in ("--set", one)]
    return {
        "evaluate": call("evaluate", source, "--data", prepared, "--session", SESSION),
        "register": call("register", source, "--name", "m", "--tracking-uri", store),
        "transfer": call(
            *("transfer", "--from", source, "--session", "mouse02-1-1", *words),
            *("--output", to / "new"),
        ),
        "report": call(
            *("report", source.parents[1] if source.parent.name == "checkpoints" else source),
            *("--to", to / "r.html", "--data", prepared),
            *(("--checkpoint", source) if source.parent.name == "checkpoints" else ()),
        ),
    }


def test_the_step_is_always_said(run: Path, prepared: str, tmp_path: Path) -> None:
    (run / "run.json").write_text("{}")
    for name, done in commands(run, prepared, tmp_path).items():
        assert done.exit_code == 0, (name, done.exception)
        assert f"from step 20: {step_folder(str(run), 20)}\n" in done.stdout, name


def test_a_damaged_newest_checkpoint_is_an_error_that_names_the_one_before(
    run: Path, prepared: str, tmp_path: Path
) -> None:
    (run / "run.json").write_text("{}")
    newest, before = (Path(step_folder(str(run), step)) for step in (20, 10))
    weights = newest / "sessions" / f"{SESSION}.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    for name, done in commands(run, prepared, tmp_path / "new").items():
        assert done.exit_code != 0, name
        message = str(done.exception)
        assert f"{weights}: differs from the manifest; it is corrupt" in message, name
        assert f"to use the checkpoint before it, name {before}" in message, name
    for name, done in commands(before, prepared, tmp_path / "before").items():
        assert done.exit_code == 0, (name, done.exception)
        assert "from step 10: " in done.stdout, name


def test_checkpoints_without_a_seal_are_read_with_a_word(run: Path, prepared: str) -> None:
    path = Path(step_folder(str(run), 20)) / "manifest.json"
    document = json.loads(path.read_text())
    del document["seal"]
    path.write_text(json.dumps(document))
    done = call("evaluate", run, "--data", prepared, "--session", SESSION)
    assert done.exit_code == 0, done.exception
    assert "has no seal, as earlier versions wrote it" in done.stderr


@pytest.mark.parametrize(
    "content",
    ["", "5", "[]", "null", '{"uri": 5}', '{"run_id": ["x"]}', '{"config": "x"}', "\0\xff"],
)
def test_run_json_of_another_form_is_one_line(
    run: Path, prepared: str, tmp_path: Path, content: str
) -> None:
    (run / "run.json").write_bytes(content.encode("latin-1"))
    for words in (
        ("register", run, "--name", "m"),
        ("report", run, "--to", tmp_path / "r.html"),
        ("curves", run),
    ):
        done = call(*words)
        assert f"{run}/run.json: not as fmcortex writes it: " in str(done.exception), words
        assert "\n" not in str(done.exception), words


def test_registered_models_are_found_in_the_store_that_is_named(
    run: Path, prepared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no command leaves a store in the folder where it was called."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (run / "run.json").write_text("{}")
    store = ("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    evaluate = ("evaluate", "models:/m@best", "--data", prepared, "--session", SESSION)
    done = call(*evaluate, *store)
    assert "mlflow.db: there is no such file" in str(done.exception)
    done = call("register", run, "--name", "m", "--alias", "best", *store)
    assert done.exit_code == 0, done.exception
    assert "registered m version 1 of step 20: models:/m@best\n" in done.stdout
    done = call("register", run, "--name", "m", "--alias", "best", *store)
    assert "is already registered as m version 1 of step 20: models:/m@best\n" in done.stdout
    for words in (evaluate, ("report", run, "--checkpoint", "models:/m@best", "--to", "r.html")):
        done = call(*words, *store)
        assert done.exit_code == 0, done.exception
        assert "from step 20: " in done.stdout
    done = call(*evaluate)
    assert "models:/m@best: name the MLflow store that has it with --tracking-uri" in str(
        done.exception
    )
    assert [path.name for path in Path().iterdir()] == ["r.html"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store[1])
    assert call(*evaluate).exit_code == 0


def test_a_copied_folder_uses_the_store_beside_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a whole demo: runs in it share a store one folder above."""
    demo = run.parent
    store = f"sqlite:///{demo}/mlflow.db"
    known = RunFile(config={"output": str(run)}, uri=store, run_id="0" * 32)
    write_run_file(str(run), known)
    (demo / "mlflow.db").write_bytes(b"")
    shutil.copytree(demo, tmp_path / "copy")
    assert read_run_file(str(run)) == known
    found = read_run_file(str(tmp_path / "copy" / "run"))
    assert found is not None
    assert found.uri == f"sqlite:///{tmp_path}/copy/mlflow.db"
    assert "was copied or moved from" in capsys.readouterr().err
    (tmp_path / "copy" / "mlflow.db").unlink()
    assert read_run_file(str(tmp_path / "copy" / "run")) == known  # of that alone, there is none
