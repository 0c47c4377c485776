"""The page of curves: the values that were logged, whatever their number, and nothing from afar."""

from __future__ import annotations

import base64
import hashlib
import math
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmcortex import storage
from fmcortex.tracking import ticks
from fmcortex.tracking.page import comparison_page, curves_page, write_curves_page
from fmcortex.tracking.run import RunLog
from fmcortex.tracking.series import BINS, Curves, Event, Series, spread
from fmcortex.tracking.svg import BOTTOM, LEFT, RIGHT, TOP

HOSTILE = "mouse<img src=x onerror=alert(1)>&\"'$x$"
VOID = {"meta"}


class Page(HTMLParser):
    """The panels of a page by title: legend, text and the points of each line and band."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.panels: dict[str, dict[str, Any]] = {}
        self.groups: dict[str, list[str]] = {}
        self.text = ""
        self._panel: dict[str, Any] = {}
        self.feed(html)
        self.close()
        assert not self.open  # every element is closed

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "figure":
            self._panel = {"title": "", "text": "", "lines": {}, "bands": [], "shapes": []}
        if tag == "svg":
            self._panel["svg"] = values
        if tag == "polyline":
            self._panel["lines"][values["data-name"]] = self._points(values)
        if tag == "polygon":
            self._panel["bands"].append(self._points(values))
        if tag == "path":
            self._panel["shapes"].append(values)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "figure":
            self.panels[self._panel["title"]] = self._panel
            self.groups[list(self.groups)[-1]].append(self._panel["title"])
            self._panel = {}

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside == "h2":
            self.groups[data] = []
        if inside == "h3":
            self._panel["title"] += data
        if self._panel:
            self._panel["text"] += data
        if inside not in ("script", "style"):
            self.text += data

    def _points(self, values: dict[str, str | None]) -> np.ndarray:
        """[n, 2] steps and values, read back from pixels by the axes of the svg."""
        svg = self._panel["svg"]
        pairs = np.array([p.split(",") for p in str(values["points"]).split()], float)
        x, y = (np.array(svg[f"data-{a}"].split(), float) for a in "xy")
        steps = x[0] + (pairs[:, 0] - LEFT) / (RIGHT - LEFT) * (x[1] - x[0])
        part = (BOTTOM - pairs[:, 1]) / (BOTTOM - TOP)
        if "data-log" in svg:
            return np.stack([steps, y[0] * (y[1] / y[0]) ** part], 1)
        return np.stack([steps, y[0] + part * (y[1] - y[0])], 1)

    def marks(self, title: str, kind: str) -> list[dict[str, str | None]]:
        return [s for s in self.panels[title]["shapes"] if s.get("class") == kind]


def page(curves: dict[str, Sequence[tuple[int, float]]], *events: Event) -> Page:
    return Page(curves_page(curves, "Curves", {}, events))


def test_few_points_are_drawn_as_they_are() -> None:
    points = [(10, 1.5), (20, 1.25), (30, 0.75)]
    found = page({"train/loss": points}).panels["training loss"]
    np.testing.assert_allclose(found["lines"]["each step"], points, atol=0.01)
    assert found["bands"] == []
    assert "each step 0.75" in found["text"]


def test_norms_are_on_a_logarithmic_axis() -> None:
    points = [(step, 10.0 ** (2 - step)) for step in range(6)]
    found = page({"grad/norm": points}).panels["gradient norms"]
    assert "data-log" in found["svg"]
    np.testing.assert_allclose(found["lines"]["all"], points, rtol=2e-3)


def test_a_spike_and_a_dip_stay_in_a_long_history() -> None:
    steps = 50_000
    values = 1 + 0.1 * np.random.default_rng(0).standard_normal(steps)
    values[31_234], values[12_345] = 1.9, 0.05
    html = curves_page({"train/loss": list(enumerate(values))}, "Curves")
    assert len(html) < 200_000
    found = Page(html).panels["training loss"]
    (band,) = found["bands"]
    highest, lowest = band[band[:, 1].argmax()], band[band[:, 1].argmin()]
    np.testing.assert_allclose(highest, (31_234, 1.9), rtol=2e-3)
    np.testing.assert_allclose(lowest, (12_345, 0.05), atol=70)
    assert abs(lowest[1] - 0.05) < 2e-3
    line = found["lines"]["each step"]
    assert BINS / 4 < len(line) <= BINS
    # Its means are those of equal numbers of steps.
    width = 128
    means = [values[i : i + width].mean() for i in range(0, steps, width)]
    np.testing.assert_allclose(line[:, 1], means, atol=2e-3)


def test_a_value_far_outside_is_marked_and_the_rest_stays_readable() -> None:
    values = np.linspace(1.0, 0.5, 300)
    values[150] = 1e6
    found = page({"train/loss": list(enumerate(values))})
    low, high = map(float, found.panels["training loss"]["svg"]["data-y"].split())
    assert 0.4 < low < 0.5
    assert 1 <= high < 1.1
    (mark,) = found.marks("training loss", "beyond")
    assert abs(float(str(mark["d"])[1:].split()[0]) - (LEFT + RIGHT) / 2) < 2


def test_a_count_that_has_just_begun_to_climb_is_no_outlier() -> None:
    found = page({"train/skipped": [(step, float(max(step - 497, 0))) for step in range(500)]})
    assert found.marks("skipped steps", "beyond") == []
    assert found.panels["skipped steps"]["lines"]["skipped so far"][-1, 1] == pytest.approx(2, 1e-3)


def test_values_that_are_not_finite_leave_the_curve_alone_and_are_told() -> None:
    points = [(0, 1.0), (1, math.nan), (2, 2.0), (3, math.inf), (4, -math.inf), (5, 3.0)]
    found = page({"train/loss": points, "train/lr": [(0, math.nan)]})
    line = found.panels["training loss"]["lines"]["each step"]
    np.testing.assert_allclose(line, [(0, 1), (2, 2), (5, 3)], atol=0.01)
    assert "3 values are not finite, the last at 4" in found.panels["training loss"]["text"]
    assert len(found.marks("training loss", "bad")) == 3
    assert "no finite value" in found.panels["learning rate"]["text"]
    assert "1 value is not finite" in found.panels["learning rate"]["text"]


def test_every_metric_has_its_panel_and_what_a_run_lacks_has_none() -> None:
    names = {
        "Loss": {"training loss": ["train/loss", "epoch/loss"], "training loss by session": []},
        "Optimization": {
            "learning rate": ["train/lr"],
            "gradient norms": ["grad/norm", "grad/shared", "grad/sessions"],
            "units clipped": ["grad/clipped"],
            "global clipping": ["grad/coefficient"],
            "skipped steps": ["train/skipped"],
        },
        "Speed": {
            "steps per second": ["speed/steps_per_second"],
            "clips per second": ["speed/clips_per_second"],
            "waiting for data": ["speed/stall_fraction"],
            "checkpoints": ["checkpoint/seconds", "checkpoint/stall_seconds"],
        },
        "Memory": {"memory of a rank": ["memory/rss_gb", "memory/gpu_gb"]},
        "Machines": {
            "CPU use": ["system/cpu_utilization_percentage"],
            "memory in use": ["system/system_memory_usage_megabytes"],
            "GPU use": ["system/node1/gpu_0_utilization_percentage"],
        },
        "Other metrics": {"mine/own": ["mine/own"], "alone": ["alone"]},
    }
    names["Loss"]["training loss by session"] = ["loss/a", "loss/b"]
    names["Validation"] = {
        "validation CC": ["validation/cc_abs"],
        "validation CC by session": ["validation/cc_abs/a"],
    }
    flat = [name for panels in names.values() for some in panels.values() for name in some]
    curves = {name: [(1, 0.1 * i), (2, 0.2)] for i, name in enumerate(flat, start=1)}
    curves["system/system_memory_usage_percentage"] = [(1, 1.0)]  # said by another panel
    found = page({**curves, "never": []})
    assert {group: set(panels) for group, panels in names.items()} == {
        group: set(panels) for group, panels in found.groups.items()
    }
    assert list(found.groups)[-1] == "Other metrics"
    for panels in names.values():
        for title, some in panels.items():
            drawn = sorted(line[0, 1] for line in found.panels[title]["lines"].values())
            scale = 1e-3 if title == "memory in use" else 1
            expected = sorted(scale * curves[name][0][1] for name in some)
            np.testing.assert_allclose(drawn, expected, rtol=0.01)
    assert list(found.panels["GPU use"]["lines"]) == ["node1 GPU 0"]
    assert found.panels["CPU use"]["svg"]["data-axis"] == "time"
    only = page({"train/loss": [(1, 1.0)]})
    assert list(only.panels) == ["training loss"]


def test_many_sessions_are_a_band_and_the_worst_by_name() -> None:
    curves = {f"loss/m{i:03d}": [(s, i + 1.0) for s in range(1, 6)] for i in range(300)}
    curves |= {f"validation/cc_abs/m{i:03d}": [(5, i / 300)] for i in range(300)}
    found = page(curves)
    losses = found.panels["training loss by session"]
    assert list(losses["lines"]) == ["median", "m299", "m298", "m297"]
    np.testing.assert_allclose(losses["lines"]["median"][:, 1], 150.5, rtol=1e-3)
    band = losses["bands"][0][:, 1]
    np.testing.assert_allclose([band.min(), band.max()], [30.9, 270.1], rtol=2e-3)
    scores = found.panels["validation CC by session"]
    assert list(scores["lines"]) == ["median", "m000", "m001", "m002"]
    few = page({name: curves[name] for name in list(curves)[:2]})
    assert list(few.panels["training loss by session"]["lines"]) == ["m000", "m001"]


def test_the_worst_are_found_by_more_than_their_latest_value() -> None:
    curves = {f"loss/m{i}": [(s, float(i)) for s in range(10)] for i in range(20)}
    curves["loss/m3"][-1] = (9, 30.0)  # noise
    lines = page(curves).panels["training loss by session"]["lines"]
    assert list(lines) == ["median", "m19", "m18", "m17"]


def test_sessions_drawn_now_and_then_keep_their_last_value_in_the_median() -> None:
    several = [Series() for _ in range(3)]
    several[0].extend(np.array([0, 1, 2]), np.array([1.0, 1.0, 1.0]))
    several[1].extend(np.array([0, 2]), np.array([2.0, 5.0]))
    several[2].extend(np.array([0]), np.array([3.0]))
    found = spread(several)
    np.testing.assert_array_equal(found.steps, [0, 1, 2])
    np.testing.assert_array_equal(found.middle, [2, 2, 3])


def test_names_are_text_and_nothing_comes_from_elsewhere() -> None:
    curves = {f"loss/{HOSTILE}": [(1, 1.0), (2, 0.5)], HOSTILE: [(1, 1.0)]}
    html = curves_page(
        curves, f"Curves of {HOSTILE}", {HOSTILE: HOSTILE}, [Event(1, HOSTILE)], refresh=30
    )
    found = Page(html)
    assert HOSTILE in found.panels["training loss by session"]["lines"]
    assert HOSTILE in found.panels
    assert f"Curves of {HOSTILE}" in found.text
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"img", "link", "iframe", "object", "image", "use"}
    assert [values for tag, values in found.tags if tag == "script"] == [{}]
    for _, values in found.tags:
        assert not {"src", "onerror", "xlink:href"} & set(values)
        assert str(values.get("href", "#")).startswith("#")
    assert "url(" not in html
    assert html.count("http") == html.count("http-equiv") + html.count("http://www.w3.org/2000/svg")
    policy = next(v for _, v in found.tags if v.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy["content"])
    # Browsers run the page's own script and no other.
    script = html.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy["content"])


def test_events_are_marked_in_every_panel_of_steps_and_listed() -> None:
    curves = {
        "train/loss": [(0, 1.0), (100, 0.5)],
        "event/checkpoint failed": [(50, 1.0)],
        "system/cpu_utilization_percentage": [(0, 1.0), (60, 2.0)],
    }
    found = page(curves, Event(25, "workers restarted"))
    first, second = found.marks("training loss", "event")
    assert str(first["d"]).startswith(f"M{LEFT + (RIGHT - LEFT) / 4:.1f} ")
    assert str(second["d"]).startswith(f"M{(LEFT + RIGHT) / 2:.1f} ")
    assert first["stroke"] != second["stroke"]  # a failure stands out
    assert found.marks("CPU use", "event") == []
    assert "step 25workers restarted" in found.text.replace("\n", "")
    assert "event/checkpoint failed" not in found.panels


def test_one_by_one_or_all_at_once_is_the_same() -> None:
    generator = np.random.default_rng(0)
    points = [(s, float(v)) for s, v in enumerate(generator.standard_normal(3000), start=1)]
    points[7] = (8, math.nan)
    slowly, at_once = Curves(), Curves.of({"train/loss": points, "event/resumed": [(5, 1.0)]})
    for step, value in points:
        slowly.add({"train/loss": value}, step)
    slowly.add({"event/resumed": 1.0}, 5)
    assert slowly.events == at_once.events == [Event(5, "resumed")]
    one, other = slowly.series["train/loss"], at_once.series["train/loss"]
    assert (one.count, one.unfinite, one.last, one.last_step) == (3000, 1, points[-1][1], 3000)
    assert (other.count, other.last_unfinite) == (3000, 8)
    for key, values in vars(one.binned()).items():
        np.testing.assert_allclose(values, vars(other.binned())[key], err_msg=key)
    np.testing.assert_allclose(one.binned().highs.max(), max(v for _, v in points if v == v))


def test_a_page_of_a_long_run_of_many_sessions_is_quick_and_small() -> None:
    generator = np.random.default_rng(0)
    steps = np.arange(1, 20_001)
    kept = Curves()
    names = ["train/loss", "train/lr", "grad/norm", "grad/shared", "speed/steps_per_second"]
    for name in names + [f"loss/m{i}" for i in range(300)]:
        kept.extend(name, list(zip(steps[::20], generator.random(1000), strict=True)))
    curves_page(kept, "Curves")  # reads the template
    began = time.process_time()
    html = curves_page(kept, "Curves")
    assert time.process_time() - began < 0.3
    assert len(html) < 1_000_000


def test_runs_over_each_other() -> None:
    runs = {
        "first": Curves.of({"train/loss": [(1, 2.0), (2, 1.0)], "loss/m": [(1, 1.0)]}),
        HOSTILE: Curves.of({"train/loss": [(1, 3.0)], "validation/cc_abs": [(1, 0.25)]}),
    }
    found = Page(comparison_page(runs, "Runs"))
    assert list(found.panels) == ["training loss", "validation CC"]
    assert list(found.panels["training loss"]["lines"]) == ["first", HOSTILE]
    assert list(found.panels["validation CC"]["lines"]) == [HOSTILE]
    assert "loss 1 at step 2" in found.text


@pytest.fixture
def run(tmp_path: Path) -> RunLog:
    return RunLog.start(f"sqlite:///{tmp_path}/mlflow.db", "e", "night", {"torch": "2.13"})


def test_page_of_an_mlflow_run(run: RunLog, tmp_path: Path) -> None:
    run.metrics({"train/loss": 2.0, "event/workers restarted": 1.0}, 1)
    run.metrics({"train/loss": 1.0, "system/cpu_utilization_percentage": 50.0}, 7)
    url = write_curves_page(run, str(tmp_path / "out"), refresh=60)
    assert url == f"{tmp_path}/out/curves.html"
    found = Page(Path(url).read_text())
    np.testing.assert_allclose(
        found.panels["training loss"]["lines"]["each step"], [(1, 2), (7, 1)], atol=0.01
    )
    # Of a machine: by its time, not by its step.
    cpu = found.panels["CPU use"]
    assert cpu["svg"]["data-axis"] == "time"
    for text in ("Curves of night", "step 1", "workers restarted", run.run_id, "torch", "2.13"):
        assert text in found.text
    assert ("meta", {"http-equiv": "refresh", "content": "60"}) in found.tags
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["curves.html"]


def test_page_from_what_the_process_kept(run: RunLog, s3: str) -> None:
    kept = Curves()
    kept.add({"train/loss": 2.0}, 1)
    url = write_curves_page(run, f"{s3}/run", "Mine", {"a": "b"}, curves=kept)
    assert url == f"{s3}/run/curves.html"
    assert list(Page(storage.read_bytes(url).decode()).panels) == ["training loss"]


def test_a_run_without_metrics_has_a_page() -> None:
    assert "No metrics are recorded yet" in page({}).text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5742, "0.574"),
        (0.0123456, "0.0123"),
        (2e-7, "2e−7"),
        (1234, "1234"),
        (9999, "9999"),
        (12_345, "12.3k"),
        (999_999, "1M"),
        (4.5e6, "4.5M"),
        (-3.14159, "−3.14"),
        (math.nan, "–"),
        (-math.inf, "−∞"),
        (None, "–"),
    ],
)
def test_short_numbers(value: float | None, text: str) -> None:
    assert ticks.short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40, "40 s"), (90, "1 min 30 s"), (300, "5 min"), (5400, "1 h 30 min"), (187_200, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert ticks.duration(seconds) == text


def test_ticks() -> None:
    assert ticks.labels(ticks.linear(0.47, 1.62)) == ["0.50", "0.75", "1.00", "1.25", "1.50"]
    assert ticks.whole(0, 3) == [0, 1, 2, 3]
    assert ticks.times(0, 3700) == [0, 1200, 2400, 3600]
    assert ticks.logarithmic(0.02, 300) == pytest.approx([0.1, 1, 10, 100])
    assert ticks.logarithmic(1.1, 1.4) == pytest.approx([1.1, 1.2, 1.3, 1.4])
