"""Planning: the sessions of a table or a dataset on ranks, told before they are trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cluster.placement import configured_costs, place_lanes, write_costs
from cluster.plan import Recordings, chosen, plan_run, read_recordings, recordings_of
from fmcortex.cli import cli
from fmcortex.config import RunConfig, load_config
from fmcortex.data.dataset import open_dataset
from fmcortex.errors import ConfigError
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.fit import neurons_of, plan_of

TINY = ["model.preset=tiny", "data.frames=16", "data.batch=4", "training.burnin=4"]


def config(*overrides: str) -> RunConfig:
    return load_config(None, [*TINY, *overrides])


@pytest.fixture(scope="module")
def many() -> Recordings:
    """333 sessions: 1960 to 10771 neurons, the median 7253; 47 to 216 minutes."""
    rng = np.random.default_rng(0)
    neurons = np.sort(rng.normal(7253, 1500, 333))
    neurons = (neurons + 7253 - np.median(neurons)).clip(1960, 10771).astype(int)
    neurons[0], neurons[-1] = 1960, 10771
    minutes = rng.uniform(47, 216, 333)
    names = [f"s{i:03}" for i in range(333)]
    return Recordings(
        {name: int(n) for name, n in zip(names, neurons, strict=True)},
        {name: float(m) for name, m in zip(names, minutes, strict=True)},
    )


#: Ranks and settings that balance 333 sessions at 1332 clips a step.
SETTINGS = [
    (8, ["data.batch=4"]),
    (64, ["data.batch=4"]),
    (256, ["data.batch=1", "training.lanes=1332"]),
]


@pytest.mark.parametrize("weights", ["uniform", "minutes"])
@pytest.mark.parametrize(("ranks", "settings"), SETTINGS, ids=["8", "64", "256"])
def test_the_sessions_of_the_paper(
    many: Recordings, ranks: int, settings: list[str], weights: str
) -> None:
    plan = plan_run(config(*settings, f"training.session_weights={weights}"), many, ranks)
    assert len(plan.lanes) * plan.batch == 1332
    assert plan.placement.imbalance < 0.03
    assert plan.seconds < 2
    assert plan.hints == []
    assert max(plan.replicas) == 1 or ranks == 256
    if weights == "uniform":
        assert plan.drawn == pytest.approx((1, 1))
    else:
        assert plan.drawn[0] > 0.5
        assert plan.drawn[1] < 2


def test_a_hint_where_ranks_are_badly_balanced(many: Recordings) -> None:
    plan = plan_run(config(), many, 256)
    assert plan.placement.imbalance > 0.3
    [hint] = plan.hints
    assert hint.lanes * hint.batch == 1332
    better = plan_run(config(f"training.lanes={hint.lanes}", f"data.batch={hint.batch}"), many, 256)
    assert better.placement.imbalance == hint.imbalance < 0.03
    # Clips of one sequence cannot be made smaller.
    assert plan_run(config("data.batch=1"), many, 256).hints == []


def test_what_a_rank_holds_and_sends() -> None:
    given = Recordings({"a": 100, "b": 50}, {"a": 10.0, "b": 10.0}, (18, 32))
    run = config("training.lanes=6", "training.session_weights=uniform", "cluster.zero_stage=0")
    plan = plan_run(run, given, 4)
    assert sorted(plan.lanes) == [["a"]] * 3 + [["b"]] * 3
    parts = {name: build_session(run.model, n, 0, name) for name, n in given.neurons.items()}
    own = {name: 4 * sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    shared = 4 * sum(p.numel() for p in build_shared(run.model, 0).parameters())
    assert plan.shared_bytes == shared
    for rank, names in enumerate(plan.placement.sessions):
        assert plan.memory[rank].parameters == shared + sum(own[name] for name in names)
        replicated = [name for name in names if len(plan.placement.holders[name]) > 1]
        assert plan.session_bytes[rank] == sum(own[name] for name in replicated)
    assert max(plan.session_bytes) > 0
    costs = configured_costs(given.neurons, None)
    assert plan.placement == place_lanes(plan.lanes, costs, 4)


def test_how_often_sessions_are_drawn() -> None:
    given = Recordings({"a": 5, "b": 5, "c": 5}, {"a": 60.0, "b": 30.0, "c": 10.0}, (18, 32))
    run = config("training.lanes=5", "training.session_weights=minutes")
    # Shares of 3, 1.5 and 0.5: a holds 3 lanes, b 1, c the last.
    assert plan_run(run, given, 1).drawn == pytest.approx((1 / 1.5, 1 / 0.5))


def test_a_plan_of_a_dataset_is_that_of_the_run(prepared: str, tmp_path: Path) -> None:
    run = config(f"data.url={prepared}", "training.lanes=5", "training.session_weights=minutes")
    dataset = open_dataset(prepared)
    given = recordings_of(run, dataset)
    assert given.stimulus == (18, 32)
    plan = plan_run(run, given, 2)
    expected = plan_of(run, dataset)
    assert plan.lanes == expected.lanes
    costs = configured_costs(neurons_of(dataset, expected.sessions), None)
    assert plan.placement == place_lanes(expected.lanes, costs, 2)
    # Only some of the minutes, and of the sessions.
    run = config(f"data.url={prepared}", "data.minutes=0.2", "data.sessions=[mouse03-1-1]")
    given = recordings_of(run, dataset)
    assert given.neurons == {"mouse03-1-1": 9}
    assert 0.2 <= given.minutes["mouse03-1-1"] < 0.25


def test_measured_costs(tmp_path: Path) -> None:
    url = str(tmp_path / "costs.json")
    write_costs(url, {"a": 3.0, "b": 1.0, "c": 1.0, "d": 1.0})
    given = Recordings(dict.fromkeys("abcd", 5), dict.fromkeys("abcd", 9.0), (18, 32))
    plan = plan_run(config(f"cluster.costs={url}"), given, 2)
    assert plan.measured
    assert plan.placement.loads == [3.0, 3.0]


def table(folder: Path, text: str) -> str:
    path = folder / "sessions.csv"
    path.write_bytes(text.encode("latin-1"))
    return str(path)


def test_a_table(tmp_path: Path) -> None:
    text = "animal,session,minutes,neurons\nm1,b,47.5,1960\n\nm2, a ,216,10771\n"
    given = read_recordings(table(tmp_path, text))
    assert given.neurons == {"b": 1960, "a": 10771}
    assert given.minutes == {"b": 47.5, "a": 216}
    some = chosen(config("data.sessions=[a]", "data.minutes=10"), given, "it")
    assert (some.neurons, some.minutes) == ({"a": 10771}, {"a": 10})
    with pytest.raises(ConfigError, match=r"data.sessions: c not in it"):
        chosen(config("data.sessions=[a, c]"), given, "it")
    with pytest.raises(ConfigError, match=r"data.minutes: 50 .* session b has 47.50"):
        chosen(config("data.minutes=50"), given, "it")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no column session, neurons, minutes"),
        ("session,minutes\na,5\n", "line 1: no column neurons"),
        ("session,neurons,minutes\n", "line 2: no session"),
        ("session,neurons,minutes\na,1,1\n,1,1\n", "line 3: column session: empty"),
        ("session,neurons,minutes\na,1,1\n\na,1,1\n", "line 4: column session: a is there twice"),
        ("session,neurons,minutes\na,x,1\n", "line 2: column neurons: .*whole number.*, got 'x'"),
        ("session,neurons,minutes\na,1.5,1\n", "line 2: column neurons: .*, got '1.5'"),
        ("session,neurons,minutes\na,0,1\n", "line 2: column neurons: .*above 0, got '0'"),
        ("session,neurons,minutes\na,1,nan\n", "line 2: column minutes: .*above 0, got 'nan'"),
        ("session,neurons,minutes\na,1,inf\n", "line 2: column minutes: .*above 0, got 'inf'"),
        ("session,neurons,minutes\na,1\n", "line 2: column minutes: .*above 0, got ''"),
        ('session,neurons,minutes\n"a"b,1,1\n', "line 2: not valid CSV"),
        ("session,neurons,minutes\n\xe9,1,1\n", "not a text file"),
    ],
)
def test_a_table_that_is_malformed(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"sessions.csv: {message}"):
        read_recordings(table(tmp_path, text))


def run_command(*words: str) -> Result:
    settings = [word for setting in TINY for word in ("--set", setting)]
    return CliRunner().invoke(cli, ["plan", *settings, *words])


def test_the_command_prints_a_plan(tmp_path: Path, many: Recordings) -> None:
    rows = [f"{name},{n},{many.minutes[name]}" for name, n in many.neurons.items()]
    path = table(tmp_path, "\n".join(["session,neurons,minutes", *rows]))
    out = run_command("--sessions", path, "--ranks", "256")
    assert out.exit_code == 0, out.output
    for text in ("333", "1332 (4 a micro-batch)", "busiest", "least busy", "activations"):
        assert text in out.output
    assert "hint: training.lanes=1332 with data.batch=1 draws as many clips" in out.output

    out = run_command("--sessions", path, "--ranks", "256", "--json")
    told = json.loads(out.output)
    plan = plan_run(config(), read_recordings(path), 256)
    assert told["imbalance"] == pytest.approx(plan.placement.imbalance)
    assert len(told["of_ranks"]) == 256
    assert sum(one["lanes"] for one in told["of_ranks"]) == told["lanes"] == 333
    assert told["memory_bytes"]["largest"]["total"] == max(m.total for m in plan.memory)
    assert told["hints"] == [
        {"lanes": 1332, "batch": 1, "imbalance": pytest.approx(plan.hints[0].imbalance)}
    ]


def test_the_command_plans_a_dataset_or_says_that_there_is_none(prepared: str) -> None:
    out = run_command("--set", f"data.url={prepared}", "--ranks", "2")
    assert out.exit_code == 0, out.output
    assert "load of every rank" in out.output
    # Three lanes on two ranks are badly balanced; six smaller ones are not.
    assert "hint: training.lanes=6 with data.batch=2" in out.output
    out = run_command("--ranks", "2")
    assert isinstance(out.exception, ConfigError)
    assert "--sessions FILE.csv" in str(out.exception)
    out = run_command("--set", f"data.url={prepared}", "--ranks", "4")
    assert "4 workers, but the run has 3 lanes" in str(out.exception)
