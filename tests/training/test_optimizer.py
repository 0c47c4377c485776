"""The optimizer against formulas written out in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fmcortex.config import TrainingConfig
from fmcortex.model.parameters import Rule, rule_of, ruled
from fmcortex.training.engine import LocalEngine
from fmcortex.training.objective import objective
from fmcortex.training.optimizer import (
    SGD,
    AdamW,
    Stepped,
    load_optimizer_state,
    make_optimizer,
    norms,
    optimizer_state,
    parameter_groups,
    prepare_gradient,
    prepare_gradients,
)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Toy(torch.nn.Module):
    """Parameters of several rules."""

    def __init__(self) -> None:
        super().__init__()
        self.free = ruled(random(3, seed=1), Rule(decay=False))
        self.second = ruled(random(2, 4, seed=2), Rule(norm_dim=(1,), stream=1))
        self.first = ruled(random(2, 4, seed=3), Rule(norm_dim=(1,), stream=0))
        self.plain = torch.nn.Parameter(random(5, seed=4))


def test_scale_without_clipping() -> None:
    gradient, p = random(4, 3), random(4, 3, seed=1)
    prepared = prepare_gradient(gradient, p, Rule(scale=7.0), None, 1e-3)
    assert torch.equal(prepared, gradient * 7)


@pytest.mark.parametrize("dims", [None, (0,), (1,), (0, 2), (1, 2)])
@pytest.mark.parametrize("clip", [0.01, 0.5, 100.0])
def test_clipping_is_unit_wise(dims: tuple[int, ...] | None, clip: float) -> None:
    p, gradient = random(3, 4, 2, seed=1), random(3, 4, 2)
    p[0] *= 1e-4  # small units, where eps counts
    rule = Rule(scale=2.0, norm_dim=dims)
    ours = prepare_gradient(gradient, p, rule, clip, 1e-3).numpy()
    w, d = p.double().numpy(), gradient.double().numpy() * 2
    axes = dims if dims is not None else (0, 1, 2)
    expected = np.empty_like(d)
    kept = [axis for axis in range(3) if axis not in axes]
    for index in np.ndindex(*(p.shape[axis] for axis in kept)):
        where: list[slice | int] = [slice(None)] * 3
        for axis, i in zip(kept, index, strict=True):
            where[axis] = i
        unit = tuple(where)
        size = math.sqrt((d[unit] ** 2).sum())
        limit = max(clip * math.sqrt((w[unit] ** 2).sum()), 1e-3 * math.sqrt(w.size))
        expected[unit] = d[unit] * min(1.0, limit / size)
    assert ours == pytest.approx(expected, rel=1e-5)


def test_clipping_bounds_the_norm_and_keeps_the_direction() -> None:
    p, gradient = random(6, 5, seed=1), random(6, 5) * 1e4
    prepared = prepare_gradient(gradient, p, Rule(norm_dim=(1,)), 0.01, 1e-3)
    assert norms(prepared, (1,)) == pytest.approx(
        (0.01 * norms(p, (1,))).clip(min=1e-3 * math.sqrt(30)), rel=1e-5
    )
    cosine = torch.nn.functional.cosine_similarity(prepared, gradient)
    assert cosine == pytest.approx(torch.ones(6), abs=1e-6)


def test_zero_gradients_and_zero_weights() -> None:
    zero = torch.zeros(4, 3)
    assert torch.equal(prepare_gradient(zero, random(4, 3), Rule(), 0.01, 1e-3), zero)
    # Weights that start at zero move by eps: the readout's do.
    prepared = prepare_gradient(torch.full((4, 3), 9.0), zero, Rule(), 0.01, 1e-3)
    assert float(prepared.norm()) == pytest.approx(1e-3 * math.sqrt(12))
    assert torch.equal(prepare_gradient(zero, zero, Rule(), 0.01, 0.0), zero)


@pytest.mark.parametrize("nesterov", [True, False])
def test_five_steps_by_the_formula(nesterov: bool) -> None:
    module = Toy()
    expected = {name: p.detach().double().numpy() for name, p in module.named_parameters()}
    groups = parameter_groups(dict(module.named_parameters()), 0.02)
    optimizer = SGD(groups, lr=0.3, momentum=0.8, nesterov=nesterov)
    m: dict[str, np.ndarray] = {}
    for step in range(5):
        for i, (name, p) in enumerate(module.named_parameters()):
            if name == "second" and step in (0, 2):
                p.grad = None  # then it and its momentum are left as they are
                continue
            p.grad = random(*p.shape, seed=10 * step + i)
            g, w = p.grad.double().numpy(), expected[name]
            m[name] = g if name not in m else 0.8 * m[name] + g
            d = g + 0.8 * m[name] if nesterov else m[name]
            expected[name] = w - 0.3 * (d + (0.0 if name == "free" else 0.02) * w)
        optimizer.step()
    for name, p in module.named_parameters():
        assert p.detach().numpy() == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    kept = optimizer_state(optimizer)
    for name, value in m.items():
        momentum = kept[f"momentum_buffer/{name}"].numpy()
        assert momentum == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert {name: int(kept[f"steps/{name}"]) for name in m} == {
        "free": 5,
        "second": 3,
        "first": 5,
        "plain": 5,
    }


def test_decay_is_not_accumulated() -> None:
    p = ruled(torch.ones(1), Rule())
    optimizer = SGD(parameter_groups({"p": p}, 0.1), lr=1.0, momentum=0.9)
    for _ in range(3):
        p.grad = torch.zeros(1)
        optimizer.step()
    # torch.optim.SGD would accumulate the decay in its momentum and be faster.
    assert float(p.detach()) == pytest.approx(0.9**3)
    assert float(optimizer_state(optimizer)["momentum_buffer/p"]) == 0


def test_an_inactive_group_rests() -> None:
    module = Toy()
    optimizer = SGD(parameter_groups(dict(module.named_parameters()), 0.1))
    optimizer.allocate()
    for group in optimizer.param_groups:
        group["active"] = group["stream"] != 1
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    moved = {n for n, p in module.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert moved == {"free", "first", "plain"}
    kept = optimizer_state(optimizer)
    assert {n for n in before if kept[f"momentum_buffer/{n}"].any()} == moved
    assert {n for n in before if kept[f"steps/{n}"]} == moved


def test_groups_of_equal_decay_and_stream() -> None:
    parameters = dict(Toy().named_parameters())
    groups = parameter_groups(parameters, 0.1)
    found = [(g["weight_decay"], g["stream"], g["names"]) for g in groups]
    assert found == [
        (0.0, None, ["free"]),
        (0.1, None, ["plain"]),
        (0.1, 0, ["first"]),
        (0.1, 1, ["second"]),
    ]
    for group in groups:
        assert [id(p) for p in group["params"]] == [id(parameters[n]) for n in group["names"]]
    backwards = parameter_groups(dict(reversed(parameters.items())), 0.1)
    assert [g["names"] for g in backwards] == [g["names"] for g in groups]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_state_is_saved_and_loaded(name: str) -> None:
    config = TrainingConfig.model_validate({"optimizer": name, "momentum": 0.7})

    def make(module: Toy) -> Stepped:
        return make_optimizer(dict(module.named_parameters()), config)

    def run(optimizer: Stepped, module: Toy, steps: range) -> None:
        for step in steps:
            for i, p in enumerate(module.parameters()):
                p.grad = random(*p.shape, seed=10 * step + i)
            optimizer.step()

    whole, half, rest = Toy(), Toy(), Toy()
    run(make(whole), whole, range(4))
    first = make(half)
    assert not any(m.any() for m in optimizer_state(first).values())
    run(first, half, range(2))
    saved = optimizer_state(first)
    second = make(rest)
    rest.load_state_dict(half.state_dict())
    load_optimizer_state(second, saved)
    kept = {key: value.clone() for key, value in saved.items()}
    run(second, rest, range(2, 4))
    for key, p in whole.named_parameters():
        assert torch.equal(p, rest.get_parameter(key))
    # What was saved does not follow the optimizers that it came from or went to.
    assert all(torch.equal(saved[key], kept[key]) for key in kept)


def test_adamw_is_that_of_pytorch() -> None:
    ours, theirs = Toy(), Toy()
    groups = parameter_groups(dict(ours.named_parameters()), 0.05)
    one = AdamW(groups, lr=0.01, betas=(0.8, 0.95), eps=1e-6)
    decays = [{"params": [theirs.free], "weight_decay": 0.0}]
    decays.append({"params": [theirs.plain, theirs.first, theirs.second], "weight_decay": 0.05})
    two = torch.optim.AdamW(decays, lr=0.01, betas=(0.8, 0.95), eps=1e-6)
    for step in range(6):
        for i, (p, q) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
            # A stream that is not trained neither moves nor ages.
            resting = p is ours.second and step % 2
            p.grad = None if resting else random(*p.shape, seed=10 * step + i)
            q.grad = None if p.grad is None else p.grad.clone()
        one.step()
        two.step()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-7), name


def test_prepared_gradients_say_how_much_was_clipped() -> None:
    module = Toy()
    parameters = dict(module.named_parameters())
    gradients = {"first": torch.stack([torch.ones(4) * 1e-6, torch.ones(4)]), "free": torch.ones(3)}
    prepared = prepare_gradients(gradients, parameters, 0.01, 1e-3)
    # `first` has a unit a row, `free` is one unit; the small row alone is left as it is.
    assert (float(prepared.clipped), prepared.units) == (2.0, 3)
    expected = {
        name: prepare_gradient(g, parameters[name].detach(), rule_of(parameters[name]), 0.01, 1e-3)
        for name, g in gradients.items()
    }
    assert all(torch.equal(prepared.gradients[name], expected[name]) for name in gradients)
    squares = sum(float(d.double().square().sum()) for d in expected.values())
    assert float(prepared.squares) == pytest.approx(squares, rel=1e-6)
    free = prepare_gradients(gradients, parameters, None, 1e-3)
    assert (float(free.clipped), free.units) == (0.0, 0)
    assert float(free.squares) == pytest.approx(7.0, rel=1e-6)


def test_the_engine_steps_what_has_a_gradient() -> None:
    module = Toy()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    config = TrainingConfig(decay=0.0, clip=None, momentum=0.5)
    engine = LocalEngine(module, config)  # type: ignore[arg-type]
    engine.step({"plain": torch.ones(5)}, 0.1, {0})
    assert torch.allclose(module.plain, before["plain"] - 0.1 * 1.5)
    assert torch.equal(engine.state()["momentum_buffer/plain"], torch.ones(5))
    for name in ("free", "first", "second"):
        assert torch.equal(module.get_parameter(name), before[name])
    frozen = LocalEngine(module, config, frozen=True)  # type: ignore[arg-type]
    now = module.plain.detach().clone()
    frozen.step({"plain": torch.ones(5)}, 0.1, {0})
    assert torch.equal(module.plain, now)
    assert not any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("unit", ["poisson", "elu"])
def test_objective_is_the_mean_over_what_was_recorded(unit: str) -> None:
    raw, recorded = random(2, 6, 3), random(2, 6, 3, seed=1).abs()
    recorded[0, 4:, 1] = math.nan
    losses = []
    for n, t, u in np.ndindex(2, 6, 3):
        r, y = float(raw[n, t, u]), float(recorded[n, t, u])
        if t < 2 or math.isnan(y):
            continue
        predicted = r + 1 if r > 0 else math.exp(r)
        losses.append(math.exp(r) - r * y if unit == "poisson" else (predicted - y) ** 2)
    raw.requires_grad_()
    loss = objective(raw, recorded, 2, unit)  # type: ignore[arg-type]
    assert float(loss.detach()) == pytest.approx(np.mean(losses), rel=1e-5)
    loss.backward()
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()
    assert not raw.grad[:, :2].any()
    assert not raw.grad[0, 4:, 1].any()
    nothing = objective(raw, torch.full_like(recorded, math.nan), 2, unit)  # type: ignore[arg-type]
    assert float(nothing.detach()) == 0


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_an_infinite_response_is_not_taken_for_a_large_one(value: float) -> None:
    recorded = torch.ones(1, 4, 2)
    recorded[0, 3, 1] = value
    assert not torch.isfinite(objective(random(1, 4, 2), recorded, 2))
    assert not torch.isfinite(objective(torch.zeros(1, 4, 2), recorded, 2))
