"""Reading a prepared dataset: what is there is given, what is damaged is refused by name."""

import contextlib
import io
import json
import tarfile
import threading
import warnings

import numpy as np
import pytest
import webdataset

from fmcortex.data.arrays import content_sha256, decode_npy, encode_npy
from fmcortex.data.blocks import BlockFile
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import describe, verify
from fmcortex.data.manifest import Array
from fmcortex.data.shards import decode_sample
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


def everything(url, **options):
    """All that training and evaluation read of a dataset, as bytes."""
    dataset = open_dataset(str(url), **options)
    found = []
    for name in dataset.sessions:
        session = dataset.session(name)
        arrays = [vars(session.trial(n)) for n in range(len(session.manifest.trials))]
        arrays += [vars(session.video(video.name)) for video in session.manifest.videos]
        arrays += [session.neurons(), {"scale": session.response_scale()}]
        found += [values.tobytes() for some in arrays for values in some.values()]
    return found


def test_blocks_are_cached_within_a_bound_and_cannot_be_changed(prepared, monkeypatch):
    read = []
    inner = BlockFile.read
    monkeypatch.setattr(
        BlockFile, "read", lambda self, a, b: read.append((a, b)) or inner(self, a, b)
    )
    session = open_dataset(str(prepared)).session("s1")
    first = session.trial(0)
    assert len(read) == 3  # behaviour, responses, movie
    again = session.trial(0)
    again.responses[:], again.stimulus[:] = 1, 1  # a copy
    np.testing.assert_array_equal(session.trial(0).responses, first.responses)
    np.testing.assert_array_equal(session.trial(0).stimulus, first.stimulus)
    assert len(read) == 3
    assert all(
        not values.flags.writeable
        for values in session._memory._arrays.values()
        if isinstance(values, np.ndarray)
    )
    small = open_dataset(str(prepared), cache_bytes=500).session("s1")
    for number in (0, 1, 2, 3, 0):
        small.trial(number)
    assert 0 < small._memory._bytes <= 500
    assert sum(v.nbytes for v in small._memory._arrays.values()) == small._memory._bytes
    del read[:]
    none = open_dataset(str(prepared), cache_bytes=0).session("s1")
    none.trial(0), none.trial(0)
    assert len(read) == 6


def test_a_window_is_part_of_the_trial(prepared):
    session = open_dataset(str(prepared)).session("s1")
    whole = session.trial(2)
    for start, frames in ((0, 8), (0, 1), (7, 1), (3, 4)):
        window = session.window(2, start, frames)
        for name, values in vars(window).items():
            np.testing.assert_array_equal(values, getattr(whole, name)[start : start + frames])
    for start, frames in ((-1, 2), (0, 0), (0, 9), (7, 2), (8, 1)):
        with pytest.raises(IndexError, match="of trial 2 of 8"):
            session.window(2, start, frames)


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
        [boundary] = [m.offset for m in tar if m.name == "000002.modulations.npy"]
    shard.write_bytes(shard.read_bytes()[:boundary])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert len(read) == 3  # the last without its responses
    with pytest.raises(DataError, match=r"no member perspectives.npy"):
        decode_sample(read[2], None)
    session = open_dataset(str(prepared)).session("s1")
    session.trial(4)
    with pytest.raises(DataError, match=r"train-00001\.tar: trial 5: shard is cut short"):
        session.trial(5)
    assert any("train-00001.tar: file has" in problem for problem in verify(str(prepared)))
    shard.write_bytes(b"")
    with pytest.raises(DataError, match=r"train-00001\.tar: trial 3: shard is cut short"):
        open_dataset(str(prepared)).session("s1").trial(3)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_flipped_byte_anywhere_is_found_and_never_read(prepared):
    """In every file of the dataset, at its first, its last and some other bytes."""
    good = everything(prepared)
    generator = np.random.default_rng(0)
    unread = set()
    for path in files_of(prepared):
        whole = path.read_bytes()
        inner = generator.integers(0, len(whole), 12).tolist()
        for position in sorted({0, len(whole) - 1, *inner}):
            flip(path, position)
            name = path.relative_to(prepared)
            if name.name == "manifest.json" and len(name.parts) == 1:
                with pytest.raises(DataError, match=r"manifest\.json"):
                    verify(str(prepared))
            else:
                # A file is named by its place, and an array by the folder of its chunks.
                named = str(name).split("/c/0")[0].removesuffix("/zarr.json")
                problems = verify(str(prepared))
                assert problems, name
                assert all(named in problem for problem in problems), (name, problems)
            with contextlib.suppress(DataError):
                assert everything(prepared) == good
                unread.add(name.name)
            path.write_bytes(whole)
    # Training reads neither the headers of tars, nor what tells where it all came from.
    assert unread <= {
        *("train-00000.tar", "train-00001.tar", "test-00000.tar"),
        *("survey.json", "sources.json", "origin.json", "index.json", "zarr.json", "0"),
    }
    assert verify(str(prepared)) == []


def test_a_flipped_byte_of_any_block_is_named(prepared):
    folder = prepared / "sessions" / "s1"
    shard = folder / "train-00000.tar"
    index = json.loads((folder / "train-00000.index.json").read_text())
    whole = shard.read_bytes()
    for trial in index["trials"]:
        key = trial["header"]["key"]
        for block in [*trial["small"].values(), *trial["responses"][0]]:
            for place in (0, block["length"] // 2, block["length"] - 1):
                shard.write_bytes(whole)
                flip(shard, block["offset"] + place)
                session = open_dataset(str(prepared)).session("s1")
                start = block["offset"]
                message = rf"00\.tar: trial {key}: bytes {start} to {start + block['length']} dif"
                with pytest.raises(DataError, match=message):
                    session.trial(int(key))
    shard.write_bytes(whole)
    movie = open_dataset(str(prepared)).session("s1").manifest.trials[0].movie
    file = prepared / "movies" / movie / "c" / "0" / "0" / "0"
    flip(file, 5)
    with pytest.raises(DataError, match=rf"c/0/0/0: movie {movie[:12]}: bytes .* the movie is dam"):
        open_dataset(str(prepared)).session("s1").trial(0)


def test_every_lost_or_empty_file_is_found(prepared):
    good = everything(prepared)
    for path in files_of(prepared):
        whole = path.read_bytes()
        for lost in (True, False):
            path.unlink() if lost else path.write_bytes(b"")
            if path == prepared / "manifest.json":
                with pytest.raises(DataError, match="manifest"):
                    verify(str(prepared))
            else:
                assert verify(str(prepared))
            with contextlib.suppress(DataError):
                assert everything(prepared) == good
            path.write_bytes(whole)
    assert verify(str(prepared)) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda chunk: chunk.unlink(), "array is missing: no c/0"),
        (lambda chunk: chunk.write_bytes(chunk.read_bytes()[:-3]), "array is corrupt"),
        (lambda chunk: flip(chunk, 20), "array is corrupt|content differs"),
        (lambda chunk: (chunk.parents[1] / "zarr.json").unlink(), "array is missing"),
        (lambda chunk: (chunk.parents[1] / "zarr.json").write_text("{}"), "array is corrupt"),
    ],
)
def test_damaged_zarr(prepared, damage, message):
    array = prepared / "sessions/s1/neurons.zarr/response_scale"
    damage(array / "c/0")
    session = open_dataset(str(prepared)).session("s1")
    with pytest.raises(DataError, match=rf"neurons.zarr/response_scale: ({message})"):
        session.response_scale()
    problems = session.verify()
    assert problems
    assert all("neurons.zarr/response_scale" in problem for problem in problems)


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


def test_manifests_of_other_versions(prepared):
    for version in (1, 3):
        document = {"version": version, "sessions": [], "tool_version": "x"}
        (prepared / "manifest.json").write_text(json.dumps(document))
        message = rf"manifest\.json: format version: {version}, this program reads 2; make it a"
        with pytest.raises(DataError, match=message):
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


@pytest.mark.parametrize("shape", [(0,), (3,), (3, 4), (2, 0, 5)])
@pytest.mark.parametrize("dtype", ["<f4", "<f2", "|u1", "<i8", "|b1", "<U7"])
def test_npy_is_decoded_without_parsing_python(shape, dtype, monkeypatch):
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    content = encode_npy(values)

    def parse(*_):
        raise SystemError("AST constructor recursion depth mismatch")

    monkeypatch.setattr("ast.literal_eval", parse)
    decoded = decode_npy(content, "x")
    assert (decoded.dtype, decoded.shape) == (values.dtype, shape)
    np.testing.assert_array_equal(decoded, values)


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
