"""Parts of HDF5 files that are elsewhere, or were never stored: HDF5 reads most as zeros."""

import os

import h5py
import numpy as np
import pytest

from data_prep.readers.hdf5_data import Data
from data_prep.readers.hdf5_links import child, dereference, find, member
from fmcortex.errors import DataError

VALUES = np.arange(1.0, 21.0)
OPEN = []


@pytest.fixture(autouse=True)
def close():
    """Close what is open, so that it can be changed."""

    def close():
        while OPEN:
            OPEN.pop().close()

    yield close
    close()


def opened(path, name="x"):
    """Dataset `name` of a file, as the NWB reader opens it."""
    file = h5py.File(path, "r")
    OPEN.append(file)
    return Data(child(file, name, str(path)), f"{path}: {name}")


def refused(path, *words, name="x"):
    with pytest.raises(DataError) as caught:
        opened(path, name)[:]
    while OPEN:
        OPEN.pop().close()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.fixture
def path(tmp_path):
    return tmp_path / "scan.nwb"


def virtual(path, length=10, mapped=10, source="part.h5", dataset="x"):
    """Two halves, of a file beside `path` and of the file itself; where the first is."""
    other = path.with_name("part.h5")
    with h5py.File(other, "w") as file:
        file["x"] = VALUES[:length]
    layout = h5py.VirtualLayout((20,), "f8")
    layout[:mapped] = h5py.VirtualSource(source, dataset, (length,))[:mapped]
    with h5py.File(path, "w") as file:
        file["own"] = VALUES[10:]
        layout[10:] = h5py.VirtualSource(file["own"])
        file.create_virtual_dataset("x", layout)
    return other


def test_virtual_dataset(path, close, monkeypatch, tmp_path_factory):
    other = virtual(path)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    first, second = opened(path), opened(path)  # what HDF5 has open may be opened again
    for data in (first, second, opened(path), opened(path, "own")):
        np.testing.assert_array_equal(data[-10:], VALUES[10:])
    np.testing.assert_array_equal(first[:], VALUES)
    close()
    other.unlink()
    refused(path, f"x: its values are in {other}, which is missing")


def test_virtual_dataset_of_a_file_that_was_moved_with_it(path, close):
    virtual(path, source=str(path.parent / "before" / "part.h5"))
    np.testing.assert_array_equal(opened(path)[:], VALUES)
    close()
    path.with_name("before").mkdir()
    path.with_name("part.h5").rename(path.parent / "before" / "part.h5")
    np.testing.assert_array_equal(opened(path)[:], VALUES)


@pytest.mark.parametrize("kind", ["virtual", "link", "raw"])
def test_files_outside_the_folder(path, tmp_path_factory, kind):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with h5py.File(elsewhere / "part.h5", "w") as file:
        file["x"] = VALUES[:10]
    VALUES.tofile(elsewhere / "values.raw")
    for name in (str(elsewhere / "part.h5"), f"../{elsewhere.name}/part.h5"):
        if kind == "virtual":
            virtual(path, source=name)
        else:
            with h5py.File(path, "w") as file:
                if kind == "link":
                    file["x"] = h5py.ExternalLink(name, "/x")
                else:
                    raw = name.replace("part.h5", "values.raw")
                    file.create_dataset("x", (20,), "f8", external=[(raw, 0, 160)])
        refused(path, "x: is in " if kind == "link" else "x: its values are in", "outside")


def test_file_where_the_process_runs_does_not_stand_in(path, tmp_path_factory, monkeypatch):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with h5py.File(elsewhere / "part.h5", "w") as file:
        file["x"] = VALUES[:10]
    monkeypatch.chdir(elsewhere)
    with h5py.File(path, "w") as file:
        file["x"] = h5py.ExternalLink("part.h5", "/x")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["x"][:], VALUES[:10])
    refused(path, "x: is in part.h5, outside ")


@pytest.mark.parametrize("kind", ["virtual", "link"])
def test_other_files_of_one_at_a_url(path, monkeypatch, kind):
    virtual(path)
    if kind == "link":
        with h5py.File(path, "w") as file:
            file["x"] = h5py.ExternalLink("part.h5", "/x")
    monkeypatch.chdir(path.parent)
    message = r"^u: x: .*part\.h5, which is not read from a URL"
    with (
        open(path, "rb") as stream,
        h5py.File(stream) as remote,
        pytest.raises(DataError, match=message),
    ):
        Data(child(remote, "x", "u"), "u: x")


def test_virtual_dataset_of_another_file_than_it_was(path):
    other = virtual(path)
    for change, words in (
        (lambda f: None, "no x"),
        (lambda f: f.__setitem__("x", VALUES[:5]), "has shape [5]"),
        (lambda f: f.create_dataset("x", (10,), "f8", chunks=(5,)), "were never written"),
    ):
        with h5py.File(other, "a") as file:
            file.pop("x", None)
            change(file)
        refused(path, str(other), words)
    other.write_bytes(b"no HDF5")
    refused(path, f"x: cannot open {other}")


def test_virtual_dataset_that_is_partly_made_of_nothing(path):
    virtual(path, mapped=8)
    refused(path, "x: only 18 of its 20 values come from a file")


def test_virtual_dataset_of_any_number_of_files(path):
    with h5py.File(path, "w") as file:
        blocks = h5py.h5s.create_simple((20,), (h5py.h5s.UNLIMITED,))
        blocks.select_hyperslab((0,), (h5py.h5s.UNLIMITED,), (10,), (10,))
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_virtual(blocks, b"part-%b.h5", b"x", h5py.h5s.create_simple((10,)))
        space = h5py.h5s.create_simple((20,), (h5py.h5s.UNLIMITED,))
        h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_DOUBLE, space, dcpl=made)
    refused(path, "x: is made of any number of files part-%b.h5")


def test_raw_file_outside(path, close, monkeypatch, tmp_path_factory):
    raw = path.with_name("values.raw")
    raw.write_bytes(b"head" + VALUES.tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (20,), "f8", external=[("values.raw", 4, 160)])
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "values.raw").write_bytes(bytes(164))
    monkeypatch.chdir(elsewhere)
    first, second = opened(path), opened(path)
    for data in (first, second):
        np.testing.assert_array_equal(data[:], VALUES)
    close()
    os.truncate(raw, 100)
    refused(path, f"x: its values are in {raw}, which is cut: 100 bytes of 164")
    raw.unlink()
    refused(path, f"x: its values are in {raw}, which is missing")


def test_external_link(path, close):
    other = path.with_name("part.h5")
    with h5py.File(other, "w") as file:
        file["g/x"] = VALUES
        file["g/y"] = VALUES * 2
        file["g/x"].attrs["next"] = file["g/y"].ref
    with h5py.File(path, "w") as file:
        file["g"] = h5py.ExternalLink("part.h5", "/g")
        file["x"] = h5py.SoftLink("/g/x")
        file["z"] = VALUES  # where the reference would lead in this file
    data = opened(path)
    np.testing.assert_array_equal(data[:], VALUES)
    found = dereference(data.attrs["next"], data.file, "x")
    np.testing.assert_array_equal(found[:], VALUES * 2)
    data.file.close()
    close()
    with h5py.File(other, "a") as file:
        del file["g/x"]
    refused(path, "x: is a link to /g/x, which is not there")
    other.unlink()
    refused(path, "g: is /g of another file, part.h5, which is missing", name="g/x")


def test_links_that_lead_nowhere(path):
    with h5py.File(path, "w") as file:
        file["x"] = h5py.SoftLink("/y")
        file["y"] = h5py.SoftLink("/x")
        file["gone"] = h5py.SoftLink("/not/there")
        file["data"] = VALUES
        file.attrs["none"] = h5py.Reference()
    refused(path, "x: is a link to /y, which is not there or leads in a circle")
    refused(path, "gone: is a link to /not/there", name="gone")
    refused(path, "no nothing; the file has data, gone, x, y", name="nothing")
    refused(path, "no data/inner; /data has no groups", name="data/inner")
    with h5py.File(path) as file:
        assert find(file, "nothing/inner", "f") is None
        assert member(file["data"], "inner", "f") is None
        with pytest.raises(DataError, match=r"^f: data: is a dataset, not a group$"):
            find(file, "data/inner", "f")
        for reference in (file.attrs["none"], "data", 7, None):
            with pytest.raises(DataError, match=r"^f: refers to nothing in the file$"):
                dereference(reference, file, "f")


@pytest.mark.parametrize("fill", [0.0, 7.0, None])
def test_chunks_that_were_never_written(path, fill):
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("x", (30, 4), "f8", chunks=(10, 3), fillvalue=fill)
        stored[:10] = stored[20:] = 1.0
        stored[10:20, :3] = fill or 0.0
    with open(path, "rb") as stream, h5py.File(stream) as remote:  # as a file at a URL is opened
        for data in (opened(path), Data(remote["x"], "x")):
            assert (data[:10] == 1.0).all()
            assert (data[:20, :3] == np.repeat([[1.0], [fill or 0.0]], 10, axis=0)).all()
            for part in (slice(None), slice(8, 12), (slice(None), slice(3, 4))):
                with pytest.raises(DataError, match=r"x: the chunk at \[10, 3\] was never written"):
                    data[part]


def test_values_that_were_never_written(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("x", (20,), "f8")
        file.create_dataset("none", (0,), "f8")
        file.create_dataset("missing", (20,), "f8", chunks=(10,), fillvalue=np.nan)
        file["missing"][:10] = 1.0
        file["nothing"] = h5py.Empty("f8")
        file.create_group("group")
    refused(path, "x: no values were ever written to it")
    refused(path, "nothing: is an empty dataset, without values", name="nothing")
    refused(path, "group: is a group, not a dataset", name="group")
    assert opened(path, "none")[:].shape == (0,)
    assert np.isnan(opened(path, "missing")[:]).sum() == 10


def test_chunk_that_differs_from_its_checksum(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=VALUES, chunks=(10,), fletcher32=True)
    content = bytearray(path.read_bytes())
    content[content.find(VALUES[:10].tobytes()) + 30] ^= 4
    path.write_bytes(content)
    refused(path, "x: cannot read: ")


def test_filter_that_is_not_installed(path):
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "x", (20,), "f8", chunks=(10,), compression=31999, allow_unknown_filter=True
        )
    refused(path, "x: was written with a filter (31999)", "pip install hdf5plugin")


def test_filters_of_hdf5plugin(path, close):
    plugin = pytest.importorskip("hdf5plugin")
    with h5py.File(path, "w") as file:
        for name, options in (("x", plugin.Zstd(3)), ("blosc", plugin.Blosc())):
            file.create_dataset(name, data=VALUES, chunks=(10,), **options)
    for name in ("x", "blosc"):
        np.testing.assert_array_equal(opened(path, name)[:], VALUES)
    # The Zstandard plugin gives a damaged chunk as whatever was in memory.
    for damage in (lambda c: c[: len(c) // 2], lambda c: c[:5] + b"read no further"):
        close()
        with h5py.File(path, "a") as file:
            for name in ("x", "blosc"):
                chunk = file[name].id.read_direct_chunk((10,))[1]
                file[name].id.write_direct_chunk((10,), damage(chunk))
        np.testing.assert_array_equal(opened(path)[:10], VALUES[:10])
        refused(path, "x: the chunk at [10] is damaged (written with ", " of hdf5plugin)")
        refused(path, "blosc: cannot read (written with ", " of hdf5plugin)", name="blosc")
