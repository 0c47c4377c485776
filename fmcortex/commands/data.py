"""Commands that make data: simulate, decode, deconvolve, prep."""

from __future__ import annotations

import sys
from typing import Any

import click

from fmcortex.commands.base import COUNT, MINUTES, WORKERS, command


@command("simulate", "fmcortex simulate recordings --mice 5 --neurons 100 --minutes 8")
@click.argument("folder")
@click.option(
    "--mice", type=click.IntRange(1, 9999), default=3, help="Mice, one recording session each."
)
@click.option("--neurons", type=COUNT, default=100, help="Neurons of each mouse.")
@click.option(
    "--minutes", type=MINUTES, default=6.0, help="Minutes of training movies of each mouse."
)
@click.option(
    "--layout",
    type=click.Choice(["sensorium2023", "digital_twin", "signals"]),
    default="sensorium2023",
    help="File layout of the recordings.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Seed of everything random."
)
@click.option("--workers", type=click.IntRange(1, 4096), default=1, help="Processes that simulate.")
@click.option(
    "--only",
    multiple=True,
    type=click.IntRange(0, 9998),
    metavar="N",
    help="Only the N-th mouse, counted from 0; may be repeated.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other setting of the simulator; may be repeated.",
)
def simulate_command(
    folder: str, overrides: tuple[str, ...], workers: int, only: tuple[int, ...], **values: Any
) -> None:
    """Simulate recordings of mice that watch videos, with known receptive fields.

    FOLDER receives one folder a session. Its truth/ folder holds what was simulated; no reader
    opens it.
    """
    from data_prep.simulator.settings import SimulationSettings
    from data_prep.simulator.simulate import simulate
    from fmcortex.config import validated, with_overrides

    settings = validated(
        SimulationSettings, with_overrides(values, overrides, SimulationSettings), "simulate"
    )
    simulate(settings, folder, click.echo, sessions=list(only) or None, workers=workers)


@command("decode", "fmcortex decode stimulus.avi --to stimulus.npy --height 36 --width 64")
@click.argument("video")
@click.option("--to", required=True, metavar="FILE.npy", help="The array, uint8 [T, H, W].")
@click.option(
    "--height", type=click.IntRange(1, 65_536), help="Pixels; those of the video if not given."
)
@click.option(
    "--width", type=click.IntRange(1, 65_536), help="Pixels; those of the video if not given."
)
@click.option("--overwrite", is_flag=True, help="Replace an array that is there.")
def decode_command(
    video: str, to: str, height: int | None, width: int | None, overwrite: bool
) -> None:
    """Decode the file VIDEO to grey levels, as the nwb and signals layouts take them.

    Every frame once, in order, whatever its time; pictures are resized by averaging areas.
    """
    from data_prep.video_file import decode_video, video_info
    from fmcortex.progress import Progress

    if (height is None) != (width is None):
        raise click.UsageError("--height and --width go together")
    size = None if height is None or width is None else (height, width)
    said = video_info(video)
    total = round(said.frame_rate * said.seconds)
    with Progress("decode", total, "frame", every=5.0, stream=sys.stdout) as bar:

        def track(done: int) -> None:
            bar.total = max(bar.total, done)
            bar.update(done)

        frames, rows, columns = decode_video(video, to, size, track, overwrite)
    click.echo(f"{to}: {frames} frames of {rows} x {columns} pixels")


@command("deconvolve", "fmcortex deconvolve recordings --workers 2 --figures figures")
@click.argument("source")
@click.option("--workers", type=WORKERS, default=0, help="Ray tasks at a time; 0: no Ray.")
@click.option("--overwrite", is_flag=True, help="Redo what was made with other settings.")
@click.option("--skip-unknown", is_flag=True, help="Pass over folders of no known layout.")
@click.option("--figures", metavar="FOLDER", help="Draw some neurons of every session.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting, such as decay_seconds=0.7; may be repeated.",
)
def deconvolve_command(
    source: str,
    workers: int,
    overwrite: bool,
    skip_unknown: bool,
    figures: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Make activity of raw fluorescence, as the nwb and signals layouts have it.

    SOURCE is a folder of session folders. The activity is written into each session's folder,
    where `fmcortex prep` finds it: deconvolved/ beside an NWB file, signals/responses/ for a
    signal called fluorescence. The command may be interrupted and run again.
    """
    from pathlib import Path

    from cluster.ray_session import ray_session
    from data_prep.deconvolution import DeconvolutionSettings
    from data_prep.deconvolution_figure import draw_deconvolution
    from data_prep.deconvolve_job import deconvolve_sessions
    from fmcortex.config import validated, with_overrides
    from fmcortex.overlap import check_apart
    from fmcortex.progress import Progress

    if figures:
        check_apart([source], figures)
    values = with_overrides({}, overrides, DeconvolutionSettings)
    settings = validated(DeconvolutionSettings, values, "deconvolve")
    with Progress("deconvolve", 0, "neuron", every=5.0, stream=sys.stdout) as bar:

        def track(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.update(done, what)

        def draw(folder: Path) -> None:
            if figures:
                to = str(Path(figures) / f"{folder.name}.png")
                draw_deconvolution(folder, to)
                bar.say(to)

        within = ray_session(workers, say=bar.stage) if workers else None
        deconvolve_sessions(
            source, settings, workers, bar.say, overwrite, track, draw, skip_unknown, within
        )


@command("prep", "fmcortex prep recordings --to prepared --workers 2")
@click.argument("source")
@click.option("--to", required=True, metavar="URL", help="Where the dataset goes (any fsspec URL).")
@click.option("--workers", type=WORKERS, default=0, help="Ray tasks at a time; 0: no Ray.")
@click.option("--overwrite", is_flag=True, help="Redo sessions made with other settings.")
@click.option("--skip-unknown", is_flag=True, help="Pass over folders of no known layout.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of the preparation, such as height=36; may be repeated.",
)
def prep_command(
    source: str,
    to: str,
    workers: int,
    overwrite: bool,
    skip_unknown: bool,
    overrides: tuple[str, ...],
) -> None:
    """Turn recordings into a prepared dataset of shards.

    SOURCE is a folder of session folders: signals with their timestamps, NWB 2, Sensorium 2022
    and 2023, or the digital-twin layout. The command may be interrupted and run again; what is
    whole already is left alone.
    """
    from cluster.ray_session import ray_session
    from data_prep.job import prepare
    from data_prep.settings import PrepSettings
    from fmcortex.config import validated, with_overrides
    from fmcortex.progress import Progress

    settings = validated(PrepSettings, with_overrides({}, overrides, PrepSettings), "prep")
    with Progress("prep", 0, "session", every=5.0, stream=sys.stdout) as bar:

        def track(done: int, total: int, what: str) -> None:
            bar.total = total
            bar.update(done, what)

        within = ray_session(workers, say=bar.stage) if workers else None
        manifest = prepare(
            source, to, settings, workers, bar.say, overwrite, track, skip_unknown, within
        )
    neurons = sum(entry.neurons for entry in manifest.sessions)
    click.echo(
        f"{to}: {len(manifest.sessions)} sessions, {neurons} neurons, {manifest.movies} movies"
    )
