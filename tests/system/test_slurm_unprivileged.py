"""An ordinary user's jobs on a real two-node SLURM whose site hands no environment on."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from two_node_slurm import SlurmCluster, missing_programs, running_cluster
from unprivileged import unprivileged_user

from fmcortex.data.dataset import open_dataset
from fmcortex.training.checkpoint import open_checkpoint

pytestmark = pytest.mark.system

FMCORTEX = str(Path(sys.executable).parent / "fmcortex")
TINY = {
    "model.preset": "tiny",
    "data.url": "prepared",
    "data.frames": "12",
    "data.batch": "1",
    "training.burnin": "2",
    "training.epochs": "1",
    "training.steps_per_epoch": "5",
    "training.warmup_epochs": "0",
    "training.device": "cpu",
}
SETTINGS = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def slurm_of_a_user() -> Iterator[SlurmCluster]:
    """A SLURM that runs as, and for, a user without rights and without a home."""
    if missing := missing_programs():
        pytest.skip(
            f"SLURM is not installed (no {', '.join(missing)}): apt install slurm-wlm munge"
        )
    with unprivileged_user("nobody") as user, running_cluster(user) as cluster:
        yield cluster


def submitted(cluster: SlurmCluster, *words: str) -> tuple[str, str]:
    """The state in which a job of `fmcortex submit slurm` ends, and its log."""
    assert cluster.user is not None
    # The jobs of this SLURM find it in a place of its own, which a site's jobs need not be told.
    site = f"variables={{SLURM_CONF: {cluster.environment['SLURM_CONF']}}}"
    done = cluster.user.run(
        *(FMCORTEX, "submit", "slurm", "--job", site, *words),
        SBATCH_EXPORT="NONE",
        **cluster.environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"submitted SLURM job (\d+)", done.stdout)
    assert found is not None, done.stdout
    state = cluster.wait(found[1], 400)
    return state, (cluster.user.folder / f"fmcortex-{found[1]}.log").read_text()


def test_prep_pretrain_and_transfer_by_a_user_whose_site_exports_nothing(
    slurm_of_a_user: SlurmCluster, recordings: Path
) -> None:
    cluster, user = slurm_of_a_user, slurm_of_a_user.user
    assert user is not None
    shutil.copytree(recordings, user.folder / "recordings")
    user.own(user.folder)

    state, log = submitted(cluster, "prep", "recordings", "--to", "prepared")
    assert state == "COMPLETED", log
    assert "node1 joined" in log
    assert "node2 joined" in log
    assert "joining the Ray cluster at" in log
    names = sorted(open_dataset(str(user.folder / "prepared")).sessions)
    assert len(names) == 3

    known = ["--set", f"data.sessions=[{names[0]},{names[1]}]"]
    state, log = submitted(cluster, "pretrain", *SETTINGS, *known, "--output", "run")
    assert state == "COMPLETED", log
    assert "2 ranks" in log
    assert open_checkpoint(str(user.folder / "run")).step == 5

    transfer = ("transfer", *SETTINGS, "--from", "run", "--session", names[2])
    for nodes in ([], ["--nodes", "2"]):
        output = f"transfer{len(nodes)}"
        state, log = submitted(cluster, *nodes, *transfer, "--output", output)
        assert state == "COMPLETED", log
        assert "transfer runs in one process, on node" in log
        assert open_checkpoint(str(user.folder / output)).step == 5


def test_a_command_that_is_wrong_reaches_no_queue(slurm_of_a_user: SlurmCluster) -> None:
    user = slurm_of_a_user.user
    assert user is not None
    done = user.run(
        *(FMCORTEX, "submit", "slurm", "transfer", "--workers", "2"), **slurm_of_a_user.environment
    )
    assert done.returncode != 0
    assert "--workers" in done.stderr
    listed: subprocess.CompletedProcess[str] = user.run(
        "squeue", "-h", **slurm_of_a_user.environment
    )
    assert listed.stdout.strip() == ""
