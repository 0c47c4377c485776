"""Which trials and neurons an NWB file has: broken-off showings, enumerated columns, labels."""

import datetime
import json

import h5py
import numpy as np
import pynwb
import pytest
from nwb_scan import CLIP, NAME, Scan

from data_prep.job import prepare
from data_prep.readers.clock import Clock
from data_prep.readers.nwb import NwbReader
from data_prep.readers.nwb_schema import NwbSession
from data_prep.readers.nwb_trials import read_trials
from data_prep.settings import PrepSettings
from fmcortex.data.dataset import open_dataset
from fmcortex.errors import DataError

ROIS = "processing/ophys/ImageSegmentation/PlaneSegmentation1"


@pytest.fixture
def make(tmp_path):
    return lambda **options: Scan(tmp_path / "source" / NAME, **options)


def test_broken_off_showing_is_left_out_and_counted(make, tmp_path):
    scan = make()

    def stop(file):
        times = file["intervals/Clip/stop_time"]
        times[2] = scan.flips[scan.trials[2][0] + 9]
        times[4] = scan.flips[scan.trials[4][0] + CLIP - 3]  # a frame of the clip, two flips

    scan.change(stop)
    said = []
    to = str(tmp_path / "to")
    prepare(str(tmp_path / "source"), to, progress=said.append)
    session = open_dataset(to).session(NAME)
    [video] = session.videos("test", "natural_movie")
    assert video.repeats == 3
    assert len(session.video(video.name).stimulus) == CLIP // 2 - 1
    [left_out] = session.manifest.excluded
    reason = f"was broken off after 9 frames; other showings of its clip have {CLIP - 3}"
    assert (left_out.trial, left_out.tier, left_out.reason) == ("Clip-3", "test", reason)
    assert "1 trial left out" in said[0]


def test_broken_off_showing_in_a_split_made_here(make, tmp_path):
    scan = make()
    first = scan.trials[2][0]
    scan.flips[first + 1] += 0.004  # a rate that no other trial has, were it looked at
    scan.write()
    scan.change(lambda f: f["intervals/Clip/stop_time"].__setitem__(2, scan.flips[first + 2]))
    settings = PrepSettings(split="made", test_fraction=0.2, split_seed=1)
    said = []
    to = str(tmp_path / "to")
    prepare(str(tmp_path / "source"), to, settings, progress=said.append)
    [left_out] = open_dataset(to).session(NAME).manifest.excluded
    assert (left_out.trial, left_out.reason[:21]) == ("Clip-3", "was broken off after ")
    assert (tmp_path / "to/split.json").is_file()  # its movies were looked at
    prepare(str(tmp_path / "source"), to, settings, progress=said.append)
    assert said[1] == f"{NAME}: up to date"


@pytest.mark.parametrize(
    ("counts", "used", "left_out"),
    [
        ([60, 60, 59, 60], 59, []),
        ([60, 9, 59, 60], 59, [1]),
        ([60, 9], 60, [1]),
        ([9, 60, 30], 60, [0, 2]),
        ([60, 60, 120, 60], 60, [2]),
        ([60, 55], 55, []),
        ([9], 9, []),
    ],
)
def test_length_of_a_clip(tmp_path, counts, used, left_out):
    starts = np.arange(len(counts)) * 3.0
    clock = Clock(np.arange(1000) / 60, "frames")
    with h5py.File(tmp_path / "scan.nwb", "w") as file:
        table(file, "Clip", starts, starts + np.array(counts) / 60, ["a"] * len(counts))
        shown = read_trials(file, "scan.nwb", NwbSession(), clock)
    assert [n for n, trial in enumerate(shown) if trial.left_out] == left_out
    assert {trial.frames for trial in shown if not trial.left_out} == {used}
    for number in left_out:
        assert str(counts[number]) in shown[number].left_out


def table(file, name, start, stop, labels):
    group = file.create_group(f"intervals/{name}")
    group["id"] = np.arange(len(start)) + 1
    group["start_time"], group["stop_time"] = start, stop
    group["condition_hash"] = np.array(labels, h5py.string_dtype())


def test_equal_labels_of_two_tables_are_two_videos(tmp_path):
    clock = Clock(np.arange(4000) / 60, "frames")
    with h5py.File(tmp_path / "scan.nwb", "w") as file:
        for number, name in enumerate(("Clip", "Monet2")):
            starts = 30.0 * number + 3 * np.arange(5)
            labels = ["a", "a", "b" * (number + 1), "x/y", "Monet2-a"]
            table(file, name, starts, starts + 1 + number, labels)
        shown = read_trials(file, "scan.nwb", NwbSession(), clock)
    videos = {(trial.table, trial.label): trial.video for trial in shown}
    assert len(set(videos.values())) == len(videos) == 8
    assert videos["Clip", "a"] == "Clip-a"
    assert (videos["Clip", "b"], videos["Monet2", "bb"]) == ("b", "bb")
    assert {trial.frames for trial in shown if trial.label == "a"} == {60, 120}
    assert all(video.startswith("sha256-") for (_, label), video in videos.items() if "/" in label)


def test_equal_labels_are_prepared_apart(make, tmp_path):
    scan = make()

    def split(file):
        """The trials of A after the first two go to a second table, of half of their length."""
        rows = {key: file[f"intervals/Clip/{key}"][:] for key in ("id", "start_time", "stop_time")}
        labels = np.array(["A", "b", "A", "c", "A", "d", "A"])
        rows["stop_time"][4:] = scan.flips[[first + CLIP // 2 - 1 for first, *_ in scan.trials[4:]]]
        del file["intervals/Clip"]
        for name, part in (("Clip", slice(4)), ("Monet2", slice(4, None))):
            table(file, name, rows["start_time"][part], rows["stop_time"][part], labels[part])

    scan.change(split)
    scan.json["repeats_for_test"] = 2
    (scan.folder / "nwb.json").write_text(json.dumps(scan.json))
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    session = open_dataset(str(tmp_path / "to")).session(NAME)
    videos = {video.name: len(video.shown) for video in session.manifest.videos}
    assert videos == {"Clip-A": 2, "Monet2-A": 2}
    assert len(session.video("Clip-A").stimulus) == CLIP // 2
    assert len(session.video("Monet2-A").stimulus) == CLIP // 4


def enumerated(file, path, numbers, elements):
    """A column as pynwb writes its EnumData."""
    attributes = {key: value for key, value in file[path].attrs.items() if key in ("description",)}
    del file[path]
    file[path] = np.array(numbers, np.uint8)
    file[f"{path}_elements"] = np.array(elements, h5py.string_dtype())
    file[path].attrs.update(attributes)
    file[path].attrs["neurodata_type"] = "EnumData"
    file[path].attrs["elements"] = file[f"{path}_elements"].ref


def test_enumerated_columns_are_text(make):
    scan = make()

    def change(file):
        enumerated(file, f"{ROIS}/mask_type", [1, 1, 0, 1, 1], ["artifact", "soma", "axon"])
        dtype = h5py.enum_dtype({"train": 2, "test": 5, "none": 0, "validation": 1}, "i2")
        tiers = np.array([5, 2, 5, 2, 0, 1, 5], "i2")
        file["intervals/Clip"].create_dataset("tier", data=tiers, dtype=dtype)
        enumerated(file, "intervals/Clip/condition_hash", [0, 1, 0, 2, 0, 3, 0], list("Abcd"))

    scan.change(change)
    (scan.folder / "nwb.json").write_text(json.dumps({**scan.json, "tier_column": "tier"}))
    reader = NwbReader(scan.folder)
    assert set(reader.neurons()["mask_type"]) == {"soma"}
    assert reader.info.neurons == 8
    refs = reader.trials()
    assert [ref.video for ref in refs] == ["A", "b", "A", "c", "d", "A"]
    assert [ref.tier for ref in refs] == ["test", "train", "test", "train", "validation", "test"]


def test_enumerated_as_pynwb_writes_it(tmp_path):
    start = datetime.datetime(2018, 3, 4, tzinfo=datetime.UTC)
    nwb = pynwb.NWBFile("a scan", "id", start)
    clip = pynwb.epoch.TimeIntervals(name="Clip", description="clips")
    for number in range(3):
        clip.add_interval(start_time=number * 2.0, stop_time=number * 2.0 + 1)
    clip.add_column("condition_hash", "clip", data=[1, 0, 1], enum=["A", "B"])
    nwb.add_time_intervals(clip)
    with pynwb.NWBHDF5IO(str(tmp_path / "scan.nwb"), "w") as io:
        io.write(nwb)
    clock = Clock(np.arange(1000) / 60, "frames")
    with h5py.File(tmp_path / "scan.nwb") as file:
        shown = read_trials(file, "scan.nwb", NwbSession(), clock)
    assert [trial.video for trial in shown] == ["B", "A", "B"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.attrs.__delitem__("elements"), "does not say what it stands for"),
        (lambda c: c.attrs.__setitem__("elements", 7), "elements: refers to nothing"),
        (lambda c: c.__setitem__(0, 9), "9 stands for nothing; 2 names are known"),
        (lambda c: c.parent.__delitem__("mask_type_elements"), "elements: refers to nothing"),
    ],
)
def test_enumerated_column_of_nothing(make, change, message):
    scan = make()
    scan.change(lambda f: enumerated(f, f"{ROIS}/mask_type", [1, 1, 0, 1, 1], ["axon", "soma"]))
    scan.change(lambda f: change(f[f"{ROIS}/mask_type"]))
    with pytest.raises(DataError, match=rf"scan\.nwb: .*PlaneSegmentation1/mask_type.*{message}"):
        NwbReader(scan.folder)


def test_missing_response_is_told_of_its_series(make, tmp_path):
    scan = make()
    path = "processing/ophys/Fluorescence/RoiResponseSeries2/data"
    middle = int(np.searchsorted(scan.scan_times, scan.trials[1][1] + 0.4))
    scan.change(lambda file: file[path].__setitem__((middle, 1), np.nan))
    with pytest.raises(DataError, match=r"RoiResponseSeries2: NaN .*, neuron 5, the 2\. of this"):
        prepare(str(tmp_path / "source"), str(tmp_path / "to"))


def test_good_sessions_beside_odd_ones_are_prepared(make, tmp_path):
    make()
    odd = {}
    for name, damage in {
        "cyclic": lambda f: (f.pop("acquisition"), f.__setitem__("acquisition", f["/"])),
        "empty": lambda f: [f.pop(key) for key in list(f)],
        "text": lambda f: (f.pop("intervals/Clip/id"), f.__setitem__("intervals/Clip/id", "x")),
    }.items():
        scan = Scan(tmp_path / "source" / name)
        scan.change(damage)
        odd[name] = scan.path
    said = []
    with pytest.raises(DataError, match=r"^3 of 4 sessions failed: ") as caught:
        prepare(str(tmp_path / "source"), str(tmp_path / "to"), progress=said.append)
    assert all(f"{path}: " in str(caught.value) for path in odd.values())
    assert sum("failed" in line for line in said) == 3
    assert (tmp_path / "to/sessions" / NAME / "manifest.json").is_file()
