"""Reading a prepared dataset: what is there is given, what is damaged is refused by name."""

import io
import json
import tarfile
import threading

import numpy as np
import pytest

from fmcortex.data.arrays import content_sha256, decode_npy, encode_npy
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import describe, verify
from fmcortex.data.manifest import Array
from fmcortex.errors import DataError


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_describe(prepared):
    summary = describe(str(prepared))
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["sessions"], summary["neurons"], summary["train_trials"]) == (1, 3, 6)
    assert summary["train_minutes"] == pytest.approx(48 / 30 / 60)
    [session] = summary["session_details"]
    assert session["videos"] == {"test": {"natural_movie": {"videos": 1, "repeats": 2}}}
    folder = prepared / "sessions" / "s1"
    assert summary["bytes"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_what_is_not_there(prepared, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: not a prepared dataset .*run `fmcortex prep`"):
        open_dataset(str(tmp_path / "nowhere"))
    dataset = open_dataset(str(prepared))
    with pytest.raises(DataError, match="no session 's2' in this dataset; it has s1"):
        dataset.session("s2")
    with pytest.raises(DataError, match="no video 'x'; it has natural_movie-0"):
        dataset.session("s1").video("x")
    with pytest.raises(IndexError, match="trial 6 of 6"):
        dataset.session("s1").trial(6)
    assert dataset.session("s1").videos("test", "pink_noise") == []
    assert dataset.session("s1").videos("validation") == []


def test_trials_are_cached_within_a_bound_and_cannot_be_changed(prepared, monkeypatch):
    trial_bytes = open_dataset(str(prepared)).session("s1").trial(0).nbytes
    session = open_dataset(str(prepared), cache_bytes=2 * trial_bytes).session("s1")
    read = []
    inner = session._read_trial
    monkeypatch.setattr(session, "_read_trial", lambda n: read.append(n) or inner(n))
    for number in (0, 1, 0, 2, 0, 1):
        trial = session.trial(number)
    assert read == [0, 1, 2, 1]
    with pytest.raises(ValueError, match="read-only"):
        trial.responses[0] = 1
    none = open_dataset(str(prepared), cache_bytes=0).session("s1")
    assert none.trial(0) is not none.trial(0)


def test_threads_read_the_same_values(prepared):
    expected = [open_dataset(str(prepared)).session("s1").trial(n).responses for n in range(6)]
    session = open_dataset(str(prepared), cache_bytes=2000).session("s1")
    faults = []

    def work(seed):
        for number in np.random.default_rng(seed).integers(0, 6, 60):
            if not np.array_equal(session.trial(int(number)).responses, expected[number]):
                faults.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_tar_cut_at_a_member_boundary(prepared):
    """webdataset itself would read such a tar as a shorter one, without an error."""
    shard = prepared / "sessions" / "s1" / "train-00001.tar"
    with tarfile.open(shard) as tar:
        [boundary] = [m.offset for m in tar if m.name == "5.modulations.npy"]
    shard.write_bytes(shard.read_bytes()[:boundary])
    session = open_dataset(str(prepared)).session("s1")
    session.trial(4)
    with pytest.raises(DataError, match=r"train-00001\.tar: trial 5: shard is cut short"):
        session.trial(5)
    assert any("train-00001.tar: file has" in problem for problem in verify(str(prepared)))
    shard.write_bytes(b"")
    with pytest.raises(DataError, match=r"train-00001\.tar: trial 3: shard is cut short"):
        open_dataset(str(prepared)).session("s1").trial(3)


def test_any_flipped_byte_of_a_member(prepared):
    folder = prepared / "sessions" / "s1"
    shard = folder / "train-00000.tar"
    index = json.loads((folder / "train-00000.index.json").read_text())
    whole = shard.read_bytes()
    for trial in index["trials"]:
        for name, member in trial["members"].items():
            for place in (0, 70, member["length"] - 1):
                shard.write_bytes(whole)
                flip(shard, member["offset"] + place)
                session = open_dataset(str(prepared)).session("s1")
                with pytest.raises(DataError, match=rf"trial {trial['key']}: {name} differs"):
                    session.trial(int(trial["key"]))
    shard.write_bytes(whole)
    flip(shard, 2)  # in a tar header: no trial is harmed, yet the shard is not what was written
    assert verify(str(prepared)) == [f"{shard}: file differs from its SHA-256 in the manifest"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda chunk: chunk.unlink(), "content differs from its checksum"),
        (lambda chunk: chunk.write_bytes(chunk.read_bytes()[:-3]), "array is corrupt"),
        (lambda chunk: flip(chunk, 20), "array is corrupt|content differs"),
        (lambda chunk: (chunk.parents[3] / "zarr.json").unlink(), "array is missing"),
        (lambda chunk: (chunk.parents[3] / "zarr.json").write_text("{}"), "array is corrupt"),
    ],
)
def test_damaged_zarr(prepared, damage, message):
    array = prepared / "sessions/s1/videos.zarr/natural_movie-0/responses"
    damage(array / "c/1/0/0")
    session = open_dataset(str(prepared)).session("s1")
    with pytest.raises(DataError, match=rf"natural_movie-0/responses: ({message})"):
        session.video("natural_movie-0")
    problems = session.verify()
    assert problems
    assert all("natural_movie-0/responses" in problem for problem in problems)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("sessions/s1/train-00000.index.json", r"index\.json: shard index differs"),
        ("sessions/s1/manifest.json", r"s1/manifest\.json: differs from its checksum"),
        ("sessions/s1/neurons.zarr/unit_id/c/0", r"neurons\.zarr/unit_id: "),
    ],
)
def test_damaged_documents(prepared, path, message):
    flip(prepared / path, 15)

    def read():
        session = open_dataset(str(prepared)).session("s1")
        session.trial(0)
        session.neurons()

    with pytest.raises(DataError, match=message):
        read()
    assert verify(str(prepared))
    (prepared / path).unlink()
    with pytest.raises(DataError, match=r"missing|differs"):
        read()
    assert verify(str(prepared))


def test_damaged_root_manifest(prepared):
    (prepared / "manifest.json").write_text('{"version": 1, "sessions": [], "tool": "x"}')
    with pytest.raises(DataError, match=r"manifest\.json: "):
        open_dataset(str(prepared))


@pytest.mark.parametrize(
    "values",
    [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.ones((2, 3), "f4")),
        np.zeros((0, 4), np.uint8),
        np.array(["V1", "é"]),
    ],
)
def test_npy_members(values):
    content = encode_npy(values)
    np.testing.assert_array_equal(decode_npy(content, "x"), values)
    np.testing.assert_array_equal(np.load(io.BytesIO(content)), values)
    assert content_sha256(values) == content_sha256(np.load(io.BytesIO(content)))


def test_npy_members_that_are_none():
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    whole = encode_npy(np.arange(5))
    for content in (b"", b"nothing like it", whole[:-1], whole[:40], stream.getvalue()):
        with pytest.raises(DataError, match=r"s\.tar: trial 1: not a readable \.npy array"):
            decode_npy(content, "s.tar: trial 1")


@pytest.mark.parametrize("path", ["../x", "a/../x", "/etc/x", "a//b", "a/.b", "a/"])
def test_paths_stay_in_the_session(path):
    with pytest.raises(ValueError, match="path"):
        Array(path=path, dtype="<f4", shape=[1], sha256="0" * 64)
