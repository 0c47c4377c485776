"""A real server of the S3 protocol on this machine: OpenStack Swift, which checks signatures.

Swift has an environment of its own, `.venv-swift` at the root of the project: `make test-system`
makes it.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

#: Swift's programs.
BIN = Path(
    os.environ.get("FMCORTEX_SWIFT_BIN", Path(__file__).parents[2] / ".venv-swift" / "bin")
).absolute()

#: The rings: name of the server, and of the builder's file.
RINGS = ("account", "container", "object")

#: Seconds until everything answers, on a slow machine.
STARTUP = 60

#: Makes the rings in one process: starting `swift-ring-builder` nine times takes 5 s.
RING = """\
import sys
from swift.common.ring import RingBuilder

for name, port in zip(sys.argv[1::2], sys.argv[2::2]):
    builder = RingBuilder(4, 1, 0)  # 2**4 partitions, one copy
    builder.add_dev(
        dict(id=0, region=1, zone=1, ip="127.0.0.1", port=int(port), device="disk", weight=1.0)
    )
    builder.rebalance()
    builder.get_ring().save(f"{name}.ring.gz")
"""

SERVER = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
disable_fallocate = true
log_level = WARNING

[pipeline:main]
pipeline = {name}-server

[app:{name}-server]
use = egg:swift#{name}
"""

PROXY = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
workers = 0
log_level = WARNING

[pipeline:main]
pipeline = catch_errors gatekeeper cache proxy-logging listing_formats bulk s3api tempauth slo dlo \
versioned_writes proxy-logging proxy-server

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:gatekeeper]
use = egg:swift#gatekeeper

[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}

[filter:proxy-logging]
use = egg:swift#proxy_logging

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:bulk]
use = egg:swift#bulk

[filter:s3api]
use = egg:swift#s3api
s3_acl = false
location = us-east-1

[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user} = {secret} .admin

[filter:slo]
use = egg:swift#slo

[filter:dlo]
use = egg:swift#dlo

[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
"""


@dataclass(frozen=True)
class SwiftServer:
    """The running server, and the one user that it knows."""

    host: str
    port: int
    key: str = "test:tester"
    secret: str = "testing"

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://{self.host}:{self.port}"


def missing_programs() -> list[str]:
    """Programs that this machine lacks; of Swift's, the first."""
    names = ["python", *(f"swift-{name}-server" for name in (*RINGS, "proxy"))]
    missing = [str(BIN / name) for name in names if not (BIN / name).exists()]
    return missing[:1] if _memcached() else ["memcached", *missing[:1]]


def _memcached() -> str | None:
    return shutil.which("memcached", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")


@contextmanager
def running_swift() -> Iterator[SwiftServer]:
    """A server without buckets; ended, with all that it holds, at the end of the block."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="fmcortex-swift-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        log = stack.enter_context((folder / "output.log").open("a"))
        ports = dict(zip((*RINGS, "proxy", "memcached"), _free_ports(5), strict=True))
        server = SwiftServer("127.0.0.1", ports["proxy"])
        _configure(folder, ports, server, log.fileno())
        memcached = [str(_memcached()), "-l", "127.0.0.1", "-p", str(ports["memcached"]), "-U", "0"]
        if os.getuid() == 0:
            memcached += ["-u", "root"]
        commands = [memcached] + [
            [str(BIN / f"swift-{name}-server"), str(folder / f"{name}.conf"), "-v"]
            for name in (*RINGS, "proxy")
        ]
        running = {}
        for command in commands:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
            stack.callback(_end, process)
            running[command[0]] = process
        _wait(running, ports, folder / "output.log")
        yield server


def _configure(folder: Path, ports: dict[str, int], server: SwiftServer, log: int) -> None:
    (folder / "devices" / "disk").mkdir(parents=True)
    (folder / "swift.conf").write_text(
        "[swift-hash]\nswift_hash_path_prefix = a\nswift_hash_path_suffix = b\n"
    )
    account, _, user = server.key.partition(":")
    for name in (*RINGS, "proxy"):
        text = (PROXY if name == "proxy" else SERVER).format(
            **{"name": name, "folder": folder, "port": ports[name]},
            **{"memcached": ports["memcached"], "secret": server.secret},
            **{"account": account, "user": user},
        )
        (folder / f"{name}.conf").write_text(text)
    subprocess.run(
        [str(BIN / "python"), "-c", RING, *(str(v) for name in RINGS for v in (name, ports[name]))],
        **{"cwd": folder, "check": True, "timeout": STARTUP, "stdout": log, "stderr": log},
    )


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait(running: dict[str, subprocess.Popen[bytes]], ports: dict[str, int], log: Path) -> None:
    """Wait until every port answers."""
    deadline = time.monotonic() + STARTUP
    waiting = list(ports.values())
    while waiting:
        for command, process in running.items():
            told = f"{log.read_text(errors='replace')[-4000:]}"
            assert process.poll() is None, f"{command} has ended:\n{told}"
        assert time.monotonic() < deadline, f"ports {waiting} do not answer:\n{told}"
        with suppress(OSError), socket.create_connection(("127.0.0.1", waiting[0]), timeout=1):
            waiting.pop(0)
            continue
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    process.kill()
    process.wait()
