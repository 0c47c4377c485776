"""What a pretraining goes on from, without workers: checkpoints that are corrupt, or not finite."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster import pretrain as driver
from cluster.checkpoints import Saver
from data_prep.job import prepare
from data_prep.settings import PrepSettings
from fmcortex.config import RunConfig
from fmcortex.errors import CheckpointError, ConfigError, DataError
from fmcortex.training.checkpoint import Checkpoint, latest_step, list_checkpoints, prune
from fmcortex.training.diagnosis import check_trained, left_out
from fmcortex.training.fit import fit
from fmcortex.training.going_on import CORRUPT, load_newest, remove_unfinished
from fmcortex.training.peers import Alone
from fmcortex.training.snapshot import Snapshot

ONE = "mouse01-1-1"


@pytest.fixture
def config(tiny_run: RunConfig) -> RunConfig:
    """A run of one step of one mouse."""
    values = tiny_run.model_dump()
    values["data"] |= {"sessions": [ONE], "batch": 1}
    values["training"] |= {"epochs": 1, "steps_per_epoch": 1, "warmup_epochs": 0}
    return RunConfig.model_validate(values)


def with_steps(config: RunConfig, *steps: int) -> list[Path]:
    """Checkpoints of these steps in the output of `config`."""
    folder = Path(str(fit(config, save=True).checkpoint))
    made = [folder.with_name(f"step-{step:08d}") for step in steps]
    for one in made:
        shutil.copytree(folder, one)
    shutil.rmtree(folder)
    return made


def flip(folder: Path) -> None:
    path = folder / "shared.safetensors"
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


def newest(config: RunConfig, said: list[str]) -> Checkpoint | None:
    def load(checkpoint: Checkpoint) -> Checkpoint:
        checkpoint.verify()
        return checkpoint

    return load_newest(config.output, load, Alone(), 0, said.append)


def test_of_checkpoints_that_are_all_corrupt_none_is_touched(config: RunConfig) -> None:
    assert newest(config, []) is None
    made = with_steps(config, 9996, 9998)
    for folder in made:
        flip(folder)
    with pytest.raises(CheckpointError) as refused:
        newest(config, [])
    assert "none of its 2 checkpoints can be read, and starting anew would replace them" in str(
        refused.value
    )
    assert [Path(folder) for folder in list_checkpoints(config.output)] == made[::-1]
    shutil.rmtree(made[0])
    with pytest.raises(CheckpointError, match="its checkpoint cannot be read, and starting anew"):
        newest(config, [])


def test_one_that_was_passed_over_is_not_counted_among_those_kept(config: RunConfig) -> None:
    older, corrupt = with_steps(config, 4, 9998)
    flip(corrupt)
    said: list[str] = []
    found = newest(config, said)
    assert found is not None
    assert found.folder == str(older)
    assert said[0].endswith("it is corrupt; trying the checkpoint before it")
    assert latest_step(config.output) == 4
    remove_unfinished(config.output)
    prune(config.output, 1)
    assert older.exists()
    assert (corrupt / CORRUPT).exists()  # for whoever wants to look into it


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_state_that_is_not_finite_is_not_saved(config: RunConfig, value: float) -> None:
    weights = {"a": torch.ones(3), "b": torch.tensor([1.0, value])}
    saver = Saver(config, 0, Alone())
    saver.start(Snapshot(8, {"shared.safetensors": weights}, {ONE: 7}, {}, 0))
    with pytest.raises(DataError, match=r"after step 8 1 of 2 values of b in shared\.safetensors"):
        saver.finish()
    saver.close()
    assert list_checkpoints(config.output) == []


def test_most_steps_left_out_is_an_error() -> None:
    check_trained(4, 8)
    with pytest.raises(DataError, match=r"5 of 8 steps were left out because a loss"):
        check_trained(5, 8)
    assert [left_out(n) for n in (0, 1, 2)] == [
        "no steps left out as not finite",
        "1 step left out as not finite",
        "2 steps left out as not finite",
    ]


def test_data_that_was_prepared_anew_is_refused_before_workers_start(
    config: RunConfig, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("a run was opened")

    monkeypatch.setattr(driver, "open_run", fail)
    to = str(tmp_path / "data")
    prepare(str(recordings / ONE), to)
    config = config.model_copy(update={"data": config.data.model_copy(update={"url": to})})
    fit(config, save=True)
    prepare(str(recordings / ONE), to, PrepSettings(response_normalisation="none"), overwrite=True)
    more = config.training.model_copy(update={"cycles": 2})
    longer = config.model_copy(update={"training": more})
    with pytest.raises(ConfigError, match=r"prepared anew since step 1 .* none, before mean\)"):
        driver.pretrain(longer)
