"""Every cell of the matrix in docs/reliability.md: what a command does with a damaged file."""

from __future__ import annotations

import pytest
from matrix import CELLS, Cell, World, documented, outcome

#: Cells of every kind for the slow tests; the exhaustive ones run all others.
SAMPLE: set[Cell] = {
    ("prep, again", "shard", "flip"),
    ("prep, again", "survey", "edit"),
    ("prep, again", "source: responses", "edit"),
    ("data verify", "movie", "truncate"),
    ("individual", "shard index", "swap"),
    ("transfer", "checkpoint: manifest", "edit"),
    ("evaluate", "checkpoint: session", "swap"),
    ("evaluate", "checkpoint: shared", "older"),
    ("evaluate models:/", "registry: shared", "flip"),
    ("register", "checkpoint: session", "delete"),
}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("reliability"))


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(cell, marks=[pytest.mark.slow if cell in SAMPLE else pytest.mark.exhaustive])
        for cell in CELLS
    ],
    ids="-".join,
)
def test_cell(world: World, cell: Cell) -> None:
    found = outcome(world, *cell)
    assert found in ("error", "said", "repaired", "unused")
    assert documented()[cell] == found


def test_page_has_every_cell() -> None:
    assert set(documented()) == set(CELLS)
    assert set(CELLS) >= SAMPLE
