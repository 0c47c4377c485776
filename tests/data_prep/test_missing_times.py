"""Samples whose time is NaN are left out, as if they had not been recorded."""

import shutil

import h5py
import numpy as np
import pytest
from nwb_scan import Scan
from raw_recordings import KEEP, raw_scan, raw_session, run
from signals_session import NAME, RATES, Session

from data_prep.job import prepare
from data_prep.readers.clock import Clock, Margin
from fmcortex.data.dataset import open_dataset

ENDS = [0, 1, 2, -2, -1]


def prepared(source, to):
    lines = []
    prepare(str(source), str(to), progress=lines.append)
    dataset = open_dataset(str(to))
    [name] = dataset.sessions
    return lines, dataset.session(name)


def same(first, second):
    assert [t.key for t in first.manifest.trials] == [t.key for t in second.manifest.trials]
    for number in range(len(first.manifest.trials)):
        a, b = first.trial(number), second.trial(number)
        for kind in ("stimulus", "responses", "perspectives", "modulations"):
            np.testing.assert_array_equal(getattr(a, kind), getattr(b, kind))


@pytest.mark.parametrize("form", ["npz", "npy", "zarr"])
def test_signals_without_times_at_their_ends(tmp_path, form):
    whole, cut = (Session(tmp_path / name / NAME, form=form) for name in ("a", "b"))
    for name in RATES:
        values, times = (array.copy() for array in whole.signals[name])
        times[ENDS] = np.nan
        path = whole.folder / "signals" / f"{name}.zarr"
        if path.exists():
            shutil.rmtree(path)
            shutil.rmtree(cut.folder / "signals" / f"{name}.zarr")
        whole.write_signal(name, values, times, form)
        kept = np.isfinite(times)
        cut.write_signal(name, values[kept], times[kept], form)
    same(prepared(tmp_path / "a", tmp_path / "x")[1], prepared(tmp_path / "b", tmp_path / "y")[1])


def test_a_hole_in_the_clock_of_the_responses_leaves_its_trial_out(tmp_path):
    session = Session(tmp_path / "a" / NAME, delays=False)
    values, times = session.signals["responses"]
    start = session.starts["t2"]
    holes = np.where((times > start + 0.3) & (times < start + 0.8), np.nan, times)
    session.write_signal("responses", values, holes)
    _, found = prepared(tmp_path / "a", tmp_path / "to")
    assert [(item.trial, item.reason) for item in found.manifest.excluded] == [
        ("t2", "samples of the responses are missing")
    ]


def test_a_hole_in_the_clock_of_behaviour_is_a_gap(tmp_path):
    session = Session(tmp_path / "a" / NAME)
    values, times = session.signals["pupil"]
    start = session.starts["t2"]
    short = (times > start + 0.3) & (times < start + 0.6)
    session.write_signal("pupil", values, np.where(short, np.nan, times))
    assert not prepared(tmp_path / "a", tmp_path / "to")[1].manifest.excluded
    long = (times > start + 0.2) & (times < start + 1.1)
    session.write_signal("pupil", values, np.where(long, np.nan, times))
    [left_out] = prepared(tmp_path / "a", tmp_path / "to")[1].manifest.excluded
    assert left_out.reason == "pupil position missing for more than 10 frames"


NWB_CLOCKS = (
    "acquisition/PupilTracking/pupil_major_radius/timestamps",
    "acquisition/treadmill_velocity/timestamps",
    "processing/ophys/Fluorescence/RoiResponseSeries1/timestamps",
    "acquisition/Video: stimulus_17797_4_10_v4/timestamps",
)


def without_ends(file: h5py.File) -> None:
    for path in NWB_CLOCKS:
        times = file[path][:]
        times[ENDS] = np.nan
        file[path][:] = times


@pytest.mark.parametrize("external", [True, False])
def test_nwb_without_times_at_the_ends(tmp_path, external):
    whole, holes = (Scan(tmp_path / name / "scan", external=external) for name in ("a", "b"))
    holes.change(without_ends)
    same(prepared(tmp_path / "a", tmp_path / "x")[1], prepared(tmp_path / "b", tmp_path / "y")[1])
    assert whole.folder != holes.folder


def test_fluorescence_without_times_at_the_ends(tmp_path):
    scan, session = raw_scan(tmp_path / "source"), raw_session(tmp_path / "source")
    scan.change(without_ends)
    path = session.folder / "signals" / "fluorescence.npz"
    values, times = np.load(path).values()
    times[ENDS] = np.nan
    np.savez(path, values=values, times=times)
    run(scan)
    made = np.load(session.folder / "signals/responses/times.npy")
    np.testing.assert_array_equal(made, times[3:-2])
    assert np.load(scan.folder / "deconvolved/RoiResponseSeries1/values.npy").shape[0] == 171
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), KEEP)


def test_clock_maps_its_samples_to_those_of_the_source():
    times = np.arange(10.0)
    times[[0, 4, 9]] = np.nan
    clock = Clock(times, "x", offset=0.5)
    np.testing.assert_array_equal(clock.times, [1.5, 2.5, 3.5, 5.5, 6.5, 7.5, 8.5])
    stored = np.arange(10)[:, None]
    part = clock.part(3.0, 6.0, Margin(samples=0))
    found = clock.rows(lambda some: stored[some], part)[:, 0]
    np.testing.assert_array_equal(found, clock.times[part] - 0.5)
    np.testing.assert_array_equal(clock.timed(stored)[:, 0], clock.stored)
    assert clock.samples == 10
