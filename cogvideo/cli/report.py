"""`cogvideo report`: a page about a sweep, or about one set of weights."""

from pathlib import Path
from typing import Annotated

import typer

from cogvideo.cli.options import Device, Seed, output
from cogvideo.errors import CogVideoError


def report(
    results: Annotated[
        Path | None,
        typer.Argument(help="A sweep file, the folder of its runs, or its table (.csv, .parquet)."),
    ] = None,
    output: Annotated[Path, output("The HTML page.")] = Path("report.html"),
    notes: Annotated[Path | None, typer.Option(help="Remarks on a sweep's results, in Markdown.")] = None,
    ratings: Annotated[Path | None, typer.Option(help="Answers of notebooks/07_human_study.ipynb.")] = None,
    weights: Annotated[str | None, typer.Option(help="Instead of a sweep: demo, a pipeline folder.")] = None,
    n: Annotated[int, typer.Option("-n", help="With --weights: prompts of each kind.")] = 24,
    fvd_clips: Annotated[int, typer.Option(help="With --weights: clips a side for FVD; 0: no FVD.")] = 12,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Put results on one page. It needs no other file and prints well."""
    if (results is None) == (weights is None):
        raise CogVideoError("Give the results of a sweep or --weights, and not both.")
    if results is not None:
        from cogvideo.reports.sweep import report

        page = report(results, output, notes=notes, ratings=ratings)
    elif notes or ratings:
        raise CogVideoError("--notes and --ratings belong to the report of a sweep: leave them out.")
    else:
        from cogvideo.theatre.model_report import report_weights

        page = report_weights(str(weights), output, n=n, fvd_clips=fvd_clips, seed=seed, device=device)
    typer.echo(str(page))
