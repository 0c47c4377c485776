"""Recordings of which only the fluorescence is there, and a run of `deconvolve_sessions`."""

import json
import shutil

import numpy as np
from nwb_scan import NAME, Scan
from scipy.signal import lfilter
from signals_session import NAME as SIGNALS
from signals_session import Session

from data_prep.deconvolution import DeconvolutionSettings
from data_prep.deconvolve_job import deconvolve_sessions
from data_prep.settings import PrepSettings

#: A constant baseline, so that OASIS alone can be the reference.
PLAIN = DeconvolutionSettings(detrend_seconds=0)
KEEP = PrepSettings(silent_neurons="keep")


def fluorescence(shape, seed=0):
    generator = np.random.default_rng(seed)
    activity = generator.gamma(1.0, 0.5, shape) * (generator.uniform(size=shape) < 0.3)
    trace = lfilter([1.0], [1.0, -np.exp(-1 / 5)], activity, axis=0)
    return 30 + trace + 0.1 * generator.normal(size=shape)


def raw_scan(source):
    """An NWB file with raw fluorescence below the folder `source`."""
    scan = Scan(source / NAME, delay=0.07, raw=True)
    scan.traces = [fluorescence(traces.shape, n) for n, traces in enumerate(scan.traces)]
    scan.write()
    return scan


def raw_session(source):
    """A session of signals with fluorescence and no responses, below the folder `source`."""
    session = Session(source / SIGNALS, form="npy")
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


def setting(scan, **values):
    """Write `nwb.json` with other values."""
    (scan.folder / "nwb.json").write_text(json.dumps({**scan.json, **values}))
