"""NWB files written by pynwb, prepared and read back against interpolation done here."""

import json
import re

import fsspec
import h5py
import numpy as np
import pytest
from nwb_scan import CLIP, NAME, Scan

from data_prep.job import prepare
from data_prep.readers.nwb import NwbReader
from data_prep.settings import PrepSettings
from fmcortex import remote_file, storage
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import verify
from fmcortex.errors import StorageError


@pytest.fixture
def make(tmp_path):
    return lambda **options: Scan(tmp_path / "source" / NAME, **options)


KINDS = ("responses", "perspectives", "modulations")


@pytest.mark.parametrize(
    "options",
    [{}, {"delay": 0.07}, {"external": False}, {"rate": True}],
    ids=["release", "delays", "frames inside", "starting time"],
)
def test_round_trip(make, tmp_path, options):
    scan = make(**options)
    to = str(tmp_path / "to")
    prepare(str(tmp_path / "source"), to)
    session = open_dataset(to).session(NAME)
    manifest = session.manifest
    assert (manifest.animal, manifest.layout, manifest.neurons) == ("17797", "nwb", 8)
    assert manifest.modulations == ["pupil_radius", "treadmill_speed"]
    assert manifest.excluded == []
    assert [trial.key for trial in manifest.trials] == ["Clip-2", "Clip-4", "Clip-6"]
    expected = scan.expected([1, 3, 5])
    for number, index in enumerate([1, 3, 5]):
        found = session.trial(number)
        # stop_time is the onset of the last flip, at 60 Hz; its frame at 30 Hz began before.
        np.testing.assert_array_equal(found.stimulus, expected[index]["stimulus"])
        for kind in KINDS:
            np.testing.assert_allclose(
                getattr(found, kind), expected[index][kind], rtol=1e-5, atol=2e-6
            )
    [video] = session.videos("test", "natural_movie")
    assert video.name.startswith("sha256-")
    assert video.repeats == 4
    repeats = session.video(video.name)
    np.testing.assert_array_equal(repeats.stimulus, scan.clips["A="])
    for repeat, index in enumerate([0, 2, 4, 6]):
        np.testing.assert_allclose(
            repeats.responses[repeat], expected[index]["responses"], rtol=1e-5, atol=2e-6
        )
    # In metres a second, as the series's conversion says.
    raw = NwbReader(scan.folder).read(NwbReader(scan.folder).trials()[1]).modulations[1]
    first = int(np.searchsorted(scan.run_times, scan.trials[1][1] + raw.times[0] - 1e-6))
    expected_speed = scan.speed[first : first + len(raw.times)] * 0.01
    np.testing.assert_allclose(raw.values[:, 0], expected_speed)
    table = session.neurons()
    fields = [1] * 4 + [2] * 4
    assert table["field"].tolist() == fields
    assert table["roi_id"].tolist() == [1, 2, 4, 5, 1, 2, 3, 4]
    assert table["unit_id"].tolist() == [
        field * 1_000_000 + roi for field, roi in zip(fields, table["roi_id"], strict=True)
    ]
    np.testing.assert_allclose(table["z"], np.array(fields) * 100.0)
    assert set(table["mask_type"]) == {"soma"}
    assert "cave_ids" not in table
    assert verify(to) == []


def test_impulse_lands_within_half_a_frame(make, tmp_path):
    scan = make(delay=0.07, rate=True)
    onset = scan.trials[1][1] + 0.512
    for traces, delay in zip(scan.traces, scan.delays, strict=True):
        sharp = np.clip(1 - np.abs(scan.scan_times + delay - onset) * 6.3, 0, None)
        traces[:] = sharp[:, None]
    scan.write()
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    responses = open_dataset(str(tmp_path / "to")).session(NAME).trial(0).responses
    times = scan.flips[scan.trials[1][0] :][:CLIP:2]
    centre = (responses * times[:, None]).sum(0) / responses.sum(0)
    assert np.abs(centre - onset).max() < 0.5 / 30


def test_all_masks_and_tiers_of_a_column(make, tmp_path):
    scan = make()
    tiers = ["test", "train", "test", "train", "none", "validation", "test"]

    def add(file):
        file["intervals/Clip/tier"] = np.array(tiers, h5py.string_dtype())

    scan.change(add)
    settings = {**scan.json, "mask_types": None, "tier_column": "tier"}
    (scan.folder / "nwb.json").write_text(json.dumps(settings))
    reader = NwbReader(scan.folder)
    assert reader.info.neurons == 9
    assert [ref.tier for ref in reader.trials()] == [tier for tier in tiers if tier != "none"]


def test_from_a_url_only_parts_are_read(make, tmp_path, monkeypatch):
    scan = make()
    scan.traces = [np.random.default_rng(n).gamma(2.0, 1.0, (176, 4000)) for n in (1, 2)]
    scan.scan_times = scan.scan_times[:176]
    scan.mask_types = (["soma"] * 4000,) * 2
    scan.write()
    url = "memory://nwb-test/scan.nwb"
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, scan.path.read_bytes())
    scan.path.unlink()
    (scan.folder / "nwb.json").write_text(json.dumps({**scan.json, "url": url}))
    monkeypatch.setattr(remote_file, "BLOCK", 2**16)
    read, original = [], storage.read_range

    def counting(url, start, end, **options):
        read.append(end - start)
        return original(url, start, end, **options)

    monkeypatch.setattr(storage, "read_range", counting)
    reader = NwbReader(scan.folder)
    trial = reader.read(reader.trials()[0])
    assert trial.responses[0].values.shape[1] == 4000
    assert len(trial.responses[0].values) < 15
    assert 0 < sum(read) < 0.25 * fs.size(path)
    fs.rm(path)


def test_a_store_that_goes_away_is_told_and_the_rest_is_done_later(make, tmp_path, monkeypatch):
    scan = make()
    prepare(str(tmp_path / "source"), str(tmp_path / "undisturbed"))
    url = "memory://nwb-away/scan.nwb"
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, scan.path.read_bytes())
    scan.path.unlink()
    (scan.folder / "nwb.json").write_text(json.dumps({**scan.json, "url": url}))
    monkeypatch.setattr(remote_file, "BLOCK", 4096)
    original = storage.read_range
    told = f"{url}: cannot read: connection reset (tried 5 times)"
    to = str(tmp_path / "to")
    for left in (0, 3, 20):  # while it is opened, while its tables are read, among the trials
        requests = iter(range(left))

        def going_away(*arguments, requests=requests, **options):
            if next(requests, None) is None:
                raise StorageError(told)
            return original(*arguments, **options)

        monkeypatch.setattr(storage, "read_range", going_away)
        with pytest.raises(StorageError, match=f"^{re.escape(told)}$"):
            prepare(str(tmp_path / "source"), to)
        assert not storage.exists(f"{to}/manifest.json")
    monkeypatch.setattr(storage, "read_range", original)
    prepare(str(tmp_path / "source"), to)
    fs.rm(path)
    one, two = (open_dataset(f"{tmp_path / name}").session(NAME) for name in ("to", "undisturbed"))
    assert [s.sha256 for s in one.manifest.shards] == [s.sha256 for s in two.manifest.shards]


def test_gaps_of_the_treadmill_leave_a_trial_out(make, tmp_path):
    scan = make()
    first = int(np.searchsorted(scan.run_times, scan.trials[3][1] + 0.3))
    scan.speed[first : first + 11] = np.nan
    scan.write()
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), PrepSettings())
    excluded = open_dataset(str(tmp_path / "to")).session(NAME).manifest.excluded
    reason = "behaviour missing for more than 10 frames"
    assert [(item.trial, item.reason) for item in excluded] == [("Clip-4", reason)]
