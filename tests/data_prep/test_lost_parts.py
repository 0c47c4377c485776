"""Signals of which a part was lost or damaged on the way: each is named, none is read as zeros."""

import json
import re
import shutil
import zipfile

import numpy as np
import pytest
import zarr
from signals_session import NAME, Session

from data_prep.job import prepare
from data_prep.readers.signal_files import SignalFile
from data_prep.readers.tables import read_columns
from fmcortex.errors import DataError

SAMPLES, COLUMNS = 100, 4
VALUES = 1.0 + np.arange(SAMPLES * COLUMNS).reshape(SAMPLES, COLUMNS)
TIMES = np.arange(SAMPLES) / 10


def group(folder, version=3, fill=0.0, shards=None, compressors="auto", place="end"):
    """A signal as a zarr group of chunks of 10 samples; where its arrays are."""
    path = folder / "signal.zarr"
    made = zarr.open_group(str(path), mode="w", zarr_format=version)
    for name, array in (("values", VALUES), ("times", TIMES)):
        shard = None if shards is None else (shards, *array.shape[1:])
        stored = made.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=(10, *array.shape[1:]),
            shards=shard and {"shape": shard, "index_location": place},
            fill_value=fill,
            compressors=compressors,
        )
        stored[:] = array
    return path


def chunk(version, name, number):
    place = [number, 0] if name == "values" else [number]
    key = ".".join(map(str, place)) if version == 2 else "/".join(["c", *map(str, place)])
    return f"{name}/{key}"


def opened(folder):
    signal = SignalFile(folder, "signal")
    return signal.rows(slice(None)), signal.times


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("fill", [None, 0.0, 7.0])
@pytest.mark.parametrize("name", ["values", "times"])
def test_lost_chunk_is_named(tmp_path, version, fill, name):
    path = group(tmp_path, version, fill)
    values, times = opened(tmp_path)
    np.testing.assert_array_equal(values, VALUES)
    np.testing.assert_array_equal(times, TIMES)
    lost = path / chunk(version, name, 3)
    lost.unlink()
    with pytest.raises(
        DataError, match=rf"^{re.escape(str(lost))}: is missing \(1 of 10 parts of {name}\)"
    ):
        opened(tmp_path)


def test_chunk_of_missing_samples_may_lack(tmp_path):
    path = group(tmp_path, fill=np.nan)
    (path / chunk(3, "values", 3)).unlink()
    assert np.isnan(opened(tmp_path)[0][30:40]).all()
    (path / chunk(3, "times", 3)).unlink()
    with pytest.raises(DataError, match=r"times/c/3: is missing"):
        opened(tmp_path)


def test_other_file_does_not_stand_in_for_a_lost_chunk(tmp_path):
    path = group(tmp_path)
    shutil.move(path / chunk(3, "values", 3), path / "values/c/3/copy")
    with pytest.raises(DataError, match=r"values/c/3/0: is missing"):
        opened(tmp_path)
    (path / chunk(3, "values", 3)).mkdir()
    with pytest.raises(DataError, match=r"values/c/3/0: is missing"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("version", "shards", "compressors"),
    [(2, None, "auto"), (2, None, None), (3, None, "auto"), (3, None, None), (3, 20, "auto")],
)
@pytest.mark.parametrize("size", [0, 9, 0.5, 1.5])
def test_chunk_of_another_size_is_refused(tmp_path, version, shards, compressors, size):
    path = group(tmp_path, version, 0.0, shards, compressors)
    damaged = path / chunk(version, "values", 3)
    content = damaged.read_bytes()
    kept = size if isinstance(size, int) else int(size * len(content))
    damaged.write_bytes(content[:kept] + b"\0" * (kept - len(content)))
    if (version, compressors, size) == (2, "auto", 1.5):  # Blosc knows its own length
        np.testing.assert_array_equal(opened(tmp_path)[0], VALUES)
        return
    with pytest.raises(DataError, match=r"signal\.zarr.*: (is empty|truncated|cannot read)"):
        opened(tmp_path)


@pytest.mark.parametrize("place", ["start", "end"])
def test_chunks_lost_with_or_within_a_shard(tmp_path, place):
    path = group(tmp_path, shards=30, place=place)
    np.testing.assert_array_equal(opened(tmp_path)[0], VALUES)  # the last shard has one chunk
    array = zarr.open_group(str(path), mode="r+")["values"]
    array[40:50] = 0.0  # as if a writer had been killed before it came to this one
    with pytest.raises(DataError, match=r"values/c/1/0: lacks chunks"):
        opened(tmp_path)
    array[40:50] = VALUES[40:50]
    np.testing.assert_array_equal(opened(tmp_path)[0], VALUES)
    (path / "values/c/2/0").unlink()
    with pytest.raises(DataError, match=r"values/c/2/0: is missing"):
        opened(tmp_path)


@pytest.mark.parametrize("version", [2, 3])
def test_what_was_appended_after_metadata_were_consolidated_is_read(tmp_path, version):
    path = group(tmp_path, version)
    zarr.consolidate_metadata(str(path))
    made = zarr.open_group(str(path), mode="r+", use_consolidated=False)
    for name, more in (("values", VALUES[:10]), ("times", TIMES[:10] + 10)):
        array = made[name]
        array.resize((SAMPLES + 10, *array.shape[1:]))
        array[SAMPLES:] = more
    assert len(opened(tmp_path)[0]) == SAMPLES + 10


def test_arrays_that_are_none(tmp_path):
    path = group(tmp_path)
    shutil.rmtree(path / "values")
    with pytest.raises(DataError, match=r"signal\.zarr: no array values in it"):
        opened(tmp_path)
    zarr.open_group(str(path), mode="r+").create_group("values")
    with pytest.raises(DataError, match=r"signal\.zarr: values is no array but a group"):
        opened(tmp_path)


def test_prep_refuses_what_lost_a_chunk(tmp_path):
    session = Session(tmp_path / "source" / NAME)
    (session.folder / "signals/responses.npz").unlink()
    values, times = session.signals["responses"]
    made = zarr.open_group(str(session.folder / "signals/responses.zarr"), mode="w", zarr_format=2)
    for name, array in (("values", values), ("times", times)):
        stored = made.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=(30, *array.shape[1:]),
            fill_value=None,
        )
        stored[:] = array
    prepare(str(tmp_path / "source"), str(tmp_path / "whole"))
    (session.folder / "signals/responses.zarr/values/1.0").unlink()
    with pytest.raises(DataError, match=r"responses\.zarr/values/1\.0: is missing"):
        prepare(str(tmp_path / "source"), str(tmp_path / "lost"))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["values", "times"])
def test_npz_that_differs_from_its_checksum(tmp_path, name):
    path = tmp_path / "signal.npz"
    np.savez(path, values=VALUES, times=TIMES)
    np.testing.assert_array_equal(opened(tmp_path)[0], VALUES)
    flip(path, zipfile.ZipFile(path).getinfo(f"{name}.npy").header_offset + 400)
    with pytest.raises(DataError, match=rf"signal\.npz: not a whole .*Bad CRC-32 for .*{name}"):
        opened(tmp_path)


def test_any_bit_of_an_npz(tmp_path):
    path = tmp_path / "signal.npz"
    np.savez(path, values=VALUES[:12], times=TIMES[:12])
    whole = path.read_bytes()
    changed = 0
    for place in range(0, len(whole), 3):
        flip(path, place)
        message = None
        try:
            values, times = opened(tmp_path)
        except DataError as error:
            message, changed = str(error), changed + 1
        if message is None:  # a bit that says nothing, such as one of a member's date
            np.testing.assert_array_equal(values, VALUES[:12])
            np.testing.assert_array_equal(times, TIMES[:12])
        else:
            assert str(path) in message
            assert "\n" not in message
        path.write_bytes(whole)
    assert changed > len(whole) / 3 * 0.7


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_table_that_differs_from_its_checksum(tmp_path, save):
    path = tmp_path / "neurons.npz"
    save(path, unit_id=np.arange(200))
    assert len(read_columns(path)["unit_id"]) == 200
    flip(path, zipfile.ZipFile(path).getinfo("unit_id.npy").header_offset + 250)
    with pytest.raises(DataError, match=r"neurons\.npz: not a \.npz file of plain arrays"):
        read_columns(path)


def test_metadata_that_is_damaged(tmp_path):
    path = group(tmp_path)
    described = json.loads((path / "values/zarr.json").read_text())
    for key in ("shape", "chunk_grid", "codecs", "data_type", "fill_value"):
        (path / "values/zarr.json").write_text(json.dumps({**described, key: "x"}))
        with pytest.raises(DataError, match=r"signal\.zarr: ") as caught:
            opened(tmp_path)
        assert "\n" not in str(caught.value)
