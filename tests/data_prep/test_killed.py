"""The job killed at any moment, and run again: the dataset of an undisturbed run, to the byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from data_prep.job import prepare
from data_prep.settings import PrepSettings
from data_prep.simulator.settings import SimulationSettings
from data_prep.simulator.simulate import simulate
from fmcortex.data.describe import verify

#: Forks a process for every run: what it imports is imported once. A run dies at a call of a
#: function, counted from its start, so that how fast the machine is decides nothing.
KILLER = """
    import hashlib, os, random, signal, sys, threading
    from pathlib import Path
    from data_prep.job import prepare
    from data_prep.settings import PrepSettings

    source, folder, split = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    settings = PrepSettings(trials_per_shard=3, split=split)

    class Calls:
        made = 0

        def __init__(self, last=None):
            self.last = last

        def __call__(self, frame, event, argument):
            self.made += 1
            # Not `==`: another thread may count in between.
            if self.last is not None and self.made >= self.last:
                os.kill(os.getpid(), signal.SIGKILL)

    def run(to, calls=None):
        '''How the run ended, and the calls that it made, if it came to its end.'''
        reads, writes = os.pipe()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                threading.setprofile(calls)
                sys.setprofile(calls)
                prepare(source, str(to), settings)
                sys.setprofile(None)
                os.write(writes, str(calls.made if calls else 0).encode())
                code = 0
            finally:
                os._exit(code)
        os.close(writes)
        with open(reads) as told:
            made = int(told.read() or 0)
        return os.waitpid(process, 0)[1], made

    def tree(to):
        return {
            path.relative_to(to).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(to.rglob("*")) if path.is_file()
        }

    ended, calls = run(folder / "whole", Calls())
    assert ended == 0
    expected = tree(folder / "whole")
    moments = random.Random(5)
    for number in range(10):
        to = folder / f"killed-{number}"
        # Threads that wait for each other make some 0.1% more calls or fewer.
        last = round(moments.uniform(0.03, 0.97) * calls)
        assert run(to, Calls(last))[0] == signal.SIGKILL
        before = set(tree(to)) if to.exists() else set()
        assert run(to)[0] == 0
        assert tree(to) == expected, (number, set(tree(to)) ^ set(expected))
        print(number, len(before), len(expected), flush=True)
"""


@pytest.mark.parametrize("split", ["source", pytest.param("made", marks=pytest.mark.slow)])
def test_killed_at_ten_random_moments(tmp_path: Path, split: str) -> None:
    settings = SimulationSettings(
        mice=2,
        neurons=5,
        minutes=0.3,
        trial_seconds=2,
        height=18,
        width=32,
        test_repeats=3,
        validation_repeats=2,
        domains=("drifting_gabor",),
        layout="signals" if split == "source" else "sensorium2023",
    )
    simulate(settings, tmp_path / "source")
    command = [sys.executable, "-c", textwrap.dedent(KILLER)]
    command += [str(tmp_path / "source"), str(tmp_path / "to"), split]
    (tmp_path / "to").mkdir()
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    lines = ran.stdout.split("\n")
    left = [int(line.split()[1]) for line in lines if line[:1].isdigit()]
    assert len(left) == 10
    assert len(set(left)) > 4  # moments that differ
    assert verify(str(tmp_path / "to" / "killed-3")) == []


ON_RAY = """
    import sys
    from cluster.ray_session import ray_session
    from data_prep.job import prepare
    from data_prep.settings import PrepSettings

    settings = PrepSettings(trials_per_shard=3)
    prepare(sys.argv[1], sys.argv[2], settings, workers=2, within=ray_session(2))
"""


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.slow
def test_killed_with_its_ray_workers_at_work(tmp_path: Path) -> None:
    """Workers outlive the driver for a while, and may write while the next run does."""
    settings = SimulationSettings(
        mice=2, neurons=5, minutes=0.5, trial_seconds=2, height=18, width=32, layout="digital_twin"
    )
    source, moments = tmp_path / "source", random.Random(3)
    simulate(settings, source)
    prepare(str(source), str(tmp_path / "whole"), PrepSettings(trials_per_shard=3))
    expected = tree(tmp_path / "whole")
    # From the first files on to nearly all of them.
    for number, part in enumerate((0.05, moments.uniform(0.1, 0.5), moments.uniform(0.5, 0.9))):
        to = tmp_path / f"killed-{number}"
        command = [sys.executable, "-c", textwrap.dedent(ON_RAY), str(source), str(to)]
        driver = subprocess.Popen(command, start_new_session=True)
        left: list[psutil.Process] = []
        try:
            deadline = time.monotonic() + 60
            while sum(path.is_file() for path in to.rglob("*")) < part * len(expected):
                assert driver.poll() is None, "ended before it was killed"
                assert time.monotonic() < deadline
                time.sleep(0.01)
            left = psutil.Process(driver.pid).children(recursive=True)
            assert any("raylet" in process.name() for process in left)
            os.killpg(driver.pid, signal.SIGKILL)
            assert driver.wait() == -signal.SIGKILL
            assert not (to / "manifest.json").exists()
            prepare(str(source), str(to), PrepSettings(trials_per_shard=3))
            assert tree(to) == expected
            assert verify(str(to)) == []
        finally:
            if driver.poll() is None:
                left = psutil.Process(driver.pid).children(recursive=True)
                os.killpg(driver.pid, signal.SIGKILL)
                driver.wait()
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        assert not psutil.wait_procs(left, timeout=20)[1]
        # What they did to the end changed nothing either.
        assert tree(to) == expected
