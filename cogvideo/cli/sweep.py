"""`cogvideo sweep`: one notebook over a grid of parameters from a YAML file."""

from pathlib import Path
from typing import Annotated

import typer

from cogvideo.cli.options import folder

app = typer.Typer(name="sweep", help="Run a notebook over a grid of parameters.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE.yaml", help="Such as reports/sweeps/smoke.yaml.")]


@app.command()
def run(
    file: File,
    workers: Annotated[int | None, typer.Option(min=1, help="Points at once; by default what fits.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="A running Dask cluster: tcp://HOST:PORT.")] = None,
    slurm: Annotated[Path | None, typer.Option(help="YAML: dask_jobqueue.SLURMCluster's arguments.")] = None,
) -> None:
    """Run missing and changed points, then gather the table. The exit code is the number of failed points."""
    from cogvideo.sweeps.run import run

    raise typer.Exit(run(file, workers=workers, scheduler=scheduler, slurm=slurm))


@app.command()
def status(file: File) -> None:
    """Show the state of every point."""
    from cogvideo.sweeps.run import status

    status(file)


@app.command()
def keep(
    file: File, out: Annotated[Path, folder("Where NAME.csv and NAME/ are written.", metavar="FOLDER")]
) -> None:
    """Copy what a report shows out of the runs. Table and clips: `cogvideo report` takes NAME.csv."""
    from cogvideo.reports.results import keep

    typer.echo(str(keep(file, out)))


@app.command()
def stop(file: File) -> None:
    """Stop a running sweep from another terminal. This also stops points whose driver has died."""
    from cogvideo.sweeps.run import stop

    typer.echo(stop(file))
