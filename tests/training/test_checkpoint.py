"""Checkpoints: a whole one is told from one that is not, whatever happened to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from fmcortex import storage
from fmcortex.errors import CheckpointError
from fmcortex.model.network import Network
from fmcortex.model.sizes import ModelConfig, preset
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.checkpoint import (
    MANIFEST,
    SHARED,
    Checkpoint,
    CheckpointManifest,
    latest_step,
    list_checkpoints,
    newest,
    open_checkpoint,
    part_file,
    prune,
    step_folder,
    write_manifest,
    write_tensors,
)

CONFIG = preset("tiny").model_copy(update={"retina_height": 12, "retina_width": 18})
UNITS = {"m1": 3, "m2": 5}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint, after step 40; its tensors are those of seed 40."""
    run = tmp_path_factory.mktemp("run")
    folder = step_folder(str(run), 40)
    files = {}
    shared = build_shared(CONFIG, 40)
    parts = {name: build_session(CONFIG, units, 40, name) for name, units in UNITS.items()}
    for name, module in {SHARED: shared, **parts}.items():
        files |= write_tensors(folder, part_file(name), module.state_dict())
        moments = {k: torch.full_like(p, 0.5) for k, p in module.named_parameters()}
        files |= write_tensors(folder, part_file(name, optimizer=True), moments)
    manifest = CheckpointManifest(
        step=40, model=CONFIG, units=UNITS, files=files, config={"training": {"seed": 1}}
    )
    write_manifest(folder, manifest)
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A run with checkpoints after steps 10, 20, 30 and 40, to be damaged."""
    for step in (10, 20, 30, 40):
        folder = Path(step_folder(str(tmp_path), step))
        shutil.copytree(step_folder(str(saved), 40), folder)
        manifest = json.loads((folder / MANIFEST).read_text())
        (folder / MANIFEST).write_text(json.dumps({**manifest, "step": step}))
    return tmp_path


def damage(path: Path, how: str) -> None:
    """Harm a file the way disks, people and interrupted writes do."""
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "flipped":
        content[len(content) // 2] ^= 1
    elif how == "truncated":
        del content[-7:]
    elif how == "longer":
        content += b"\0"
    elif how == "empty":
        content.clear()
    path.write_bytes(content)


def test_names_of_files() -> None:
    assert part_file(SHARED) == "shared.safetensors"
    assert part_file("m1", optimizer=True) == "sessions/m1.optimizer.safetensors"
    assert step_folder("s3://b/run/", 40) == "s3://b/run/checkpoints/step-00000040"


def test_what_was_written_is_read(saved: Path) -> None:
    checkpoint = open_checkpoint(str(saved))
    assert (checkpoint.step, checkpoint.sessions, checkpoint.model) == (40, ["m1", "m2"], CONFIG)
    assert checkpoint.manifest.config == {"training": {"seed": 1}}
    expected = Network(build_shared(CONFIG, 40), build_session(CONFIG, 5, 40, "m2")).state_dict()
    found = checkpoint.network("m2").state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    moments = checkpoint.tensors("m1", optimizer=True)
    assert moments["readout.position.mu"].shape == (3, 2)
    assert all((m == 0.5).all() for m in moments.values())
    checkpoint.verify()


def test_tensors_that_are_not_contiguous(tmp_path: Path) -> None:
    value = torch.arange(6.0).view(2, 3).t().requires_grad_()
    files = write_tensors(str(tmp_path), part_file(SHARED), {"x": value})
    write_manifest(
        str(tmp_path), CheckpointManifest(step=1, model=CONFIG, units={}, files=files, config={})
    )
    assert torch.equal(Checkpoint(str(tmp_path)).tensors(SHARED)["x"], value)


def test_a_session_that_is_not_in_it(saved: Path) -> None:
    checkpoint = open_checkpoint(str(saved))
    with pytest.raises(
        CheckpointError, match=r"no sessions/m3.safetensors in it \(its sessions: m1, m2\)"
    ):
        checkpoint.session("m3")


@pytest.mark.parametrize("how", ["missing", "flipped", "truncated", "longer", "empty"])
@pytest.mark.parametrize(("part", "optimizer"), [(SHARED, False), ("m2", True)])
def test_damage_is_found(run: Path, how: str, part: str, optimizer: bool) -> None:
    folder = Path(step_folder(str(run), 40))
    damage(folder / part_file(part, optimizer), how)
    checkpoint = Checkpoint(str(folder))
    why = "no such file" if how == "missing" else "differs from the manifest; it is corrupt"
    message = f"{part_file(part, optimizer)}: .*{why}"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.verify()
    with pytest.raises(CheckpointError, match=message):
        checkpoint.tensors(part, optimizer)
    checkpoint.tensors("m1")  # the others can still be read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"step": 40', "Invalid JSON"),
        ("", "Invalid JSON"),
        ('{"version": 2, "step": -1}', "step: Input should be greater than or equal to 0"),
        ('{"version": 1, "step": 1}', "version: "),
        ('{"version": 3, "step": 1}', "version: "),
        ('{"sessions": [], "tool_version": "1"}', "step: Field required"),
    ],
)
def test_a_manifest_that_is_none(run: Path, content: str, message: str) -> None:
    folder = Path(step_folder(str(run), 40))
    (folder / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError, match=f"manifest.json: .*{message}"):
        Checkpoint(str(folder))


def test_a_folder_without_a_manifest_is_no_checkpoint(run: Path) -> None:
    folder = Path(step_folder(str(run), 40))
    (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"step-00000040: not a checkpoint \(no manifest"):
        Checkpoint(str(folder))
    assert [f[-2:] for f in list_checkpoints(str(run))] == ["30", "20", "10"]
    assert open_checkpoint(str(run)).step == 30


def test_open_checkpoint_takes_a_run_or_a_checkpoint(run: Path, tmp_path: Path) -> None:
    assert open_checkpoint(str(run)).step == 40
    assert open_checkpoint(step_folder(str(run), 20) + "/").step == 20
    with pytest.raises(CheckpointError, match="elsewhere: no checkpoint here; name a run's folder"):
        open_checkpoint(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("how", ["missing", "flipped", "truncated"])
def test_newest_falls_back_and_says_so(run: Path, how: str) -> None:
    damage(Path(step_folder(str(run), 40)) / "sessions/m1.optimizer.safetensors", how)
    damage(Path(step_folder(str(run), 30)) / MANIFEST, "truncated")
    heard: list[str] = []
    found = newest(str(run), heard.append)
    assert found is not None
    assert found.step == 20
    found.verify()
    assert len(heard) == 2
    assert "step-00000040/sessions/m1.optimizer.safetensors: " in heard[0]
    assert "step-00000030/manifest.json: " in heard[1]
    assert all(line.endswith("; trying the checkpoint before it") for line in heard)


def test_no_checkpoint_is_whole(run: Path) -> None:
    for step in (10, 20, 30, 40):
        damage(Path(step_folder(str(run), step)) / "shared.safetensors", "empty")
    assert newest(str(run)) is None
    assert newest(str(run / "elsewhere")) is None
    with pytest.raises(CheckpointError, match="no checkpoint here"):
        open_checkpoint(str(run))


def test_list_is_newest_first_and_ignores_other_names(run: Path) -> None:
    for name in ("step-50", "step-00000060.tmp", "best", "step-0000007x"):
        shutil.copytree(step_folder(str(run), 10), run / "checkpoints" / name)
    steps = [Checkpoint(folder).step for folder in list_checkpoints(str(run))]
    assert steps == [40, 30, 20, 10]


def test_a_new_checkpoint_is_seen_at_once(run: Path, saved: Path) -> None:
    assert len(list_checkpoints(str(run))) == 4
    shutil.copytree(step_folder(str(saved), 40), step_folder(str(run), 50))
    assert list_checkpoints(str(run))[0] == step_folder(str(run), 50)


@pytest.mark.parametrize(("keep", "left"), [(1, [40]), (3, [40, 30, 20]), (9, [40, 30, 20, 10])])
def test_prune_keeps_the_newest(run: Path, keep: int, left: list[int]) -> None:
    prune(str(run), keep)
    assert list_checkpoints(str(run)) == [step_folder(str(run), step) for step in left]
    assert len(list((run / "checkpoints").iterdir())) == len(left)
    open_checkpoint(str(run)).verify()


def test_prune_spares_what_it_is_told_to(run: Path) -> None:
    prune(str(run), 1, spare=[20])
    assert list_checkpoints(str(run)) == [step_folder(str(run), step) for step in (40, 20)]
    assert latest_step(str(run)) == 40
    assert latest_step(str(run / "elsewhere")) == 0


def test_prune_removes_the_manifest_first(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted anywhere, it leaves no folder that looks whole and is not."""
    removed: list[str] = []
    monkeypatch.setattr(storage, "remove", removed.append)
    prune(str(run), 3)
    old = step_folder(str(run), 10)
    assert removed == [f"{old}/{MANIFEST}", old]


def test_on_an_object_store(saved: Path) -> None:
    source = Path(step_folder(str(saved), 40))
    folder = step_folder("memory://run", 40)
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        storage.write_bytes(f"{folder}/{path.relative_to(source)}", path.read_bytes())
    try:
        checkpoint = open_checkpoint("memory://run")
        assert checkpoint.folder == folder
        checkpoint.verify()
        prune("memory://run", 1)
        assert list_checkpoints("memory://run") == [folder]
    finally:
        storage.remove("memory://run")


def test_the_sizes_come_from_the_manifest(run: Path) -> None:
    folder = Path(step_folder(str(run), 40))
    manifest = json.loads((folder / MANIFEST).read_text())
    assert ModelConfig.model_validate(manifest["model"]) == CONFIG
    assert manifest["files"]["shared.safetensors"]["bytes"] == (
        (folder / "shared.safetensors").stat().st_size
    )
