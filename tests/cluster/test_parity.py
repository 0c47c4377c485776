"""The trainer on any number of ranks against training written plainly in one process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from ranks import bytes_of_step, run_ranks, said

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference_trainer import largest_difference, reference_run

from fmcortex.config import RunConfig
from fmcortex.data.dataset import open_dataset
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.checkpoint import Checkpoint, list_checkpoints, open_checkpoint
from fmcortex.training.fit import fit, plan_of

TOLERANCE = 1e-5
POS = "readout.position.mu"
_references: dict[str, dict[str, torch.Tensor]] = {}


def reference(config: RunConfig) -> dict[str, torch.Tensor]:
    """The plain run of `config`, computed once for all tests."""
    key = config.model_copy(update={"output": ""}).model_dump_json(exclude={"cluster"})
    if key not in _references:
        _references[key] = reference_run(config, config.training.steps)
    return _references[key]


def staged(config: RunConfig, stage: int) -> RunConfig:
    return changed(config, "cluster", zero_stage=stage)


def changed(config: RunConfig, section: str, **values: object) -> RunConfig:
    part = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: part})


def check(states: list[dict[str, torch.Tensor]], config: RunConfig) -> None:
    expected = reference(config)
    for state in states:
        mine = {k: v for k, v in expected.items() if k in state}
        assert largest_difference(state, mine) < TOLERANCE
        # The shared part is on every rank.
        assert {k for k in expected if k.startswith("shared/")} <= set(state)
    assert {k for state in states for k in state} == set(expected)


def test_single_process(tiny_run: RunConfig) -> None:
    result = fit(tiny_run)
    state = {f"shared/{k}": v for k, v in result.shared.named_parameters()}
    for name, part in result.sessions.items():
        state |= {f"{name}/{k}": v for k, v in part.named_parameters()}
    expected = {k: v for k, v in reference(tiny_run).items() if k in state}
    assert largest_difference({k: v.detach() for k, v in state.items()}, expected) < TOLERANCE


def test_training_moves_everything_that_it_should(tiny_run: RunConfig) -> None:
    dataset = open_dataset(tiny_run.data.url)
    start = {f"shared/{k}": v for k, v in build_shared(tiny_run.model, 0).named_parameters()}
    for name in plan_of(tiny_run, dataset).sessions:
        units = dataset.session(name).manifest.neurons
        part = build_session(tiny_run.model, units, 0, name)
        start |= {f"{name}/{k}": v for k, v in part.named_parameters()}
    trained = reference(tiny_run)
    still = [k for k, v in start.items() if torch.equal(v, trained[k])]
    # Gains and biases behind a layer that starts at zero hardly feel a gradient yet.
    assert [k for k in still if "gains" not in k and "biases" not in k] == []
    assert len(still) < 0.1 * len(start)


#: Both optimizers; each clipping, both and none. The rates are gentle: the gradient of bilinear
#: sampling jumps where a sample passes from one pixel to the next, and Adam divides by gradients
#: that may be rounding alone, so that bolder runs drift apart after a few dozen steps, however
#: exactly they are computed.
SGD_RECIPE = {"optimizer": "sgd", "lr": 0.02}
ADAMW_RECIPE = {"optimizer": "adamw", "lr": 2e-4, "adam_eps": 1e-3, "decay": 0.01}
RECIPES: dict[str, dict[str, object]] = {
    "sgd-adaptive": {**SGD_RECIPE, "clip": 0.01},
    "sgd-free": {**SGD_RECIPE, "lr": 0.002, "clip": None},
    "sgd-norm": {**SGD_RECIPE, "clip": None, "clip_norm": 0.1},
    "sgd-both": {**SGD_RECIPE, "clip": 0.01, "clip_norm": 0.02},
    "adamw-adaptive": {**ADAMW_RECIPE, "clip": 0.01},
    "adamw-free": {**ADAMW_RECIPE, "clip": None},
    "adamw-norm": {**ADAMW_RECIPE, "clip": None, "clip_norm": 0.1},
    "adamw-both": {**ADAMW_RECIPE, "clip": 0.01, "clip_norm": 0.02},
}


def recipe(config: RunConfig, name: str, **more: object) -> RunConfig:
    """30 steps of a recipe."""
    return changed(config, "training", steps_per_epoch=6, epochs=5, **RECIPES[name], **more)


@pytest.mark.parametrize(
    ("name", "ranks", "stage"),
    [
        ("sgd-adaptive", 1, 1),
        ("sgd-adaptive", 2, 0),
        ("sgd-adaptive", 2, 1),
        pytest.param("sgd-adaptive", 2, 2, marks=pytest.mark.slow),
        ("sgd-adaptive", 2, 3),
        # Every day AdamW runs in the layouts below.
        pytest.param("adamw-both", 2, 0, marks=pytest.mark.slow),
        *(
            pytest.param("adamw-both", 2, stage, marks=pytest.mark.exhaustive)
            for stage in (1, 2, 3)
        ),
    ],
)
def test_ranks(tiny_run: RunConfig, tmp_path: Path, name: str, ranks: int, stage: int) -> None:
    config = staged(recipe(tiny_run, name), stage)
    check(run_ranks(config, ranks, tmp_path / "ranks"), config)


#: How lanes lie on ranks: (ranks, lanes, sessions).
LAYOUTS: dict[str, tuple[int, int | None, int]] = {
    "one session on two ranks": (2, 2, 1),
    "one session on two ranks, unequal lanes": (2, 3, 1),
    "all sessions on several of four ranks": (4, 8, 3),
    "more lanes than sessions, four ranks": (4, 5, 3),
    "sessions that take turns": (2, 2, 3),
    "one rank": (1, None, 3),
}


def laid_out(config: RunConfig, layout: str) -> tuple[RunConfig, int]:
    ranks, lanes, sessions = LAYOUTS[layout]
    names = [f"mouse{i + 1:02d}-1-1" for i in range(sessions)]
    config = changed(config, "data", sessions=names)
    return changed(config, "training", lanes=lanes), ranks


@pytest.mark.parametrize(
    ("layout", "name", "stage"),
    [
        ("one session on two ranks", "sgd-adaptive", 1),
        ("one session on two ranks, unequal lanes", "adamw-norm", 2),
        pytest.param("more lanes than sessions, four ranks", "sgd-both", 3, marks=pytest.mark.slow),
        ("sessions that take turns", "sgd-norm", 0),
    ],
)
def test_layouts(tiny_run: RunConfig, tmp_path: Path, layout: str, name: str, stage: int) -> None:
    config, ranks = laid_out(staged(recipe(tiny_run, name), stage), layout)
    states = run_ranks(config, ranks, tmp_path / "ranks")
    check(states, config)
    if "turns" not in layout:  # the test is of what it says
        held = [{key.split("/")[0] for key in state} - {"shared"} for state in states]
        assert max(sum(name in some for some in held) for name in config.data.sessions or []) > 1


def pairs() -> list[pytest.ParameterSet]:
    """Every recipe in every layout, which meets each stage; CI runs a quarter of them."""
    found = []
    for i, name in enumerate(RECIPES):
        for j, layout in enumerate(LAYOUTS):
            stage = (i // 2 + j // 2) % 4
            mark = pytest.mark.slow if (i + j) % 8 == 1 else pytest.mark.exhaustive
            found.append(pytest.param(name, layout, stage, marks=mark))
    return found


@pytest.mark.parametrize(("name", "layout", "stage"), pairs())
def test_every_recipe_in_every_layout(
    tiny_run: RunConfig, tmp_path: Path, name: str, layout: str, stage: int
) -> None:
    config, ranks = laid_out(staged(recipe(tiny_run, name), stage), layout)
    check(run_ranks(config, ranks, tmp_path / "ranks"), config)


def test_a_run_moves_between_numbers_of_ranks_and_stages(
    tiny_run: RunConfig, tmp_path: Path
) -> None:
    config = changed(recipe(tiny_run, "sgd-adaptive"), "training", lanes=5)
    for i, (ranks, stage, last) in enumerate([(2, 1, 10), (1, 3, 20), (4, 2, 30)]):
        states = run_ranks(staged(config, stage), ranks, tmp_path / str(i), last=last)
    check(states, config)
    states = run_ranks(
        config.model_copy(update={"output": str(tmp_path / "one")}), 1, tmp_path / "alone"
    )
    check(states, config)


def test_a_run_goes_on_with_other_sessions(tiny_run: RunConfig, tmp_path: Path) -> None:
    first, second, third = (f"mouse{i:02d}-1-1" for i in (1, 2, 3))
    config = changed(changed(tiny_run, "checkpoint", keep=1), "data", sessions=[first, second])
    before = run_ranks(config, 2, tmp_path / "two", last=8)
    more = changed(config, "data", sessions=[second, third])
    after = run_ranks(more, 2, tmp_path / "other", last=9)
    assert said(tmp_path / "other")[0] == (
        f"going on from step 8 with new {third}, without {first}; the checkpoint of that step is "
        "kept"
    )
    # The session that stays goes on where it was, in its weights, its state and its trials.
    manifest = open_checkpoint(config.output).manifest
    assert (manifest.step, manifest.kept) == (9, [8])
    assert manifest.drawn == {second: 9, third: 1}
    [steps] = {int(v) for s in after for k, v in s.items() if k.endswith(f"{second}/steps/" + POS)}
    assert steps == 9
    run_ranks(more, 1, tmp_path / "rest", last=12)
    found = [Path(folder).name for folder in list_checkpoints(config.output)]
    assert found == ["step-00000012", "step-00000008"]  # with what the first session had learnt
    old = Checkpoint(list_checkpoints(config.output)[1])
    [mine] = [s for s in before if f"{first}/{POS}" in s]
    assert torch.equal(old.tensors(first)[POS], mine[f"{first}/{POS}"])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_only_the_shared_part_is_communicated(
    tiny_run: RunConfig, tmp_path: Path, stage: int
) -> None:
    training = tiny_run.training.model_copy(update={"epochs": 2, "steps_per_epoch": 2})
    config = staged(tiny_run.model_copy(update={"training": training}), stage)
    run_ranks(config, 2, tmp_path / "ranks")
    shared = sum(p.numel() for p in build_shared(config.model, 0).parameters()) * 4
    counted = bytes_of_step(tmp_path / "ranks")
    reduced = counted.pop("all_reduce")
    assert reduced == pytest.approx(shared * [1, 2, 2, 1][stage], abs=64)
    # With ZeRO 1 and 2 the gradients are summed whole for the clipping, and once more when they are
    # given to DeepSpeed; then the stepped weights are put together: a rank's half and the whole
    # are handed over. ZeRO 3 puts the weights together twice, for the step and for the surrogate
    # loss. Nothing else is sent: nothing of the sessions.
    assert (
        counted
        == [
            {},
            {"all_gather_into_tensor": shared * 3 // 2},
            {"all_gather_into_tensor": shared * 3 // 2},
            {"all_gather_into_tensor": shared * 3, "reduce_scatter_tensor": shared * 3 // 2},
        ][stage]
    )


def test_another_precision(tiny_run: RunConfig, tmp_path: Path) -> None:
    """A run goes on in bf16; only the shared part's forward pass is less exact."""
    half = changed(tiny_run, "training", precision="bf16", lr=0.02)
    states = run_ranks(half, 2, tmp_path / "half", last=10)
    exact = changed(half, "training", precision="float32")
    elsewhere = exact.model_copy(update={"output": str(tmp_path / "exact")})
    expected = run_ranks(elsewhere, 2, tmp_path / "whole", last=10)
    weights = "shared/momentum_buffer/core.recurrent.out.weights.0"
    for state, other in zip(states, expected, strict=True):
        assert all(value.dtype != torch.bfloat16 for value in state.values())
        difference = largest_difference({weights: state[weights]}, {weights: other[weights]})
        assert 1e-4 < difference < 0.2
    # The same checkpoint, read by a run in float32.
    states = run_ranks(exact, 2, tmp_path / "goes on", last=12)
    assert all(torch.isfinite(value).all() for state in states for value in state.values())
