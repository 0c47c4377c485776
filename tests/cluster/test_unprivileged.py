"""Training as a user who may do nothing but write in one folder."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from unprivileged import Unprivileged, unprivileged_user

from cluster import checkpoints, engine
from fmcortex.config import RunConfig
from fmcortex.training.checkpoint import open_checkpoint

BIN = Path(sys.executable).parent


@pytest.fixture
def user() -> Iterator[Unprivileged]:
    with unprivileged_user() as one:
        yield one


def test_pretraining_by_a_user_without_rights_home_or_name(
    tiny_run: RunConfig, user: Unprivileged
) -> None:
    shutil.copytree(tiny_run.data.url, user.folder / "data")
    document = tiny_run.model_dump(mode="json")
    document["output"], document["data"]["url"] = "run", "data"
    document["training"] |= {"epochs": 1, "warmup_epochs": 0}
    document["checkpoint"]["every"] = 2
    document["cluster"] |= {"workers": 1, "max_failures": 0}
    (user.folder / "run.yaml").write_text(yaml.safe_dump(document))
    user.own(user.folder)
    done = user.run(BIN / "fmcortex", "pretrain", "--config", "run.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    checkpoint = open_checkpoint(str(user.folder / "run"))
    assert checkpoint.step == 5
    checkpoint.verify()
    assert list(user.home.iterdir()) == []
    lines = done.stderr.splitlines()
    assert lines[0].startswith(f"HOME ({user.home}) cannot be written; caches go to ")
    # All that is said before the first step says what is being started.
    first = next(n for n, line in enumerate(lines) if line.startswith("pretrain: step "))
    assert lines[1:first] == [
        "pretrain: opening the MLflow run",
        "pretrain: starting Ray on this machine",
        "pretrain: starting 1 worker",
        "pretrain: reading the dataset",
        "pretrain: starting DeepSpeed",
    ]
    assert "matplotlib" not in "".join(lines[1:]).lower()


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_the_thread_that_writes_never_asks_for_a_higher_priority() -> None:
    found = []

    def at(niceness: int) -> None:
        own = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, own, niceness)
        checkpoints._step_back()
        found.append(os.getpriority(os.PRIO_PROCESS, own))

    for niceness in (15, 3):  # Ray's workers have 15
        thread = threading.Thread(target=at, args=(niceness,))
        thread.start()
        thread.join()
    assert found == [15, 10]


def test_zero_counts_devices_without_programs_of_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a folder of the PATH that may not be read: the call is refused, not "not found".
    (tmp_path / "numactl").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LOCAL_SIZE", raising=False)
    monkeypatch.setattr(engine.torch.cuda, "is_available", lambda: False)
    engine.import_deepspeed()
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    assert CPU_Accelerator().device_count() == 1


def test_a_run_on_the_cpu_leaves_the_gpus_of_its_machine_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.setattr(engine.torch.cuda, "is_available", lambda: True)
    engine.import_deepspeed(on_cpu=True)
    assert os.environ.pop("DS_ACCELERATOR") == "cpu"
