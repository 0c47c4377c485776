"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))
from unprivileged import Unprivileged

T = TypeVar("T")

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol")

#: Both nodes are this host. The nodes' names do not resolve, as on many real clusters. The job
#: accounting needs a database, so `sacct` is off; finished jobs stay visible to scontrol.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ReturnToService=2
KillWait=5
MinJobAge=600
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node1} CPUs=2 RealMemory=8000 Gres=gpu:2
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node2} CPUs=2 RealMemory=8000 Gres=gpu:2
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """The running cluster: a folder, its environment, and a way to ask it."""

    def __init__(self, folder: Path, user: Unprivileged | None = None) -> None:
        self.folder, self.user = folder, user
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.prefix = user.prefix() if user else []
        self.name = pwd.getpwuid(user.uid if user else os.geteuid()).pw_name

    def variables(self) -> dict[str, str]:
        """The environment of the cluster's user, with the cluster in it."""
        own = self.user.environment() if self.user else dict(os.environ)
        return {**own, **self.environment}

    def call(self, *command: str, **options: object) -> str:
        """What a SLURM program prints; should it fail, its message is in the error."""
        done = subprocess.run(
            [*self.prefix, *command],
            env=self.variables(),
            capture_output=True,
            text=True,
            timeout=60,
            **options,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
        return done.stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        words = self.call("scontrol", "-o", "show", "job", job_id).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job_id: str, seconds: float, until: Callable[[str], bool] | None = None) -> str:
        """The state of a job once it has ended, or is as `until` says."""
        ended = until or (lambda s: s not in {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"})
        return poll(lambda: self.job(job_id)["JobState"], ended, seconds)


def poll(ask: Callable[[], T], good: Callable[[T], bool], seconds: float) -> T:
    """Ask until the answer is good; fails after `seconds` with the last answer."""
    deadline = time.monotonic() + seconds
    while not good(answer := ask()):
        assert time.monotonic() < deadline, f"after {seconds:.0f} s: {answer}"
        time.sleep(0.2)
    return answer


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


@contextmanager
def running_cluster(user: Unprivileged | None = None) -> Iterator[SlurmCluster]:
    """A two-node SLURM; ended, with whatever ran in it, at the end of the block.

    Args:
        user: whose it is, and who alone may run jobs; whoever runs the tests if None.
    """
    # Not below pytest's folder: munge wants its socket where every user may come, and Unix sockets
    # have short names.
    folder = Path(tempfile.mkdtemp(prefix="fmcortex-slurm-", dir="/tmp"))
    folder.chmod(0o755)
    cluster = SlurmCluster(folder, user)
    ports = dict(zip(("ctld", "node1", "node2"), _free_ports(3), strict=True))
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(folder=folder, user=cluster.name, host=host, **ports)
    )
    devices = [folder / f"gpu{index}" for index in range(2)]
    for device in devices:
        device.touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    for name in ("state", "spool.node1", "spool.node2"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    if user:
        user.own(folder)
    commands = [
        [
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--{name}-file={folder}/munge.{name}" for name in ("pid", "seed", "log")),
            f"--socket={folder}/munge.sock",
        ],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", "node1"],
        ["slurmd", "-D", "-N", "node2"],
    ]
    running = []
    environment = {**cluster.variables(), "PATH": _path()}
    try:
        for command in commands:
            with (folder / "output.log").open("a") as log:
                words = [*cluster.prefix, *command]
                running.append(
                    subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=folder)
                )
            if command[0] == "munged":
                poll((folder / "munge.sock").exists, bool, 10)
        poll(lambda: _idle(cluster), lambda idle: idle == 2, 30)
        yield cluster
    finally:
        with suppress(subprocess.SubprocessError):  # the daemons are ended in any case
            _end_jobs(cluster)
        for process in reversed(running):
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()
        shutil.rmtree(folder, ignore_errors=True)


def missing_programs() -> list[str]:
    """The programs of SLURM that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    """The PATH with the folders of system programs, which an ordinary user's PATH may lack."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _idle(cluster: SlurmCluster) -> int:
    asked = subprocess.run(
        [*cluster.prefix, "sinfo", "-h", "-N", "-t", "idle"],
        env=cluster.variables(),
        capture_output=True,
        text=True,
    )
    return len(asked.stdout.splitlines())


def _end_jobs(cluster: SlurmCluster) -> None:
    environment = cluster.variables()
    cancel = [*cluster.prefix, "scancel", "--user", cluster.name]
    subprocess.run(cancel, env=environment, timeout=30)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        asked = subprocess.run(
            [*cluster.prefix, "squeue", "-h"], env=environment, capture_output=True, text=True
        )
        if not asked.stdout.strip():
            return
        time.sleep(0.3)
