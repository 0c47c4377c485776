"""Commands that train and score: pretrain, transfer, individual, evaluate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fmcortex.commands.base import (
    MINUTES,
    command,
    open_source,
    read_config,
    run_options,
    store_option,
)
from fmcortex.errors import ConfigError

if TYPE_CHECKING:
    from fmcortex.config import RunConfig
    from fmcortex.evaluation.evaluate import SessionScore


@command(
    "pretrain",
    "fmcortex pretrain --config configs/demo.yaml --set data.url=prepared \\\n"
    "  --workers 2 --output runs/first",
)
@run_options
@click.option(
    "--workers",
    type=click.IntRange(1, 65_536),
    help="Ray Train workers, one rank each  [default: from the configuration]",
)
@click.option(
    "--zero-stage",
    type=click.Choice(["0", "1", "2", "3"]),
    help="DeepSpeed ZeRO stage  [default: from the configuration]",
)
def pretrain_command(
    path: str | None,
    output: str | None,
    overrides: tuple[str, ...],
    workers: int | None,
    zero_stage: str | None,
) -> None:
    """Pretrain the shared core and each mouse's own part.

    Runs Ray Train workers with DeepSpeed, on this machine or, with RAY_ADDRESS set, on that
    cluster. An output folder that holds checkpoints of the same run is continued, on any number of
    workers. On SIGTERM, SIGUSR1 or SIGUSR2 the run saves and stops, with exit status 75, on Ctrl-C
    with 130; a second Ctrl-C ends it at once.
    """
    from cluster.pretrain import pretrain
    from fmcortex.training.diagnosis import left_out

    stage = None if zero_stage is None else int(zero_stage)
    config = read_config(
        path, output, overrides, cluster__workers=workers, cluster__zero_stage=stage
    )
    result = pretrain(config)
    click.echo(f"checkpoint {result.checkpoint}")
    click.echo(f"MLflow run {result.run_id} in {result.tracking_uri}")
    click.echo(f"{result.steps} steps, {result.seconds:.0f} s; {left_out(result.skipped)}")


def _train_single(kind: Any, config: RunConfig, start: Any) -> None:
    from fmcortex.progress import Progress
    from fmcortex.training.diagnosis import left_out
    from fmcortex.training.single import train_single

    def show(report: Any) -> None:
        losses = list(report.losses.values())
        bar.update(report.step + 1, f"loss {sum(losses) / len(losses):.4f}")

    with Progress(kind, config.training.steps) as bar:
        bar.stage("reading the dataset, opening the MLflow run")
        result = train_single(config, kind, start, on_step=show, say=bar.say)
    click.echo(f"checkpoint {result.checkpoint}")
    click.echo(f"MLflow run {result.run_id}")
    left = left_out(result.fit.skipped)
    click.echo(f"{config.training.steps} steps, {result.seconds:.0f} s; {left}")


def _one_session(session: str | None) -> list[str] | None:
    return None if session is None else [session]


@command(
    "transfer",
    "fmcortex transfer --config configs/demo.yaml --set data.url=prepared --from runs/first \\\n"
    "  --session mouse05-1-1 --minutes 4 --output runs/transfer",
)
@run_options
@click.option(
    "--from",
    "source",
    required=True,
    metavar="URL",
    help="Run folder, checkpoint, or models:/name@alias.",
)
@click.option("--session", help="The new mouse  [default: all of the dataset]")
@click.option("--minutes", type=MINUTES, help="Minutes of its training data  [default: all]")
@store_option
def transfer_command(
    path: str | None,
    output: str | None,
    overrides: tuple[str, ...],
    source: str,
    session: str | None,
    minutes: float | None,
    tracking_uri: str | None,
) -> None:
    """Fit a new mouse with the shared core of a foundation model, frozen.

    It may be interrupted, by Ctrl-C too, and called again: it goes on where it was.
    """
    config = read_config(
        path, output, overrides, data__sessions=_one_session(session), data__minutes=minutes
    )
    _train_single("transfer", config, open_source(source, config, tracking_uri))


@command(
    "individual",
    "fmcortex individual --config configs/demo.yaml --set data.url=prepared \\\n"
    "  --session mouse05-1-1 --minutes 4 --output runs/individual",
)
@run_options
@click.option("--session", help="The mouse  [default: all of the dataset]")
@click.option("--minutes", type=MINUTES, help="Minutes of its training data  [default: all]")
def individual_command(
    path: str | None,
    output: str | None,
    overrides: tuple[str, ...],
    session: str | None,
    minutes: float | None,
) -> None:
    """Train a whole model from scratch on one mouse, in this process.

    It may be interrupted, by Ctrl-C too, and called again: it goes on where it was.
    """
    config = read_config(
        path, output, overrides, data__sessions=_one_session(session), data__minutes=minutes
    )
    _train_single("individual", config, None)


@command("evaluate", "fmcortex evaluate runs/first --data prepared --to scores.json")
@click.argument("checkpoint")
@click.option("--data", "url", required=True, metavar="URL", help="Prepared dataset.")
@click.option(
    "--session",
    "sessions",
    multiple=True,
    help="A session; may be repeated  [default: all in both]",
)
@click.option(
    "--tier", type=click.Choice(["test", "validation"]), default="test", help="Tier of the videos."
)
@click.option(
    "--domain", "domains", multiple=True, help="A stimulus domain; may be repeated  [default: all]"
)
@click.option(
    "--burnin",
    type=click.IntRange(0, 100_000),
    default=10,
    help="First frames of each video that do not count.",
)
@click.option("--to", type=click.Path(dir_okay=False), help="JSON file for all scores.")
@store_option
def evaluate_command(
    checkpoint: str,
    url: str,
    sessions: tuple[str, ...],
    tier: str,
    domains: tuple[str, ...],
    burnin: int,
    to: str | None,
    tracking_uri: str | None,
) -> None:
    """Score a model's predictions of repeated videos: CC_abs, CC_max, CC_norm.

    CHECKPOINT is a run folder, a checkpoint or models:/name@alias. The baseline is the same
    model shown other videos instead.
    """
    import json

    from fmcortex import storage
    from fmcortex.data.dataset import open_dataset
    from fmcortex.evaluation.evaluate import evaluate_session
    from fmcortex.overlap import check_replaces
    from fmcortex.progress import Progress

    opened = open_source(checkpoint, tracking_uri=tracking_uri)
    dataset = open_dataset(url)
    if to:
        check_replaces(to, "list of scores", [url, opened.folder])
    chosen = list(sessions) or sorted(set(opened.sessions) & set(dataset.sessions))
    if not chosen:
        raise ConfigError(
            f"{checkpoint} and {url} have no session in common; "
            "use `fmcortex transfer` to fit a new mouse"
        )
    scores: list[SessionScore] = []
    with Progress("evaluate", len(chosen), "session", every=5.0) as bar:
        for i, name in enumerate(chosen):
            network = opened.network(name)
            scores.append(
                evaluate_session(
                    network, dataset.session(name), tier, list(domains) or None, burnin
                )
            )
            bar.update(i + 1, name)
    if to:
        document = [score.model_dump() for score in scores]
        storage.write_bytes(to, (json.dumps(document) + "\n").encode())
    _print_scores(f"{checkpoint}, step {opened.step}", scores)


def _print_scores(title: str, scores: list[SessionScore]) -> None:
    from fmcortex.tables import number, print_table

    rows = [
        [
            s.session,
            d.domain,
            str(d.neurons),
            str(d.without_cc_max),
            number(d.cc_abs),
            number(d.cc_max),
            number(d.cc_norm),
            number(d.baseline_cc_norm),
        ]
        for s in scores
        for d in s.domains
    ]
    print_table(
        f"{title}: medians over neurons",
        ["session", "domain", "neurons", "no CC_max", "CC_abs", "CC_max", "CC_norm", "baseline"],
        rows,
        keys=2,
    )
