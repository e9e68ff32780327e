"""The command `cogvideo report`: a page about a sweep, or about one set of weights."""

from pathlib import Path
from typing import Annotated

import typer

from cogvideo.errors import CogVideoError


def report(
    results: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE|DIR", help="A sweep file, the folder of its runs, or its table (.csv, .parquet)."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML page.")] = Path("report.html"),
    notes: Annotated[
        Path | None, typer.Option(help="A Markdown file of what is to be said about the results of a sweep.")
    ] = None,
    ratings: Annotated[
        Path | None,
        typer.Option(help="Answers of a human study of the sweep's clips (notebooks/human_study.ipynb)."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Instead of a sweep: evaluate one model, demo or a pipeline folder.")
    ] = None,
    n: Annotated[int, typer.Option("-n", help="With --weights: prompts of each kind.")] = 24,
    fvd_clips: Annotated[
        int, typer.Option(help="With --weights: clips a side for FVD; 0 leaves FVD and its sensitivity out.")
    ] = 12,
    seed: Annotated[int, typer.Option(help="With --weights: of prompts and draws.")] = 0,
    device: Annotated[str, typer.Option(help="With --weights: auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Put results on one page that needs no other file and looks right when printed."""
    if (results is None) == (weights is None):
        raise CogVideoError(
            "Give the results of a sweep (FILE or DIR), or weights by --weights, and not both."
        )
    if weights is not None:
        if notes or ratings:
            raise CogVideoError(
                "--notes and --ratings belong to the report of a sweep: leave them out with --weights."
            )
        from cogvideo.theatre.model_report import report_weights

        page = report_weights(weights, output, n=n, fvd_clips=fvd_clips, seed=seed, device=device)
    else:
        from cogvideo.reports.sweep import report

        assert results is not None
        page = report(results, output, notes=notes, ratings=ratings)
    typer.echo(str(page))


def add_to(app: typer.Typer) -> None:
    """Make `report` a command of `app`."""
    app.command()(report)
