"""What the points of a sweep are, and how they are known again."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fmcortex.data.dataset import open_dataset
from fmcortex.data.subset import nested_trials
from fmcortex.errors import ConfigError
from fmcortex.scaling.sweep import Point, SweepConfig, load_sweep, nested_order, points


def sweep(url: str, **values: Any) -> SweepConfig:
    base = {"model": {"preset": "tiny"}, "data": {"url": url, "frames": 30}}
    return SweepConfig.model_validate({"base": base, "mice": [1, 2, 3], **values})


def grid(url: str, **values: Any) -> list[Point]:
    return points(sweep(url, **values), open_dataset(url))


def test_subsets_are_nested(three_mice: str) -> None:
    found = grid(three_mice, minutes=[0.3, 0.6])
    assert len(found) == 6
    assert [p.neuron_hours for p in found] == sorted(p.neuron_hours for p in found)
    by_mice = {p.mice: set(p.sessions) for p in found}
    assert by_mice[1] < by_mice[2] < by_mice[3]
    manifest = open_dataset(three_mice).session("mouse01-1-1").manifest
    frames = [trial.frames for trial in manifest.trials]
    few, many = (set(nested_trials("mouse01-1-1", frames, 30, m)) for m in (0.3, 0.6))
    assert few < many


def test_amounts_are_those_of_the_trials_taken(three_mice: str) -> None:
    whole = next(p for p in grid(three_mice) if p.mice == 3)
    dataset = open_dataset(three_mice)
    minutes = sum(dataset.session(s).manifest.train_minutes for s in dataset.sessions)
    assert whole.mouse_minutes == pytest.approx(minutes)
    assert whole.neuron_hours == pytest.approx(10 * minutes / 60)
    part = grid(three_mice, mice=[1], minutes=[0.3])[0]
    assert 0.3 <= part.mouse_minutes < 0.3 + 5 / 60 + 1e-9  # the last trial is taken whole


def test_order_of_mice_does_not_change_when_one_comes() -> None:
    names = [f"m{i}" for i in range(8)]
    without = nested_order(names[:-1], 0)
    assert [name for name in nested_order(names, 0) if name != "m7"] == without
    assert nested_order(names, 1) != nested_order(names, 0)


def test_keys_change_with_what_matters_and_with_nothing_else(three_mice: str) -> None:
    def key(**values: Any) -> str:
        base = {"model": {"preset": "tiny"}, "data": {"url": three_mice, "frames": 30}}
        changed = {
            section: {**base.get(section, {}), **part}
            for section, part in values.pop("base", {}).items()
        }
        given = {"mice": [2], "base": {**base, **changed}, **values}
        config = SweepConfig.model_validate(given)
        return points(config, open_dataset(three_mice))[0].key

    same = key()
    assert key() == same
    assert key(base={"cluster": {"workers": 7}}) == same
    assert key(base={"data": {"cache_mb": 9}, "training": {"device": "cpu"}}) == same
    assert key(output="elsewhere") == same
    different = [
        key(base={"training": {"lr": 0.01}}),
        key(base={"data": {"frames": 40}}),
        key(base={"model": {"dropout": 0.1}}),
        key(minutes=[0.5]),
        key(seeds=[1]),
        key(metric={"score": "cc_abs"}),
        key(transfer={"session": "mouse03-1-1", "steps": 3}),
    ]
    assert len({same, *different}) == len(different) + 1


def test_common_metric_scores_the_mice_of_the_smallest_point(three_mice: str) -> None:
    own = grid(three_mice, mice=[1, 3])
    common = grid(three_mice, mice=[1, 3], metric={"sessions": "common"})
    assert {p.mice: len(p.scored) for p in own} == {1: 1, 3: 3}
    assert {p.scored for p in common} == {own[0].scored}


def test_transferred_mouse_is_never_pretrained_on(three_mice: str) -> None:
    found = grid(three_mice, mice=[1, 2], transfer={"session": "mouse02-1-1", "steps": 7})
    for point in found:
        assert "mouse02-1-1" not in point.sessions
        assert point.scored == ("mouse02-1-1",)
        assert point.transfer is not None
        assert point.transfer.training.steps == 7
    with pytest.raises(ConfigError, match="3 asked for, but there are 2"):
        grid(three_mice, mice=[3], transfer={"session": "mouse02-1-1"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mice": [4]}, "mice: 4 asked for, but there are 3"),
        ({"minutes": [90]}, "90 minutes asked for"),
        ({"transfer": {"session": "nobody"}}, "nobody not in"),
    ],
)
def test_more_than_there_is_is_refused(
    three_mice: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        grid(three_mice, **values)


def test_file_may_name_the_file_of_its_base(tmp_path: Path) -> None:
    base = {"model": {"preset": "tiny"}, "training": {"epochs": 20}}
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump(base))
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"base": "pretrain.yaml", "mice": [1], "minutes": [None, 2]}))
    config = load_sweep(file, ["base.training.lr=0.5", "seeds=[0,1]"])
    assert config.run.training.epochs == 20
    assert config.run.training.lr == 0.5
    assert config.seeds == [0, 1]
    assert config.minutes == [None, 2.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mouse": [1]}, "unknown key mouse"),
        ({"mice": []}, "mice"),
        ({"mice": [1, 1]}, "twice"),
        ({"mice": [0]}, "mice.0: .*greater than or equal to 1"),
        ({"minutes": [-1]}, "minutes.0: .*greater than 0"),
        ({"base": {"trainin": {}}}, "unknown key trainin"),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: cannot read"),
        ({"metric": {"score": "mse"}}, "metric.score"),
    ],
)
def test_bad_file_is_refused_with_the_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"mice": [1], **change}))
    with pytest.raises(ConfigError, match=message):
        load_sweep(file)
