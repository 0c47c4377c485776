"""The SLURM launcher: the scripts it makes, what it refuses, what it hands to sbatch."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster import slurm, slurm_nodes
from cluster.slurm import SlurmJob
from fmcortex.errors import ConfigError, FmcortexError

COMMAND = ["pretrain", "--config", "a file.yaml", "--set", "data.url=it's $HOME `x`\n#SBATCH -N9"]


def check_syntax(script: str) -> None:
    """Let bash parse a script without running it."""
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def header(script: str) -> list[str]:
    """The options that sbatch reads: the #SBATCH lines above the first command."""
    found = []
    for line in script.splitlines():
        if line.startswith("#SBATCH "):
            found.append(line.removeprefix("#SBATCH "))
        elif line and not line.startswith("#"):
            break
    return found


def script_until(script: str, marker: str) -> str:
    """The part of a script above the line that contains `marker`."""
    return script[: script.index(marker)]


def test_the_script_by_hand_is_valid_bash() -> None:
    check_syntax(slurm.TEMPLATE.read_text())
    assert "--requeue" in header(slurm.TEMPLATE.read_text())


def test_the_header_is_made_from_the_settings() -> None:
    job = SlurmJob(
        nodes=4,
        gpus_per_node=8,
        cpus_per_task=64,
        memory="0",
        time="2-00:00:00",
        partition="gpu",
        account="lab",
        job_name="mice 300",
        flags=["--constraint=h100", "--signal=B:USR2@300", "--exclusive"],
    )
    made = header(slurm.render(job, COMMAND))
    for option in (
        "--nodes=4",
        "--gpus-per-node=8",
        "--cpus-per-task=64",
        "--mem=0",
        "--time=2-00:00:00",
        "--partition=gpu",
        "--account=lab",
        '--job-name="mice 300"',
        "--constraint=h100",
        "--exclusive",
        "--requeue",  # of the template, as the settings say nothing of it
    ):
        assert option in made
    assert [one for one in made if one.startswith("--signal")] == ["--signal=B:USR2@300"]
    assert [one for one in made if one.startswith("--nodes")] == ["--nodes=4"]


def test_the_body_is_the_templates() -> None:
    made = slurm.render(SlurmJob(), COMMAND)
    check_syntax(made)
    body = [line for line in slurm.TEMPLATE.read_text().splitlines()[1:] if line[:8] != "#SBATCH "]
    assert made.splitlines()[-len(body) :] == body


def test_arguments_survive_the_shell() -> None:
    job = SlurmJob(environment="/a b/venv", variables={"MLFLOW_TRACKING_URI": "http://h/$x y"})
    made = slurm.render(job, COMMAND)
    show = "import os, sys; print(sys.argv[1:], os.environ['FMCORTEX_ENV'], "
    show += "os.environ['MLFLOW_TRACKING_URI'])"
    top = script_until(made, "# Runs a command")
    done = subprocess.run(
        ["bash", "-s"],
        input=f'{top}\n{shlex.quote(sys.executable)} -c {shlex.quote(show)} "$@"\n',
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{COMMAND} /a b/venv http://h/$x y"
    # What looks like a directive inside an argument comes after the first command.
    assert "-N9" not in header(made)


def test_the_present_environment_is_the_default() -> None:
    assert f"export FMCORTEX_ENV={shlex.quote(sys.prefix)}" in slurm.render(SlurmJob(), COMMAND)


@pytest.mark.parametrize(
    "settings",
    [
        {"partition": "gpu\n#SBATCH --nodes=99"},
        {"account": 'lab"; rm'},
        {"job_name": "$(id)"},
        {"output": "log # comment"},
        {"memory": "1G --x"},
        {"time": "soon"},
        {"time": "1:00\n"},
        {"flags": ["-N9"]},
        {"flags": ["--comment=a\n#SBATCH --x"]},
        {"flags": ["--x y=1"]},
        {"variables": {"A B": "1"}},
        {"variables": {"A": "1\nrm"}},
        {"nodes": 0},
        {"node": 1},
    ],
)
def test_settings_that_would_break_the_header_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SlurmJob.model_validate(settings)


def test_a_missing_template_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "TEMPLATE", tmp_path / "pretrain.sbatch")
    with pytest.raises(ConfigError, match=r"run from a checkout, or pass --template"):
        slurm.render(SlurmJob(), COMMAND)
    empty = tmp_path / "empty"
    empty.write_text("echo\n")
    with pytest.raises(ConfigError, match="not a batch script with an #SBATCH header"):
        slurm.render(SlurmJob(), COMMAND, template=empty)
    with pytest.raises(ConfigError, match="must begin with its name"):
        slurm.render(SlurmJob(), ["--config", "x"])


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of the PATH, for stand-ins of SLURM's programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, body: str) -> None:
    """Write a stand-in of a program."""
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


def test_without_slurm_the_error_says_so(programs: Path) -> None:
    with pytest.raises(FmcortexError, match=r"^sbatch: not found; SLURM is submitted to from"):
        slurm.submit(SlurmJob(), COMMAND)
    with pytest.raises(FmcortexError, match=r"^scontrol: not found"):
        slurm.status("1")


def test_sbatch_gets_the_script(programs: Path, tmp_path: Path) -> None:
    program(
        programs,
        "sbatch",
        f'echo "$@" > {tmp_path}/arguments; while IFS= read -r line; do echo "$line"; done '
        f'> {tmp_path}/script; echo "42;east"',
    )
    job = SlurmJob(nodes=3, flags=["--comment=a b"])
    assert slurm.submit(job, COMMAND) == "42"
    assert (tmp_path / "script").read_text() == slurm.render(job, COMMAND)
    asked = (tmp_path / "arguments").read_text().split()
    assert asked[:2] == ["--parsable", "--nodes=3"]


def test_what_sbatch_says_is_the_error(programs: Path) -> None:
    program(
        programs,
        "sbatch",
        'echo "sbatch: error: invalid account" >&2; echo "sbatch: error: failed" >&2; exit 1',
    )
    with pytest.raises(FmcortexError, match=r"^sbatch: invalid account; failed$"):
        slurm.submit(SlurmJob(), COMMAND)
    program(programs, "sbatch", "echo welcome")
    with pytest.raises(FmcortexError, match="answered 'welcome' instead of a job id"):
        slurm.submit(SlurmJob(), COMMAND)


def test_status_falls_back_on_the_accounting(programs: Path) -> None:
    program(programs, "scontrol", 'echo "JobId=7 JobState=RUNNING Reason=None"')
    assert slurm.status("7") == "RUNNING"
    program(programs, "scontrol", 'echo "slurm_load_jobs error: Invalid job id" >&2; exit 1')
    with pytest.raises(FmcortexError, match="Invalid job id"):
        slurm.status("7")
    program(programs, "sacct", 'echo "CANCELLED by 1000"')
    assert slurm.status("7") == "CANCELLED"
    with pytest.raises(ConfigError, match="not a SLURM job id"):
        slurm.status("7; rm")


def test_outside_a_job_the_script_says_how_to_run_it() -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
    done = subprocess.run(
        ["bash", str(slurm.TEMPLATE)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert "not in a SLURM job: run sbatch slurm/pretrain.sbatch" in done.stderr


def test_waiting_for_nodes_needs_a_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit):
        slurm_nodes.main(["node1"])
    assert "RAY_ADDRESS is not set" in capsys.readouterr().err
