"""`cogvideo doctor`."""

import typer


def doctor() -> None:
    """Show versions, devices, memory and the weights found."""
    from cogvideo.benchmarks.doctor import report

    typer.echo(report())
