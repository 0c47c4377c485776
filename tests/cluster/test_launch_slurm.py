"""The SLURM launcher: the scripts it makes, what it refuses, what it hands to sbatch."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from cluster import slurm, slurm_nodes
from cluster.slurm import SlurmJob
from fmcortex.cli import cli
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


def test_the_script_knows_which_commands_run_on_ray() -> None:
    def on_ray(one: click.Command) -> bool:
        options = [p for p in one.params if isinstance(p, click.Option)]
        return any(p.name == "workers" and "Ray" in (p.help or "") for p in options)

    assert {name for name, one in cli.commands.items() if on_ray(one)} == set(slurm.ON_RAY)
    assert f"    {' | '.join(slurm.ON_RAY)}) on_ray=1 ;;" in slurm.TEMPLATE.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("nonsense", "No such command 'nonsense'"),
        ("pretrain --nonsense", r"No such option:? '?--nonsense"),
        ("transfer --workers 2 --from x", r"No such option:? '?--workers"),
        ("transfer --session m", "Missing option '--from'"),
        ("prep here", "Missing option '--to'"),
        ("data", "data: name one of its commands"),
        ("data nonsense x", "No such command 'nonsense'"),
        ("submit slurm pretrain", "submit itself cannot be submitted"),
        ("--nodes 2", r"No such option:? '?--nodes"),
        ("pretrain --set training.nonsense=1", "training.nonsense"),
        ("pretrain --set data.url=x --workers 0", "workers"),
        ("transfer --from x --set model.preset=none", "model.preset"),
        ("pretrain --config nowhere.yaml", "nowhere.yaml"),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_the_command_is_parsed_before_anything_is_submitted(
    words: str, message: str, dry: bool, programs: Path, tmp_path: Path
) -> None:
    program(programs, "sbatch", f"echo > {tmp_path}/called; echo 42")
    arguments = ["submit", "slurm", *(["--dry-run"] if dry else []), "--", *words.split()]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code != 0
    assert re.search(message, done.output + str(done.exception))
    assert not (tmp_path / "called").exists()
    assert "#!/bin/bash" not in done.output


def test_a_command_without_workers_gets_none_and_one_node() -> None:
    def made(*words: str) -> list[str]:
        done = CliRunner().invoke(cli, ["submit", "slurm", "--dry-run", *words])
        assert done.exit_code == 0, done.output
        return header(done.output)

    transfer = ("transfer", "--from", "runs/first", "--set", "data.url=prepared")
    assert "--nodes=1" in made(*transfer)
    assert "--nodes=2" in made("pretrain", "--set", "data.url=prepared")
    assert "--nodes=3" in made("--nodes", "3", *transfer)
    assert "--nodes=2" in made("prep", "recordings", "--to", "prepared")


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("--config a.yaml", "pretrain --workers 1 --config a.yaml"),
        ("prep here --to there", "prep --workers 1 here --to there"),
        ("sweep --workers=3 a.yaml", "sweep --workers=3 a.yaml"),
        ("pretrain --set=cluster.workers=3", "pretrain --set=cluster.workers=3"),
        ("transfer --from x", "transfer --from x"),
        ("data verify x", "data verify x"),
    ],
)
def test_what_the_script_calls_in_a_job_of_no_environment(
    words: str, given: str, programs: Path, tmp_path: Path
) -> None:
    """With --export=NONE; stand-ins for SLURM's programs do as their manuals say."""
    told = f'echo "$*" > {tmp_path}/called'
    program(programs, "fmcortex", told)
    program(programs, "ray", "exit 1")
    # All nodes have joined, once there is a step.
    program(programs, "python", f"until [[ -s {tmp_path}/pid ]]; do sleep 0.02; done")
    reaches = f'[[ " $* " == *" --export=ALL "* ]] && echo "$RAY_ADDRESS" > {tmp_path}/step'
    program(programs, "srun", f"{reaches}\necho $$ > {tmp_path}/pid\nexec sleep 60")
    program(programs, "scancel", f"kill $(< {tmp_path}/pid)")
    program(programs, "scontrol", 'echo "NodeName=node1 NodeAddr=127.0.0.1 x=y"')
    job = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "SLURM_JOB_ID": "1234567",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_NODELIST": "node1",
        "SLURMD_NODENAME": "node1",
        "SLURM_CPUS_ON_NODE": "1",
        "SLURM_EXPORT_ENV": "NONE",
    }
    done = subprocess.run(
        ["/bin/bash", str(slurm.TEMPLATE), *words.split()],
        capture_output=True,
        text=True,
        env=job,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "called").read_text().strip() == given
    step = tmp_path / "step"
    on_ray = given.split()[0] in slurm.ON_RAY
    assert step.exists() == on_ray
    assert not on_ray or step.read_text().startswith("127.0.0.1:")


def test_a_long_folder_of_sockets_is_refused_by_the_script(programs: Path) -> None:
    for name in ("fmcortex", "ray", "python"):
        program(programs, name, "exit 1")
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "1", "FMCORTEX_TMP": "/tmp/" + 60 * "x"}
    done = subprocess.run(
        ["/bin/bash", str(slurm.TEMPLATE), "--workers", "1"],
        capture_output=True,
        text=True,
        env={"PATH": f"{programs}:/usr/bin:/bin", **job},
    )
    assert done.returncode == 1
    assert "FMCORTEX_TMP: /tmp/xxx" in done.stderr
    assert "too long for the names of Ray's sockets" in done.stderr


def test_the_configurations_that_the_script_names_are_there() -> None:
    named = re.findall(r"configs/[a-z_]+\.yaml", slurm.TEMPLATE.read_text())
    assert named
    for one in named:
        assert (slurm.TEMPLATE.parents[1] / one).is_file(), one
