"""Checkpoints: a whole one is told from one that is not, whatever happened to it."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from fmcortex import storage
from fmcortex.config import TrainingConfig
from fmcortex.errors import CheckpointError, DataError
from fmcortex.model.network import Network
from fmcortex.model.sizes import ModelConfig, preset
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.checkpoint import (
    MANIFEST,
    SHARED,
    Checkpoint,
    CheckpointManifest,
    StoredFile,
    latest_step,
    list_checkpoints,
    open_checkpoint,
    part_file,
    prune,
    step_folder,
    write_manifest,
    write_tensors,
)
from fmcortex.training.optimizer import load_optimizer_state, make_optimizer, optimizer_state

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
        write_manifest(str(folder), changed(folder, step=step))
    return tmp_path


def changed(folder: Path, **values: Any) -> CheckpointManifest:
    """The manifest in a folder with other values, which need not fit its files."""
    return Checkpoint(str(folder)).manifest.model_copy(update=values)


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
        ('{"version": 9, "step": 1}', "version: "),
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


def test_a_later_step_without_a_manifest_is_said(run: Path) -> None:
    assert open_checkpoint(str(run)).remark is None
    newest, before = list_checkpoints(str(run))[:2]
    (Path(newest) / MANIFEST).unlink()
    found = open_checkpoint(str(run))
    assert found.folder == before
    assert found.remark is not None
    assert found.remark.startswith(f"{newest}: no manifest.json there, ")
    assert open_checkpoint(before).remark is None  # asked for by its own folder


def test_open_checkpoint_takes_a_run_or_a_checkpoint(run: Path, tmp_path: Path) -> None:
    assert open_checkpoint(str(run)).step == 40
    assert open_checkpoint(step_folder(str(run), 20) + "/").step == 20
    with pytest.raises(CheckpointError, match="elsewhere: no checkpoint here; name a run's folder"):
        open_checkpoint(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("how", ["missing", "flipped", "truncated"])
@pytest.mark.parametrize("name", ["sessions/m1.safetensors", "shared.optimizer.safetensors"])
def test_an_older_checkpoint_is_never_taken_unasked(run: Path, how: str, name: str) -> None:
    newest, before = (Path(step_folder(str(run), step)) for step in (40, 30))
    damage(newest / name, how)
    message = rf"step-00000040/{name}: .*; to use the checkpoint before it, name {before}$"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(run))
    with pytest.raises(CheckpointError, match=rf"step-00000040/{name}: "):
        open_checkpoint(str(newest))
    assert open_checkpoint(str(before)).step == 30


def test_damaged_manifest_is_named_like_any_part(run: Path) -> None:
    damage(Path(step_folder(str(run), 40)) / MANIFEST, "truncated")
    with pytest.raises(CheckpointError, match=r"40/manifest.json: .*; to use the checkpoint befo"):
        open_checkpoint(str(run))


def test_every_byte_of_a_manifest_counts(saved: Path, tmp_path: Path) -> None:
    content = (Path(step_folder(str(saved), 40)) / MANIFEST).read_bytes()
    (tmp_path / MANIFEST).write_bytes(content)
    assert Checkpoint(str(tmp_path)).sealed
    for at in range(0, len(content), 7):
        flipped = bytearray(content)
        flipped[at] ^= 1
        (tmp_path / MANIFEST).write_bytes(flipped)
        with pytest.raises(CheckpointError, match=f"{tmp_path}/manifest.json: "):
            Checkpoint(str(tmp_path))


def test_one_changed_digit_is_found(run: Path) -> None:
    path = Path(step_folder(str(run), 40)) / MANIFEST
    text = path.read_text()
    assert '"retina_degrees": 75.0' in text
    path.write_text(text.replace('"retina_degrees": 75.0', '"retina_degrees": 15.0'))
    with pytest.raises(CheckpointError, match=r"manifest.json: differs from its own checksum"):
        Checkpoint(str(path.parent))


def test_manifests_of_earlier_versions_are_read_with_a_word(run: Path) -> None:
    folder = Path(step_folder(str(run), 40))
    assert open_checkpoint(str(folder)).remark is None
    old = json.loads((folder / MANIFEST).read_text())
    del old["seal"]
    (folder / MANIFEST).write_text(json.dumps(old, indent=1))
    checkpoint = open_checkpoint(str(folder))
    assert not checkpoint.sealed
    assert "step-00000040: its manifest.json has no seal" in str(checkpoint.remark)
    assert checkpoint.network("m1") is not None


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "", "shared", "m1.optimizer"])
def test_names_of_sessions_stay_inside(run: Path, name: str) -> None:
    """A checkpoint from elsewhere, sealed by whoever made it up."""
    folder = Path(step_folder(str(run), 40))
    files = Checkpoint(str(folder)).manifest.files
    moved = {f"sessions/{name}.safetensors": files["sessions/m1.safetensors"]}
    (folder / MANIFEST).write_bytes(
        changed(
            folder,
            units={name: 3},
            files={SHARED + ".safetensors": files["shared.safetensors"]} | moved,
        ).sealed()
    )
    with pytest.raises(CheckpointError, match=r"manifest.json: |checkpoint: session ") as caught:
        Checkpoint(str(folder))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="session"):
        part_file(name if name != SHARED else "x.optimizer")


def test_files_are_those_of_its_sessions(run: Path) -> None:
    folder = Path(step_folder(str(run), 40))
    whole = changed(folder)
    for name in ("../x", "sessions/m3.safetensors", "other"):
        more = {**whole.files, name: whole.files["shared.safetensors"]}
        write_manifest(str(folder), whole.model_copy(update={"files": more}))
        with pytest.raises(CheckpointError, match=r"manifest.json: .*is no file of a checkpoint"):
            Checkpoint(str(folder))
    fewer = {k: v for k, v in whole.files.items() if k != "sessions/m2.safetensors"}
    write_manifest(str(folder), whole.model_copy(update={"files": fewer}))
    with pytest.raises(CheckpointError, match=r"no sessions/m2.safetensors in its manifest"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"units": {"m1": 4, "m2": 5}}, r"sessions/m1.safetensors: does not fit .* readout\."),
        ({"model": CONFIG.model_copy(update={"recurrent_hidden": 8})}, r"shared.safetensors: does"),
        ({"model": CONFIG.model_copy(update={"eye_layers": 1})}, r"m1.safetensors: does not fit"),
        ({"model": CONFIG.model_copy(update={"streams": CONFIG.streams + 1})}, "does not fit"),
    ],
)
def test_weights_that_do_not_fit_the_manifest(
    run: Path, values: dict[str, Any], message: str
) -> None:
    folder = Path(step_folder(str(run), 40))
    write_manifest(str(folder), changed(folder, **values))
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(str(folder)).network("m1")
    assert "\n" not in str(caught.value)


def test_files_that_hold_no_tensors(run: Path) -> None:
    folder = Path(step_folder(str(run), 40))
    files = Checkpoint(str(folder)).manifest.files
    contents = {
        "pickle": pickle.dumps({"a": 1}),
        "other tensors": safetensors.torch.save({"x": torch.zeros(2)}),
        "nothing": b"",
        "integers": safetensors.torch.save(
            {k: v.long() for k, v in Checkpoint(str(folder)).tensors(SHARED).items()}
        ),
    }
    for what, content in contents.items():
        storage.write_bytes(str(folder / "shared.safetensors"), content)
        entry = StoredFile(bytes=len(content), sha256=storage.sha256(content))
        write_manifest(str(folder), changed(folder, files={**files, "shared.safetensors": entry}))
        with pytest.raises(CheckpointError, match=r"shared.safetensors: ") as caught:
            open_checkpoint(str(folder)).shared()
        assert "\n" not in str(caught.value), what


def test_configuration_of_another_form(run: Path) -> None:
    folder = Path(step_folder(str(run), 40))
    for config in ({}, {"data": 5}, {"data": ["url"]}, {"data": {}}):
        write_manifest(str(folder), changed(folder, config=config))
        assert Checkpoint(str(folder)).setting("data", "url") is None
    write_manifest(str(folder), changed(folder, config={"data": {"url": "x"}}))
    assert Checkpoint(str(folder)).setting("data", "url") == "x"


def test_optimizer_state_of_another_network() -> None:
    part = build_session(CONFIG, 3, 0, "m1")
    optimizer = make_optimizer(dict(part.named_parameters()), TrainingConfig())
    state = optimizer_state(optimizer)
    load_optimizer_state(optimizer, state)
    first = next(iter(state))
    for wrong in ({}, {**state, first: torch.zeros(99)}):
        with pytest.raises(CheckpointError, match="optimizer's state: "):
            load_optimizer_state(optimizer, wrong)


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
