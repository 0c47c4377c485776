"""`fmcortex deconvolve` on NWB files written by pynwb and on signals, and what prep makes of it."""

import csv
import json
import shutil

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner
from nwb_scan import CLIP, CLIPS, NAME, Scan
from oasis.functions import deconvolve as oasis
from scipy.interpolate import interp1d
from scipy.signal import lfilter
from signals_session import NAME as SIGNALS
from signals_session import Session

from data_prep import deconvolve_blocks
from data_prep.deconvolution import DeconvolutionSettings
from data_prep.deconvolve_blocks import blocks_of
from data_prep.deconvolve_job import deconvolve_sessions
from data_prep.job import prepare
from data_prep.readers.fluorescence import Traces
from data_prep.readers.nwb import NwbReader
from data_prep.settings import PrepSettings
from fmcortex.cli import cli
from fmcortex.data.dataset import open_dataset
from fmcortex.errors import ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:nperseg")
#: A constant baseline, so that OASIS alone can be the reference.
PLAIN = DeconvolutionSettings(detrend_seconds=0)
KEEP = PrepSettings(silent_neurons="keep")


def fluorescence(shape, seed=0):
    generator = np.random.default_rng(seed)
    activity = generator.gamma(1.0, 0.5, shape) * (generator.uniform(size=shape) < 0.3)
    trace = lfilter([1.0], [1.0, -np.exp(-1 / 5)], activity, axis=0)
    return 30 + trace + 0.1 * generator.normal(size=shape)


@pytest.fixture
def scan(tmp_path):
    scan = Scan(tmp_path / "source" / NAME, delay=0.07, raw=True)
    scan.traces = [fluorescence(traces.shape, n) for n, traces in enumerate(scan.traces)]
    scan.write()
    return scan


@pytest.fixture
def session(tmp_path):
    session = Session(tmp_path / "source" / SIGNALS, form="npy")
    values, times = session.signals["responses"]
    session.write_signal("fluorescence", fluorescence(values.shape), times, "npz")
    shutil.rmtree(session.folder / "signals" / "responses")
    return session


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def run(scan_or_session, settings=PLAIN, **options):
    lines = []
    source = str(scan_or_session.folder.parent)
    deconvolve_sessions(source, settings, progress=lines.append, **options)
    return lines


def activity_of(trace, rate):
    return np.maximum(oasis(trace, framerate=rate, b_nonneg=False).s, 0)


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
    assert record["fields"]["RoiResponseSeries1"]["source"] == "scan.nwb: RoiResponseSeries1"


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
    url = "memory://deconvolve-test/scan.nwb"
    fs, path = fsspec.core.url_to_fs(url)
    fs.pipe_file(path, scan.path.read_bytes())
    scan.path.unlink()
    (scan.folder / "nwb.json").write_text(json.dumps({**scan.json, "url": url}))
    run(scan)
    assert content(scan.folder / "deconvolved" / "RoiResponseSeries2") == expected
    assert run(scan) == [f"{NAME}: up to date"]
    assert NwbReader(scan.folder).info.neurons == 8
    fs.rm(path)


@pytest.mark.slow
def test_ray_workers_make_the_same(scan, session):
    run(scan)
    folders = scan.folder / "deconvolved", session.folder / "signals" / "responses"
    whole = [content(folder) for folder in folders]
    for folder in folders:
        shutil.rmtree(folder)
    run(scan, workers=2)
    assert [content(folder) for folder in folders] == whole


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
        r"RoiResponseSeries1: column 3: cannot be deconvolved about 1\.\d+ s, where other neurons",
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


def edited(path, change):
    def edit(scan):
        file = scan.folder / "deconvolved" / path
        file.write_bytes(change(file.read_bytes()))

    return edit


def another_recording(scan):
    scan.scan_times = scan.scan_times + 1e-4
    scan.write()


STALE = {
    "another recording": (another_recording, r"RoiResponseSeries1: was made from another record"),
    "other neurons": (
        lambda scan: (scan.folder / "nwb.json").write_text(
            json.dumps({**scan.json, "mask_types": None})
        ),
        r"column 2 of the fluorescence was not deconvolved; run `fmcortex deconvolve --overw",
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


def test_blocks_are_bounded():
    def blocks(samples, neurons):
        times = np.broadcast_to(0.0, samples)
        return blocks_of(Traces(".", "x", times, np.arange(neurons), lambda part: None))

    assert blocks(30_000, 1000) == [(0, 256), (256, 512), (512, 768), (768, 1000)]
    assert blocks(1_000_000, 70) == [(0, 33), (33, 66), (66, 70)]
    assert blocks(10**9, 2) == [(0, 1), (1, 2)]


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
