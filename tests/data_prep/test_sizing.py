"""The plan of shards, bytes and time, against what is prepared and by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from data_prep.job import prepare
from data_prep.settings import PrepSettings
from data_prep.sizing import Rates, Session, read_table, sizes_of
from fmcortex.data.dataset import open_dataset
from fmcortex.errors import DataError

SETTINGS = PrepSettings(height=10, width=20)


def test_by_hand() -> None:
    rates = Rates(responses=0.5, movies=0.25, sample_seconds=1e-6, pixel_seconds=1e-8)
    session = Session("m", 100, 5.0, 6.0)
    [size] = sizes_of([session], SETTINGS, rates, trial_seconds=10, shared_movies=0.5)
    samples, pixels = 300 * 6 * 100, 300 * 30 * 200
    assert (size.trials, size.shards) == (30, 1)
    assert size.response_bytes == samples * 4 * 0.5
    assert size.movie_bytes == pixels * 0.5 * 0.25
    assert size.core_seconds == pytest.approx(samples * 1e-6 + pixels * 1e-8)
    half = SETTINGS.model_copy(update={"response_dtype": "float16"})
    assert sizes_of([session], half, rates)[0].response_bytes == samples
    # 6000 samples a trial are 24000 bytes as float32: four in a shard of 100,000.
    small = SETTINGS.model_copy(update={"shard_bytes": 100_000})
    assert sizes_of([session], small, rates)[0].shards == math.ceil(30 / 4)
    with pytest.raises(ValueError, match="height and width"):
        sizes_of([session], PrepSettings())


def test_shards_are_those_that_are_written(sensorium, tmp_path: Path) -> None:
    recording = sensorium()
    prepare(str(recording.folder), str(tmp_path / "to"), PrepSettings(trials_per_shard=4))
    manifest = open_dataset(str(tmp_path / "to")).session(recording.folder.name).manifest
    found = sum(shard.name.startswith("train") for shard in manifest.shards)
    session = Session("m", 5, manifest.train_minutes, 30.0)
    seconds = manifest.train_minutes * 60 / len(manifest.trials)
    settings = SETTINGS.model_copy(update={"trials_per_shard": 4})
    [size] = sizes_of([session], settings, trial_seconds=seconds)
    assert (size.trials, size.shards) == (len(manifest.trials), found)


def test_tables(tmp_path: Path) -> None:
    table = tmp_path / "sessions.csv"
    table.write_text("session,neurons,minutes,scan_hz,animal\na-1,7,1.5,6,x\nb-2,9,2,6.3,y\n")
    assert read_table(str(table)) == [Session("a-1", 7, 1.5, 6.0), Session("b-2", 9, 2.0, 6.3)]
    for content, message in (
        ("session,neurons,minutes\na,1,1\n", "no column scan_hz"),
        ("session,neurons,minutes,scan_hz\na,many,1,6\n", "column neurons is not all numbers"),
        ("session,neurons,minutes,scan_hz\na,1,1,6\na,2,1,6\n", "session a is there twice"),
        ("session,neurons,minutes,scan_hz\na,0,1,6\n", "session a: neurons, minutes and scan_hz"),
        ("session,neurons,minutes,scan_hz\n", "column neurons is not all numbers|no sessions"),
    ):
        table.write_text(content)
        with pytest.raises(DataError, match=message) as caught:
            read_table(str(table))
        assert str(table) in str(caught.value)
