"""The lock of a folder: who gets it, who is refused, and whose is taken over."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest

from fmcortex import lock as module
from fmcortex import owner as owners
from fmcortex import storage
from fmcortex.errors import Locked, StorageError
from fmcortex.lock import Lock, Owner


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_sleep", lambda seconds: None)


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on a disk, and one on what is no disk."""
    if request.param == "memory":
        return f"memory://{tmp_path.name}/run"
    return str(tmp_path / "run [1]*?")


def leave(folder: str, **changes: object) -> Owner:
    """Leave a lock as another process would."""
    owner = Owner.of_this_process("pretrain").model_copy(update=changes)
    storage.write_bytes(storage.join(folder, module.LOCK), owner.encoded())
    return owner


def test_one_holds_it_and_gives_it_back(folder: str) -> None:
    with Lock(folder, "pretrain"):
        kept = storage.read_json(storage.join(folder, module.LOCK))
        assert (kept["pid"], kept["what"]) == (os.getpid(), "pretrain")
        with (
            pytest.raises(Locked, match=rf"in use by pretrain of user .*\(process {os.getpid()}\)"),
            Lock(folder, "pretrain"),
        ):
            pass
    assert storage.names(folder) == []
    with Lock(folder, "pretrain"):
        pass


def test_the_refusal_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with Lock(str(tmp_path), "prep"):
        with pytest.raises(Locked) as refused, Lock(str(tmp_path), "prep", todo="choose another"):
            pass
        said = str(refused.value)
    assert "\n" not in said
    assert "; wait until it ends, stop it, or choose another. If it cannot be running" in said
    assert said.endswith(f"remove {tmp_path}/lock.json")


def test_of_many_at_once_one_gets_it(folder: str) -> None:
    race(folder)


def race(folder: str) -> None:
    """Let eight try at once."""
    locks = [Lock(folder, f"job {number}") for number in range(8)]

    def enter(lock: Lock) -> bool:
        try:
            lock.__enter__()
        except Locked:
            return False
        return True

    with ThreadPoolExecutor(len(locks)) as pool:
        got = list(pool.map(enter, locks))
    assert sum(got) == 1
    for lock, has in zip(locks, got, strict=True):
        if has:
            lock.__exit__(None, None, None)


def test_of_many_that_take_over_one_gets_it(tmp_path: Path) -> None:
    for _ in range(10):
        leave(str(tmp_path), pid=2**22 + 1)
        race(str(tmp_path))


def test_on_an_object_store(s3: str) -> None:
    folder = storage.join(s3, "runs", "first")
    race(folder)
    test_one_holds_it_and_gives_it_back(folder)
    test_a_process_that_is_gone(folder)
    test_an_owner_finds_out_that_it_lost_it(folder)
    test_another_machine_without_a_sign_of_life(storage.join(s3, "runs", "second"))


def test_a_process_that_is_gone(folder: str) -> None:
    said: list[str] = []
    leave(folder, pid=2**22 + 1, user="anna")
    with Lock(folder, "pretrain", said.append):
        pass
    [line] = said
    assert line.startswith(f"{folder}: took over the lock of pretrain of user anna on ")


def test_a_process_number_that_was_given_again(folder: str) -> None:
    leave(folder, started=1.0)
    said: list[str] = []
    with Lock(folder, "pretrain", said.append):
        assert len(said) == 1


def test_a_killed_process(tmp_path: Path) -> None:
    code = f"""
        import time
        from fmcortex.lock import Lock
        with Lock({str(tmp_path)!r}, "pretrain"):
            print("held", flush=True)
            time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            with pytest.raises(Locked, match=rf"process {other.pid}"), Lock(str(tmp_path), "x"):
                pass
            other.send_signal(signal.SIGSTOP)  # not moving is not being gone
            with pytest.raises(Locked, match=rf"process {other.pid}"), Lock(str(tmp_path), "x"):
                pass
        finally:
            other.kill()
        other.wait()
        with Lock(str(tmp_path), "x", lambda line: None):
            pass


def test_another_machine_that_is_alive(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = leave(folder, machine="elsewhere", host="node7", pid=1)
    looks = []

    def beats(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 5:
            leave(folder, **owner.model_dump() | {"beat": owner.beat + 1})

    monkeypatch.setattr(module, "_sleep", beats)
    said: list[str] = []
    with pytest.raises(Locked, match="on node7"), Lock(folder, "pretrain", said.append):
        pass
    assert "watching for up to 90 s" in said[0]
    assert storage.read_json(storage.join(folder, module.LOCK))["token"] == owner.token


def test_another_machine_without_a_sign_of_life(folder: str) -> None:
    leave(folder, machine="elsewhere", host="node7", pid=os.getpid())
    said: list[str] = []
    with Lock(folder, "pretrain", said.append):
        pass
    assert "watching" in said[0]
    assert "took over" in said[1]


def test_another_machine_of_yesterday_is_not_watched(folder: str) -> None:
    owner = Owner.of_this_process("")
    leave(folder, machine="elsewhere", seen=owner.seen - 86400)
    said: list[str] = []
    with Lock(folder, "pretrain", said.append):
        pass
    assert [line for line in said if "watching" in line] == []


def test_a_job_that_slurm_started_again(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    owner = leave(folder, machine="elsewhere", host="node7")
    assert owner.state() == "unknown"  # of another step of the same start
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    said: list[str] = []
    with Lock(folder, "pretrain", said.append):
        pass
    assert "took over" in said[0]


def test_a_damaged_lock_is_watched(folder: str) -> None:
    storage.write_bytes(storage.join(folder, module.LOCK), b'{"tok')
    said: list[str] = []
    with Lock(folder, "pretrain", said.append):
        pass
    assert "took over the lock of a process that left an unreadable lock" in said[1]


def test_an_owner_finds_out_that_it_lost_it(folder: str) -> None:
    with Lock(folder, "pretrain") as lock:
        lock.beat()
        lock.check()
        other = leave(folder, user="anna", token="another")
        lock.beat()
        assert lock.lost
        with pytest.raises(Locked, match="taken over by pretrain of user anna"):
            lock.check()
    assert storage.read_json(storage.join(folder, module.LOCK))["token"] == other.token
    with Lock(folder, "pretrain", lambda line: None, name="other.json") as lock:
        storage.remove(lock.url)
        lock.beat()
        with pytest.raises(Locked, match="taken over and removed"):
            lock.check()


def test_it_beats(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT", 0.01)
    with Lock(folder, "pretrain"):
        for _ in range(3000):
            if storage.read_json(storage.join(folder, module.LOCK))["beat"] >= 2:
                return
            module.time.sleep(0.01)
    raise AssertionError("no beat")


def test_a_store_without_conditions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(fsspec.implementations.memory.MemoryFileSystem):
        protocol = "plain"
        store: ClassVar[dict[str, object]] = {}

        def pipe_file(self, path: str, value: bytes, **options: object) -> None:
            if options:
                raise TypeError("pipe_file() got an unexpected keyword argument 'mode'")
            super().pipe_file(path, value)

    fsspec.register_implementation("plain", Plain, clobber=True)
    with Lock("plain://run", "pretrain"):
        with pytest.raises(Locked), Lock("plain://run", "pretrain"):
            pass
        # Another that wrote at the same moment, and later: the one that is there has it.
        lock = Lock("plain://run", "other")
        monkeypatch.setattr(module, "_create_remote", lambda *_: True)
        with pytest.raises(Locked):
            lock.__enter__()


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(module.os, "link", refuse)
    with Lock(str(tmp_path), "pretrain"):
        assert storage.names(str(tmp_path)) == ["lock.json"]
        with pytest.raises(Locked), Lock(str(tmp_path), "pretrain"):
            pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"), Lock(f"{tmp_path}/file/run", "x"):
        pass


def test_a_process_that_is_hidden_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner.of_this_process("pretrain")
    assert owner.state() == "alive"
    monkeypatch.setattr(owners, "_started", lambda pid: math.nan)
    assert owner.state() == "unknown"


def test_the_lock_is_json(tmp_path: Path) -> None:
    with Lock(str(tmp_path), "pretrain"):
        assert set(json.loads((tmp_path / "lock.json").read_text())) == set(Owner.model_fields)
