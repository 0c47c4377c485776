#!/usr/bin/env bash
# OASIS: the decay it estimates depends on the frame rate that the same neuron is recorded at.
#
# A good guess is that `deconvolve` with no decay given finds about the same time constant, in
# seconds, at every rate. It multiplies the coefficient from frame to frame by 0.98, which takes a
# decay of 1 s to 0.6 s at 30 Hz and to 0.5 s at 60 Hz, and leaves it at 6 Hz. There it only makes up
# for another bias, which goes the other way: the noise is measured in the upper half of the
# spectrum, which at 6 Hz holds part of the calcium too, and taken off the autocovariance at no
# lag, so that `estimate_parameters`, whose default has no such factor, finds 1.2 s. The ratio of
# the autocovariances at lags 1 and later needs neither.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
# Without its other dependencies, which are for figures.
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps oasis-deconv==0.3.2 \
    numpy==2.4.6 scipy==1.17.1
"$work/venv/bin/python" - <<'PYTHON'
import sys
from importlib.metadata import version

import numpy as np
from oasis.functions import ar1_to_tau, deconvolve, estimate_parameters, GetSn
from scipy.signal import lfilter

print("oasis-deconv", version("oasis-deconv"))
DECAY, NOISE, SECONDS = 1.0, 0.2, 1200


def later_lags(trace, rate):
    trace = trace - trace.mean()
    lags = range(1, max(6, round(rate / 2)) + 2)
    found = np.array([trace[lag:] @ trace[:-lag] for lag in lags])
    return ar1_to_tau(found[:-1] @ found[1:] / (found[:-1] @ found[:-1]), rate)


found = {}
for rate in (6, 30, 60):
    rows = []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        events = generator.poisson(0.3 / rate, SECONDS * rate).astype(float)
        calcium = lfilter([1.0], [1.0, -np.exp(-1 / (DECAY * rate))], events)
        trace = calcium + NOISE * generator.normal(size=len(calcium))
        own = ar1_to_tau(float(deconvolve(trace).g), rate)
        plain = ar1_to_tau(float(estimate_parameters(trace, p=1)[0][0]), rate)
        rows.append((own, plain, later_lags(trace, rate), float(GetSn(trace))))
    found[rate] = np.median(rows, axis=0)
    own, plain, later, noise = found[rate]
    print(
        f"{rate:2d} Hz, true decay 1 s and noise 0.2: deconvolve {own:.2f} s,"
        f" estimate_parameters {plain:.2f} s, later lags {later:.2f} s; noise {noise:.2f}"
    )
ours = np.array([found[rate][:3] for rate in (6, 30, 60)])
as_seen = (
    abs(ours[0, 0] - 1.05) < 0.1
    and abs(ours[1, 0] - 0.64) < 0.1
    and abs(ours[2, 0] - 0.47) < 0.1
    and ours[0, 1] > 1.1
    and np.all(np.abs(ours[:, 2] - 1) < 0.1)
    and found[6][3] > 0.22
)
print("as described" if as_seen else "CHANGED: no longer as described")
sys.exit(not as_seen)
PYTHON
