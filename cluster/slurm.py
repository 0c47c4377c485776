"""Submitting a command of fmcortex to SLURM, through the batch script that also runs by hand."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from cluster.secrets import refuse_secret_variables, refuse_secret_words
from fmcortex.errors import ConfigError, FmcortexError

#: The batch script, which lies beside the packages in a checkout.
TEMPLATE = Path(__file__).resolve().parent.parent / "slurm" / "pretrain.sbatch"

#: The commands that run on Ray, on all nodes; the script has the same list.
ON_RAY = ("pretrain", "sweep", "prep", "deconvolve")

_DIRECTIVE = re.compile(r"^#SBATCH\s+--(?P<name>[a-z-]+)")


def _plain(value: str) -> str:
    """Refuse what would end a line or a quoted value of the script's header."""
    if not value.isprintable() or set(value) & set("\"'\\#`$"):
        raise ValueError("must be one line without quotes, backslashes, #, $ or backticks")
    return value


def _flag(value: str) -> str:
    if not re.match(r"--[a-z][a-z-]*(=|$)", value):
        raise ValueError("must be of the form --name or --name=value")
    return _plain(value)


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("is not a name of a variable")
    return name


def _value(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line of printable characters")
    return value


Plain = Annotated[str, AfterValidator(_plain)]


class SlurmJob(BaseModel):
    """What to ask SLURM for; what is None is left to the script's header and to the partition."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    nodes: int = Field(2, ge=1, le=65_536, description="nodes")
    gpus_per_node: int | None = Field(None, ge=0, le=1024, description="GPUs of a node")
    cpus_per_task: int | None = Field(None, ge=1, le=4096, description="CPUs of a node")
    memory: str | None = Field(
        None, pattern=r"^\d+[KMGT]?$", description="memory of a node, such as 200G; 0 for all"
    )
    time: str | None = Field(
        None,
        pattern=r"^(\d+(:\d{1,2}){0,2}|\d+-\d{1,2}(:\d{1,2}){0,2}|UNLIMITED)$",
        description="time limit, such as 2-00:00:00",
    )
    partition: Plain | None = Field(None, min_length=1, description="partition")
    account: Plain | None = Field(None, min_length=1, description="account to charge")
    qos: Plain | None = Field(None, min_length=1, description="quality of service")
    job_name: Plain = Field("fmcortex", min_length=1, description="name of the job")
    output: Plain | None = Field(
        None, min_length=1, description="file of the job's log; null for NAME-ID.log"
    )
    environment: str | None = Field(
        None, description="virtual environment that all nodes see; null for the present one"
    )
    workers_per_node: int | None = Field(None, ge=1, le=4096, description="null: one a GPU, or one")
    variables: dict[
        Annotated[str, AfterValidator(_variable)], Annotated[str, AfterValidator(_value)]
    ] = Field(default_factory=dict, description="further environment variables of the job")
    flags: list[Annotated[str, AfterValidator(_flag)]] = Field(
        default_factory=list, description="further options of sbatch, such as --constraint=h100"
    )

    def options(self) -> list[str]:
        """The options of sbatch that these settings mean."""
        named = {
            "nodes": self.nodes,
            "gpus-per-node": self.gpus_per_node or None,
            "cpus-per-task": self.cpus_per_task,
            "mem": self.memory,
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "job-name": self.job_name,
            "output": self.output,
        }
        return [
            f"--{key}={value}" for key, value in named.items() if value is not None
        ] + self.flags


def read_template(template: str | Path | None = None) -> str:
    """The batch script that jobs are made from.

    Args:
        template: another one than the project's.

    Raises:
        ConfigError: it cannot be read.
    """
    path = Path(template) if template else TEMPLATE
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        hint = "" if template else "; run from a checkout, or pass --template"
        raise ConfigError(f"{path}: cannot read the batch script{hint}") from error


def render(job: SlurmJob, command: list[str], template: str | Path | None = None) -> str:
    """A complete batch script: the template's body below a header made from `job`.

    Args:
        job: what to ask SLURM for.
        command: of fmcortex and its arguments: ["pretrain", "--config", "run.yaml"].
        template: another batch script than the project's.

    Raises:
        ConfigError: the template cannot be read or has no header, or the command is not one.
    """
    if not command or command[0].startswith("-"):
        raise ConfigError("the command must begin with its name, such as pretrain")
    advice = (
        "put it into a configuration file that only you can read (--config), or export "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where you submit"
    )
    refuse_secret_words(command, "the batch script, and `ps` on every node,", advice)
    refuse_secret_variables(job.variables, "the batch script", advice)
    options = job.options()
    ours = {option.removeprefix("--").partition("=")[0] for option in options}
    lines = read_template(template).splitlines()
    header = [number for number, line in enumerate(lines) if _DIRECTIVE.match(line)]
    if not header or not lines[0].startswith("#!"):
        raise ConfigError(f"{template or TEMPLATE}: not a batch script with an #SBATCH header")
    kept = [lines[n] for n in header if _DIRECTIVE.match(lines[n])["name"] not in ours]  # type: ignore[index]
    asked = [f"#SBATCH {_quoted(option)}" for option in options]
    variables = {"FMCORTEX_ENV": job.environment or sys.prefix}
    if job.workers_per_node:
        variables["FMCORTEX_WORKERS_PER_NODE"] = str(job.workers_per_node)
    exports = [
        f"export {name}={shlex.quote(value)}"
        for name, value in {**variables, **job.variables}.items()
    ]
    body = [line for number, line in enumerate(lines) if number not in header][1:]
    made = ["", *exports, f"set -- {shlex.join(command)}"]
    return "\n".join([lines[0], *kept, *asked, *made, *body]) + "\n"


def _quoted(option: str) -> str:
    """An option for a #SBATCH line, where double quotes hold a value with spaces together."""
    name, equals, value = option.partition("=")
    return f'{name}{equals}"{value}"' if " " in value else option


def submit(job: SlurmJob, command: list[str], template: str | Path | None = None) -> str:
    """Submit a command of fmcortex.

    Args:
        job, command, template: as `render`.

    Returns:
        The job's id.

    Raises:
        ConfigError: as `render`.
        FmcortexError: there is no sbatch here, or it refuses the job.
    """
    # The options are in the script's header as well; but there, SBATCH_ variables, which many sites
    # set, would win over them.
    script = render(job, command, template)
    answer = _call(["sbatch", "--parsable", *job.options()], stdin=script)
    # On a federation, `--parsable` prints "id;cluster".
    job_id = answer.splitlines()[-1].partition(";")[0] if answer else ""
    if not job_id.isdigit():
        raise FmcortexError(f"sbatch: answered {answer!r} instead of a job id")
    return job_id


def status(job_id: str) -> str:
    """The state of a job in SLURM's words, such as PENDING, RUNNING or COMPLETED.

    Raises:
        FmcortexError: SLURM does not know the job (any more), or cannot be asked.
    """
    job_id = _job_id(job_id)
    try:
        shown = _call(["scontrol", "-o", "show", "job", job_id])
    except FmcortexError:
        # SLURM itself forgets a job minutes after its end; the accounting, where there is one, not.
        with suppress(FmcortexError):
            told = _call(["sacct", "-n", "-X", "-P", "-o", "State", "-j", job_id])
            if told:
                return told.split()[0]
        raise
    state = re.search(r"\bJobState=(\S+)", shown)
    if state is None:
        raise FmcortexError(f"scontrol: told no state of job {job_id}")
    return state[1]


def cancel(job_id: str) -> None:
    """Cancel a job.

    Raises:
        FmcortexError: SLURM does not know the job, or refuses.
    """
    # scancel is silent about a job that there is not.
    _call(["scontrol", "-o", "show", "job", _job_id(job_id)])
    _call(["scancel", _job_id(job_id)])


def _job_id(text: str) -> str:
    if not re.fullmatch(r"\d+(_\d+)?", text):
        raise ConfigError(f"{text}: not a SLURM job id")
    return text


def _call(command: list[str], stdin: str | None = None) -> str:
    """What a SLURM program prints; its own message becomes the error if it fails."""
    program = command[0]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120)
    # The latter, where a folder of the PATH may not be read.
    except (FileNotFoundError, PermissionError) as error:
        raise FmcortexError(
            f"{program}: not found; SLURM is submitted to from one of its login nodes"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise FmcortexError(f"{program}: no answer after 120 s") from error
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
        lines = [re.sub(rf"^({program}: )?(error: )?", "", line) for line in said.splitlines()]
        raise FmcortexError(f"{program}: {'; '.join(lines)}")
    return done.stdout.strip()
