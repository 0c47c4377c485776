"""Neurons that have no values are refused by default, and left out where that is asked for."""

import layouts
import numpy as np
import pytest
from layouts import LAYOUTS, NAME, NEURONS, TRAINING
from nwb_scan import NAME as SCAN
from raw_recordings import raw_scan, raw_session, run
from signals_session import NAME as SIGNALS

from data_prep.deconvolution import DeconvolutionSettings
from data_prep.deconvolution_figure import draw_deconvolution
from data_prep.job import prepare
from data_prep.settings import PrepSettings
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import verify
from fmcortex.errors import DataError

LEAVE_OUT = PrepSettings(missing_neurons="leave_out")
ADVICE = r"missing_neurons=leave_out prepares .*; error, the default, refuses it$"


def lost(neurons, trials=None):
    def change(number, trial):
        if trials is None or number in trials:
            trial["responses"][:, neurons] = np.nan

    return change


def prepared(source, to, settings=LEAVE_OUT):
    lines = []
    prepare(str(source), str(to), settings, progress=lines.append)
    [name] = open_dataset(str(to)).sessions
    return open_dataset(str(to)).session(name), lines[-1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_neuron_without_values(layout, tmp_path):
    layouts.write(layout, tmp_path / "source", lost([2]))
    with pytest.raises(DataError, match=ADVICE) as caught:
        prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    assert "\n" not in str(caught.value)
    assert "neuron 2" in str(caught.value) or layout == "digital_twin"
    session, line = prepared(tmp_path / "source", tmp_path / "to")
    assert line.startswith(f"{NAME}: 3 neurons, {TRAINING} training trials")
    assert ", 1 neuron without values left out" in line
    assert session.neurons()["unit_id"].tolist() == [1, 2, 4]
    layouts.write(layout, tmp_path / "whole")
    whole, _ = prepared(tmp_path / "whole", tmp_path / "other", PrepSettings())
    for number in range(TRAINING):
        np.testing.assert_array_equal(
            session.trial(number).responses, whole.trial(number).responses[:, [0, 1, 3]]
        )
    [video] = session.videos("test")
    assert session.video(video.name).responses.shape[-1] == 3
    assert verify(str(tmp_path / "to")) == []


def test_what_an_interrupted_run_found_is_taken_over(tmp_path):
    layouts.write("signals", tmp_path / "source", lost([0, 3]))
    prepared(tmp_path / "source", tmp_path / "to")
    before = (tmp_path / f"to/sessions/{NAME}/manifest.json").read_bytes()
    (tmp_path / f"to/sessions/{NAME}/manifest.json").unlink()
    (tmp_path / "to/manifest.json").unlink()
    _, line = prepared(tmp_path / "source", tmp_path / "to")
    assert "2 neurons without values left out" in line
    assert "2 of 2 shards kept" in line
    assert (tmp_path / f"to/sessions/{NAME}/manifest.json").read_bytes() == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_neuron_that_has_values_in_tests_only_is_left_out(layout, tmp_path):
    layouts.write(layout, tmp_path / "source", lost([1], range(TRAINING)))
    session, _ = prepared(tmp_path / "source", tmp_path / "to")
    assert session.neurons()["unit_id"].tolist() == [1, 3, 4]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_neuron_that_lacks_one_trial_is_not_left_out(layout, tmp_path):
    layouts.write(layout, tmp_path / "source", lost([1], [3]))
    if layout == "digital_twin":  # whose format knows missing neurons
        session, line = prepared(tmp_path / "source", tmp_path / "to")
        assert "1 trial left out" in line
        assert session.manifest.neurons == NEURONS
    else:
        with pytest.raises(DataError, match="NaN inside the trial, first at frame 0, neuron 1"):
            prepared(tmp_path / "source", tmp_path / "to")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_neuron_has_values(layout, tmp_path):
    layouts.write(layout, tmp_path / "source", lost(slice(None)))
    message = r"no neuron has any value in the training trials"
    if layout == "sensorium2023":  # where NaN in all neurons is padding
        message = r"responses/0\.npy: unequal lengths: 0 frames here, 30 in the video"
    with pytest.raises(DataError, match=message):
        prepared(tmp_path / "source", tmp_path / "to")


def test_datasets_that_are_older_than_the_setting_are_up_to_date(tmp_path):
    assert "missing_neurons" not in PrepSettings().content()
    assert LEAVE_OUT.content()["missing_neurons"] == "leave_out"
    assert "missing_neurons" not in DeconvolutionSettings().content()


def without_samples(scan, session, neuron, part):
    """Take samples of a neuron's fluorescence away, in an NWB file and in signals."""

    def edit(file):
        path = "processing/ophys/Fluorescence/RoiResponseSeries1/data"
        values = file[path][:]
        values[part, neuron] = np.nan
        file[path][:] = values

    scan.change(edit)
    path = session.folder / "signals/fluorescence.npz"
    values, times = np.load(path).values()
    values[part, neuron] = np.nan
    np.savez(path, values=values, times=times)


@pytest.mark.parametrize("part", [slice(None), slice(30, 50)], ids=["nothing", "a hole"])
def test_what_deconvolve_advises_can_be_done(tmp_path, part):
    scan, session = raw_scan(tmp_path / "source"), raw_session(tmp_path / "source")
    without_samples(scan, session, 3, part)
    with pytest.raises(DataError, match="missing_neurons=leave_out leaves the neuron out; error"):
        run(scan)
    settings = DeconvolutionSettings(detrend_seconds=0, missing_neurons="leave_out")
    lines = run(scan, settings)
    assert all(line.endswith("1 left out; give `fmcortex prep` missing_neurons=leave_out, too")
               for line in lines)  # fmt: skip
    values = np.load(session.folder / "signals/responses/values.npy")
    assert np.isnan(values[:, 3]).all()
    assert np.isfinite(np.delete(values, 3, axis=1)).all()
    assert len(values) > 130  # the others lose no samples
    for folder in (scan.folder, session.folder):
        draw_deconvolution(folder, str(tmp_path / f"{folder.name}.png"))
    with pytest.raises(DataError, match=ADVICE):
        prepare(str(session.folder), str(tmp_path / "refused"), PrepSettings(silent_neurons="keep"))
    asked = PrepSettings(silent_neurons="keep", missing_neurons="leave_out")
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), asked)
    found = open_dataset(str(tmp_path / "to"))
    assert found.session(SIGNALS).manifest.neurons == 5
    assert found.session(SCAN).manifest.neurons == 7
    assert [line.partition(": ")[2] for line in run(scan, settings)] == ["up to date"] * 2


def test_no_neuron_can_be_deconvolved(tmp_path):
    session = raw_session(tmp_path / "source")
    path = session.folder / "signals/fluorescence.npz"
    values, times = np.load(path).values()
    np.savez(path, values=np.full_like(values, np.nan), times=times)
    settings = DeconvolutionSettings(missing_neurons="leave_out")
    with pytest.raises(DataError, match="no neuron has samples that can be deconvolved"):
        run(session, settings)
    assert not list(session.folder.glob("signals/.responses*"))
