"""`fmcortex deconvolve` on NWB files written by pynwb and on signals, and what prep makes of it."""

import csv
import json
import shutil

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner
from nwb_scan import CLIP, CLIPS, NAME
from oasis.functions import deconvolve as oasis
from raw_recordings import KEEP, content, raw_scan, raw_session, run, setting
from scipy.interpolate import interp1d
from signals_session import NAME as SIGNALS

from cluster.ray_session import ray_session
from data_prep import deconvolve_blocks, deconvolve_job
from data_prep.deconvolution import METHOD, DeconvolutionSettings, decay_of
from data_prep.deconvolve_blocks import blocks_of
from data_prep.job import prepare
from data_prep.readers.deconvolved import RECORD
from data_prep.readers.fluorescence import Traces
from data_prep.readers.nwb import NwbReader
from data_prep.readers.signals import SignalsReader
from fmcortex.cli import cli
from fmcortex.data.dataset import open_dataset
from fmcortex.errors import ConfigError, DataError, Locked
from fmcortex.lock import Lock

pytestmark = pytest.mark.filterwarnings("ignore:nperseg")


@pytest.fixture
def scan(tmp_path):
    return raw_scan(tmp_path / "source")


@pytest.fixture
def session(tmp_path):
    return raw_session(tmp_path / "source")


def activity_of(trace, rate):
    return np.maximum(oasis(trace, decay_of(trace, rate), framerate=rate, b_nonneg=False).s, 0)


def test_nwb_prepared_from_fluorescence(scan, tmp_path):
    [line] = run(scan)
    assert line.startswith(f"{NAME}: 8 neurons at 6.")
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), KEEP)
    prepared = open_dataset(str(tmp_path / "to")).session(NAME)
    rate = 1 / np.median(np.diff(scan.scan_times))
    raw = []
    for first, _, _ in scan.trials:
        times = scan.flips[first : first + CLIP : 2]
        parts = []
        for traces, delay in zip(scan.traces, scan.delays, strict=True):
            activity = np.stack([activity_of(trace, rate) for trace in traces.T], axis=1)
            parts.append(interp1d(scan.scan_times + delay, activity, axis=0)(times))
        raw.append(np.delete(np.concatenate(parts, axis=1), 2, axis=1))  # the artifact
    mean = np.concatenate([raw[n] for n, name in enumerate(CLIPS) if name != "A="]).mean(0)
    for number, index in enumerate([1, 3, 5]):
        np.testing.assert_allclose(
            prepared.trial(number).responses,
            raw[index] / np.where(mean > 0, mean, 1),
            rtol=1e-4,
            atol=1e-5,
        )


def test_signals_prepared_from_fluorescence(session, tmp_path):
    with pytest.raises(DataError, match=r"has fluorescence and no responses; run `fmcortex deco"):
        prepare(str(tmp_path / "source"), str(tmp_path / "to"), KEEP)
    run(session)
    values = np.load(session.folder / "signals" / "responses" / "values.npy")
    times = np.load(session.folder / "signals" / "responses" / "times.npy")
    raw, own = np.load(session.folder / "signals" / "fluorescence.npz").values()
    np.testing.assert_array_equal(times, own)
    rate = 1 / np.median(np.diff(own))
    for column in range(raw.shape[1]):
        expected = activity_of(raw[:, column], rate)
        np.testing.assert_allclose(values[:, column], expected, rtol=1e-5, atol=1e-6)
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), KEEP)
    assert open_dataset(str(tmp_path / "to")).session(SIGNALS).manifest.neurons == raw.shape[1]


def test_what_is_beside_it(scan):
    run(scan)
    folder = scan.folder / "deconvolved"
    assert sorted(content(folder)) == [
        "RoiResponseSeries1/times.npy",
        "RoiResponseSeries1/values.npy",
        "RoiResponseSeries2/times.npy",
        "RoiResponseSeries2/values.npy",
        "deconvolution.json",
        "neurons.csv",
    ]
    with open(folder / "neurons.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["field"][-1], row["column"]) for row in rows] == [
        *(("1", column) for column in "0134"),
        *(("2", column) for column in "0123"),
    ]
    assert all(float(row["decay_seconds"]) > 0 and float(row["noise"]) > 0 for row in rows)
    record = json.loads((folder / "deconvolution.json").read_text())
    assert record["settings"]["detrend_seconds"] == 0
    assert list(record["sources"]) == ["scan.nwb"]
    assert record["fields"]["RoiResponseSeries1"]["source"] == (
        "scan.nwb: /processing/ophys/Fluorescence/RoiResponseSeries1"
    )


def test_interrupted_anywhere_it_goes_on(scan, session, monkeypatch):
    run(scan)
    whole = {
        folder: content(folder)
        for folder in (scan.folder / "deconvolved", session.folder / "signals" / "responses")
    }
    monkeypatch.setattr(deconvolve_blocks, "BLOCK_NEURONS", 2)
    real = deconvolve_blocks.storage.write_bytes
    writes = 0

    def write(*arguments):
        nonlocal writes
        writes += 1
        if writes == stop:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(deconvolve_blocks.storage, "write_bytes", write)
    for stop in (1, 2, 3, 6, 9, 12, 15, 18):
        for folder in whole:
            shutil.rmtree(folder)
        writes = 0
        with pytest.raises(KeyboardInterrupt):
            run(scan)
        first = writes
        run(scan)
        assert {folder: content(folder) for folder in whole} == whole
        if stop == 15:  # most blocks were there, each of two files
            assert writes - first < 20
    assert not list(scan.folder.parent.rglob("*.parts"))


def test_again_it_does_nothing_but_what_changed(scan):
    run(scan)
    before = content(scan.folder)
    assert run(scan) == [f"{NAME}: up to date"]
    assert content(scan.folder) == before
    with pytest.raises(ConfigError, match=r"deconvolved: was made with another decay_seconds; "):
        run(scan, DeconvolutionSettings(detrend_seconds=0, decay_seconds=1.0))
    assert content(scan.folder) == before
    run(scan, DeconvolutionSettings(detrend_seconds=0, decay_seconds=1.0), overwrite=True)
    after = content(scan.folder)
    assert after != before
    scan.traces[0][:, 1] += np.linspace(0, 1, len(scan.traces[0]))
    scan.write()
    [line] = run(scan, DeconvolutionSettings(detrend_seconds=0, decay_seconds=1.0))
    assert line.startswith(f"{NAME}: 8 neurons")
    values = "deconvolved/RoiResponseSeries1/values.npy"
    assert content(scan.folder)[values] != after[values]


def test_activity_of_an_earlier_method_is_made_again_if_asked(scan):
    run(scan)
    record = scan.folder / "deconvolved" / RECORD
    known = json.loads(record.read_text())
    del known["method"]  # as versions before it wrote
    record.write_text(json.dumps(known))
    with pytest.raises(ConfigError, match=r"was made with another version of the estimates; "):
        run(scan)
    run(scan, overwrite=True)
    assert json.loads(record.read_text())["method"] == METHOD
    assert run(scan) == [f"{NAME}: up to date"]


def test_sessions_with_activity_are_left_alone(scan, session, tmp_path):
    (scan.folder / "nwb.json").write_text(json.dumps({"responses": "processing/ophys/Spikes"}))
    session.write_signal("responses", *session.signals["responses"], "npz")
    (tmp_path / "source" / "dynamic1" / "data").mkdir(parents=True)
    before = content(tmp_path)
    assert sorted(run(scan)) == [
        "dynamic1: left alone: recordings of the layout sensorium2023 have activity already",
        f"{SIGNALS}: left alone: it has responses of its own",
        f"{NAME}: left alone: nwb.json names its responses: processing/ophys/Spikes",
    ]
    assert content(tmp_path) == before


def test_missing_in_all_neurons_is_missing_in_the_activity(session, tmp_path):
    path = session.folder / "signals" / "fluorescence.npz"
    raw, times = np.load(path).values()
    raw[:8], raw[-22:] = np.nan, np.nan
    np.savez(path, values=raw, times=times)
    run(session)
    folder = session.folder / "signals" / "responses"
    np.testing.assert_array_equal(np.load(folder / "times.npy"), times[8:-22])
    assert np.isfinite(np.load(folder / "values.npy")).all()
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), KEEP)
    excluded = open_dataset(str(tmp_path / "to")).session(SIGNALS).manifest.excluded
    assert {item.trial for item in excluded} == {"t6"}


def test_from_a_url(scan):
    run(scan)
    expected = content(scan.folder / "deconvolved" / "RoiResponseSeries2")
    shutil.rmtree(scan.folder / "deconvolved")
    url = "memory://me:secret@deconvolve-test/scan.nwb?signature=hidden"
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, scan.path.read_bytes())
    scan.path.unlink()
    (scan.folder / "nwb.json").write_text(json.dumps({**scan.json, "url": url}))
    run(scan)
    assert content(scan.folder / "deconvolved" / "RoiResponseSeries2") == expected
    assert run(scan) == [f"{NAME}: up to date"]
    assert NwbReader(scan.folder).info.neurons == 8
    record = (scan.folder / "deconvolved" / RECORD).read_text()
    assert '"memory://deconvolve-test/scan.nwb"' in record  # what only its user should know
    assert not any(word in record for word in ("secret", "signature", "hidden"))
    fs.rm(path)


@pytest.mark.slow
def test_ray_workers_make_the_same(scan, session):
    run(scan)
    folders = scan.folder / "deconvolved", session.folder / "signals" / "responses"
    whole = [content(folder) for folder in folders]
    for folder in folders:
        shutil.rmtree(folder)
    run(scan, workers=2, within=ray_session(2))
    assert [content(folder) for folder in folders] == whole


def test_other_series_of_the_same_names_are_deconvolved_anew(scan):
    run(scan)
    values = "deconvolved/RoiResponseSeries1/values.npy"
    before = content(scan.folder)[values]

    def copy(file):
        file.copy("processing/ophys/Fluorescence", "processing/ophys/Corrected")
        for name, series in file["processing/ophys/Corrected"].items():
            del series["rois"]  # a copy of its reference to the table is none
            series["rois"] = file[f"processing/ophys/Fluorescence/{name}/rois"]
        file["processing/ophys/Corrected/RoiResponseSeries1/data"][:] *= 2

    scan.change(copy)
    run(scan)
    assert content(scan.folder)[values] == before
    setting(scan, fluorescence="processing/ophys/Corrected")
    assert run(scan)[0].startswith(f"{NAME}: 8 neurons")
    assert content(scan.folder)[values] != before


def test_blocks_of_other_neurons_are_not_taken_over(scan, monkeypatch):
    types = (["soma", "x", "x", "soma", "x"], ["soma", "x", "x", "x"])
    scan.mask_types = types
    scan.write()
    with monkeypatch.context() as patch:
        patch.setattr(deconvolve_job, "finish_task", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(scan)
    assert list(scan.folder.glob(".deconvolved.parts/*.npy"))
    setting(scan, mask_types=["x"])
    run(scan)
    resumed = content(scan.folder / "deconvolved")
    shutil.rmtree(scan.folder / "deconvolved")
    run(scan)
    assert content(scan.folder / "deconvolved") == resumed


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_file_elsewhere_by_its_path(scan, tmp_path):
    scan.path.rename(tmp_path / "far.nwb")
    setting(scan, url=str(tmp_path / "far.nwb"))
    run(scan)
    assert NwbReader(scan.folder).info.neurons == 8


def test_a_few_samples_that_one_neuron_lacks_are_left_out(scan):
    scan.traces[0][:2, 1] = np.nan
    scan.traces[0][-3:, 3] = np.nan
    scan.write()
    run(scan)
    folder = scan.folder / "deconvolved" / "RoiResponseSeries1"
    np.testing.assert_array_equal(np.load(folder / "times.npy"), scan.scan_times[2:-3])
    assert np.isfinite(np.load(folder / "values.npy")).all()


def test_blocks_are_bounded():
    def blocks(samples, neurons, apart=1):
        times, columns = np.broadcast_to(0.0, samples), apart * np.arange(neurons)
        return blocks_of(Traces(".", "x", "x", times, columns, lambda part: None))

    assert blocks(30_000, 1000) == [(0, 256), (256, 512), (512, 768), (768, 1000)]
    assert blocks(1_000_000, 70) == [(0, 33), (33, 66), (66, 70)]
    assert blocks(10**9, 2) == [(0, 1), (1, 2)]
    # What lies between neurons is read as well.
    assert blocks(1_000_000, 7, apart=10) == [(0, 4), (4, 7)]


def test_the_command(scan, session, tmp_path):
    figures = tmp_path / "figures"
    arguments = ["deconvolve", str(scan.folder.parent), "--figures", str(figures)]
    done = CliRunner().invoke(cli, [*arguments, "--set", "detrend_seconds=0"])
    assert done.exit_code == 0, done.output
    assert f"{NAME}: 8 neurons at" in done.output
    assert f"{SIGNALS}: 6 neurons at 6.5" in done.output
    for name in (NAME, SIGNALS):
        assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    done = CliRunner().invoke(cli, ["deconvolve", str(scan.folder), "--set", "order=2"])
    assert isinstance(done.exception, ConfigError)
    assert "order" in str(done.exception)


def test_a_session_that_fails_keeps_no_other_from_its_figure(scan, session, tmp_path):
    for path in (session.folder / "signals").glob("fluorescence*"):
        path.write_bytes(b"")
    figures = tmp_path / "figures"
    done = CliRunner().invoke(
        cli, ["deconvolve", str(scan.folder.parent), "--figures", str(figures)]
    )
    assert isinstance(done.exception, DataError)
    assert SIGNALS in str(done.exception)
    assert [path.name for path in figures.iterdir()] == [f"{NAME}.png"]


def test_activity_that_another_process_makes_is_left_to_it(scan, session):
    with (
        Lock(str(scan.folder), "deconvolve", name=".deconvolved.lock"),
        pytest.raises(Locked, match=r"in use by deconvolve of user .*leave it to that"),
    ):
        run(scan)
    assert not (scan.folder / "deconvolved").exists()
    run(scan)
    assert (scan.folder / "deconvolved" / RECORD).exists()
    assert not list(scan.folder.glob(".*"))


@pytest.mark.parametrize("listed", ["fluorescence", "both", "responses"])
def test_session_json_may_list_the_fluorescence(tmp_path, listed):
    session = raw_session(tmp_path / "source")
    entry = {"offset_seconds": 0.05}
    session.json["signals"].pop("responses")
    for name in ("responses", "fluorescence") if listed == "both" else (listed,):
        session.json["signals"][name] = entry
    session.write()
    with pytest.raises(DataError, match=r"has fluorescence and no responses; run `fmcortex deco"):
        prepare(str(tmp_path / "source"), str(tmp_path / "to"), KEEP)
    run(session)
    prepare(str(tmp_path / "source"), str(tmp_path / "to"), KEEP)
    found = SignalsReader(session.folder)
    _, times = session.signals["responses"]
    [responses] = found.read(found.trials()[0]).responses
    later = responses.times + session.starts["t0"] - 0.05
    assert np.isclose(times[:, None], later[None], atol=1e-9).any(axis=0).all()
