"""Blocks kept unpacked on the local disk: the same values, none of which is trusted."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from cached import files, taken, total
from tiny_recording import write_tiny

from data_prep.job import prepare
from data_prep.settings import PrepSettings
from fmcortex.data import cache as cache_module
from fmcortex.data import unpacked
from fmcortex.data.dataset import UNPACKED, PreparedDataset, open_dataset
from fmcortex.data.shards import TrialArrays
from fmcortex.errors import DataError


@pytest.fixture(autouse=True)
def many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "SECOND_LOOK", 0.0)
    monkeypatch.setattr(unpacked, "PIECE", 400)


def opened(url: Path | str, folder: Path, limit: int = 1 << 20) -> PreparedDataset:
    """The dataset, with nothing kept in memory."""
    return open_dataset(
        str(url), cache_bytes=0, disk_bytes=limit, cache_folder=str(folder), unpacked=True
    )


def values(dataset: PreparedDataset) -> list[bytes]:
    """All trials, whole, and parts of each."""
    session = dataset.session("s1")
    found = []
    for number in range(len(session.manifest.trials)):
        windows = [session.trial(number), session.window(number, 3, 2)]
        found += [array.tobytes() for window in windows for array in vars(window).values()]
    return found


@pytest.fixture
def remote(prepared: Path) -> Iterator[str]:
    """The same dataset where nothing is local."""
    memory = fsspec.filesystem("memory")
    memory.put(str(prepared), "/unpacked", recursive=True)
    yield "memory://unpacked"
    memory.rm("/unpacked", recursive=True)


@pytest.fixture
def expected(prepared: Path) -> list[bytes]:
    return values(open_dataset(str(prepared)))


def test_the_same_values_and_nothing_is_read_twice(
    prepared: Path, folder: Path, expected: list[bytes], fetched: list[tuple[int, int]]
) -> None:
    dataset = opened(prepared, folder)
    del fetched[:]
    assert values(dataset) == expected
    assert len(fetched) == len(files(folder)) == dataset.disk.misses > 12
    assert dataset.disk.bytes_fetched == sum(end - start for start, end in fetched)
    assert taken(folder) == total(folder)
    del fetched[:]
    again = opened(prepared, folder)
    assert values(again) == expected
    assert fetched == []
    assert (again.disk.misses, again.disk.bytes_fetched) == (0, 0)
    # As they come they are kept apart: neither is taken for the other.
    packed = open_dataset(str(prepared), 0, 1 << 20, str(folder), unpacked=False)
    assert values(packed) == expected


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("piece", [1, 1 << 20])
def test_whatever_the_size_of_a_piece(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, piece: int
) -> None:
    monkeypatch.setattr(unpacked, "PIECE", piece)
    source = write_tiny(tmp_path / "recording")
    to = str(tmp_path / "to")
    prepare(str(source), to, PrepSettings.model_validate({"response_dtype": dtype}))
    expected = values(open_dataset(to))
    for _ in range(2):
        assert values(opened(to, folder)) == expected


def test_remote(remote: str, folder: Path, expected: list[bytes]) -> None:
    assert values(opened(remote, folder)) == expected
    fsspec.filesystem("memory").rm("/unpacked/movies", recursive=True)
    assert values(opened(remote, folder)) == expected
    for file in files(folder):
        file.unlink()
    with pytest.raises(DataError, match=r"c/0/0/0: movie \w+: movie is missing"):
        values(opened(remote, folder))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "zeros"])
def test_a_kept_file_that_went_bad_is_made_again(
    prepared: Path,
    folder: Path,
    expected: list[bytes],
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    values(opened(prepared, folder))
    good = {file: file.read_bytes() for file in files(folder)}
    chance = random.Random(damage)
    for file, content in good.items():
        worse = bytearray(content)
        if damage == "flip":
            worse[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        elif damage == "cut":
            del worse[chance.randrange(len(content)) :]
        elif damage == "empty":
            worse.clear()
        else:
            worse[:] = bytes(len(content))
        file.write_bytes(worse)
    with caplog.at_level(logging.WARNING):
        dataset = opened(prepared, folder)
        assert values(dataset) == expected
    assert {file: file.read_bytes() for file in files(folder)} == good
    assert dataset.disk.misses == len(good)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(good)
    assert all("a cached copy went bad and is fetched again" in text for text in messages)


def test_damage_in_the_dataset_is_named_and_not_kept(prepared: Path, folder: Path) -> None:
    movie = open_dataset(str(prepared)).session("s1").manifest.trials[0].movie
    file = prepared / "movies" / movie / "c" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    for _ in range(2):
        with pytest.raises(DataError, match=rf"c/0/0/0: movie {movie[:12]}: bytes .* damaged"):
            opened(prepared, folder).session("s1").trial(0)
    content[5] ^= 1
    file.write_bytes(content)
    opened(prepared, folder).session("s1").trial(0)


def test_another_dataset_at_the_same_place_is_read_anew(prepared: Path, folder: Path) -> None:
    values(opened(prepared, folder))
    source = prepared.parent / "source"
    settings = PrepSettings(trials_per_shard=3, response_dtype="float16")
    prepare(str(source / "s1"), str(prepared), settings, overwrite=True)
    expected = values(open_dataset(str(prepared)))
    assert values(opened(prepared, folder)) == expected


def test_a_folder_that_is_too_small_keeps_what_fits(
    prepared: Path, folder: Path, expected: list[bytes]
) -> None:
    assert values(opened(prepared, folder, limit=1500)) == expected
    assert 0 < taken(folder) <= 1500
    assert values(opened(prepared, folder, limit=1)) == expected
    assert not opened(prepared, folder, limit=0).disk.unpacked


def test_only_remote_datasets_that_fit_are_unpacked_by_themselves(
    prepared: Path, remote: str
) -> None:
    manifest = open_dataset(str(prepared)).manifest
    stored = manifest.movie_bytes + sum(entry.bytes for entry in manifest.sessions)
    assert not open_dataset(str(prepared)).disk.unpacked
    assert open_dataset(remote, disk_bytes=UNPACKED * stored).disk.unpacked
    assert not open_dataset(remote, disk_bytes=UNPACKED * stored - 1).disk.unpacked


@pytest.mark.parametrize("unpacked", [False, True])
def test_into_arrays_in_any_order(prepared: Path, folder: Path, unpacked: bool) -> None:
    session = open_dataset(str(prepared), 0, 1 << 20, str(folder), unpacked).session("s1")
    expected = session.window(2, 1, 6)
    arrays = {name: np.asfortranarray(np.zeros_like(a)) for name, a in vars(expected).items()}
    session.window(2, 1, 6, TrialArrays(**arrays))
    for name, values in arrays.items():
        np.testing.assert_array_equal(values, getattr(expected, name))
