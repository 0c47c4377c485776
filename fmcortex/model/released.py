"""Reading the weights that Wang et al. released for the MICrONS mouse.

A folder holds `params_core.pt`, one `params_{session}_{scan_idx}.pt` a recording, `scans.csv` and
`units.csv`. The files are loaded as data only.
"""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import torch
from torch import Tensor

from fmcortex.errors import DataError
from fmcortex.model.network import Network
from fmcortex.model.sizes import ModelConfig, preset

#: Constants that the authors' modules store; ours compute them from the sizes.
DERIVED = (
    "core.recurrent.proj_x.0.zero",
    "core.recurrent.proj_x.0.mask",
    "perspective.retina.grid",
)


def without_derived(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A released state dict without the constants that follow from the sizes."""
    return {name: value for name, value in state.items() if name not in DERIVED}


def _load(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; is this the folder of the release?") from error
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: not a file of weights alone; it was not loaded") from error
    except Exception as error:
        line = " ".join(str(error).split())
        raise DataError(f"{path}: not a file of weights: {line}") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(f"{path}: expected a dictionary of tensors")
    return without_derived(state)


def released_scans(folder: str | Path) -> list[dict[str, str]]:
    """The rows of `scans.csv`: session, scan_idx, units, ...

    Raises:
        DataError: the file is missing or lacks a column.
    """
    path = Path(folder) / "scans.csv"
    try:
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    missing = {"session", "scan_idx", "units"} - set(rows[0] if rows else {})
    if missing:
        raise DataError(f"{path}: no column {', '.join(sorted(missing))}")
    return rows


def load_released(
    folder: str | Path, session: int, scan_idx: int, config: ModelConfig | None = None
) -> Network:
    """The released network of one recording.

    Args:
        folder: of the release.
        session: as in `scans.csv`.
        scan_idx: as in `scans.csv`.
        config: sizes; None for the paper's model.

    Raises:
        DataError: a file is missing or malformed, or does not fit `config`.
    """
    config = config or preset("paper")
    path = Path(folder) / f"params_{session}_{scan_idx}.pt"
    state = _load(Path(folder) / "params_core.pt") | _load(path)
    if "readout.position.mu" not in state:
        raise DataError(f"{path}: no readout.position.mu; these are not a recording's weights")
    units = len(state["readout.position.mu"])
    for row in released_scans(folder):
        if (row["session"], row["scan_idx"]) == (str(session), str(scan_idx)):
            if str(row["units"]).strip() != str(units):
                raise DataError(f"{path}: {units} units, but scans.csv says {row['units']}")
            break
    else:
        raise DataError(f"{Path(folder) / 'scans.csv'}: no scan {session}-{scan_idx}")
    network = Network.build(config, units)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        line = " ".join(str(error).split())
        raise DataError(f"{path}: does not fit the model's sizes: {line}") from error
    return network
