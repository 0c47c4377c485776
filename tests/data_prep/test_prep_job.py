"""Running the job again, interrupting it, running it in parallel and on other file systems."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import fsspec
import numpy as np
import pytest

from cluster.ray_session import ray_session
from data_prep import job as prep_job
from data_prep import journal, session_job
from data_prep.fingerprint import fingerprint, source_sha256
from data_prep.job import prepare
from data_prep.settings import PrepSettings
from fmcortex import storage
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import describe, verify
from fmcortex.errors import ConfigError, DataError, Locked, StorageError, WorkerError
from fmcortex.lock import Lock
from fmcortex.owner import Owner

SETTINGS = PrepSettings(trials_per_shard=2)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_running_again_does_nothing(sensorium, twin, tmp_path):
    sensorium(), twin()
    source, to = str(tmp_path / "source"), tmp_path / "to"
    first, again = [], []
    manifest = prepare(source, str(to), SETTINGS, progress=first.append)
    times = {path: path.stat().st_mtime_ns for path in to.rglob("*") if path.is_file()}
    assert prepare(source, str(to), SETTINGS, progress=again.append) == manifest
    assert again == ["8-5: up to date", "dynamic29156-11-10-Video-8744: up to date"]
    assert {path: path.stat().st_mtime_ns for path in to.rglob("*") if path.is_file()} == times
    assert first[0].startswith("8-5: 5 neurons, 4 training trials")


def test_same_source_gives_the_same_bytes(sensorium, tmp_path):
    recording = sensorium()
    prepare(str(recording.folder), str(tmp_path / "a"), SETTINGS)
    copy = shutil.copytree(recording.folder, tmp_path / "copy" / recording.folder.name)
    for path in copy.rglob("*.npy"):
        os.utime(path, (1, 1))
    prepare(str(copy), str(tmp_path / "b"), SETTINGS)
    a, b = (tree(tmp_path / name) for name in "ab")
    origin = f"sessions/{recording.folder.name}/origin.json"
    assert a.pop(origin) != b.pop(origin)
    assert a == b


def test_other_settings_are_refused_unless_overwritten(sensorium, tmp_path):
    recording, to = sensorium(), str(tmp_path / "to")
    prepare(str(recording.folder), to, SETTINGS)
    before = tree(tmp_path / "to")
    other = PrepSettings(trials_per_shard=3)
    with pytest.raises(ConfigError, match=r"another trials_per_shard; choose another target"):
        prepare(str(recording.folder), to, other)
    assert tree(tmp_path / "to") == before
    prepare(str(recording.folder), to, other, overwrite=True)
    prepare(str(recording.folder), str(tmp_path / "new"), other)
    assert tree(tmp_path / "to") == tree(tmp_path / "new")


def test_a_refused_session_does_not_stop_the_others(sensorium, tmp_path):
    first, to = sensorium(name="8-5"), str(tmp_path / "to")
    prepare(str(first.folder), to, SETTINGS)
    sensorium(name="8-6")
    lines, other = [], PrepSettings(trials_per_shard=3)
    with pytest.raises(ConfigError, match=r"session 8-5 was prepared with another trials_per_sh"):
        prepare(str(first.folder.parent), to, other, progress=lines.append)
    assert [line.partition(":")[0] for line in lines] == ["8-5", "8-6"]
    assert (tmp_path / "to" / "sessions" / "8-6" / "manifest.json").exists()


def test_a_changed_source_or_a_lost_file_is_written_again(sensorium, tmp_path):
    recording, to = sensorium(), tmp_path / "to"
    prepare(str(recording.folder), str(to), SETTINGS)
    before = tree(to)
    next(to.rglob("*.tar")).unlink()
    prepare(str(recording.folder), str(to), SETTINGS)
    assert tree(to) == before
    recording.rewrite("data/responses/0.npy", lambda values: values * 2)
    prepare(str(recording.folder), str(to), SETTINGS)
    assert tree(to) != before
    assert verify(str(to)) == []


def test_sessions_at_the_target_are_kept(sensorium, twin, tmp_path):
    first, second, to = sensorium(), twin(), str(tmp_path / "to")
    prepare(str(first.folder), to, SETTINGS)
    manifest = prepare(str(second.folder), to, SETTINGS)
    assert [entry.session for entry in manifest.sessions] == ["8-5", first.folder.name]
    assert open_dataset(to).sessions == ["8-5", first.folder.name]
    with pytest.raises(DataError, match="no session 'x' in this dataset; it has 8-5, dynamic"):
        open_dataset(to).session("x")


KILLED = """
import os, sys
from fmcortex import storage
from data_prep.job import prepare
from data_prep.settings import PrepSettings

left = [int(sys.argv[3])]
write = storage.write_bytes

def dying(url, content):
    if left[0] == 0:
        os.replace = lambda source, target: (os.truncate(source, len(content) // 2), os._exit(9))
    left[0] -= 1
    write(url, content)

storage.write_bytes = dying
prepare(sys.argv[1], sys.argv[2], PrepSettings(trials_per_shard=2))
"""


@pytest.mark.parametrize("writes", [2, 12, 37])
def test_killed_job_continues_to_the_same_dataset(sensorium, twin, tmp_path, writes):
    twin(), sensorium()
    source, to = str(tmp_path / "source"), tmp_path / "to"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), source, str(to), str(writes)]
    assert subprocess.run(command, timeout=60, check=False).returncode == 9
    with pytest.raises(DataError, match="not a prepared dataset"):
        open_dataset(str(to))
    prepare(source, str(to), SETTINGS)
    prepare(source, str(tmp_path / "whole"), SETTINGS)
    assert tree(to) == tree(tmp_path / "whole")


def test_killed_rewriting_does_not_leave_an_open_dataset(sensorium, tmp_path):
    recording, to = sensorium(), tmp_path / "to"
    prepare(str(recording.folder), str(to), SETTINGS)
    recording.rewrite("data/responses/0.npy", lambda values: values * 2)
    command = [sys.executable, "-c", KILLED, str(recording.folder), str(to), "2"]
    assert subprocess.run(command, timeout=60, check=False).returncode == 9
    with pytest.raises(DataError, match="not a prepared dataset"):
        open_dataset(str(to))
    prepare(str(recording.folder), str(to), SETTINGS)
    assert verify(str(to)) == []


def test_full_disk(sensorium, tmp_path):
    """A real file system without room: one line, and nothing that looks whole."""
    recording, to = sensorium(), tmp_path / "small"
    to.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(to)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to mount a tmpfs")
    try:
        with pytest.raises(StorageError, match=r"cannot write: No space left on device") as caught:
            prepare(str(recording.folder), str(to), SETTINGS)
        assert "\n" not in str(caught.value)
        assert {path.suffix for path in to.rglob("*") if path.is_file()} <= {".tar", ".json", ""}
        assert not list(to.rglob("manifest.json"))
    finally:
        subprocess.run(["umount", str(to)], check=True)


def test_full_disk_midway(sensorium, twin, tmp_path, monkeypatch):
    """As above where nothing can be mounted, and the session before it stays."""
    twin(), sensorium()
    source, to = str(tmp_path / "source"), tmp_path / "to"
    real = os.fsync

    def full(descriptor):
        if "dynamic" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"dynamic.*writing.json: cannot write: No space"):
        prepare(source, str(to), SETTINGS)
    assert not (to / "manifest.json").exists()
    assert [path.parent.name for path in to.rglob("manifest.json")] == ["8-5"]
    monkeypatch.undo()
    lines = []
    prepare(source, str(to), SETTINGS, progress=lines.append)
    assert lines[0] == "8-5: up to date"
    assert verify(str(to)) == []


def test_unwritable_targets_fail_before_any_reading(sensorium, tmp_path, monkeypatch):
    recording = sensorium()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(session_job, "fingerprint", lambda folder: pytest.fail("read it"))
    for to, message in (
        (str(tmp_path / "file" / "to"), "file/to/.*cannot write: Not a directory"),
        ("/proc/to", "/proc/to.*cannot write"),
        ("nosuch://to", "nosuch://to: cannot open this location"),
    ):
        with pytest.raises(StorageError, match=message) as caught:
            prepare(str(recording.folder), to, SETTINGS)
        assert "\n" not in str(caught.value)


def test_one_bad_session_does_not_stop_the_others(sensorium, twin, tmp_path):
    good = sensorium()
    bad = [twin("8-5"), twin("8-6")]
    for recording in bad:
        shutil.rmtree(recording.folder / "perspectives")
    source, to = str(tmp_path / "source"), tmp_path / "to"
    with pytest.raises(DataError, match=r"2 of 3 sessions failed: .*8-5: no col.*8-6: no col"):
        prepare(source, str(to), SETTINGS)
    assert [path.name for path in (to / "sessions").iterdir()] == [good.folder.name]
    assert not (to / "manifest.json").exists()
    only = PrepSettings(trials_per_shard=2, sessions=[good.folder.name])
    assert len(prepare(source, str(to), only).sessions) == 1


def test_ray_tasks_give_the_same_dataset_and_the_original_error(sensorium, twin, tmp_path):
    import ray

    recording, other = sensorium(), twin()
    source = str(tmp_path / "source")
    with pytest.raises(ConfigError, match="use workers=0"):
        prepare(source, "memory://x", SETTINGS, workers=1)
    (other.folder / "units" / "3.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"8-5/units/3.npy: truncated") as caught:
        prepare(source, str(tmp_path / "ray"), SETTINGS, workers=2, within=ray_session(2))
    assert type(caught.value) is DataError
    assert "\n" not in str(caught.value)
    assert not ray.is_initialized()
    shutil.rmtree(tmp_path / "source" / "8-5")
    twin()
    with pytest.raises(ConfigError, match=r"workers: no Ray is connected"):
        prepare(source, str(tmp_path / "ray"), SETTINGS, workers=2)
    with ray_session(2):
        prepare(source, str(tmp_path / "ray"), SETTINGS, workers=2)
        with ray_session(1):
            pass
        assert ray.is_initialized()  # it stops only what it started
    prepare(source, str(tmp_path / "here"), SETTINGS)
    assert tree(tmp_path / "ray") == tree(tmp_path / "here")
    assert recording.folder.name in open_dataset(str(tmp_path / "ray")).sessions


@pytest.mark.slow
def test_a_ray_worker_that_dies_costs_no_shard(sensorium, tmp_path, monkeypatch):
    recording, to = sensorium(), tmp_path / "to"

    def die(*arguments):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(session_job, "finish_task", die)
    with pytest.raises(WorkerError, match=f"^{recording.folder}: the Ray worker died: ") as caught:
        prepare(str(recording.folder), str(to), SETTINGS, workers=1, within=ray_session(1))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert not list(to.rglob("manifest.json"))
    shards = {path: path.stat().st_mtime_ns for path in to.rglob("*.tar")}
    lines = []
    prepare(str(recording.folder), str(to), SETTINGS, progress=lines.append)
    assert {path: path.stat().st_mtime_ns for path in to.rglob("*.tar")} == shards
    assert lines[0].endswith(f"{len(shards)} of {len(shards)} shards kept")
    prepare(str(recording.folder), str(tmp_path / "undisturbed"), SETTINGS)
    assert tree(to) == tree(tmp_path / "undisturbed")


def check_remote(to, recording, tmp_path):
    """Prepare to a URL, read it back, and find damage there."""
    prepare(str(recording.folder), to, SETTINGS)
    prepare(str(recording.folder), str(tmp_path / "local"), SETTINGS)
    fs, root = storage.filesystem(to)
    found = {name.removeprefix(root).lstrip("/"): fs.cat_file(name) for name in fs.find(root)}
    assert found == tree(tmp_path / "local")
    session = open_dataset(to).session(recording.folder.name)
    here = open_dataset(str(tmp_path / "local")).session(recording.folder.name)
    for number in range(6):
        np.testing.assert_array_equal(session.trial(number).responses, here.trial(number).responses)
    for video in session.videos("test"):
        np.testing.assert_array_equal(
            session.video(video.name).responses, here.video(video.name).responses
        )
    assert session.neurons()["area"][0] == "V1"
    summary = describe(to)
    for key, pattern in (("bytes", "sessions/**/*"), ("movie_bytes", "movies/*/c/0/0/0")):
        files = [path for path in (tmp_path / "local").glob(pattern) if path.is_file()]
        assert summary[key] == sum(path.stat().st_size for path in files)
    assert verify(to) == []
    lines = []
    prepare(str(recording.folder), to, SETTINGS, progress=lines.append)
    assert lines == [f"{recording.folder.name}: up to date"]
    chunk = next(name for name in fs.find(root) if name.endswith("neurons.zarr/area/c/0"))
    fs.rm(chunk)
    shard = next(name for name in fs.find(root) if name.endswith("train-00000.tar"))
    fs.pipe_file(shard, fs.cat_file(shard)[:3000])
    session.trial(0)  # still in the cache
    damaged = open_dataset(to, disk_bytes=0).session(recording.folder.name)
    with pytest.raises(DataError, match=r"00000.tar: trial [02]: shard is cut short"):
        damaged.trial(0), damaged.trial(1)
    assert len(verify(to)) == 3  # the shard, the chunk, and the array it is of
    prepare(str(recording.folder), to, SETTINGS)
    assert verify(to) == []
    fs.rm(shard)
    with pytest.raises(DataError, match=r"00000.tar: trial 0: shard is missing"):
        open_dataset(to, disk_bytes=0).session(recording.folder.name).trial(0)


def test_memory_url(sensorium, tmp_path):
    try:
        check_remote("memory://prep-test/to", sensorium(), tmp_path)
    finally:
        fsspec.filesystem("memory").store.clear()


def test_s3_url(sensorium, tmp_path, s3):
    check_remote(f"{s3}/some/to", sensorium(), tmp_path)
    with pytest.raises(StorageError, match=r"s3://nosuch/to.*cannot write") as caught:
        prepare(str(tmp_path / "source"), "s3://nosuch/to", SETTINGS)
    assert "\n" not in str(caught.value)


def test_source_fingerprint_is_that_of_the_contents(twin):
    folder = twin().folder
    first = source_sha256(fingerprint(str(folder)))
    (folder / ".DS_Store").write_bytes(b"x")
    assert source_sha256(fingerprint(str(folder))) == first
    (folder / "units" / "0.npy").rename(folder / "units" / "00.npy")
    assert source_sha256(fingerprint(str(folder))) != first


def test_an_unfinished_run_with_other_settings_does_not_spare_a_check(sensorium, tmp_path):
    """What it surveyed is taken over, but not that it let a silent neuron pass."""
    recording, to = sensorium(), tmp_path / "to"
    for number in range(12):
        recording.rewrite(f"data/responses/{number}.npy", lambda v: v * [[1], [1], [0], [1], [1]])
    keep = PrepSettings(trials_per_shard=2, silent_neurons="keep")
    prepare(str(recording.folder), str(to), keep)
    journal.note(str(to / "sessions" / recording.folder.name), [])  # as it lies there until the end
    for manifest in to.rglob("manifest.json"):
        manifest.unlink()
    with pytest.raises(DataError, match=r"neuron 2 has no response in training \(1 such of 5"):
        prepare(str(recording.folder), str(to), SETTINGS)
    assert not list(to.rglob("*.tar"))


def test_what_killed_runs_left_is_removed_everywhere(sensorium, tmp_path):
    recording, to = sensorium(), tmp_path / "to"
    prepare(str(recording.folder), str(to), SETTINGS)
    before = tree(to)
    gone = subprocess.Popen(["true"])
    gone.wait()
    host = socket.gethostname().replace(".", "-")
    session, movie = next(to.glob("sessions/*")), next(to.glob("movies/*"))
    for folder in (to, session, movie, movie / "c" / "0" / "0"):
        (folder / f"manifest.json.{host}-{gone.pid}.0123abcd.tmp").write_text("half")
    theirs = to / f"split.json.{host}-1.0123abcd.tmp"  # of a process that lives
    theirs.write_text("half")
    prepare(str(recording.folder), str(to), SETTINGS)
    theirs.unlink()
    assert tree(to) == before


def test_a_second_prep_into_the_same_target_is_refused(sensorium, tmp_path):
    recording, to = sensorium(), tmp_path / "to"
    prepare(str(recording.folder), str(to), SETTINGS)
    before = tree(to)
    with Lock(str(to), "prep"):
        with pytest.raises(Locked, match=r"to: in use by prep of user .*choose another target"):
            prepare(str(recording.folder), str(to), SETTINGS, overwrite=True)
        (to / "lock.json").rename(tmp_path / "kept")
        assert tree(to) == before
        (tmp_path / "kept").rename(to / "lock.json")
    prepare(str(recording.folder), str(to), SETTINGS)
    assert tree(to) == before


def test_a_prep_that_lost_its_lock_stops_and_removes_nothing(
    sensorium, twin, tmp_path, monkeypatch
):
    sensorium(), twin()
    to = tmp_path / "to"
    locks = []

    def made(*arguments):
        locks.append(Lock(*arguments))
        return locks[-1]

    monkeypatch.setattr(prep_job, "Lock", made)

    def steal(line: str) -> None:
        owner = Owner.of_this_process("prep").model_copy(update={"user": "anna"})
        (to / "lock.json").write_bytes(owner.encoded())
        locks[0].beat()

    with pytest.raises(Locked, match="taken over by prep of user anna"):
        prepare(str(tmp_path / "source"), str(to), SETTINGS, progress=steal)
    assert (to / "sessions" / "8-5" / "manifest.json").exists()
    assert not (to / "manifest.json").exists()
