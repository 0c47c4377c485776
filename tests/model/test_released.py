"""Reading a folder laid out as the release is, and refusing one that is not."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fmcortex.errors import DataError
from fmcortex.model.network import Network
from fmcortex.model.released import load_released, released_scans, without_derived
from fmcortex.model.sizes import ModelConfig

Build = Callable[..., Network]


@pytest.fixture
def network(alive: Build) -> Network:
    """The network that the release holds, of 5 neurons."""
    return alive(5)


@pytest.fixture
def release(network: Network, tmp_path: Path) -> Path:
    """Its folder: the core's file, one of the recording 1-2, the table of recordings."""
    state = network.state_dict()
    core = {name: value for name, value in state.items() if name.startswith("core.")}
    rest = {name: value for name, value in state.items() if name not in core}
    # Constants that the authors' modules store.
    core["core.recurrent.proj_x.0.zero"] = torch.zeros(1)
    core["core.recurrent.proj_x.0.mask"] = torch.ones(2, 2)
    rest["perspective.retina.grid"] = torch.zeros(12, 18, 2)
    torch.save(core, tmp_path / "params_core.pt")
    torch.save(rest, tmp_path / "params_1_2.pt")
    (tmp_path / "scans.csv").write_text(
        "session,scan_idx,units,note\n1,1,7,other\n1,2,5,ours\n9,2,8,absent\n"
    )
    return tmp_path


def test_the_network_is_the_released_one(release: Path, network: Network) -> None:
    loaded = load_released(release, 1, 2, network.config)
    expected, found = network.state_dict(), loaded.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert loaded.session.units == 5
    video = torch.randint(0, 256, (1, 3, 10, 16), dtype=torch.uint8)
    behaviour = torch.randn(1, 3, 2)
    with torch.no_grad():
        assert torch.equal(
            loaded(video, behaviour, behaviour), network(video, behaviour, behaviour)
        )


def test_the_table_of_recordings(release: Path) -> None:
    rows = released_scans(release)
    assert [(r["session"], r["scan_idx"], r["units"]) for r in rows] == [
        ("1", "1", "7"),
        ("1", "2", "5"),
        ("9", "2", "8"),
    ]
    assert rows[1]["note"] == "ours"


def test_without_derived_keeps_all_else() -> None:
    state = {"perspective.retina.grid": torch.zeros(1), "core.x": torch.ones(1)}
    assert set(without_derived(state)) == {"core.x"}
    assert len(state) == 2


@pytest.mark.parametrize("name", ["params_core.pt", "params_1_2.pt", "scans.csv"])
def test_a_missing_file_is_named(release: Path, network: Network, name: str) -> None:
    (release / name).unlink()
    with pytest.raises(DataError, match=f"{name}: .*[Nn]o such file"):
        load_released(release, 1, 2, network.config)


def test_a_recording_that_is_not_in_the_table(release: Path, network: Network) -> None:
    (release / "params_1_2.pt").rename(release / "params_3_4.pt")
    with pytest.raises(DataError, match=r"scans.csv: no scan 3-4"):
        load_released(release, 3, 4, network.config)


def test_another_number_of_units(release: Path, network: Network) -> None:
    (release / "scans.csv").write_text("session,scan_idx,units\n1,2,6\n")
    with pytest.raises(DataError, match=r"params_1_2.pt: 5 units, but scans.csv says 6"):
        load_released(release, 1, 2, network.config)


def test_a_table_without_its_columns(release: Path, network: Network) -> None:
    (release / "scans.csv").write_text("session,neurons\n1,5\n")
    with pytest.raises(DataError, match=r"scans.csv: no column scan_idx, units"):
        load_released(release, 1, 2, network.config)


@pytest.mark.parametrize("row", ["1,2,many", "1,2"])
def test_a_table_with_a_malformed_cell(release: Path, network: Network, row: str) -> None:
    (release / "scans.csv").write_text(f"session,scan_idx,units\n{row}\n")
    with pytest.raises(DataError, match=r"scans.csv"):
        load_released(release, 1, 2, network.config)


def test_weights_of_other_sizes(release: Path, small: ModelConfig) -> None:
    larger = small.model_copy(update={"recurrent_out": 32})
    with pytest.raises(DataError, match=r"params_1_2.pt: does not fit .*core.recurrent.out") as e:
        load_released(release, 1, 2, larger)
    assert "\n" not in str(e.value)


def test_missing_and_unknown_weights(release: Path, network: Network) -> None:
    path = release / "params_1_2.pt"
    state = torch.load(path, weights_only=True)
    state["surprise"] = state.pop("readout.biases.0")
    torch.save(state, path)
    with pytest.raises(DataError, match=r"does not fit .*readout.biases.0.*surprise"):
        load_released(release, 1, 2, network.config)


def test_the_core_in_place_of_the_recording(release: Path, network: Network) -> None:
    (release / "params_1_2.pt").write_bytes((release / "params_core.pt").read_bytes())
    with pytest.raises(DataError, match=r"params_1_2.pt: no readout.position.mu"):
        load_released(release, 1, 2, network.config)


@pytest.mark.parametrize("value", [[torch.zeros(1)], {"x": 1.0}, torch.zeros(3)])
def test_a_file_of_something_else(release: Path, network: Network, value: object) -> None:
    torch.save(value, release / "params_core.pt")
    with pytest.raises(DataError, match=r"params_core.pt: expected a dictionary of tensors"):
        load_released(release, 1, 2, network.config)


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut off"])
def test_a_damaged_file(release: Path, network: Network, content: bytes) -> None:
    (release / "params_core.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"params_core.pt: not a file of weights"):
        load_released(release, 1, 2, network.config)


class Malice:
    """Makes a folder when it is unpickled by a reader that runs code."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("archive", [True, False])
def test_a_malicious_file_is_refused_and_not_run(
    release: Path, network: Network, archive: bool
) -> None:
    evil = {"core.x": Malice(str(release / "owned"))}
    if archive:
        torch.save(evil, release / "params_core.pt")
    else:
        (release / "params_core.pt").write_bytes(pickle.dumps(evil))
    with pytest.raises(DataError, match=r"params_core.pt: not a file of weights"):
        load_released(release, 1, 2, network.config)
    assert not (release / "owned").exists()
    # The file does do harm to a reader that runs code: the test can fail.
    torch.load(release / "params_core.pt", weights_only=False) if archive else pickle.loads(
        (release / "params_core.pt").read_bytes()
    )
    assert (release / "owned").exists()


def test_a_malicious_file_gives_one_line_that_does_not_advise_to_run_it(
    release: Path, network: Network
) -> None:
    torch.save({"core.x": Malice(str(release / "owned"))}, release / "params_core.pt")
    with pytest.raises(DataError) as caught:
        load_released(release, 1, 2, network.config)
    assert "\n" not in str(caught.value)
    assert "weights_only` to `False`" not in str(caught.value)
