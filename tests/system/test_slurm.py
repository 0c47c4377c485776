"""The batch script on a real SLURM of two nodes: it trains, passes on failures and cleans up."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from two_node_slurm import SlurmCluster, poll

from cluster import slurm
from fmcortex.errors import FmcortexError
from fmcortex.training.checkpoint import open_checkpoint

pytestmark = pytest.mark.system

SCRIPT = str(slurm.TEMPLATE)
BIN = Path(sys.executable).parent

Submit = Callable[..., str]


@pytest.fixture
def submit(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """`sbatch` in `tmp_path` with the programs of this Python's environment on the PATH."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PATH", f"{BIN}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FMCORTEX_TMP", "/tmp")
    monkeypatch.delenv("FMCORTEX_ENV", raising=False)

    def call(*arguments: str) -> str:
        job = slurm_cluster.call("sbatch", "--parsable", *arguments, cwd=tmp_path)
        assert job.isdigit()
        return job

    return call


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, submit: Submit) -> Path:
    """A stand-in for `fmcortex`, first on the PATH: it tells its arguments and ends with the code
    in EXIT or, in a job that was queued again, with 0; else it waits to be ended by a signal."""
    folder = tmp_path / "bin"
    folder.mkdir()
    file = folder / "fmcortex"
    file.write_text(
        '#!/bin/bash\necho "called with: $*"\n'
        "trap 'kill $!; exit 7' USR2\ntrap 'kill $!; exit 8' TERM\n"
        '[[ -z ${EXIT:-} ]] || exit "$EXIT"\n'
        "[[ -z ${SLURM_RESTART_COUNT:-} ]] || exit 0\n"
        "sleep 120 & wait $!\n"
    )
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return file


def log(folder: Path, job: str, name: str = "fmcortex") -> str:
    """What a job has printed so far."""
    file = folder / f"{name}-{job}.log"
    return file.read_text() if file.exists() else ""


def called(folder: Path, job: str) -> None:
    """Wait until the command of a job runs, which is when all nodes have joined."""
    poll(lambda: log(folder, job), lambda text: "called with:" in text, 60)


def left_by(job: str) -> list[str]:
    """The living processes of a job, and its folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and (
                process.environ().get("SLURM_JOB_ID") == job
                or any(f"/fmcortex-{job}" in word for word in process.cmdline())
            ):
                found.append(" ".join(process.cmdline())[:100])
        except psutil.Error:
            continue
    folder = Path(f"/tmp/fmcortex-{job}")
    return found + ([str(folder)] if folder.exists() else [])


def gone(job: str) -> None:
    """Wait until nothing is left of a job."""
    poll(lambda: left_by(job), lambda left: not left, 20)


def test_a_pretraining_on_two_nodes_in_two_turns(
    slurm_cluster: SlurmCluster, submit: Submit, tmp_path: Path
) -> None:
    from data_prep.job import prepare
    from data_prep.simulator.settings import SimulationSettings
    from data_prep.simulator.simulate import simulate

    mice = SimulationSettings(
        mice=2,
        neurons=8,
        minutes=0.5,
        layout="digital_twin",
        test_videos=1,
        test_repeats=2,
        validation_videos=1,
        validation_repeats=2,
        domains=(),
    )
    simulate(mice, str(tmp_path / "recordings"))
    prepare(str(tmp_path / "recordings"), str(tmp_path / "data"))
    settings = {
        "model.preset": "tiny",
        "data.url": tmp_path / "data",
        "data.frames": 12,
        "data.batch": 1,
        "training.burnin": 2,
        "training.epochs": 1,
        "training.warmup_epochs": 0,
        "training.steps_per_epoch": 300,  # far from done when the signal comes
        "training.device": "cpu",
        "checkpoint.every": 1000,
        "cluster.max_failures": 0,  # a failure that a restart would hide is one here
    }
    overrides = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    output = tmp_path / "run"
    job = submit(SCRIPT, "--output", str(output), *overrides)
    poll(lambda: log(tmp_path, job), lambda text: "pretrain: step" in text, 600)
    # The signal of `--signal=B:USR2@120`, now instead of two minutes before the end.
    slurm_cluster.call("scancel", "--batch", "--signal=USR2", job)
    assert slurm_cluster.wait(job, 300, lambda state: state == "PENDING"), log(tmp_path, job)
    saved = open_checkpoint(str(output))
    assert 0 < saved.step < 300
    state = slurm_cluster.wait(job, 900)
    printed = log(tmp_path, job)
    assert state == "COMPLETED", printed
    assert f"told to stop; saved after step {saved.step} of 300" in printed
    assert "ended with exit code 75" in printed
    assert "restart 1" in printed
    # What is printed first of a turn depends on when the driver looks: it never starts anew.
    second = printed.split("restart 1")[1]
    first = re.search(r"pretrain: step (\d+)/300", second)
    assert first is not None
    assert int(first[1]) >= saved.step
    assert "node1 joined" in printed
    assert "node2 joined" in printed
    assert open_checkpoint(str(output)).step == 300
    gone(job)


def test_the_exit_code_is_the_commands(
    slurm_cluster: SlurmCluster,
    submit: Submit,
    command: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXIT", "3")
    job = submit(
        "--gpus-per-node=2", "--cpus-per-task=2", SCRIPT, "sweep", "--config", "a file.yaml"
    )
    assert slurm_cluster.wait(job, 60) == "FAILED"
    assert slurm_cluster.job(job)["ExitCode"] == "3:0"
    printed = log(tmp_path, job)
    assert "node2 joined" in printed
    assert "2 GPUs" in printed
    assert "called with: sweep --workers 4 --config a file.yaml" in printed
    gone(job)


def test_too_few_cpus_for_the_gpus(
    slurm_cluster: SlurmCluster, submit: Submit, command: Path, tmp_path: Path
) -> None:
    job = submit("--gpus-per-node=2", SCRIPT)
    assert slurm_cluster.wait(job, 30) == "FAILED"
    assert "2 workers a node need as many CPUs, not 1: pass --cpus" in log(tmp_path, job)


def test_scancel_leaves_nothing_behind(
    slurm_cluster: SlurmCluster, submit: Submit, command: Path, tmp_path: Path
) -> None:
    job = submit(SCRIPT)
    called(tmp_path, job)
    assert left_by(job)
    slurm_cluster.call("scancel", job)
    assert slurm_cluster.wait(job, 30) == "CANCELLED"
    gone(job)


def test_near_its_time_limit_a_job_queues_itself_again(
    slurm_cluster: SlurmCluster,
    submit: Submit,
    command: Path,
    tmp_path: Path,
) -> None:
    job = submit(SCRIPT)
    called(tmp_path, job)
    # The signal of `--signal=B:USR2@120`, now instead of two minutes before the end.
    slurm_cluster.call("scancel", "--batch", "--signal=USR2", job)
    assert slurm_cluster.wait(job, 30, lambda state: state == "PENDING")
    assert slurm_cluster.wait(job, 60) == "COMPLETED"
    assert slurm_cluster.job(job)["Restarts"] == "1"
    assert log(tmp_path, job).count("called with:") == 2
    gone(job)


def test_jobs_share_nodes(
    slurm_cluster: SlurmCluster,
    submit: Submit,
    command: Path,
    tmp_path: Path,
) -> None:
    jobs = [submit(SCRIPT), submit(SCRIPT)]
    for job in jobs:
        called(tmp_path, job)
    assert {slurm_cluster.job(job)["JobState"] for job in jobs} == {"RUNNING"}
    slurm_cluster.call("scancel", jobs[0])
    gone(jobs[0])
    assert len([line for line in left_by(jobs[1]) if "raylet" in line]) >= 2
    slurm_cluster.call("scancel", jobs[1])
    gone(jobs[1])


def test_a_lost_node_ends_the_job(
    slurm_cluster: SlurmCluster, submit: Submit, command: Path, tmp_path: Path
) -> None:
    job = submit(SCRIPT)
    called(tmp_path, job)
    for process in psutil.process_iter(["name", "cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if process.info["name"] == "raylet" and job_of(process) == job and "node2" in words:
            process.kill()
            break
    else:
        pytest.fail("found no raylet of node2")
    assert slurm_cluster.wait(job, 60) == "FAILED"
    assert "Ray ended with code" in log(tmp_path, job)
    gone(job)


def job_of(process: psutil.Process) -> str | None:
    """The SLURM job that a process belongs to."""
    try:
        return process.environ().get("SLURM_JOB_ID")
    except psutil.Error:
        return None


def test_nodes_that_do_not_join_are_named(
    slurm_cluster: SlurmCluster,
    submit: Submit,
    command: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FMCORTEX_JOIN_SECONDS", "0")
    job = submit(SCRIPT)
    assert slurm_cluster.wait(job, 60) == "FAILED"
    assert "no Ray on node" in log(tmp_path, job)
    gone(job)


def test_the_launcher_submits_tells_and_cancels(
    slurm_cluster: SlurmCluster,
    submit: Submit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm_cluster.environment["SLURM_CONF"])
    monkeypatch.chdir(tmp_path)
    asked = slurm.SlurmJob(
        nodes=1, time="5", job_name="a name", flags=["--comment=two words", "--hold"]
    )
    job = slurm.submit(asked, ["pretrain", "--set", "a=b"])
    assert slurm.status(job) == "PENDING"
    told = slurm_cluster.call("scontrol", "-o", "show", "job", job)
    assert "Comment=two words" in told
    assert "JobName=a name" in told
    assert "TimeLimit=00:05:00" in told
    assert "NumNodes=1" in told
    slurm.cancel(job)
    assert slurm.status(job) == "CANCELLED"
    with pytest.raises(FmcortexError, match=r"scontrol: .*Invalid job id"):
        slurm.cancel("4242")
    with pytest.raises(FmcortexError, match=r"sbatch: invalid partition specified: nowhere"):
        slurm.submit(slurm.SlurmJob(partition="nowhere"), ["pretrain"])
