"""The commands `cogvideo bench i3d` and `superres`; cli.py puts them beside the others."""

from pathlib import Path
from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def i3d(
    frames: Annotated[int, typer.Option(help="Frames of a video.")] = 16,
    batch: Annotated[int, typer.Option(help="Videos at a time.")] = 4,
    threads: Annotated[int | None, typer.Option(help="CPU threads; torch's own choice if not given.")] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, or fp16 (on a GPU).")] = "fp32",
    device: Device = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the report to a JSON file, too.")] = None,
) -> None:
    """Measure how many videos a second go through I3D, the network behind FVD."""
    from cogvideo.benchmarks.i3d import measure, render
    from cogvideo.io import write_json

    report = measure(frames=frames, batch=batch, threads=threads, dtype=dtype, device=device)
    if out:
        write_json(out, report, parents=True)
    typer.echo(render(report))


def superres(
    width: Annotated[int, typer.Option(help="Hidden size.")] = 512,
    layers: Annotated[int, typer.Option(help="Transformer layers.")] = 4,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 8,
    side: Annotated[int, typer.Option(help="Tokens along a side of the given frame.")] = 20,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    repeats: Annotated[int, typer.Option(help="Of which the quickest counts.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    out: Annotated[Path, typer.Option(help="The report, as JSON.")] = Path(
        "reports/benchmarks/superres.json"
    ),
) -> None:
    """Compare enlarging a frame by local attention with dense attention over as many places: time and memory."""
    from cogvideo.benchmarks.superres import Settings, render, run
    from cogvideo.io import write_json

    report = run(Settings(width, layers, heads, side, device, threads, repeats, seed))
    write_json(out, report, parents=True)
    typer.echo(render(report))


def add_to(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    for name, command in {"i3d": i3d, "superres": superres}.items():
        app.command(name)(command)
