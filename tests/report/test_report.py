"""The report: one page that needs nothing else, with the numbers of its inputs and no others."""

from __future__ import annotations

import base64
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmcortex.data.dataset import open_dataset
from fmcortex.errors import ConfigError, DataError, StorageError
from fmcortex.evaluation.evaluate import SessionScore, predict_video
from fmcortex.report import figures, network_figures
from fmcortex.report.inputs import ReportInputs, inputs_of, read_scores, thinned
from fmcortex.report.page import number, write_report
from fmcortex.scaling.results import PointResult, summarise
from fmcortex.training.checkpoint import open_checkpoint

SESSION = "mouse01-1-1"
HOSTILE = "<script>alert('$\\x$')</script>\"&"


class Page(HTMLParser):
    """What a page holds: its tags with their attributes, its text, and its tables' rows."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._cell = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data.strip() + " "

    @property
    def images(self) -> dict[str, str]:
        """The content of each image, by what it shows."""
        found = {}
        for tag, values in self.tags:
            if tag == "img":
                kind, _, content = str(values["src"]).partition(",")
                assert kind == "data:image/svg+xml;base64"
                found[str(values["alt"])] = base64.b64decode(content).decode()
        return found


def score(session: str, value: float | None, units: int = 30) -> dict[str, Any]:
    """A made-up evaluation whose median CC_norm on natural movies is `value`."""
    generator = np.random.default_rng(len(session))
    most = generator.uniform(0.5, 0.9, units)
    normalised = [None] * units if value is None else list(generator.normal(value, 0.1, units))
    domain = {
        "domain": "natural_movie",
        "videos": 2,
        "repeats": 10,
        "neurons": units,
        "without_cc_max": 0 if value is not None else units,
        "cc_abs": 0.3,
        "cc_max": 0.7,
        "cc_norm": value,
        "single_trial": 0.1,
        "baseline_cc_norm": 0.04,
    }
    per_neuron = {
        "cc_abs": [None if n is None else n * m for n, m in zip(normalised, most, strict=True)],
        "cc_max": list(most),
        "cc_norm": normalised,
    }
    return {
        "session": session,
        "tier": "test",
        "domains": [domain],
        "per_neuron": {"natural_movie": per_neuron},
    }


def write_scores(path: Path, *scores: dict[str, Any]) -> str:
    path.write_text(json.dumps(scores))
    return str(path)


@pytest.fixture(scope="session")
def page(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(str(reported), str(tmp_path_factory.mktemp("page") / "report.html")))


def test_page_needs_nothing_else(page: Page) -> None:
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed"}
    for _, values in page.tags:
        for key in ("src", "href"):
            if key in values:
                assert str(values[key]).startswith(("data:", "#"))


def test_page_has_every_figure(page: Page) -> None:
    assert set(page.images) == {
        "CC_norm of neurons by mouse and model",
        "CC_abs against CC_max",
        "CC_norm by stimulus domain",
        "training curves",
        "readout positions",
        "recorded and predicted responses",
    }
    assert all("<svg" in content for content in page.images.values())


def test_page_has_the_numbers_of_the_evaluation(page: Page, reported: Path) -> None:
    scores = read_scores(str(reported / "evaluations" / "foundation.json"))
    natural = scores[0].domain("natural_movie")
    row = next(row for row in page.rows if row[0].strip() == SESSION)
    expected = f"{number(natural.cc_norm)} {number(natural.baseline_cc_norm)}"
    assert " ".join(row[-1].split()) == expected
    assert row[1].strip() == str(natural.neurons)
    gabor = scores[0].domain("drifting_gabor")
    heat = next(row for row in page.rows if row[:2] == ["foundation ", f"{SESSION} "])
    assert heat[-1].strip() == number(gabor.cc_norm, 2)


def test_page_says_where_it_comes_from(page: Page, reported: Path) -> None:
    run_id = json.loads((reported / "run" / "run.json").read_text())["run_id"]
    facts = {row[0].strip(): row[1].strip() for row in page.rows if len(row) == 2}
    assert facts["MLflow run"] == run_id
    assert facts["status"] == "FINISHED"
    assert facts["steps"] == "3"
    assert "torch" in facts
    assert '"preset"' not in page.text
    assert '"recurrent_hidden": 16' in page.text
    assert "Missing" not in page.text


def test_what_is_missing_is_said_and_not_made_up(reported: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reported / "run" / "checkpoints", run / "checkpoints")
    known = json.loads((reported / "run" / "run.json").read_text())
    known["uri"] = f"sqlite:///{tmp_path}/gone.db"
    (run / "run.json").write_text(json.dumps(known))
    inputs = ReportInputs(runs=[str(run)], dataset=str(tmp_path / "nowhere"))
    page = Page(write_report(inputs, str(tmp_path / "report.html")))
    assert not (tmp_path / "gone.db").exists()
    assert "gone.db: no such store" in page.text
    assert "not a prepared dataset" in page.text
    assert "this report has no scores" in page.text
    assert "No training curves are recorded" in page.text
    facts = {row[0].strip(): row[1].strip() for row in page.rows if len(row) == 2}
    assert facts["status"] == "not recorded"
    assert set(page.images) == {"readout positions"}


def test_passwords_of_tracking_stores_are_left_out(reported: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(reported / "run" / "checkpoints", run / "checkpoints")
    uri = "sqlite:////nowhere/mlflow.db"
    config = {"tracking": {"uri": "https://ann:secret@mlflow.example:5000"}}
    (run / "run.json").write_text(json.dumps({"config": config, "uri": uri, "run_id": "r"}))
    path = write_report(ReportInputs(runs=[str(run)]), str(tmp_path / "report.html"))
    assert "https://mlflow.example:5000" in path.read_text()
    assert "secret" not in path.read_text()


def test_models_and_mice_that_were_not_evaluated_are_dashes(tmp_path: Path) -> None:
    inputs = ReportInputs(
        evaluations={
            "individual": write_scores(tmp_path / "i.json", score("m2", 0.2)),
            "foundation": write_scores(
                tmp_path / "f.json", score("m1", 0.4), score("m2", 0.6), score("m3", None)
            ),
        }
    )
    page = Page(write_report(inputs, str(tmp_path / "report.html")))
    cells = {row[0].strip(): [" ".join(cell.split()) for cell in row[4:]] for row in page.rows}
    assert cells["mouse"] == ["foundation baseline", "individual baseline"]
    assert cells["m1"] == ["0.400 0.040", "– –"]
    assert cells["m2"] == ["0.600 0.040", "0.200 0.040"]
    assert cells["m3"] == ["– 0.040", "– –"]
    assert cells["median over mice"] == ["0.500 0.040", "0.200 0.040"]
    assert "CC_norm of neurons under two models" in page.images


def test_names_cannot_inject_markup(tmp_path: Path) -> None:
    file = write_scores(tmp_path / "f.json", score(HOSTILE, 0.4), score("m2", 0.5))
    inputs = ReportInputs(evaluations={HOSTILE: file}, title=HOSTILE)
    page = Page(write_report(inputs, str(tmp_path / "report.html")))
    assert "script" not in {tag for tag, _ in page.tags}
    assert HOSTILE in page.text
    assert not any("<script" in content for content in page.images.values())


def test_sweep_is_drawn_with_its_law(tmp_path: Path) -> None:
    points = [
        PointResult(
            key=f"{i}",
            mice=i + 1,
            minutes=None,
            seed=0,
            sessions=["m"],
            mouse_minutes=10.0 * size,
            neuron_hours=size,
            score=0.7 - 0.4 * size**-0.5,
            by_session={"m": None},
            run_id=f"run{i}",
            tracking_uri="",
            checkpoint="",
            seconds=1,
        )
        for i, size in enumerate((1.0, 4.0, 16.0))
    ]
    summary = summarise("median CC_norm", "neuron_hours", points, failed={"4 mice": "full disk"})
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "scaling.json").write_text(summary.model_dump_json())
    page = Page(write_report(str(tmp_path), str(tmp_path / "report.html")))
    assert set(page.images) == {"score over the amount of data"}
    assert summary.law is not None
    assert summary.law.formula() in page.text
    assert "run2" in page.text
    assert "4 mice failed: full disk" in page.text


def test_folder_is_searched_one_level_deep(reported: Path, tmp_path: Path) -> None:
    found = inputs_of(str(reported), title="T")
    assert list(found.runs) == [str(reported / "run")]
    assert list(found.evaluations) == ["foundation"]
    assert (found.sweep, found.title) == (None, "T")
    with pytest.raises(ConfigError, match="nothing to report on"):
        inputs_of(str(tmp_path))
    with pytest.raises(ConfigError, match="nothing to report on"):
        inputs_of(str(tmp_path / "nowhere"))


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('[{"session": 3}]')
    with pytest.raises(DataError, match=r"bad.json: not a list of evaluations: session"):
        read_scores(str(bad))
    with pytest.raises(StorageError, match="nowhere"):
        write_report(
            ReportInputs(evaluations={"a": str(tmp_path / "nowhere.json")}), str(tmp_path / "r")
        )
    with pytest.raises(DataError, match="it is no run"):
        write_report(ReportInputs(runs=[str(tmp_path)]), str(tmp_path / "r"))


def test_long_curves_are_thinned_to_means() -> None:
    curve = [(step, float(step % 2)) for step in range(1, 60_001)]
    thin = thinned(curve)
    assert len(thin) <= 600
    assert thin[-1][0] == 60_000
    assert {value for _, value in thin} == {0.5}
    assert thinned(curve[:5]) == curve[:5]


def test_readouts_are_placed_in_degrees(reported: Path) -> None:
    network = open_checkpoint(str(reported / "run")).network(SESSION)
    mu = network.readout.position.mu
    mu.data[:3] = mu.new_tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    place = network_figures.positions(network)
    down = 75 * 36 / 64  # row numbers grow downwards
    np.testing.assert_allclose(place[:3], [[0, 0], [75, 0], [0, -down]], atol=1e-9)


def test_traces_are_means_over_repeats_of_neurons_by_rank(reported: Path) -> None:
    network = open_checkpoint(str(reported / "run")).network(SESSION)
    session = open_dataset(str(reported.parent / "prepared")).session(SESSION)
    traces = network_figures.find_traces(network, session, burnin=10)
    video = session.video(traces.video)
    expected = video.responses[:, 10:, traces.neurons]
    np.testing.assert_allclose(traces.recorded, expected.mean(axis=0), rtol=1e-5)
    sem = expected.std(axis=0, ddof=1) / np.sqrt(len(expected))
    np.testing.assert_allclose(traces.error, sem, rtol=1e-4, atol=1e-7)
    predicted = predict_video(network, video)[:, 10:, traces.neurons].mean(axis=0)
    np.testing.assert_allclose(traces.predicted, predicted, rtol=1e-5)
    assert (np.diff(traces.scores) <= 0).all()
    assert traces.seconds[0] == pytest.approx(10 / 30)


def test_figure_of_the_same_numbers_is_the_same_file() -> None:
    scores = {"foundation": [SessionScore.model_validate(score("m1", 0.4))]}
    with figures.style():
        first, second = (figures.data_uri(figures.distributions(scores, ["m1"])) for _ in range(2))
    assert first == second
