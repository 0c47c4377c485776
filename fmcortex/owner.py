"""Who holds a lock: a process, in a form that other machines can judge."""

from __future__ import annotations

import getpass
import math
import os
import socket
import sys
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil
from pydantic import BaseModel, ConfigDict

#: Seconds without a sign of life, by the clocks of two machines, after which an owner is dead.
OLD = 3600.0


class Owner(BaseModel):
    """Who holds a lock.

    Attributes:
        token: random, of this one lock.
        what: what it is held for, such as "pretrain".
        user: name of the user.
        host: name of the machine.
        machine: identity of the running machine and of its table of processes.
        pid: of the process.
        started: when the process started, in units of its machine.
        job: SLURM cluster and job, if it runs in one.
        restart: how often SLURM has started that job again.
        since: when the lock was taken, seconds since 1970.
        seen: when it was last counted up.
        beat: the count.
    """

    model_config = ConfigDict(frozen=True)

    token: str
    what: str
    user: str
    host: str
    machine: str
    pid: int
    started: float
    job: str | None = None
    restart: int = 0
    since: float
    seen: float
    beat: int = 0

    @classmethod
    def of_this_process(cls, what: str) -> Owner:
        """This process, as the owner of a new lock."""
        job = os.environ.get("SLURM_JOB_ID")
        moment = now()
        return cls(
            token=uuid.uuid4().hex,
            what=what,
            user=_user(),
            host=socket.gethostname(),
            machine=_machine(),
            pid=os.getpid(),
            started=_started(os.getpid()) or 0.0,
            job=job and f"{os.environ.get('SLURM_CLUSTER_NAME', '')}/{job}",
            restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
            since=moment,
            seen=moment,
        )

    def encoded(self) -> bytes:
        """The owner as JSON."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    def __str__(self) -> str:
        since = datetime.fromtimestamp(self.since, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        return f"{self.what} of user {self.user} on {self.host} (process {self.pid}) since {since}"

    def state(self) -> Literal["alive", "dead", "unknown"]:
        """What this process can tell of the owner without watching it."""
        mine = Owner.of_this_process("")
        if self.job is not None and self.job == mine.job and self.restart < mine.restart:
            return "dead"  # SLURM ends a job before it starts it again
        if self.machine == mine.machine:
            started = _started(self.pid)
            if started is None or started == self.started:
                return "dead" if started is None else "alive"
            if not math.isnan(started):  # another process with its number
                return "dead"
        return "dead" if abs(time.time() - self.seen) > OLD else "unknown"


def now() -> float:
    """Seconds since 1970, whole ones, so that it is written in as many digits at any time."""
    return float(int(time.time()))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry in passwd, as in containers
        return str(os.getuid())


def _machine() -> str:
    """The running machine and its table of processes: containers have tables of their own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode()}"


def _started(pid: int) -> float | None:
    """When a process of this machine started; None if it has ended, NaN if that is hidden.

    On Linux in clock ticks since the machine started, which setting its clock does not change.
    """
    try:
        # The name of the program, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else float(fields[19])
    except (OSError, IndexError):
        if sys.platform == "linux":
            return _hidden(pid)
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def _hidden(pid: int) -> float | None:
    """NaN of a process that runs although /proc does not show it, as with `hidepid`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return math.nan
