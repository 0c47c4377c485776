"""Pretraining through real Ray Train workers: the same result as plainly, and through a kill."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from processes import workers_of_this_test
from ray.train.torch import TorchTrainer

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference_trainer import largest_difference, reference_run

from cluster.pretrain import pretrain
from fmcortex import storage
from fmcortex.config import RunConfig
from fmcortex.errors import ConfigError, DataError, Locked, StorageError
from fmcortex.lock import Lock
from fmcortex.tracking.run import RunLog
from fmcortex.training import going_on
from fmcortex.training.checkpoint import SHARED, Checkpoint, list_checkpoints, open_checkpoint


def changed(config: RunConfig, section: str, **values: object) -> RunConfig:
    part = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: part})


def state_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """All that a checkpoint holds, named as `reference_run` does; buffers left out."""
    found = {}
    for part in [SHARED, *checkpoint.sessions]:
        kept = checkpoint.tensors(part, optimizer=True)
        weights = checkpoint.tensors(part)
        names = {name.split("/", 1)[1] for name in kept}
        found |= {f"{part}/{k}": weights[k] for k in names}
        found |= {f"{part}/{k}": v for k, v in kept.items()}
    return found


def kill_a_worker_after(run: str, step: str) -> threading.Thread:
    """Kill one worker with SIGKILL once the checkpoint `step` is whole."""

    def wait_and_kill() -> None:
        manifest = Path(run) / "checkpoints" / step / "manifest.json"
        while not manifest.exists():
            time.sleep(0.05)
        workers_of_this_test()[0].send_signal(signal.SIGKILL)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def test_two_workers_one_killed_give_the_plain_result(
    tiny_run: RunConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    config = changed(tiny_run, "cluster", workers=2, max_failures=1)
    config = changed(config, "checkpoint", every=4)
    config = changed(config, "tracking", validate_every=2)
    killer = kill_a_worker_after(config.output, "step-00000008")
    result = pretrain(config)
    killer.join(timeout=1)
    assert not killer.is_alive()
    assert "workers restarted" in capfd.readouterr().err
    checkpoint = open_checkpoint(result.checkpoint)
    assert checkpoint.step == 20
    assert largest_difference(state_of(checkpoint), reference_run(config, 20)) < 1e-5
    assert len(list_checkpoints(config.output)) == config.checkpoint.keep

    log = RunLog(result.tracking_uri, result.run_id)
    losses = log.history("train/loss")
    assert sorted({step for step, _ in losses}) == list(range(1, 21))
    assert log.history("validation/cc_abs")
    assert log.history("loss/mouse02-1-1")
    run = log.client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.lr"] == "0.1"
    assert {"config.yaml", "environment.json", "figures"} <= {
        f.path for f in log.client.list_artifacts(result.run_id)
    }

    # The finished run is not trained again, its folder takes no other run, and whoever asks for
    # one leaves all as it was.
    before, ended = written(config), run.info.end_time
    assert pretrain(config).checkpoint == result.checkpoint
    with pytest.raises(ConfigError, match=r"other settings in training\.lr;"):
        pretrain(changed(config, "training", lr=0.5))
    with pytest.raises(ConfigError, match=r"is finished, with other sessions \(mouse01-1-1 diff"):
        pretrain(changed(config, "data", sessions=["mouse02-1-1", "mouse03-1-1"]))
    with pytest.raises(ConfigError, match=r"other settings in training\.epochs \(the learn"):
        pretrain(changed(config, "training", epochs=5))
    assert written(config) == before
    info = log.client.get_run(result.run_id).info
    assert (info.status, info.end_time) == ("FINISHED", ended)


def written(config: RunConfig) -> dict[str, bytes]:
    """Every file of a run but those of its MLflow store, which SQLite writes when it reads."""
    root = Path(config.output)
    files = [path for path in root.rglob("*") if path.is_file() and "mlflow.db" not in path.name]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_one_worker(tiny_run: RunConfig) -> None:
    # No failure is forgiven: a restart at every checkpoint would come to the same result.
    result = pretrain(changed(tiny_run, "cluster", workers=1, zero_stage=2, max_failures=0))
    state = state_of(open_checkpoint(result.checkpoint))
    assert largest_difference(state, reference_run(tiny_run, 20)) < 1e-5


@pytest.mark.slow
def test_output_in_an_object_store(tiny_run: RunConfig, s3: str, tmp_path: Path) -> None:
    config = changed(tiny_run, "cluster", workers=2, max_failures=0)
    config = changed(config, "tracking", uri=f"sqlite:///{tmp_path}/mlflow.db")
    config = config.model_copy(update={"output": f"{s3}/runs/first"})
    result = pretrain(config)
    assert result.checkpoint == f"{s3}/runs/first/checkpoints/step-00000020"
    state = state_of(open_checkpoint(result.checkpoint))
    assert largest_difference(state, reference_run(tiny_run, 20)) < 1e-5


def test_a_call_that_did_not_reach_mlflow_leaves_no_trap(
    tiny_run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cluster.pretrain as driver

    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"tracking\.uri: cannot use"):
        pretrain(changed(tiny_run, "tracking", uri=f"sqlite:///{tmp_path}/file/mlflow.db"))

    def fail(*_: object) -> RunLog:
        raise ConfigError("tracking.uri: not now")

    with monkeypatch.context() as patch:
        patch.setattr(going_on, "mlflow_run", fail)
        with pytest.raises(ConfigError, match="not now"):
            pretrain(tiny_run)
    known = storage.read_json(storage.join(tiny_run.output, "run.json"))
    assert "run_id" not in known
    run = driver._open_run(driver.absolute(tiny_run), None)
    assert storage.read_json(storage.join(tiny_run.output, "run.json"))["run_id"] == run.run_id


def test_a_second_run_into_the_same_output_is_refused(tiny_run: RunConfig) -> None:
    with (
        Lock(tiny_run.output, "pretrain"),
        pytest.raises(Locked, match=r"run: in use by pretrain of user .*choose another output"),
    ):
        pretrain(tiny_run)
    assert storage.names(tiny_run.output) == []  # and nothing is touched


def test_a_corrupt_shard_ends_the_run_with_its_name(
    tiny_run: RunConfig, prepared: str, tmp_path: Path
) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(prepared, copy)
    tar = next((copy / "sessions" / "mouse02-1-1").glob("*.tar"))
    content = bytearray(tar.read_bytes())
    for at in range(2000, len(content), 1000):
        content[at] ^= 0xFF
    tar.write_bytes(bytes(content))
    config = changed(tiny_run, "data", url=str(copy))
    with pytest.raises(DataError, match=r"mouse02-1-1/train-00000\.tar"):
        pretrain(config)


def test_what_can_be_known_before_is_said_before(
    tiny_run: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TorchTrainer) -> None:
        raise AssertionError("workers were started")

    monkeypatch.setattr(TorchTrainer, "fit", fail)
    with pytest.raises(ConfigError, match=r"cluster\.workers: 4 workers"):
        pretrain(changed(tiny_run, "cluster", workers=4))
    with pytest.raises(ConfigError, match=r"data\.sessions: mouse99 not in"):
        pretrain(changed(tiny_run, "data", sessions=["mouse99"]))
    with pytest.raises(ConfigError, match=r"data\.frames: session"):
        pretrain(changed(tiny_run, "data", frames=2000))
    with pytest.raises(ConfigError, match=r"data\.minutes: 100 minutes"):
        pretrain(changed(tiny_run, "data", minutes=100.0))
    with pytest.raises(DataError, match="not a prepared dataset"):
        pretrain(changed(tiny_run, "data", url="/nowhere"))
    with pytest.raises(StorageError, match="/proc/nowhere"):
        pretrain(tiny_run.model_copy(update={"output": "/proc/nowhere"}))
    assert not storage.exists(tiny_run.output)
