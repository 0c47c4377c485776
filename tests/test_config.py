"""Reading a run's configuration: what is wrong is named, what is right arrives typed."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from fmcortex import cli
from fmcortex.config import RunConfig, load_config, read_yaml, with_overrides
from fmcortex.errors import Adjusted, ConfigError
from fmcortex.model.sizes import PRESETS


def test_the_defaults_are_the_released_recipe() -> None:
    t = load_config(None).training
    assert (t.lr, t.momentum, t.nesterov, t.decay, t.clip, t.eps) == (
        0.1,
        0.9,
        True,
        1e-4,
        0.01,
        1e-3,
    )
    assert (t.epochs, t.steps_per_epoch, t.warmup_epochs, t.burnin) == (100, 500, 10, 10)
    assert load_config(None).model == PRESETS["paper"]


def test_what_the_paper_s_file_says_of_the_defaults() -> None:
    """Every value that it gives is the default, but those that its first lines name."""
    path = Path(__file__).parents[1] / "configs" / "paper.yaml"
    paper, default = load_config(path).model_dump(), RunConfig().model_dump()
    given = yaml.safe_load(path.read_text())
    other = {
        f"{section}.{key}": default[section][key]
        for section in paper
        for key in (given.get(section, {}) if isinstance(paper[section], dict) else ())
        if key != "preset" and paper[section][key] != default[section][key]
    }
    assert paper["model"] == default["model"]
    assert other == {"data.frames": 70, "training.precision": "float32"}
    head = path.read_text().split("\nmodel:")[0]
    assert "but two" in head
    for key, value in other.items():
        assert key in head
        assert str(value) in head


def test_a_file_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("output: here\ndata:\n  url: s3://b/d\n  minutes: 5\ntraining:\n  lr: 1e-2\n")
    config = load_config(path, ["data.minutes=7.5", "data.sessions=[a, b]", "training.clip=null"])
    assert config.output == "here"
    assert (config.data.url, config.data.minutes) == ("s3://b/d", 7.5)
    assert config.data.sessions == ["a", "b"]
    # YAML 1.1 reads 1e-2 as text; it must become a number all the same.
    assert (config.training.lr, config.training.clip) == (0.01, None)
    assert config.data.frames == 70


def test_steps_of_all_cycles() -> None:
    config = load_config(
        None, ["training.cycles=2", "training.epochs=30", "training.steps_per_epoch=7"]
    )
    assert (config.training.total_epochs, config.training.steps) == (60, 420)


def test_a_configuration_survives_json_and_yaml() -> None:
    config = load_config(None, ["model.preset=tiny", "data.minutes=3", "training.lanes=5"])
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    again = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert RunConfig.model_validate(again) == config


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_config(None).training.lr = 1.0


def test_a_preset_and_changes_to_it() -> None:
    assert load_config(None, ["model.preset=tiny"]).model == PRESETS["tiny"]
    changed = load_config(None, ["model.streams=3", "model.preset=tiny"]).model
    assert changed == PRESETS["tiny"].model_copy(update={"streams": 3})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle.streams=1", r"unknown key modle \(known: output, model, data, training, "),
        ("data.minutse=1", r"unknown key data.minutse \(known: url, sessions, minutes, mixed, "),
        ("model.stream=1", r"unknown key model.stream \(known: streams, recurrent, "),
        ("model.preset=huge", r"model.preset: unknown model 'huge'; one of paper, .*tiny"),
        ("data.minutes=0", "data.minutes: Input should be greater than 0"),
        ("data.minutes=ten", "data.minutes: Input should be a valid number"),
        ("data.frames=1", "data.frames: Input should be greater than 1"),
        ("training.lr=.nan", "training.lr: Input should be a finite number"),
        ("training.precision=fp16", "training.precision: Input should be 'float32' or 'bf16'"),
        ("cluster.zero_stage=4", "cluster.zero_stage: Input should be 0, 1, 2 or 3"),
        ("data=5", "data: Input should be a valid dictionary"),
        ("data.burnin=70", "unknown key data.burnin"),
        ("training.burnin=70", r"training.burnin \(70\) must be less than data.frames \(70\)"),
        ("model.block_groups=[1, 2]", "model: block_groups must have one entry a block, 3 in all"),
    ],
)
def test_what_is_wrong_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, [override])
    assert "\n" not in str(caught.value)


def test_limits_that_are_just_kept() -> None:
    config = load_config(
        None, ["training.burnin=69", "training.warmup_epochs=99", "data.minutes=0.1"]
    )
    assert (config.training.burnin, config.data.frames) == (69, 70)
    # Without warm-up cycles the number of warm-up epochs does not matter.
    load_config(None, ["training.warmup_epochs=100", "training.warmup_cycles=0"])


def test_every_fault_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data:\n  batch: 0\n  colour: red\ntraining:\n  seed: -1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    for part in ("data.batch: ", "unknown key data.colour (known: url,", "training.seed: "):
        assert part in message


@pytest.mark.parametrize("override", ["data.minutes", "=1", "a..b=1", ".a=1", "a.=1", ""])
def test_an_override_of_another_form(override: str) -> None:
    with pytest.raises(ConfigError, match=f"--set {override}: expected the form a.b=c"):
        with_overrides({}, [override])


def test_an_override_into_what_is_no_section() -> None:
    with pytest.raises(ConfigError, match=r"--set data.url.x=1: url is not a section"):
        with_overrides({"data": {"url": "here"}}, ["data.url.x=1"])
    with pytest.raises(ConfigError, match=r"--set a=\[1: not valid YAML"):
        with_overrides({}, ["a=[1"])


def test_overrides_apply_in_order_and_leave_their_source_alone() -> None:
    values = {"a": {"b": 1, "c": {"d": 2}}, "e": None}
    changed = with_overrides(values, ["a.b=3", "a.b=4", "a.c.f=x=y", "e.g=null", "h= [1, two]"])
    assert changed == {
        "a": {"b": 4, "c": {"d": 2, "f": "x=y"}},
        "e": {"g": None},
        "h": [1, "two"],
    }
    assert values == {"a": {"b": 1, "c": {"d": 2}}, "e": None}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "expected a mapping of sections at the top"),
        ("just text", "expected a mapping of sections at the top"),
        ("a: 1\nb: [\n", "not valid YAML in line 3"),
        ("a: !!python/object/apply:os.getcwd []\n", "not valid YAML in line 1"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"run.yaml: {message}"):
        read_yaml(path)


def test_a_file_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot read: No such file"):
        load_config(tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == RunConfig()


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ConfigError, match=r"run.yaml"):
        read_yaml(path)


def test_a_warm_up_of_a_whole_cycle_is_cut_and_that_is_said() -> None:
    with pytest.warns(Adjusted, match=r"^training\.warmup_epochs: 10 are not .* \(1\); 0 used"):
        config = load_config(None, ["training.epochs=1"])
    assert config.training.warmup_epochs == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert RunConfig.model_validate(config.model_dump()) == config  # what a run records
        load_config(None, ["training.epochs=11"])


def test_the_command_line_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[object] = []
    cli._say(lambda *_: said.append(_), Adjusted("a: 2 are too many; 1 used instead"), Adjusted)
    cli._say(lambda *_: said.append(_), "other", UserWarning)
    assert capsys.readouterr().err == "note: a: 2 are too many; 1 used instead\n"
    assert said == [("other", UserWarning)]
