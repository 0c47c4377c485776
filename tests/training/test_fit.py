"""Training in this process: what it starts from, what it moves, what it leaves and writes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fmcortex.config import RunConfig
from fmcortex.data.dataset import PreparedDataset, open_dataset
from fmcortex.data.loader import Batch
from fmcortex.data.plan import Clip, Draw
from fmcortex.errors import ConfigError, DataError
from fmcortex.model.network import SessionPart, SharedPart
from fmcortex.model.parameters import rule_of
from fmcortex.training import fit as module
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.checkpoint import open_checkpoint
from fmcortex.training.diagnosis import diagnose, explain
from fmcortex.training.fit import FitResult, fit, plan_of, sessions_of
from fmcortex.training.step import StepReport

Change = Callable[..., RunConfig]
ONE, TWO, THREE = "mouse01-1-1", "mouse02-1-1", "mouse03-1-1"


@pytest.fixture
def change(tiny_run: RunConfig) -> Change:
    """The tiny run of 3 steps, with settings changed: section__field=value."""

    def changed(**settings: Any) -> RunConfig:
        short = {
            "training__epochs": 1,
            "training__steps_per_epoch": 3,
            "training__warmup_epochs": 0,
        }
        values = tiny_run.model_dump()
        for key, value in {**short, **settings}.items():
            section, field = key.split("__")
            values[section][field] = value
        return RunConfig.model_validate(values)

    return changed


@pytest.fixture
def dataset(prepared: str) -> PreparedDataset:
    return open_dataset(prepared)


def state(result: FitResult) -> dict[str, torch.Tensor]:
    """Every parameter and buffer of a result."""
    found = {f"shared/{k}": v.clone() for k, v in result.shared.state_dict().items()}
    for name, part in result.sessions.items():
        found |= {f"{name}/{k}": v.clone() for k, v in part.state_dict().items()}
    return found


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(two) and all(
        torch.allclose(one[name], two[name], rtol=1e-5, atol=1e-7) for name in one
    )


def test_new_parts_depend_on_seed_and_name_only(change: Change) -> None:
    config = change().model
    random = torch.get_rng_state()
    shared, part = build_shared(config, 3), build_session(config, 4, 3, "m")
    torch.manual_seed(99)
    assert same(build_shared(config, 3).state_dict(), shared.state_dict())
    assert same(build_session(config, 4, 3, "m").state_dict(), part.state_dict())
    assert not same(build_shared(config, 4).state_dict(), shared.state_dict())
    assert not same(build_session(config, 4, 3, "n").state_dict(), part.state_dict())
    torch.set_rng_state(random)
    build_shared(config, 5)
    assert torch.equal(torch.get_rng_state(), random)


def test_sessions_of_a_run(change: Change, dataset: PreparedDataset) -> None:
    assert sessions_of(change(), dataset) == [ONE, TWO, THREE]
    assert sessions_of(change(data__sessions=[THREE, ONE]), dataset) == [ONE, THREE]
    with pytest.raises(ConfigError, match=rf"data.sessions: x, y not in .*it has {ONE}, {TWO}"):
        sessions_of(change(data__sessions=["y", ONE, "x"]), dataset)
    with pytest.raises(ConfigError, match=r"data.sessions: a session is named twice"):
        sessions_of(change(data__sessions=[ONE, ONE]), dataset)


def test_the_plan_of_a_run(change: Change, dataset: PreparedDataset) -> None:
    plan = plan_of(change(data__minutes=0.2), dataset)
    assert sorted(name for [name] in plan.lanes) == [ONE, TWO, THREE]
    assert (plan.clip, plan.batch, plan.streams, plan.seed) == (16, 2, 2, 0)
    for name in plan.sessions:
        frames = [t.frames for t in dataset.session(name).manifest.trials]
        chosen = sum(frames[t] for t in plan.trials[name])
        assert 360 <= chosen < 360 + 90  # 0.2 minutes at 30 Hz, the last trial whole
    # By cost, neurons x frames: mouse 2 of 12 neurons comes first and holds two of four lanes.
    four = plan_of(change(training__lanes=4), dataset)
    assert four.lanes == [[TWO], [TWO], [THREE], [ONE]]
    assert plan_of(change(training__lanes=1), dataset).lanes == [[TWO, THREE, ONE]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model__perspectives": 3}, f"model.perspectives: 3, but session {ONE} has 2"),
        ({"model__modulations": 1}, f"model.modulations: 1, but session {ONE} has 2"),
        ({"data__minutes": 5}, f"data.minutes: 5 minutes asked for, but session {ONE} has 0.72"),
        ({"data__frames": 91}, f"data.frames: session {ONE} has no training trial of 91 frames"),
        ({"data__sessions": []}, "data.sessions: there are no sessions to train on"),
    ],
)
def test_a_run_that_does_not_fit_its_data(
    change: Change, dataset: PreparedDataset, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(change(**settings), dataset)


def test_a_run_without_data(change: Change) -> None:
    with pytest.raises(ConfigError, match=r"data.url: missing; name a prepared dataset"):
        fit(change(data__url=""))


def test_reports_of_the_steps(change: Change) -> None:
    heard: list[Any] = []
    config = change(
        training__epochs=3, training__steps_per_epoch=1, training__lanes=2, training__lr=0.4
    )
    result = fit(config, on_step=heard.append)
    assert heard == result.steps
    assert [r.step for r in heard] == [0, 1, 2]
    assert [r.lr for r in heard] == pytest.approx([0.4, 0.3, 0.1])
    assert all(set(r.losses) == {0, 1} for r in heard)
    # Two sessions take turns on the second lane.
    assert [r.sessions for r in heard] == [
        {0: TWO, 1: THREE},
        {0: TWO, 1: ONE},
        {0: TWO, 1: THREE},
    ]
    assert heard[0].losses == pytest.approx({0: 1.0, 1: 1.0})  # exp(0) - 0 * y
    assert result.checkpoint is None


def test_the_same_run_twice_and_another_seed(change: Change) -> None:
    config = change(model__dropout=0.2)
    torch.manual_seed(1)
    one = state(fit(config))
    torch.manual_seed(2)
    assert same(one, state(fit(config)))
    assert not same(one, state(fit(change(model__dropout=0.2, training__seed=1))))


def test_reading_ahead_changes_nothing(change: Change) -> None:
    runs = [state(fit(change(data__prefetch=n, data__cache_mb=n - 1))) for n in (1, 20)]
    assert same(*runs)


def test_a_session_alone_is_not_changed_by_those_left_out(change: Change) -> None:
    result = fit(change(data__sessions=[THREE]))
    assert set(result.sessions) == {THREE}
    assert result.network(THREE).session.units == 9
    assert {name for r in result.steps for name in r.sessions.values()} == {THREE}


def test_a_frozen_shared_part_stays_and_the_sessions_learn(change: Change) -> None:
    config = change(data__sessions=[ONE, TWO])
    shared = build_shared(config.model, 7)
    before = {name: p.detach().clone() for name, p in shared.named_parameters()}
    result = fit(config, shared=shared, freeze_shared=True)
    assert result.shared is shared
    assert all(torch.equal(p, before[name]) for name, p in shared.named_parameters())
    for name, part in result.sessions.items():
        new = build_session(config.model, part.units, 0, name)
        assert not torch.equal(part.readout.biases[0], new.readout.biases[0])
        assert not torch.equal(part.readout.feature.weights[1], new.readout.feature.weights[1])


def test_it_starts_from_the_parts_that_are_given(change: Change) -> None:
    config = change(training__steps_per_epoch=1, training__lr=1e-12)
    part = build_session(config.model, 12, 5, TWO)
    shared = build_shared(config.model, 5)
    before = {k: v.clone() for k, v in {**part.state_dict(), **shared.state_dict()}.items()}
    result = fit(config, shared=shared, sessions={TWO: part})
    assert result.sessions[TWO] is part
    assert set(result.sessions) == {ONE, TWO, THREE}
    after = {**part.state_dict(), **shared.state_dict()}
    assert all(torch.allclose(after[k], v, atol=1e-9) for k, v in before.items())
    new = build_session(config.model, 7, 0, ONE).state_dict()
    assert all(torch.allclose(v, new[k]) for k, v in result.sessions[ONE].state_dict().items())


def test_a_stream_that_nobody_trains_is_not_stepped(change: Change) -> None:
    config = change(training__steps_per_epoch=1, training__lanes=1, data__sessions=[ONE])
    [stream] = plan_of(config, open_dataset(config.data.url)).stream_of_lanes(0)
    result = fit(config)
    for part, new in (
        (result.sessions[ONE], build_session(config.model, 7, 0, ONE)),
        (result.shared, build_shared(config.model, 0)),
    ):
        untouched = [
            torch.equal(p, new.get_parameter(name))
            for name, p in part.named_parameters()
            if rule_of(p).stream == 1 - stream
        ]
        assert untouched
        assert all(untouched)
    biases = result.sessions[ONE].readout.biases
    assert biases[stream].any()
    assert not biases[1 - stream].any()


def test_training_lowers_the_loss(change: Change) -> None:
    """The Poisson loss of a constant is 1 at best, for responses of mean 1; the biases find it."""
    config = change(
        data__sessions=[ONE],
        training__lanes=2,  # so that both streams are trained in every step
        data__batch=6,
        training__steps_per_epoch=20,
        training__clip=None,
        training__lr=0.05,
        training__momentum=0.5,
    )
    part = build_session(config.model, 7, 0, ONE)
    with torch.no_grad():
        for bias in part.readout.biases:
            bias.fill_(2.0)  # predicts 7.4 times the mean: a loss of e^2 - 2 = 5.4
    result = fit(config, sessions={ONE: part})
    losses = [(r.losses[0] + r.losses[1]) / 2 for r in result.steps]
    assert losses[0] == pytest.approx(5.4, abs=1)
    assert sum(losses[-5:]) / 5 < 1.3


def test_the_checkpoint_holds_what_was_trained(change: Change) -> None:
    config = change()
    result = fit(config, save=True)
    checkpoint = open_checkpoint(config.output)
    assert checkpoint.folder == result.checkpoint
    assert checkpoint.folder.endswith("step-00000003")
    checkpoint.verify()
    assert (checkpoint.step, checkpoint.model) == (3, config.model)
    assert checkpoint.manifest.units == {ONE: 7, TWO: 12, THREE: 9}
    assert RunConfig.model_validate(checkpoint.manifest.config) == config
    parts = {name: checkpoint.session(name) for name in checkpoint.sessions}
    assert same(state(FitResult(checkpoint.shared(), parts)), state(result))
    # The optimizer's state after the last step, of every parameter.
    names = {name for name, _ in result.sessions[TWO].named_parameters()}
    kept = checkpoint.tensors(TWO, optimizer=True)
    assert set(kept) == {f"{kind}/{n}" for kind in ("momentum_buffer", "steps") for n in names}
    assert kept["momentum_buffer/readout.biases.0"].any()
    assert 0 < kept["steps/readout.biases.0"] <= 3
    shared = checkpoint.tensors("shared", optimizer=True)
    assert shared["momentum_buffer/core.recurrent.out.weights.0"].any()
    assert checkpoint.manifest.drawn == {ONE: 3, TWO: 3, THREE: 3}


def overflowing(config: RunConfig) -> SessionPart:
    """A part of session THREE whose neuron 4 overflows on every stimulus."""
    part = build_session(config.model, 9, 0, THREE)
    with torch.no_grad():
        for bias in part.readout.biases:
            bias[4] = 1e4
    return part


def test_a_loss_that_is_not_finite_stops_by_name(change: Change) -> None:
    config = change(training__max_skipped=0)
    part = overflowing(config)
    before = {name: value.clone() for name, value in part.state_dict().items()}
    with pytest.raises(DataError) as stopped:
        fit(config, sessions={THREE: part})
    assert "not finite at step 0, and 1 step had to be skipped" in str(stopped.value)
    assert f"session {THREE}, trials [" in str(stopped.value)
    assert "outputs of neuron 4 (of 9) are not finite; lower training.lr" in str(stopped.value)
    assert all(torch.equal(value, before[name]) for name, value in part.state_dict().items())


def test_steps_that_are_not_finite_are_skipped_by_all(change: Change) -> None:
    config = change(training__max_skipped=2)
    shared, parts = build_shared(config.model, 0), {THREE: overflowing(config)}
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    heard: list[StepReport] = []
    with pytest.raises(DataError, match="at step 2, and 3 steps had to be skipped"):
        fit(config, shared, parts, on_step=heard.append)
    assert [(r.step, r.skipped) for r in heard] == [(0, True), (1, True)]
    assert all(math.isfinite(r.losses[0]) for r in heard)  # of the session that is well
    assert all(torch.equal(value, before[name]) for name, value in shared.state_dict().items())


def test_infinite_responses_are_named() -> None:
    draw = Draw(3, 0, "m", (Clip(7, 0), Clip(2, 5)), 0, 0)
    responses = torch.zeros(2, 6, 12)
    responses[1, 4, 3] = math.inf
    responses[0, 1, 5] = math.inf  # in the burn-in, where it does not count
    empty = torch.zeros(2, 6, 1)
    trouble = diagnose(Batch(draw, empty, empty, empty, responses), torch.zeros(2, 6, 12), 3, 2)
    assert (trouble.trials, trouble.recorded, trouble.predicted) == ((2, 7), (3,), ())
    assert explain([trouble], 3, 1).endswith(
        "session m, trials [2, 7]: recorded responses of neuron 3 (of 12) are infinite; "
        "repair or leave out these trials"
    )
    raw = torch.full((2, 6, 12), math.nan)
    trouble = diagnose(Batch(draw, empty, empty, empty, torch.zeros(2, 6, 12)), raw, 3, 2)
    assert "outputs of all 12 neurons are not finite" in explain([trouble], 3, 1)
    raw = torch.zeros(2, 6, 12)
    raw[..., :10] = 1e4
    trouble = diagnose(Batch(draw, empty, empty, empty, torch.zeros(2, 6, 12)), raw, 3, 2)
    assert "neurons 0, 1, 2, 3, 4, 5, 6, 7 and 2 more (of 12)" in explain([trouble], 3, 1)
    assert "a gradient is not" in explain([], 3, 1)


def test_the_cache_is_that_of_the_configuration(
    change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[Any, ...]] = []

    def spy(*args: Any) -> PreparedDataset:
        opened.append(args)
        return open_dataset(*args)

    monkeypatch.setattr(module, "open_dataset", spy)
    config = change(training__steps_per_epoch=1, data__cache_mb=3, data__cache_gb=0.5)
    fit(config)
    assert opened == [(config.data.url, 3 << 20, 2**29, None, None)]


def test_a_part_of_another_recording(change: Change) -> None:
    config = change(training__steps_per_epoch=1)
    with pytest.raises(ConfigError, match=ONE):
        fit(config, sessions={ONE: build_session(config.model, 1, 0, ONE)})


def test_a_shared_part_of_another_model(change: Change) -> None:
    config = change(training__steps_per_epoch=1)
    other = SharedPart(config.model.model_copy(update={"streams": 3}))
    with pytest.raises(ConfigError, match="model"):
        fit(config, shared=other)
