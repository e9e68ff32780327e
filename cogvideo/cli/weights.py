"""`cogvideo weights`: find, download, inspect and convert weights."""

from pathlib import Path
from typing import Annotated

import typer

from cogvideo.cli.options import BeginOfImage, FileDtype, ImageTokens, folder

app = typer.Typer(name="weights", help="Find, download, inspect and convert weights.", no_args_is_help=True)


@app.command("list")
def list_weights() -> None:
    """List known weights: purpose, size, path here, source."""
    from cogvideo.checkpoints.registry import table

    typer.echo(table())


@app.command()
def get(
    name: Annotated[str, typer.Argument(help="Its name in `cogvideo weights list`.")],
    url: Annotated[str | None, typer.Option(help="Another address of the same file.")] = None,
    file: Annotated[Path | None, typer.Option(help="The file, downloaded by other means.")] = None,
) -> None:
    """Download weights into the cache, or check them. It is $COGVIDEO_CACHE; a stopped download resumes."""
    from cogvideo.checkpoints.download import get

    path, done = get(name, url, file)
    typer.echo(f"{path}: {done}")


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A folder or file of weights, or a released zip.")],
) -> None:
    """Describe weights and the memory they need, without reading them."""
    from cogvideo.checkpoints.inspect import inspect, report

    typer.echo(report(inspect(path)))


@app.command()
def assemble(
    output: Annotated[Path, folder("The pipeline folder to make.", metavar="NEW")],
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="FROM",
            help="Where its parts are, first come first: run_dirs of trainings, model folders, "
            "tokenizer files, pipeline folders or demo.",
        ),
    ],
    dtype: FileDtype = "keep",
) -> None:
    """Make a pipeline folder of trained parts. It says what is missing; files are linked, not copied."""
    from cogvideo.checkpoints.assemble import assemble, describe, find_parts
    from cogvideo.checkpoints.convert import file_dtype

    parts = find_parts(places)
    typer.echo(describe(assemble(output, parts, dtype=file_dtype(dtype)), parts))


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(help="A released folder or zip, ice_image.pt, the whole release, a native folder."),
    ],
    target: Annotated[Path, folder("The native or pipeline folder to make.")],
    dtype: FileDtype = "bf16",
    image_tokens: ImageTokens = 20000,
    begin_of_image: BeginOfImage = 150000,
) -> None:
    """Write weights as a native folder in another dtype. It takes the memory of one shard."""
    from cogvideo.checkpoints.convert import convert

    typer.echo(convert(source, target, dtype=dtype, image_tokens=image_tokens, begin_of_image=begin_of_image))
