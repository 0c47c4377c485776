"""Whole runs through Ray that are told to stop, or killed at random."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from processes import workers_of_this_test
from ranks import run_ranks

from cluster.pretrain import pretrain
from fmcortex import storage
from fmcortex.config import RunConfig
from fmcortex.tracking.run import RunLog
from fmcortex.training.checkpoint import SHARED, Checkpoint, latest_step, open_checkpoint


def changed(config: RunConfig, section: str, **values: object) -> RunConfig:
    part = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: part})


def command(config: RunConfig, folder: Path) -> subprocess.Popen[str]:
    """`fmcortex pretrain` of `config`, as a user or a batch script starts it."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return subprocess.Popen(
        [sys.executable, "-m", "fmcortex.cli", "pretrain", "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def recorded(config: RunConfig) -> str:
    """The status of the run in MLflow."""
    known = storage.read_json(storage.join(config.output, "run.json"))
    return RunLog(known["uri"], known["run_id"]).status


@pytest.mark.slow
def test_ctrl_c_saves_and_twice_ends_at_once(tiny_run: RunConfig, tmp_path: Path) -> None:
    config = changed(tiny_run, "training", epochs=8, steps_per_epoch=50)
    config = changed(config, "checkpoint", every=5)
    running = command(config, tmp_path)
    wait_for(config, 5)
    os.killpg(running.pid, signal.SIGINT)  # the terminal sends it to all that run in it
    said, _ = running.communicate(timeout=180)
    assert running.returncode == 130, said
    done = latest_step(config.output)
    assert f"told to stop; saved after step {done} of 400" in said
    assert "Traceback" not in said
    assert recorded(config) == "KILLED"
    open_checkpoint(config.output).verify()

    running = command(config, tmp_path)
    wait_for(config, done + 5)
    running.send_signal(signal.SIGINT)
    running.send_signal(signal.SIGTERM)  # two of one kind may arrive as one
    said, _ = running.communicate(timeout=180)
    assert running.returncode == 130, said
    assert said.strip().endswith("interrupted")
    assert "Traceback" not in said
    assert recorded(config) == "KILLED"
    assert not Path(config.output, "lock.json").exists()


def wait_for(config: RunConfig, step: int) -> None:
    deadline = time.monotonic() + 300
    while latest_step(config.output) < step:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.exhaustive),
    ],
)
def test_a_signal_saves_and_asks_to_be_queued_again(
    tiny_run: RunConfig, tmp_path: Path, number: signal.Signals
) -> None:
    config = changed(tiny_run, "training", epochs=8, steps_per_epoch=50)
    config = changed(config, "checkpoint", every=5)
    running = command(config, tmp_path)
    wait_for(config, 5)
    running.send_signal(number)
    said, _ = running.communicate(timeout=180)
    assert running.returncode == os.EX_TEMPFAIL, said
    done = latest_step(config.output)
    assert 5 <= done < 400
    assert "told to stop; saving after this step" in said
    assert said.strip().endswith(
        f"told to stop; saved after step {done} of 400. The same command goes on from there"
    )
    open_checkpoint(config.output).verify()
    running = command(config, tmp_path)
    wait_for(config, done + 5)  # it goes on
    running.send_signal(number)
    running.communicate(timeout=180)
    assert running.returncode == os.EX_TEMPFAIL


def kill_at_random(config: RunConfig, kills: int, killed: list[int]) -> None:
    """Kill a random worker at random moments, but always after a checkpoint of its start."""
    rng = random.Random(0)
    seen = 0
    while len(killed) < kills:
        seen = max(seen, latest_step(config.output))
        # Paced by steps, so that a fast machine is not done before the last kill.
        wait_for(config, max(seen + 1, 9 * len(killed) + rng.randint(1, 7)))
        time.sleep(rng.uniform(0.0, 0.1))
        workers = workers_of_this_test()
        if workers:
            seen = latest_step(config.output)
            rng.choice(workers).send_signal(signal.SIGKILL)
            killed.append(seen)
        time.sleep(1.0)


@pytest.mark.parametrize(
    "kills",
    [pytest.param(8, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.exhaustive)],
)
def test_kills_change_nothing(tiny_run: RunConfig, tmp_path: Path, kills: int) -> None:
    config = changed(tiny_run, "training", epochs=kills // 2, steps_per_epoch=20)
    config = changed(config, "checkpoint", every=3)
    config = changed(config, "cluster", workers=2, max_failures=kills + 5)
    killed: list[int] = []
    killer = threading.Thread(target=kill_at_random, args=(config, kills, killed), daemon=True)
    killer.start()
    checkpoint = Checkpoint(pretrain(config).checkpoint)
    assert len(killed) == kills
    assert checkpoint.step == 10 * kills
    undisturbed = config.model_copy(update={"output": str(tmp_path / "undisturbed")})
    run_ranks(undisturbed, 2, tmp_path / "ranks")
    expected = open_checkpoint(undisturbed.output)
    for part in [SHARED, *expected.sessions]:
        for optimizer in (False, True):
            ours = checkpoint.tensors(part, optimizer)
            for name, value in expected.tensors(part, optimizer).items():
                assert torch.equal(ours[name], value), name
