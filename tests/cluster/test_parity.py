"""The trainer on any number of ranks against training written plainly in one process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference_trainer import largest_difference, reference_run

from fmcortex.config import RunConfig
from fmcortex.data.dataset import open_dataset
from fmcortex.training.build import build_session, build_shared
from fmcortex.training.fit import fit, plan_of

TOLERANCE = 1e-5
_references: dict[str, dict[str, torch.Tensor]] = {}


def reference(config: RunConfig) -> dict[str, torch.Tensor]:
    """The plain run of `config`, computed once for all tests."""
    key = config.model_copy(update={"output": ""}).model_dump_json(exclude={"cluster"})
    if key not in _references:
        _references[key] = reference_run(config, config.training.steps)
    return _references[key]


def staged(config: RunConfig, stage: int) -> RunConfig:
    cluster = config.cluster.model_copy(update={"zero_stage": stage})
    return config.model_copy(update={"cluster": cluster})


def check(states: list[dict[str, torch.Tensor]], config: RunConfig) -> None:
    expected = reference(config)
    owned = set()
    for state in states:
        mine = {k: v for k, v in expected.items() if k in state}
        assert largest_difference(state, mine) < TOLERANCE
        owned |= {k for k in state if not k.startswith("shared/")}
    # Every session's part is on one rank, the shared part on all.
    assert owned | {k for k in expected if k.startswith("shared/")} == set(expected)


def test_single_process(tiny_run: RunConfig) -> None:
    result = fit(tiny_run)
    state = {f"shared/{k}": v for k, v in result.shared.named_parameters()}
    for name, part in result.sessions.items():
        state |= {f"{name}/{k}": v for k, v in part.named_parameters()}
    expected = {k: v for k, v in reference(tiny_run).items() if not k.endswith("/m")}
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


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 0), (2, 1), (2, 2)])
def test_ranks(tiny_run: RunConfig, tmp_path: Path, ranks: int, stage: int) -> None:
    config = staged(tiny_run, stage)
    check(run_ranks(config, ranks, tmp_path / "ranks"), config)


def test_a_session_on_two_lanes(tiny_run: RunConfig, tmp_path: Path) -> None:
    training = tiny_run.training.model_copy(update={"lanes": 5})
    config = tiny_run.model_copy(update={"training": training})
    check(run_ranks(config, 2, tmp_path / "ranks"), config)


def test_sessions_that_take_turns_on_a_lane(tiny_run: RunConfig, tmp_path: Path) -> None:
    training = tiny_run.training.model_copy(update={"lanes": 2})
    config = tiny_run.model_copy(update={"training": training})
    check(run_ranks(config, 2, tmp_path / "ranks"), config)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_only_the_shared_part_is_communicated(
    tiny_run: RunConfig, tmp_path: Path, stage: int
) -> None:
    training = tiny_run.training.model_copy(update={"epochs": 2, "steps_per_epoch": 2})
    config = staged(tiny_run.model_copy(update={"training": training}), stage)
    run_ranks(config, 2, tmp_path / "ranks")
    shared = sum(p.numel() for p in build_shared(config.model, 0).parameters()) * 4
    with safe_open(tmp_path / "ranks" / "0.safetensors", "pt") as file:
        counted = {k: int(v) for k, v in (file.metadata() or {}).items()}
    assert counted.pop("all_reduce") == pytest.approx(shared * (1 if stage == 0 else 2), abs=64)
    # With ZeRO the summed gradients are put together for the clipping, hence the second time; then
    # the stepped weights are: a rank's half and the whole are handed over. Nothing else is sent.
    assert counted == ({} if stage == 0 else {"all_gather_into_tensor": shared * 3 // 2})
