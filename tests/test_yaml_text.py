"""Settings as text: names stay as they were written, and no key counts twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.rayjob import KubernetesJob, read_template
from cluster.slurm import SlurmJob
from data_prep.settings import PrepSettings
from fmcortex.config import load_config, read_yaml, validated, with_overrides
from fmcortex.errors import ConfigError
from fmcortex.scaling.sweep import load_sweep

#: What YAML would read as a comment, dates, numbers, truths, nothing, or not at all.
NAMES = (
    "runs/first #2",
    "2026-11-28",
    "2024-13-45",
    "20240115",
    "2_3",
    "1:30",
    "0x1F",
    "1e5",
    ".inf",
    "no",
    "Yes",
    "a: b",
    "[x",
    "{",
    "*all",
    "&x",
    "!tag",
    "'one",
    '"two"',
    "% - @ `",
    " spaced ",
    "=",
    "mäuse 鼠",
)


@pytest.mark.parametrize("name", NAMES)
def test_an_override_of_text_is_taken_as_it_is(name: str) -> None:
    config = load_config(None, [f"output={name}", f"data.cache_folder={name}", f"data.url={name}"])
    assert (config.output, config.data.cache_folder, config.data.url) == (name, name, name)
    job = with_overrides({}, [f"partition={name}", f"variables.A={name}"], SlurmJob, "--job")
    assert job == {"partition": name, "variables": {"A": name}}


@pytest.mark.parametrize("name", [*NAMES, "null", "~"])
def test_an_option_of_its_own_is_taken_as_it_is(name: str) -> None:
    config = load_config(None, [], {"output": name, "data.sessions": [name], "data.minutes": 2.5})
    assert (config.output, config.data.sessions, config.data.minutes) == (name, [name], 2.5)


def test_text_that_may_be_absent() -> None:
    given = [f"data.cache_folder={text}" for text in ("x", "null")]
    assert load_config(None, given).data.cache_folder is None
    assert load_config(None, given[::-1]).data.cache_folder == "x"
    assert load_config(None, ["output=null"]).output == "null"  # it may not be absent


def test_names_in_lists_and_in_files(tmp_path: Path) -> None:
    line = "[20240115, 2024-01-15, 2_3, no, 1e5, null, 'a, b', 4_7]"
    names = ["20240115", "2024-01-15", "2_3", "no", "1e5", "null", "a, b", "4_7"]
    assert load_config(None, [f"data.sessions={line}"]).data.sessions == names
    assert load_config(None, ["data.sessions=null"]).data.sessions is None
    settings = with_overrides({}, [f"sessions={line}"], PrepSettings)
    assert validated(PrepSettings, settings, "prep").sessions == names
    path = tmp_path / "run.yaml"
    path.write_text(
        f"output: 20240115\ndata: &d\n  url: 2024-01-15\n  sessions: {line}\n  cache_folder:\n"
        "tracking: {experiment: 1:30, run_name: no}\n"
    )
    config = load_config(path)
    assert (config.output, config.data.url, config.data.sessions) == (
        "20240115",
        "2024-01-15",
        names,
    )
    assert config.data.cache_folder is None
    assert (config.tracking.experiment, config.tracking.run_name) == ("1:30", "no")


def test_the_base_of_a_sweep_has_the_types_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("base: {data: {sessions: [20240115, 2_3]}}\nmice: [1]\noutput: 2026-11-28\n")
    config = load_sweep(path, ["base.data.url=runs #2", "metric.domain=no"])
    assert (config.output, config.metric.domain) == ("2026-11-28", "no")
    assert config.run.data.sessions == ["20240115", "2_3"]
    assert config.run.data.url == "runs #2"
    (tmp_path / "base.yaml").write_text("tracking: {experiment: 12_3}\n")
    path.write_text("base: base.yaml\nmice: [1]\n")
    assert load_sweep(path).run.tracking.experiment == "12_3"


def test_numbers_are_what_they_look_like() -> None:
    config = load_config(None, ["training.lr=1e-2", "data.batch=010", "data.minutes=+2.5"])
    assert (config.training.lr, config.data.batch, config.data.minutes) == (0.01, 10, 2.5)
    # YAML would make 90, 1 and 31 of these.
    for override in ("data.minutes=1:30", "data.batch=yes", "data.batch=true", "data.batch=0x1F"):
        with pytest.raises(ConfigError, match=override.partition("=")[0]):
            load_config(None, [override])


def test_truths_mappings_and_merged_sections(tmp_path: Path) -> None:
    assert load_config(None, ["training.nesterov=no"]).training.nesterov is False
    job = with_overrides({}, ["node_selector={pool: 1, zone: no}", "nodes=3"], KubernetesJob)
    made = validated(KubernetesJob, job, "--job")
    assert (made.node_selector, made.nodes) == ({"pool": "1", "zone": "no"}, 3)
    path = tmp_path / "run.yaml"
    path.write_text("a: &a {url: no, frames: 20}\ndata: {<<: *a, frames: 30}\n")
    values = read_yaml(path)
    assert values["data"] == {"url": False, "frames": 30}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "training:\n  lr: 1\ndata: {}\ntraining:\n  seed: 2\n",
            "training is given twice.*1 and 4",
        ),
        ("training:\n  lr: 1\n  seed: 2\n  lr: 3\n", "lr is given twice, in lines 2 and 4"),
        ("data: {url: a, 'url': b}\n", "url is given twice, in lines 1 and 1"),
        ("x: [{a: 1, a: 2}]\n", "a is given twice"),
    ],
)
def test_a_key_that_is_given_twice(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    for read in (load_config, load_sweep, read_yaml):
        with pytest.raises(ConfigError, match=f"run.yaml: {message}"):
            read(path)
    with pytest.raises(ConfigError, match=r"--set data=\{url: a, url: b\}: url is given"):
        load_config(None, ["data={url: a, url: b}"])
    path.write_text("kind: ConfigMap\n---\nkind: RayJob\nspec: 1\nspec: 2\n")
    with pytest.raises(ConfigError, match=r"run.yaml: spec is given twice, in lines 4 and 5"):
        read_template(path)


@pytest.mark.parametrize(
    "content",
    ["other: 2024-13-45\n", "[" * 3000, "a: &a [*b]\n", "a: b: c\n", "a: \x07\n", "%YAML 9\n"],
)
def test_what_yaml_cannot_read_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"run.yaml: not valid YAML") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_settings_that_contain_themselves(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: &d\n  sessions: *d\n")
    with pytest.raises(ConfigError, match=r"run.yaml: data.sessions"):
        load_config(path)
