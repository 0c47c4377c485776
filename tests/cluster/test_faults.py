"""What happens to jobs on clusters, on real ranks: a run goes on as if it had not been."""

from __future__ import annotations

import os
import re
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import s3fs
import torch
from ranks import run_ranks, said
from sabotage import EVERY, MOMENTS, at_moment, hang, infinite_response, meet, refuse_writes

from cluster.watchdog import HUNG
from fmcortex.config import RunConfig
from fmcortex.training.checkpoint import latest_step, list_checkpoints, open_checkpoint

#: The moments that every run of the tests tries; the slow ones try all.
FEW = (
    "between the shared part and the sessions, killed",
    "while saving, terminated",
    "before the manifest, killed",
)
_undisturbed: dict[str, list[dict[str, torch.Tensor]]] = {}


def changed(config: RunConfig, section: str, **values: object) -> RunConfig:
    part = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: part})


@pytest.fixture
def run(tiny_run: RunConfig) -> RunConfig:
    """A run of 12 steps that saves after every fourth."""
    config = changed(tiny_run, "training", epochs=3, steps_per_epoch=4)
    return changed(config, "checkpoint", every=EVERY, keep=1)


def undisturbed(config: RunConfig, tmp_path: Path) -> list[dict[str, torch.Tensor]]:
    """The states of two ranks after the whole run without a fault; computed once."""
    key = config.model_copy(update={"output": ""}).model_dump_json()
    if key not in _undisturbed:
        elsewhere = config.model_copy(update={"output": str(tmp_path / "undisturbed")})
        _undisturbed[key] = run_ranks(elsewhere, 2, tmp_path / "expected")
    return _undisturbed[key]


def same_bits(one: list[dict[str, torch.Tensor]], two: list[dict[str, torch.Tensor]]) -> bool:
    return all(
        set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)
        for a, b in zip(one, two, strict=True)
    )


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(
            m,
            # Every other of the rest, so that CI keeps to its time.
            marks=[]
            if m in FEW
            else [pytest.mark.slow if number % 2 == 0 else pytest.mark.exhaustive],
        )
        for number, m in enumerate(MOMENTS)
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(
    run: RunConfig, tmp_path: Path, moment: str
) -> None:
    expected = undisturbed(run, tmp_path)
    sabotage = partial(at_moment, moment)
    if "terminated" in moment:
        run_ranks(run, 2, tmp_path / "interrupted", sabotage=sabotage)
        assert "stopped after step" in said(tmp_path / "interrupted")[-1]
    else:
        with pytest.raises(Exception, match=r"SIGKILL|sabotage|Connection|closed"):
            run_ranks(run, 2, tmp_path / "interrupted", sabotage=sabotage)
    assert latest_step(run.output) < 12
    states = run_ranks(run, 2, tmp_path / "continued")
    assert same_bits(states, expected)
    # Nothing of what the interrupted save had left is left.
    assert [Path(f).name for f in list_checkpoints(run.output)] == ["step-00000012"]
    assert [p.name for p in Path(run.output, "checkpoints").iterdir()] == ["step-00000012"]
    open_checkpoint(run.output).verify()


@pytest.mark.parametrize(
    "how", ["asleep", pytest.param("holding the lock", marks=pytest.mark.slow)]
)
def test_a_hang_ends_at_the_watchdogs_limit(run: RunConfig, tmp_path: Path, how: str) -> None:
    began = time.monotonic()
    with pytest.raises(Exception, match=rf"exit code {HUNG}|exit code 1|Connection|closed"):
        run_ranks(run, 2, tmp_path / "hung", sabotage=partial(hang, how))
    assert time.monotonic() - began < 900  # collectives would wait for half an hour
    if how == "asleep":
        told = Path(run.output, "hangs", "rank-1.txt").read_text()
        # Whatever the thread that writes checkpoints was doing.
        assert re.match(
            r"no progress for \d+ s \(cluster\.watchdog_seconds\) in: step 5: reading clips(;|$)",
            told.splitlines()[0],
        )
        assert "sleep_for_ever" in told  # the stack of the thread that reads
    states = run_ranks(run, 2, tmp_path / "continued")
    assert same_bits(states, undisturbed(run, tmp_path))


def test_a_store_that_refuses_one_checkpoint(run: RunConfig, tmp_path: Path) -> None:
    states = run_ranks(run, 2, tmp_path / "away", sabotage=partial(refuse_writes, 4, 8))
    assert same_bits(states, undisturbed(run, tmp_path))
    lines = said(tmp_path / "away")
    assert [line.split(":")[0] for line in lines] == [
        "checkpoint of step 4 not saved",
        "checkpoint of step 8 not saved",
    ]
    assert all(line.endswith("the store is away; going on") for line in lines)
    assert latest_step(run.output) == 12
    assert len(os.listdir(Path(run.output, "checkpoints"))) == 1


@pytest.mark.slow
def test_a_store_that_refuses_too_many_checkpoints(run: RunConfig, tmp_path: Path) -> None:
    config = changed(run, "checkpoint", max_failures=1)
    with pytest.raises(Exception, match=r"2 checkpoints in a row could not be saved"):
        run_ranks(config, 2, tmp_path / "away", sabotage=partial(refuse_writes, 0, 12))
    assert list_checkpoints(config.output) == []


@pytest.mark.slow
def test_a_store_that_refuses_the_last_checkpoint(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"step-00000012.*cannot write: the store is away"):
        run_ranks(run, 2, tmp_path / "away", sabotage=partial(refuse_writes, 12, 12))
    assert same_bits(run_ranks(run, 2, tmp_path / "again"), undisturbed(run, tmp_path))


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while(
    run: RunConfig, tmp_path: Path, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # what botocore sits out does not reach us
    config = run.model_copy(update={"output": f"{s3_server.url}/run"})
    config = changed(config, "training", epochs=10)  # 40 steps
    stopped: list[int] = []

    def outage() -> None:
        while not (tmp_path / "reached").exists():
            time.sleep(0.01)
        s3_server.stop()
        stopped.append(latest_step_or_none(config.output))
        (tmp_path / "go-on").touch()
        time.sleep(3)
        s3_server.start()

    thread = threading.Thread(target=outage, daemon=True)
    thread.start()
    # It is away when old checkpoints are to be listed and removed, and for the saves after that.
    sabotage = partial(meet, str(tmp_path))
    states = run_ranks(config, 2, tmp_path / "outage", sabotage=sabotage)
    thread.join(timeout=5)
    assert stopped == [-1]  # nobody could reach it
    assert same_bits(states, undisturbed(config, tmp_path))
    assert latest_step(config.output) == 40
    open_checkpoint(config.output).verify()


def latest_step_or_none(run: str) -> int:
    """The newest checkpoint's step; -1 where the store cannot be asked."""
    try:
        s3fs.S3FileSystem(skip_instance_cache=True, config_kwargs={"connect_timeout": 1}).ls(
            run, refresh=True
        )
    except Exception:
        return -1
    return latest_step(run)


def test_a_corrupt_newest_checkpoint(run: RunConfig, tmp_path: Path) -> None:
    config = changed(run, "checkpoint", keep=2)
    run_ranks(config, 2, tmp_path / "first", last=8)
    # Of a session that rank 1 holds: what one rank cannot read, no rank starts from.
    path = Path(config.output, "checkpoints/step-00000008/sessions/mouse02-1-1.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    states = run_ranks(config, 2, tmp_path / "second")
    assert same_bits(states, undisturbed(config, tmp_path))
    assert said(tmp_path / "second")[0].endswith(
        "sessions/mouse02-1-1.safetensors: differs from the manifest; it is corrupt; trying the "
        "checkpoint before it"
    )
    open_checkpoint(config.output).verify()


@pytest.mark.parametrize("stage", [1, *(pytest.param(s, marks=pytest.mark.slow) for s in (0, 3))])
def test_a_loss_that_is_not_finite_moves_nothing_on_any_rank(
    run: RunConfig, tmp_path: Path, stage: int
) -> None:
    config = changed(run, "cluster", zero_stage=stage)
    before = run_ranks(config, 2, tmp_path / "before", last=3)
    harm = partial(infinite_response, "mouse02-1-1", 5, 3)
    after = run_ranks(config, 2, tmp_path / "after", last=4, sabotage=harm)
    assert same_bits(after, before)
    assert open_checkpoint(config.output).manifest.skipped == 1


def test_losses_that_are_not_finite_stop_a_run_by_name(run: RunConfig, tmp_path: Path) -> None:
    config = changed(run, "training", max_skipped=0)
    harm = partial(infinite_response, "mouse02-1-1", 5, 2)
    expected = (
        r"DataError: the loss is not finite at step 2, and 1 step had to be skipped .*: session "
        r"mouse02-1-1, trials \[.*\]: recorded responses of neuron 5 \(of 12\) are infinite"
    )
    with pytest.raises(Exception, match=expected):
        run_ranks(config, 2, tmp_path / "stopped", sabotage=harm)
