"""Single mice trained in this process: what is refused, saved, gone on from, and recorded."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.job import prepare
from data_prep.settings import PrepSettings
from fmcortex import storage
from fmcortex.config import RunConfig
from fmcortex.errors import CheckpointError, ConfigError, DataError, Interrupted, Locked, Preempted
from fmcortex.lock import Lock
from fmcortex.tracking.run import RunLog
from fmcortex.training import single
from fmcortex.training.checkpoint import SHARED, Checkpoint, list_checkpoints, open_checkpoint
from fmcortex.training.going_on import CORRUPT
from fmcortex.training.single import SingleResult, train_single
from fmcortex.training.step import StepReport

ONE = "mouse01-1-1"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow store for all: to make one takes longer than a run."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def config(tiny_run: RunConfig, store: str) -> RunConfig:
    """A run of 6 steps of one mouse that saves after every second."""
    return changed(
        tiny_run,
        tracking={"uri": store},
        data={"sessions": [ONE], "batch": 1},
        training={"epochs": 3, "steps_per_epoch": 2},
        checkpoint={"every": 2},
    )


def changed(config: RunConfig, **sections: dict[str, Any]) -> RunConfig:
    parts = {key: getattr(config, key).model_copy(update=v) for key, v in sections.items()}
    return config.model_copy(update=parts)


def elsewhere(config: RunConfig, name: str) -> RunConfig:
    return config.model_copy(update={"output": str(Path(config.output).with_name(name))})


def log_of(config: RunConfig) -> RunLog:
    known = storage.read_json(storage.join(config.output, "run.json"))
    return RunLog(known["uri"], known["run_id"])


def stop_after(step: int, number: signal.Signals) -> Any:
    def on_step(report: StepReport) -> None:
        if report.step + 1 == step:
            signal.raise_signal(number)

    return on_step


def same_bits(one: Checkpoint, two: Checkpoint) -> bool:
    assert one.sessions == two.sessions
    for part in [SHARED, *one.sessions]:
        for optimizer in (False, True):
            ours, theirs = one.tensors(part, optimizer), two.tensors(part, optimizer)
            assert ours.keys() == theirs.keys()
            if not all(torch.equal(ours[key], theirs[key]) for key in ours):
                return False
    return one.manifest.drawn == two.manifest.drawn


def test_a_second_run_into_the_same_output_is_refused(config: RunConfig) -> None:
    with (
        Lock(config.output, "transfer"),
        pytest.raises(Locked, match=r"run: in use by transfer of user .*choose another output"),
    ):
        train_single(config, "individual")
    assert [path.name for path in Path(config.output).iterdir()] == []


@pytest.mark.parametrize(
    ("kind", "number"), [("individual", signal.SIGINT), ("transfer", signal.SIGTERM)]
)
def test_interrupted_and_continued_it_has_the_same_bits(
    config: RunConfig, kind: Any, number: signal.Signals
) -> None:
    start = None
    if kind == "transfer":
        base = changed(elsewhere(config, "base"), data={"sessions": ["mouse02-1-1"]})
        start = Checkpoint(train_single(base, "individual").checkpoint)
    error = Interrupted if number is signal.SIGINT else Preempted
    with pytest.raises(error, match=r"told to stop; saved after step 3 of 6\. The same command"):
        train_single(config, kind, start, on_step=stop_after(3, number))
    assert open_checkpoint(config.output).step == 3
    assert log_of(config).status == "KILLED"
    said: list[str] = []
    result = train_single(config, kind, start, say=said.append)
    assert said == [f"{kind}: going on from step 3"]
    assert [report.step for report in result.fit.steps] == [3, 4, 5]
    undisturbed = train_single(elsewhere(config, "whole"), kind, start)
    assert same_bits(Checkpoint(result.checkpoint), Checkpoint(undisturbed.checkpoint))
    log = log_of(config)
    assert (log.run_id, log.status) == (result.run_id, "FINISHED")
    assert [step for step, _ in log.history("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert len(list_checkpoints(config.output)) == config.checkpoint.keep


def test_killed_it_goes_on_from_what_it_saved_last(config: RunConfig) -> None:
    def interrupt(report: StepReport) -> None:
        if report.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_single(config, "individual", on_step=interrupt)
    assert log_of(config).status == "KILLED"
    assert open_checkpoint(config.output).step == 4
    result = train_single(config, "individual", say=lambda line: None)
    undisturbed = train_single(elsewhere(config, "whole"), "individual")
    assert same_bits(Checkpoint(result.checkpoint), Checkpoint(undisturbed.checkpoint))


@pytest.fixture
def done(config: RunConfig) -> SingleResult:
    """A finished run of `config`."""
    return train_single(config, "individual")


def test_a_finished_one_is_left_alone_and_goes_on_with_more_cycles(
    config: RunConfig, done: SingleResult
) -> None:
    before = log_of(config).client.get_run(done.run_id).info
    again = train_single(config, "individual")
    assert (again.checkpoint, again.run_id, again.fit.steps) == (done.checkpoint, done.run_id, [])
    after = log_of(config).client.get_run(done.run_id).info
    assert (after.status, after.end_time) == ("FINISHED", before.end_time)

    longer = changed(config, training={"cycles": 2})
    result = train_single(longer, "individual", say=lambda line: None)
    assert Checkpoint(result.checkpoint).step == 12
    whole = train_single(elsewhere(longer, "whole"), "individual")
    assert same_bits(Checkpoint(result.checkpoint), Checkpoint(whole.checkpoint))
    with pytest.raises(ConfigError, match=r"training\.cycles: 1 are 6 steps, but the run .* 12;"):
        train_single(config, "individual")


def test_what_cannot_go_on_says_why(config: RunConfig, done: SingleResult) -> None:
    known = Path(config.output, "run.json").read_bytes()
    for other, kind, message in (
        (
            changed(config, training={"epochs": 4}),
            "individual",
            r"training\.epochs \(the learning ",
        ),
        (changed(config, training={"lr": 0.2}), "individual", r"other settings in training\.lr;"),
        (changed(config, data={"frames": 12}), "individual", r"other settings in data\.frames;"),
        (changed(config, data={"sessions": None}), "individual", r"holds a run of other sess"),
        (config, "transfer", "holds a run of `individual`; choose another output"),
    ):
        start = Checkpoint(done.checkpoint) if kind == "transfer" else None
        with pytest.raises(ConfigError, match=message):
            train_single(other, kind, start)  # type: ignore[arg-type]
    assert Path(config.output, "run.json").read_bytes() == known
    assert log_of(config).status == "FINISHED"


def test_a_transfer_from_another_core_is_refused(config: RunConfig, done: SingleResult) -> None:
    new = changed(elsewhere(config, "new"), data={"sessions": ["mouse02-1-1"]})
    other = changed(elsewhere(config, "other"), training={"seed": 1})
    cores = [Checkpoint(done.checkpoint), Checkpoint(train_single(other, "individual").checkpoint)]
    with pytest.raises(Interrupted):
        train_single(new, "transfer", cores[0], on_step=stop_after(2, signal.SIGINT))
    with pytest.raises(ConfigError, match="holds a transfer with another core than that of"):
        train_single(new, "transfer", cores[1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)


def tree(folder: str) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_a_corrupt_newest_checkpoint_is_set_aside(config: RunConfig) -> None:
    with pytest.raises(Interrupted):
        train_single(config, "individual", on_step=stop_after(5, signal.SIGINT))
    newest = Path(config.output, "checkpoints/step-00000005")
    flip(newest / "shared.safetensors")
    said: list[str] = []
    result = train_single(config, "individual", say=said.append)
    assert "trying the checkpoint before it" in said[0]
    assert said[1] == "individual: going on from step 4"
    assert Checkpoint(result.checkpoint).step == 6
    # It is kept for whoever wants to look into it, and counts as none.
    assert (newest / CORRUPT).exists()
    assert not (newest / "manifest.json").exists()


def test_if_all_checkpoints_are_corrupt_it_stops_and_touches_nothing(config: RunConfig) -> None:
    with pytest.raises(Interrupted):
        train_single(config, "individual", on_step=stop_after(5, signal.SIGINT))
    for folder in list_checkpoints(config.output):
        flip(Path(folder, "shared.safetensors"))
    before = tree(config.output)
    with pytest.raises(CheckpointError, match=r"none of its 2 checkpoints can be read.*anew$"):
        train_single(config, "individual", say=lambda line: None)
    assert tree(config.output) == before


def test_most_steps_left_out_is_an_error(config: RunConfig, monkeypatch: Any) -> None:
    hot = changed(config, training={"lr": 1e30})
    with pytest.raises(DataError, match=r"(\d of 6 steps were left out|are not finite, so the st)"):
        train_single(hot, "individual")
    assert log_of(hot).status == "FAILED"


def test_a_state_that_is_not_finite_is_not_saved(config: RunConfig, monkeypatch: Any) -> None:
    saved = single.save_checkpoint

    def spoilt(config: RunConfig, trainer: Any, *rest: Any) -> str:
        with torch.no_grad():
            next(trainer.engine.module.parameters()).flatten()[0] = float("inf")
        return saved(config, trainer, *rest)

    monkeypatch.setattr(single, "save_checkpoint", spoilt)
    with pytest.raises(DataError, match=r"after step 2 1 of \d+ values of \S+ in shared\.safet"):
        train_single(config, "individual")
    assert list_checkpoints(config.output) == []


def test_data_that_was_prepared_anew(config: RunConfig, recordings: Path, tmp_path: Path) -> None:
    shutil.copytree(recordings / ONE, tmp_path / "source" / ONE)
    source, to = str(tmp_path / "source"), str(tmp_path / "data")
    prepare(source, to)
    config = changed(config, data={"url": to, "sessions": None})
    with pytest.raises(Interrupted):
        train_single(config, "individual", on_step=stop_after(2, signal.SIGINT))
    # Stored otherwise, it is the same data.
    prepare(source, to, PrepSettings(trials_per_shard=1), overwrite=True)
    with pytest.raises(Interrupted):
        train_single(
            config, "individual", on_step=stop_after(3, signal.SIGINT), say=lambda line: None
        )
    prepare(source, to, PrepSettings(response_normalisation="none"), overwrite=True)
    with pytest.raises(ConfigError) as refused:
        train_single(config, "individual")
    assert "data was prepared anew since step 3 of the run in" in str(refused.value)
    assert f"{ONE} (response normalisation none, before mean)" in str(refused.value)
    assert "data.accept_changes=true" in str(refused.value)
    said: list[str] = []
    accepted = changed(config, data={"accept_changes": True})
    result = train_single(accepted, "individual", say=said.append)
    assert "going on from step 3 although data was prepared anew" in said[0]
    manifest = Checkpoint(result.checkpoint).manifest
    assert manifest.kept == [3]
    assert manifest.data[ONE].normalisation == "none"
    assert Path(config.output, "checkpoints/step-00000003/manifest.json").exists()
