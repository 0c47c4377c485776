"""The signals layout, prepared and read back against interpolation done here."""

import re
from pathlib import Path

import numpy as np
import pytest
import zarr
from scipy.signal import firwin
from signals_session import FRAMES, NAME, NEURONS, OFFSETS, RATES, Session

from data_prep.fingerprint import fingerprint, source_sha256
from data_prep.job import prepare
from data_prep.readers.clock import Clock, Margin
from data_prep.readers.nwb_schema import NwbSession
from data_prep.readers.signals import SignalsReader
from data_prep.readers.signals_schema import SessionFile
from data_prep.settings import PrepSettings
from fmcortex.data.dataset import open_dataset
from fmcortex.data.describe import verify
from fmcortex.errors import ConfigError


@pytest.fixture
def make(tmp_path):
    return lambda **options: Session(tmp_path / "source" / NAME, **options)


def compare(found, expected):
    np.testing.assert_array_equal(found.stimulus, expected["stimulus"])
    for kind in ("responses", "perspectives", "modulations"):
        np.testing.assert_allclose(getattr(found, kind), expected[kind], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    ("form", "even", "delays"),
    [("npz", True, True), ("npy", False, True), ("zarr", True, False), ("zarr", False, True)],
)
def test_round_trip(make, tmp_path, form, even, delays):
    session = make(form=form, even=even, delays=delays)
    to = str(tmp_path / "to")
    prepare(str(tmp_path / "source"), to)
    found = open_dataset(to).session(NAME)
    manifest = found.manifest
    assert (manifest.animal, manifest.layout, manifest.neurons) == ("mouse07", "signals", NEURONS)
    assert manifest.modulations == ["treadmill_speed", "pupil_radius"]
    keys = [trial.key for trial in manifest.trials]
    assert keys == ["t0", "t2", "t6"]
    assert manifest.excluded == []
    expected = session.expected(keys)
    for number, key in enumerate(keys):
        compare(found.trial(number), expected[key])
    oracle = found.video("oracle")
    for repeat, key in enumerate(["t1", "t5"]):
        np.testing.assert_allclose(
            oracle.responses[repeat], expected[key]["responses"], rtol=1e-5, atol=2e-6
        )
    assert [video.name for video in found.videos("test", "drifting_gabor")] == ["gabor"]
    table = found.neurons()
    assert table["unit_id"].tolist() == [1, 4, 7, 10, 13, 16]
    assert table["area"].tolist() == ["V1", "V1", "LM", "AL", "RL", "V1"]
    assert verify(to) == []


@pytest.mark.parametrize("onset", [103.5, 103.72, 104.01])
def test_impulses_land_within_half_a_frame(make, tmp_path, onset):
    """What happens at one moment is found there in responses and behaviour, whatever the clock."""
    session = make()
    for name, (values, times) in session.signals.items():
        times = times[0] + np.arange(len(times)) / RATES[name]
        delays = session.delays if name == "responses" else np.zeros(values.shape[1])
        actual = times[:, None] + OFFSETS[name] + delays
        # As wide as a sampling interval, or a frame: the sharpest that can be seen.
        sharpness = min(RATES[name], 30.0)
        values = np.clip(1 - np.abs(actual - onset) * sharpness, 0, None)
        session.write_signal(name, values, times)
    session.starts["t0"] = 103.013
    session.rows[0][-1] = "103.013"
    session.rows[1][1] = "none"  # it would be shown at the same time
    session.write()
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    found = open_dataset(str(tmp_path / "to")).session(NAME).trial(0)
    for values in (found.responses, found.modulations, found.perspectives):
        above = values - values.min(0)
        centre = (above * np.arange(FRAMES)[:, None]).sum(0) / above.sum(0)
        assert np.abs(centre - (onset - 103.013) * 30).max() < 0.5


@pytest.mark.parametrize("delay", [0.0, 0.08, -0.05])
@pytest.mark.parametrize("offset", [0.0, 0.4])
def test_responses_are_right_to_half_a_frame(make, tmp_path, delay, offset):
    """A linear ramp in real time is a clock: interpolation is exact on it, so it must read out."""
    session = make()
    _, times = session.signals["responses"]
    session.table["delay_seconds"] = np.full(NEURONS, delay)
    session.json["signals"]["responses"]["offset_seconds"] = offset
    session.write_signal("responses", np.tile((times + offset + delay)[:, None], NEURONS), times)
    session.write()
    settings = PrepSettings(response_normalisation="none")
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), settings)
    found = open_dataset(str(tmp_path / "to")).session(NAME)
    for number, key in enumerate(["t0", "t2", "t6"]):
        read_out = found.trial(number).responses
        np.testing.assert_allclose(read_out, np.tile(session.frames[key][:, None], NEURONS), 1e-6)


def test_every_second_frame_is_kept_of_a_source_at_twice_the_rate(make, tmp_path):
    session = make(rate=60.0)
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    found = open_dataset(str(tmp_path / "to")).session(NAME)
    trial = found.trial(0)
    np.testing.assert_array_equal(trial.stimulus, session.videos["clip0"][::2])
    assert len(trial.responses) == FRAMES // 2
    assert found.manifest.frame_rate == 30.0


def test_another_rate_is_refused(make, tmp_path):
    make(rate=25.0)
    with pytest.raises(ConfigError, match=r"clip0\.npy: trial t0: 25 frames a second, not 30"):
        prepare(str(tmp_path / "source"), str(tmp_path / "to"))


def test_treadmill_is_filtered_before_it_is_resampled(make, tmp_path):
    session = make()
    values, times = session.signals["treadmill"]
    times = 99.5 + np.arange(len(times)) / 70.0
    session.write_signal("treadmill", values, times)
    settings = PrepSettings(treadmill_lowpass_hz=3.0)
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), settings)
    found = open_dataset(str(tmp_path / "to")).session(NAME)
    reach = int(np.ceil(3.3 / 3.0 / 2 * 70))
    weights = firwin(2 * reach + 1, 3.0, window="hamming", fs=70.0)
    smooth = np.convolve(values[:, 0], weights, mode="same")
    trials = [np.interp(session.frames[k], times - 0.2, smooth) for k in ("t0", "t2", "t6")]
    joined = np.concatenate(trials)
    for number, expected in enumerate(trials):
        expected = (expected - joined.mean()) / joined.std()
        speed = found.trial(number).modulations[:, 0]
        np.testing.assert_allclose(speed, expected, rtol=1e-4, atol=1e-4)


def test_gaps_are_counted_in_camera_frames(make, tmp_path):
    """10 frames of a camera at 20 Hz are 15 of the stimulus; one more leaves the trial out."""
    session = make()
    values, times = session.signals["pupil"]
    for key, missing in (("t0", 10), ("t2", 11), ("t5", 11)):
        first = int(np.searchsorted(times, session.starts[key] + 0.2))
        values[first : first + missing] = np.nan
    # Of t5 they lack altogether instead.
    present = ~((times > session.starts["t5"]) & np.isnan(values).any(1))
    session.write_signal("pupil", values[present], times[present])
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    manifest = open_dataset(str(tmp_path / "to")).session(NAME).manifest
    reason = "pupil position missing for more than 10 frames"
    assert [(e.trial, e.reason) for e in manifest.excluded] == [("t2", reason), ("t5", reason)]


def test_a_gap_that_begins_before_the_trial_counts_whole(make, tmp_path):
    session = make()
    values, times = session.signals["pupil"]
    for key, before in (("t0", 4), ("t2", 6)):
        first = int(np.searchsorted(times + OFFSETS["pupil"], session.starts[key])) - before
        values[first : first + before + 6] = np.nan
    session.write_signal("pupil", values, times)
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    manifest = open_dataset(str(tmp_path / "to")).session(NAME).manifest
    assert [item.trial for item in manifest.excluded] == ["t2"]


def test_lost_scan_frames_leave_the_trial_out(make, tmp_path):
    session = make()
    values, times = session.signals["responses"]
    lost = int(np.searchsorted(times, session.starts["t2"] + 0.6))
    session.write_signal("responses", np.delete(values, lost, 0), np.delete(times, lost))
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    manifest = open_dataset(str(tmp_path / "to")).session(NAME).manifest
    reason = "samples of the responses are missing"
    assert [(e.trial, e.reason) for e in manifest.excluded] == [("t2", reason)]


def test_a_recording_that_ends_early_leaves_the_last_trial_out(make, tmp_path):
    session = make()
    values, times = session.signals["responses"]
    kept = times < session.starts["t6"] + 0.8
    session.write_signal("responses", values[kept], times[kept])
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    manifest = open_dataset(str(tmp_path / "to")).session(NAME).manifest
    reason = "samples of the responses are missing"
    assert [(e.trial, e.reason) for e in manifest.excluded] == [("t6", reason)]


def test_dropped_frames_leave_the_trial_out(make, tmp_path):
    session = make(even=False)
    times = session.frames["t2"]
    times[20:] += 1 / 30
    session.save("frames/t2.npy", times)
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    manifest = open_dataset(str(tmp_path / "to")).session(NAME).manifest
    reason = "stimulus frames were dropped"
    assert [(e.trial, e.reason) for e in manifest.excluded] == [("t2", reason)]


@pytest.mark.parametrize("form", ["npz", "npy", "zarr"])
def test_only_the_part_of_a_trial_is_read(make, form):
    session = make(form=form)
    raw_reader = SignalsReader(session.folder)
    trial = raw_reader.read(raw_reader.trials()[0])
    assert len(trial.responses[0].values) < 20
    assert len(trial.perspectives[0].values) < 80
    stored = raw_reader._signals["responses"]._values
    assert isinstance(stored, np.memmap if form != "zarr" else zarr.Array)


def test_zarr_of_version_2(make, tmp_path):
    """It is read alike, and its hidden metadata count as part of the source."""
    session = make()
    values, times = session.signals["pupil"]
    (session.folder / "signals/pupil.npz").unlink()
    group = zarr.create_group(str(session.folder / "signals/pupil.zarr"), zarr_format=2)
    group.create_array("values", data=values, chunks=(50, 3))
    group.create_array("times", data=times, chunks=(50,))
    prepare(str(tmp_path / "source"), str(tmp_path / "to"))
    found = open_dataset(str(tmp_path / "to")).session(NAME)
    expected = session.expected(["t0", "t2", "t6"])
    for number, key in enumerate(["t0", "t2", "t6"]):
        compare(found.trial(number), expected[key])
    before = source_sha256(fingerprint(str(session.folder)))
    with open(session.folder / "signals/pupil.zarr/values/.zarray", "a") as stream:
        stream.write(" ")
    assert source_sha256(fingerprint(str(session.folder))) != before


def test_part_of_a_clock():
    clock = Clock(np.arange(100.0), "x", offset=0.5)
    assert clock.part(10.2, 12.7, Margin(samples=0)) == slice(10, 13)
    assert clock.part(10.2, 12.7, Margin(samples=2, seconds=3)) == slice(5, 18)
    assert clock.part(-50, -40, Margin()) == slice(0, 2)
    assert clock.part(500, 600, Margin()) == slice(98, 100)


def test_the_examples_of_the_documentation_are_valid():
    text = (Path(__file__).parents[2] / "docs" / "data_prep.md").read_text()
    signals, nwb = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    SessionFile.model_validate_json(signals)
    NwbSession.model_validate_json(nwb)


def test_the_schema_is_documented():
    schema = SessionFile.model_json_schema()
    assert schema["additionalProperties"] is False
    assert "clock" in schema["$defs"]["SignalEntry"]["properties"]["offset_seconds"]["description"]
