"""The quality report: hand-computed numbers, planted faults, and the pages."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path

import fsspec
import numpy as np
import pytest
from click.testing import CliRunner

from data_prep.job import prepare
from data_prep.quality import metrics, repeats
from data_prep.quality.report import page_name, session_page, write_quality
from data_prep.quality.session import BURNIN, SessionQuality, session_quality
from data_prep.settings import PrepSettings
from fmcortex.cli import cli
from fmcortex.data.dataset import PreparedSession, open_dataset
from fmcortex.errors import DataError
from fmcortex.evaluation.evaluate import evaluate_session
from fmcortex.evaluation.metrics import cc_max, join

TRIALS, FRAMES, REPEATS, SHOWN = 12, 60, 4, 40
SILENT, FIRST, TWIN, LOST, STRONG = 2, 4, 7, 9, 10
FILLED, FLAT, HUGE, LEFT_OUT = "3", "5", "8", "6"


class Mouse:
    """A recording in the digital-twin layout, and the arrays of its training trials."""

    def __init__(self, folder: Path, neurons: int = 12, seed: int = 0) -> None:
        self.folder, self.neurons = folder, neurons
        self.generator = np.random.default_rng(seed)
        self.trials = {str(number): self.arrays(FRAMES) for number in range(TRIALS)}
        self.videos: dict[str, list[dict[str, np.ndarray]]] = {}
        self.columns: dict[str, np.ndarray] = {"unit_ids": np.arange(neurons) + 100}

    def arrays(self, frames: int) -> dict[str, np.ndarray]:
        generator = self.generator
        return {
            "stimuli": generator.integers(0, 256, (frames, 4, 6, 1)).astype(np.uint8),
            "units": generator.gamma(2, 1.5, (frames, self.neurons)),
            "perspectives": generator.normal(40, 3, (frames, 2)),
            "modulations": generator.normal(20, 5, (frames, 2)),
        }

    def add_video(self, name: str, repeats: int = REPEATS, frames: int = SHOWN) -> None:
        """A video whose repeats share three quarters of their variance."""
        first = self.arrays(frames)
        self.videos[name] = []
        for _ in range(repeats):
            shown = self.arrays(frames)
            noise = shown["units"] - 3
            self.videos[name].append(
                {**shown, "stimuli": first["stimuli"], "units": first["units"] + 0.5 * noise}
            )

    def prepared(self, to: Path) -> PreparedSession:
        for key, trial in self.trials.items():
            self._write("", key, trial)
            self._save(f"training/{key}", True)
            self._save(f"samples/{key}", len(trial["units"]))
        for name, shown in self.videos.items():
            for number, trial in enumerate(shown):
                self._write("evaluation/", f"{name}/{number}", trial)
        for name, values in self.columns.items():
            self._save(f"neurons/{name}", values)
        settings = PrepSettings(silent_neurons="keep", trials_per_shard=5)
        prepare(str(self.folder), str(to), settings)
        return open_dataset(str(to)).session(self.folder.name)

    def _write(self, prefix: str, key: str, trial: dict[str, np.ndarray]) -> None:
        for name, values in trial.items():
            self._save(f"{prefix}{name}/{key}", values)

    def _save(self, path: str, values: object) -> None:
        file = self.folder / f"{path}.npy"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.save(file, np.asarray(values))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mouse, PreparedSession]:
    folder = tmp_path_factory.mktemp("clean")
    mouse = Mouse(folder / "source" / "17-2-3")
    mouse.add_video("natural_movie-0")
    mouse.add_video("natural_movie-1", repeats=3)
    mouse.add_video("random_dots-0")
    mouse.add_video("validation_natural_movie-0")
    return mouse, mouse.prepared(folder / "prepared")


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mouse, PreparedSession]:
    folder = tmp_path_factory.mktemp("faulty")
    mouse = Mouse(folder / "source" / "17-2-4", seed=1)
    mouse.add_video("natural_movie-0")
    mouse.columns["area"] = np.array(["V1"] * 6 + ["LM"] * 6)
    mouse.columns["layer"] = np.array(["L2/3", "L4"] * 6)
    mouse.columns["coordinates"] = mouse.generator.normal(0, 100, (12, 3))
    blocks = [trial["units"] for trial in mouse.trials.values()]
    blocks += [trial["units"] for trial in mouse.videos["natural_movie-0"]]
    for units in blocks:
        units[:, SILENT] = 0
        units[:, TWIN] = 1.3 * units[:, FIRST] + mouse.generator.normal(0, 0.1, len(units))
        units[:, STRONG] *= 1000
    mouse.videos["natural_movie-0"][1]["units"][:, LOST] = np.nan
    mouse.trials[HUGE]["units"] *= 30
    mouse.trials[FLAT]["modulations"][:, 0] = 21.5
    mouse.trials[FLAT]["modulations"][:, 1] = 0  # a mouse that rests is no fault
    for name in ("perspectives", "modulations"):
        mouse.trials[FILLED][name][20:28] = np.nan
    mouse.trials[LEFT_OUT]["perspectives"][20:40] = np.nan
    return mouse, mouse.prepared(folder / "prepared")


@pytest.fixture(scope="module")
def clean_quality(clean: tuple[Mouse, PreparedSession]) -> SessionQuality:
    return session_quality(clean[1])


@pytest.fixture(scope="module")
def faulty_quality(faulty: tuple[Mouse, PreparedSession]) -> SessionQuality:
    return session_quality(faulty[1])


def kinds(flags: list) -> dict:
    name = "trial" if flags and hasattr(flags[0], "trial") else "neuron"
    return {getattr(flag, name): {reason.kind for reason in flag.reasons} for flag in flags}


def test_a_clean_session_has_no_flags(clean_quality: SessionQuality) -> None:
    assert clean_quality.neuron_flags == []
    assert clean_quality.trial_flags == []
    assert clean_quality.duplicates == []
    assert clean_quality.remarks == []
    assert clean_quality.missing.by_reason == {}


def test_numbers_of_a_clean_session(
    clean: tuple[Mouse, PreparedSession], clean_quality: SessionQuality
) -> None:
    mouse, _ = clean
    q = clean_quality
    units, eye, behaviour = (
        np.concatenate([trial[name] for trial in mouse.trials.values()])
        for name in ("units", "perspectives", "modulations")
    )
    assert (q.session, q.animal, q.layout, q.neurons) == ("17-2-3", "17", "digital_twin", 12)
    assert q.train_minutes == pytest.approx(TRIALS * FRAMES / 30 / 60)
    assert (q.areas, q.layers, q.position) == ({}, {}, None)
    np.testing.assert_allclose(q.rates.mean, units.mean(axis=0), rtol=1e-5)
    assert q.rates.median == pytest.approx(np.median(units.mean(axis=0)), rel=1e-5)
    assert (q.rates.silent, q.rates.very_high) == (0, 0)
    channels = {channel.name: channel for channel in q.behaviour.channels}
    assert list(channels) == ["pupil_x", "pupil_y", "pupil_radius", "treadmill_speed"]
    for name, values in zip(channels, [*eye.T, *behaviour.T], strict=True):
        channel = channels[name]
        assert channel.low_source == pytest.approx(values.min(), rel=1e-5)
        assert channel.high_source == pytest.approx(values.max(), rel=1e-5)
        assert channel.high == pytest.approx((values.max() - values.mean()) / values.std(), 1e-4)
        assert (channel.outliers, channel.flat) == (0, [])
        # So short that every frame is a point of its own.
        assert channel.trace_low == channel.trace_high
        assert len(channel.trace_low) == TRIALS * FRAMES
    expected = np.corrcoef(behaviour.T)[0, 1]
    assert q.behaviour.radius_treadmill == pytest.approx(expected, abs=1e-5)
    assert q.behaviour.trial_minutes[1] == pytest.approx(FRAMES / 30 / 60)
    scaled = units / units.mean(axis=0)
    np.testing.assert_allclose(
        q.drift.population, scaled.reshape(TRIALS, -1).mean(axis=1), rtol=1e-5
    )
    assert q.drift.minutes[0] == 0
    assert [(v.tier, v.domain, v.videos, v.least, v.most) for v in q.videos] == [
        ("test", "natural_movie", 2, 3, 4),
        ("test", "random_dots", 1, 4, 4),
        ("validation", "natural_movie", 1, 4, 4),
    ]


def test_cc_max_is_that_of_the_evaluation(
    clean: tuple[Mouse, PreparedSession],
    clean_quality: SessionQuality,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    session = clean[1]

    def whole(*names: str) -> np.ndarray:
        return cc_max(join([session.video(name).responses[:, BURNIN:] for name in names]))

    natural = ("natural_movie-0", "natural_movie-1")
    expected = whole(*natural, "random_dots-0")
    found = clean_quality.reliability
    assert found is not None
    assert (found.tier, found.videos, found.repeats, found.without) == ("test", 3, 4, 0)
    np.testing.assert_array_equal(found.cc_max, expected)
    assert found.median == np.median(expected)
    assert 0.7 < found.median < 1
    assert found.by_domain == {
        "natural_movie": np.median(whole(*natural)),
        "random_dots": np.median(whole("random_dots-0")),
    }
    # The same however few neurons are in memory.
    monkeypatch.setattr(repeats, "VALUES_TOGETHER", 5 * 4 * 3 * (SHOWN - BURNIN))
    parted = repeats.reliability(session, BURNIN, None, lambda what: None)
    assert parted == found


def test_burnin_is_that_of_the_evaluation() -> None:
    assert inspect.signature(evaluate_session).parameters["burnin"].default == BURNIN


def test_planted_neurons_are_flagged_and_no_others(faulty_quality: SessionQuality) -> None:
    assert kinds(faulty_quality.neuron_flags) == {
        SILENT: {"silent", "no CC_max"},
        FIRST: {"duplicate"},
        TWIN: {"duplicate"},
        LOST: {"missing"},
        STRONG: {"extreme scale"},
    }
    (pair,) = faulty_quality.duplicates
    assert (pair.first, pair.second) == (FIRST, TWIN)
    assert pair.correlation > 0.99
    assert faulty_quality.neuron_flags[0].unit_id == SILENT + 100
    assert faulty_quality.neuron_flags[0].area == "V1"
    assert faulty_quality.rates.silent == pytest.approx(1 / 12)
    assert faulty_quality.rates.very_high == pytest.approx(1 / 12)
    assert faulty_quality.missing.repeats == [int(n == LOST) for n in range(12)]
    found = faulty_quality.reliability
    assert found is not None
    assert found.without == 1
    assert found.cc_max[SILENT] is None
    assert set(found.by_area) == {"V1", "LM"}


def test_planted_trials_are_flagged_and_no_others(faulty_quality: SessionQuality) -> None:
    q = faulty_quality
    assert kinds(q.trial_flags) == {
        FILLED: {"filled"},
        FLAT: {"flat pupil"},
        HUGE: {"population response"},
    }
    assert q.missing.filled[int(FILLED)] == pytest.approx(8 / 60)
    assert q.missing.filled_mean == pytest.approx(8 / 60 / (TRIALS - 1))
    (left_out,) = q.missing.excluded
    assert (left_out.trial, left_out.tier) == (LEFT_OUT, "train")
    assert left_out.after == int(LEFT_OUT)  # as many training trials as were before it
    assert q.missing.by_reason == {"pupil position missing for more than 10 frames": {"train": 1}}
    channels = {channel.name: channel for channel in q.behaviour.channels}
    (flat,) = channels["pupil_radius"].flat
    assert (flat.trial, flat.start, flat.seconds) == (FLAT, 0, 2)
    assert len(channels["treadmill_speed"].flat) == 1
    assert len(q.remarks) == 4


def test_drift_is_seen_past_an_artefact(tmp_path: Path) -> None:
    mouse = Mouse(tmp_path / "source" / "m-1-1")
    for number, trial in enumerate(mouse.trials.values()):
        trial["units"] *= 1 - 0.5 * number / (TRIALS - 1)
    mouse.trials["10"]["units"] *= 40
    quality = session_quality(mouse.prepared(tmp_path / "prepared"))
    assert kinds(quality.trial_flags) == {"10": {"population response"}}
    # From 1 to 0.5 of the first trial's response; the mean without trial 10 is 0.769 of it.
    assert quality.drift.change == pytest.approx(-0.5 / 0.769, abs=0.05)
    assert any("falls by" in line for line in quality.remarks)


def test_pages_escape_names_and_need_no_network(
    faulty: tuple[Mouse, PreparedSession], faulty_quality: SessionQuality
) -> None:
    evil = "<script>alert(1)</script>"
    areas = [evil, *(faulty_quality.area_of or [])[1:]]
    quality = dataclasses.replace(
        faulty_quality, animal=evil, area_of=areas, areas={evil: 1, "V1": 5, "LM": 6}
    )
    page = session_page(quality)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"https?:|src=\"(?!data:image/svg)|url\(|@import", page)
    assert page.count("<img ") == 6
    assert "17-2-4" in page


def test_report_of_several_sessions(tmp_path: Path) -> None:
    for name in ("a-1-1", "b-1-1"):
        mouse = Mouse(tmp_path / "source" / name)
        mouse.add_video("natural_movie-0")
        mouse.prepared(tmp_path / "each" / name)
    prepare(str(tmp_path / "source"), str(tmp_path / "prepared"))
    url, to = str(tmp_path / "prepared"), tmp_path / "report"
    told: list[tuple[int, int]] = []
    files = write_quality(url, str(to), None, lambda done, total, what: told.append((done, total)))
    names = ["index.html", "a-1-1.html", "b-1-1.html", "quality.json"]
    assert [Path(file).name for file in files] == names
    assert sorted(path.name for path in to.iterdir()) == sorted(names)
    index = (to / "index.html").read_text()
    assert re.findall(r'href="([^"]+)"', index) == ["a-1-1.html", "b-1-1.html"]
    numbers = json.loads((to / "quality.json").read_text())
    assert [session["session"] for session in numbers["sessions"]] == ["a-1-1", "b-1-1"]
    assert numbers["thresholds"]["burnin_frames"] == BURNIN
    assert told[0] == (0, 2 * TRIALS)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told.count((2 * TRIALS, 2 * TRIALS)) == 1

    write_quality(url, "memory://quality", ["b-1-1"])
    found = fsspec.filesystem("memory").ls("/quality", detail=False)
    assert sorted(found) == [f"/quality/{name}" for name in ("b-1-1.html", *names[::3])]
    with pytest.raises(DataError, match="no session 'c'"):
        write_quality(url, str(to), ["c"])

    result = CliRunner().invoke(
        cli, ["data", "quality", url, "--to", str(tmp_path / "said"), "--session", "a-1-1"]
    )
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"wrote {tmp_path}/said/index.html"
    assert not (tmp_path / "said" / "b-1-1.html").exists()


def test_one_neuron_without_videos(tmp_path: Path) -> None:
    session = Mouse(tmp_path / "source" / "m-1-1", neurons=1).prepared(tmp_path / "prepared")
    quality = session_quality(session)
    assert quality.reliability is None
    assert quality.videos == []
    assert quality.neuron_flags == []
    assert quality.remarks == ["No video is repeated, so the reliability of responses is unknown."]
    page = session_page(quality)
    assert "CC_max is not known" in page
    assert page.count("<img ") == 3


def test_without_repeated_test_videos_validation_counts(tmp_path: Path) -> None:
    mouse = Mouse(tmp_path / "source" / "m-1-1", neurons=3)
    mouse.add_video("natural_movie-0", repeats=1)
    mouse.add_video("natural_movie-1", frames=BURNIN + 1)  # nothing after the burn-in
    mouse.add_video("validation_natural_movie-0")
    found = session_quality(mouse.prepared(tmp_path / "prepared")).reliability
    assert found is not None
    assert (found.tier, found.videos, found.too_short) == ("validation", 1, [])


def test_a_damaged_survey_is_refused(tmp_path: Path) -> None:
    session = Mouse(tmp_path / "source" / "m-1-1", neurons=1).prepared(tmp_path / "prepared")
    survey = Path(session.url) / "survey.json"
    survey.write_text(survey.read_text() + " ")
    with pytest.raises(DataError, match=r"survey\.json: differs from its checksum"):
        session_quality(session)


def test_no_session_takes_the_index() -> None:
    assert page_name("mouse-1") == "mouse-1.html"
    assert page_name("Index") == "Index~.html"


def test_robust_z() -> None:
    values = np.array([1.0, 2, 3, 4, 100, np.nan])
    # Median 3, absolute deviations 2 1 0 1 97, their median 1.
    np.testing.assert_allclose(
        metrics.robust_z(values), np.array([-2, -1, 0, 1, 97, np.nan]) / 1.4826
    )
    np.testing.assert_allclose(metrics.robust_z(values[:5], 2.0)[4], 97 / 2)
    assert metrics.robust_z(np.ones(3)).tolist() == [0, 0, 0]


def test_flat_lines() -> None:
    moving = np.arange(40.0)
    held = np.where((moving >= 10) & (moving < 21), 10.0, moving)
    assert metrics.flat_lines(moving, 2.0) == []
    assert metrics.flat_lines(held, 2.0) == [(10, 11)]  # 5.5 s
    assert metrics.flat_lines(held, 2.2) == []  # 5 s are allowed
    assert metrics.flat_lines(np.zeros(4), 2.0) == [(0, 4)]  # a whole trial of 2 s
    assert metrics.flat_lines(np.zeros(4), 8.0) == []  # half a second, such as an image


def test_trend() -> None:
    x = np.array([0.0, 1, 2, 4])
    change, correlation = metrics.trend(x, 10 - 2 * x) or (0, 0)
    assert change == pytest.approx(-8 / 6.5)
    assert correlation == pytest.approx(-1)
    assert metrics.trend(x[:2], x[:2]) is None
    assert metrics.trend(x, np.ones(4)) is None


def test_most_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "TOGETHER", 3)
    responses = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    responses[:, 6] = 2 * responses[:, 1] + 5
    responses[:, 4] = 0.1
    other, most = metrics.most_alike(responses)
    varying = [n for n in range(8) if n != 4]
    expected = np.corrcoef(responses[:, varying].T) - 2 * np.eye(7)
    np.testing.assert_allclose(most[varying], expected.max(axis=1).clip(0), atol=1e-6)
    assert (other[1], other[6], most[4]) == (6, 1, 0)
    assert most[1] == pytest.approx(1)


def test_traces_keep_a_single_bad_frame() -> None:
    values = np.zeros((1000, 2))
    values[:, 1] = np.arange(1000) % 7
    values[333, 0] = -50
    traces = metrics.Traces(2, 1000, 10)
    for block in np.split(values, [100, 101, 640]):
        traces.add(block)
    assert traces.low[3, 0] == -50
    assert (traces.high[:, 1] == 6).all()
    assert traces.outliers.tolist() == [0.001, 0]
    assert traces.correlation(0, 1) == pytest.approx(np.corrcoef(values.T)[0, 1])
    still = metrics.Traces(2, 3, 10)
    still.add(np.array([[1.0, 0.1], [2.0, 0.1], [3.0, 0.1]]))
    assert still.correlation(0, 1) is None
