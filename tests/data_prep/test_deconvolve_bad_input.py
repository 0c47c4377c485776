"""Fluorescence that cannot be deconvolved, and activity that does not belong to it."""

import shutil

import numpy as np
import pytest
from nwb_scan import NAME
from raw_recordings import KEEP, content, raw_scan, raw_session, run, setting
from signals_session import NAME as SIGNALS

from data_prep import deconvolve_job
from data_prep.job import prepare
from data_prep.readers.nwb import NwbReader
from fmcortex.errors import DataError, WorkerError


@pytest.fixture
def scan(tmp_path):
    return raw_scan(tmp_path / "source")


@pytest.fixture
def session(tmp_path):
    return raw_session(tmp_path / "source")


def hole(neuron, part):
    def edit(file):
        path = "processing/ophys/Fluorescence/RoiResponseSeries1/data"
        values = file[path][:]
        values[part, neuron] = np.nan
        file[path][:] = values

    return lambda scan: scan.change(edit)


def renamed(file):
    group = file["processing/ophys/Fluorescence"]
    group.move("RoiResponseSeries1", "a b")


BAD = {
    "a neuron without samples": (
        hole(3, slice(None)),
        r"RoiResponseSeries1: column 3: no 100 samples without a gap of more than 10, which",
    ),
    "a neuron with a hole": (
        hole(3, slice(30, 50)),
        r"RoiResponseSeries1: column 3: cannot be deconvolved from 1\.\d+ to \d+\.\d+ s, where",
    ),
    "no fluorescence": (
        lambda scan: scan.change(lambda file: file.pop("processing/ophys/Fluorescence")),
        r"scan\.nwb: no processing/ophys/Fluorescence; .*; say in nwb\.json where it is",
    ),
    "a name that cannot be a folder": (
        lambda scan: scan.change(renamed),
        r"scan\.nwb: series 'a b': names are letters",
    ),
    "not HDF5": (lambda scan: scan.path.write_bytes(b"x" * 4096), r"cannot open as HDF5"),
    "activity of something else": (
        lambda scan: (scan.folder / "deconvolved").mkdir(),
        r"deconvolved/deconvolution\.json: file is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_leaves_nothing(scan, case):
    damage, message = BAD[case]
    damage(scan)
    before = content(scan.folder)
    with pytest.raises(DataError, match=message) as caught:
        run(scan)
    assert "\n" not in str(caught.value)
    assert content(scan.folder) == before


def test_one_bad_session_does_not_stop_the_others(scan, session):
    (session.folder / "signals" / "fluorescence.npz").unlink()
    with pytest.raises(DataError, match=r"signals: no signal fluorescence, nor responses"):
        run(scan)
    assert (scan.folder / "deconvolved" / "deconvolution.json").exists()


def brighter(file):
    file["processing/ophys/Fluorescence/RoiResponseSeries1/data"][:] *= 2


def edited(path, change):
    def edit(scan):
        file = scan.folder / "deconvolved" / path
        file.write_bytes(change(file.read_bytes()))

    return edit


def another_recording(scan):
    scan.scan_times = scan.scan_times + 1e-4
    scan.write()


STALE = {
    "another recording": (another_recording, r"deconvolved: was made of another scan\.nwb; run"),
    "other neurons": (
        lambda scan: setting(scan, mask_types=None),
        r"column 2 of the fluorescence was not deconvolved; run `fmcortex deconvolve` again",
    ),
    "other values": (
        lambda scan: scan.change(brighter),
        r"deconvolved: was made of another scan\.nwb; run `fmcortex deconvolve .*scan-10` again",
    ),
    "no record": (
        edited("deconvolution.json", lambda _: b"{}"),
        r"deconvolution\.json: .*required",
    ),
    "a field less": (
        lambda scan: shutil.rmtree(scan.folder / "deconvolved" / "RoiResponseSeries2"),
        r"signal RoiResponseSeries2 is missing",
    ),
    "cut": (
        edited("RoiResponseSeries1/values.npy", lambda raw: raw[:-100]),
        r"RoiResponseSeries1.values\.npy: ",
    ),
}


@pytest.mark.parametrize("case", STALE)
def test_activity_that_does_not_belong_is_not_prepared(scan, tmp_path, case):
    run(scan)
    damage, message = STALE[case]
    damage(scan)
    with pytest.raises(DataError, match=message) as caught:
        prepare(str(tmp_path / "source"), str(tmp_path / "to"), KEEP)
    assert "\n" not in str(caught.value)
    # It says what to do, and that helps.
    if case == "no record":
        shutil.rmtree(scan.folder / "deconvolved")
    assert run(scan)[0].startswith(f"{NAME}: ")
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), KEEP)


def test_times_tell_another_recording_where_its_content_is_not_known(scan):
    run(scan)
    another_recording(scan)
    with pytest.raises(DataError, match=r"RoiResponseSeries1: was made from another recording"):
        NwbReader(scan.folder)


def test_signals_of_other_fluorescence_are_not_prepared(session, tmp_path):
    run(session)
    path = session.folder / "signals" / "fluorescence.npz"
    raw, times = np.load(path).values()
    np.savez(path, values=raw[:, ::-1], times=times)
    with pytest.raises(DataError, match=r"responses: was made of another signals/fluorescence"):
        prepare(str(tmp_path / "source"), str(tmp_path / "to"), KEEP)
    path.unlink()  # to save space, say
    assert run(session) == [f"{SIGNALS}: left alone: its fluorescence is no longer there"]
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), KEEP)


def died(*_):
    raise WorkerError("the Ray worker died")


def test_what_was_done_outlives_a_worker(scan, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(deconvolve_job, "finish_task", died)
        with pytest.raises(WorkerError):
            run(scan)
    assert len(list(scan.folder.glob(".deconvolved.parts/*.npy"))) == 4
    monkeypatch.setattr(deconvolve_job, "block_task", died)
    assert run(scan)[0].startswith(f"{NAME}: 8 neurons")


def test_a_signal_without_columns(session):
    path = session.folder / "signals" / "fluorescence.npz"
    np.savez(path, values=np.zeros((136, 0)), times=np.arange(136.0))
    with pytest.raises(DataError, match=r"fluorescence\.npz: no neurons: values have no columns"):
        run(session)
