"""Training in this process: what it starts from, what it moves, what it leaves and writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fmcortex.config import RunConfig
from fmcortex.data.dataset import PreparedDataset, open_dataset
from fmcortex.errors import ConfigError, DataError
from fmcortex.model.network import SharedPart
from fmcortex.model.parameters import rule_of
from fmcortex.training import fit as module
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.checkpoint import open_checkpoint
from fmcortex.training.fit import FitResult, fit, plan_of, sessions_of

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
    # The last step's momenta, of every parameter.
    moments = checkpoint.tensors(TWO, momenta=True)
    assert set(moments) == {name for name, _ in result.sessions[TWO].named_parameters()}
    assert moments["readout.biases.0"].any()
    assert checkpoint.tensors("shared", momenta=True)["core.recurrent.out.weights.0"].any()


def test_a_loss_that_is_not_finite_stops_by_name(change: Change) -> None:
    config = change()
    part = build_session(config.model, 9, 0, THREE)
    with torch.no_grad():
        for bias in part.readout.biases:
            bias[4] = 1e4  # exp overflows
    before = part.state_dict()["readout.biases.1"].clone()
    with pytest.raises(DataError, match=rf"session {THREE}: the loss is not finite at step 0 \(tr"):
        fit(config, sessions={THREE: part})
    assert torch.equal(part.readout.biases[1], before)


def test_the_cache_is_that_of_the_configuration(
    change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[Any, ...]] = []

    def spy(*args: Any) -> PreparedDataset:
        opened.append(args)
        return open_dataset(*args)

    monkeypatch.setattr(module, "open_dataset", spy)
    config = change(training__steps_per_epoch=1, data__cache_mb=3)
    fit(config)
    assert opened == [(config.data.url, 3 << 20)]


def test_a_part_of_another_recording(change: Change) -> None:
    config = change(training__steps_per_epoch=1)
    with pytest.raises(ConfigError, match=ONE):
        fit(config, sessions={ONE: build_session(config.model, 1, 0, ONE)})


def test_a_shared_part_of_another_model(change: Change) -> None:
    config = change(training__steps_per_epoch=1)
    other = SharedPart(config.model.model_copy(update={"streams": 3}))
    with pytest.raises(ConfigError, match="model"):
        fit(config, shared=other)
