"""Commands for sweeps: many runs of one notebook, with parameters from a YAML file."""

from pathlib import Path
from typing import Annotated

import typer

File = Annotated[Path, typer.Argument(metavar="FILE.yaml", help="Such as reports/sweeps/smoke.yaml.")]


def run(
    file: File,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Points at once; as cores and memory allow if not given.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Of a Dask cluster that is there already: tcp://HOST:PORT.")
    ] = None,
    slurm: Annotated[
        Path | None, typer.Option(help="A YAML file of the arguments of dask_jobqueue.SLURMCluster.")
    ] = None,
) -> None:
    """Run what is missing or changed and gather the table; the exit code is the number of points that failed."""
    from cogvideo.sweeps.run import run

    raise typer.Exit(run(file, workers=workers, scheduler=scheduler, slurm=slurm))


def status(file: File) -> None:
    """Tell how every point stands."""
    from cogvideo.sweeps.run import status

    status(file)


def stop(file: File) -> None:
    """Stop a sweep that runs, from another terminal, also points whose driver has died."""
    from cogvideo.sweeps.run import stop

    typer.echo(stop(file))


def add_to(app: typer.Typer) -> None:
    """Make `sweep` a group of commands of `app`."""
    sweep = typer.Typer(help="Run a notebook over a grid of parameters.", no_args_is_help=True)
    for command in (run, status, stop):
        sweep.command()(command)
    app.add_typer(sweep, name="sweep")
