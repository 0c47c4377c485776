"""The command that plans a pretraining before it is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fmcortex.commands.base import COUNT, command, config_options, read_config
from fmcortex.errors import ConfigError

if TYPE_CHECKING:
    from cluster.plan import RunPlan

#: Up to so many ranks, all are shown.
ALL_RANKS = 16
#: Of more, so many of the busiest and of the least busy.
SOME_RANKS = 4


@command(
    "plan",
    "fmcortex plan --config configs/paper.yaml --sessions sessions.csv --ranks 256 \\\n"
    "  --set training.lanes=1332 --set data.batch=1",
)
@config_options
@click.option("--ranks", type=COUNT, help="Workers  [default: from the configuration]")
@click.option(
    "--sessions",
    "table",
    type=click.Path(dir_okay=False),
    metavar="FILE.csv",
    help="Columns session, neurons, minutes; instead of a dataset that is not there yet.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan_command(
    path: str | None,
    overrides: tuple[str, ...],
    ranks: int | None,
    table: str | None,
    as_json: bool,
) -> None:
    """Say what a pretraining would do: load, memory and communication of every rank.

    Nothing is trained, and neither Ray nor a GPU is needed.
    """
    import json

    from cluster.plan import chosen, plan_run, read_recordings, recordings_of
    from fmcortex.training.fit import dataset_of

    config = read_config(path, None, overrides)
    if table is not None:
        recordings = chosen(config, read_recordings(table), table)
    elif config.data.url:
        recordings = recordings_of(config, dataset_of(config))
    else:
        raise ConfigError(
            "data.url: missing; name a prepared dataset (--set data.url=...), or a table of "
            "sessions (--sessions FILE.csv)"
        )
    plan = plan_run(config, recordings, ranks or config.cluster.workers)
    if as_json:
        click.echo(json.dumps(plan.document, indent=1))
    else:
        _print(plan)


def _print(plan: RunPlan) -> None:
    from fmcortex.tables import print_table

    told = plan.document
    drawn, replicas, sent = told["drawn"], told["replicas"], told["bytes_per_step"]
    print_table(
        "plan",
        ["", "value"],
        [
            ["sessions", str(told["sessions"])],
            ["neurons", f"{sum(plan.recordings.neurons.values()):,}"],
            ["ranks", str(told["ranks"])],
            ["lanes (micro-batches a step)", str(told["lanes"])],
            ["clips a step", f"{told['clips_per_step']} ({told['batch']} a micro-batch)"],
            ["drawn, of what is wanted", f"{drawn['least']:.2f} to {drawn['most']:.2f}"],
            ["imbalance", f"{told['imbalance']:.2%} (busiest rank over the mean)"],
            [
                "ranks a session lies on",
                f"{replicas['min']} / {replicas['median']:g} / {replicas['max']} "
                "(least / median / most)",
            ],
            ["planned in", f"{told['planning_seconds']:.2f} s"],
        ],
    )
    _print_loads(plan)
    largest, mean = told["memory_bytes"]["largest"], told["memory_bytes"]["mean"]
    print_table(
        "memory of a rank, GB",
        ["kind", "largest rank", "mean"],
        [[kind, f"{largest[kind] / 1e9:.3f}", f"{mean[kind] / 1e9:.3f}"] for kind in largest],
    )
    print_table(
        "handed to collectives by a rank in a step, MB",
        ["what", "largest rank", "mean"],
        [
            ["shared part", *[f"{sent['shared'] / 1e6:.1f}"] * 2],
            ["sessions on several ranks"]
            + [f"{sent['sessions'][key] / 1e6:.1f}" for key in ("largest", "mean")],
        ],
    )
    for hint in plan.hints:
        click.echo(
            f"hint: training.lanes={hint.lanes} with data.batch={hint.batch} draws as many clips "
            f"a step with an imbalance of {hint.imbalance:.2%}"
        )


def _print_loads(plan: RunPlan) -> None:
    from fmcortex.tables import print_table

    loads = plan.placement.loads
    mean = sum(loads) / len(loads)
    order = sorted(range(len(loads)), key=lambda rank: (-loads[rank], rank))
    kinds = dict.fromkeys(order, "")
    if len(order) > ALL_RANKS:
        middle = order[len(order) // 2]
        kinds = dict.fromkeys(order[:SOME_RANKS], "busiest") | {middle: "median"}
        kinds |= dict.fromkeys(order[-SOME_RANKS:], "least busy")
    print_table(
        f"load of {'every rank' if len(order) <= ALL_RANKS else 'some ranks'}, in "
        + ("measured seconds" if plan.measured else "neurons"),
        ["rank", "lanes", "sessions", "load", "of the mean", ""],
        [
            [
                str(rank),
                str(len(plan.placement.lanes[rank])),
                str(len(plan.placement.sessions[rank])),
                f"{loads[rank]:.3f}" if plan.measured else f"{loads[rank]:.0f}",
                f"{loads[rank] / mean:.4f}" if mean else "-",
                kind,
            ]
            for rank, kind in kinds.items()
        ],
    )
