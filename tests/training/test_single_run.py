"""Single mice trained in this process: what is refused, saved, gone on from, and recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmcortex.config import RunConfig
from fmcortex.errors import Locked
from fmcortex.lock import Lock
from fmcortex.training.single import train_single


def test_a_second_run_into_the_same_output_is_refused(tiny_run: RunConfig) -> None:
    with (
        Lock(tiny_run.output, "transfer"),
        pytest.raises(Locked, match=r"run: in use by transfer of user .*choose another output"),
    ):
        train_single(tiny_run, "individual")
    assert [path.name for path in Path(tiny_run.output).iterdir()] == []
