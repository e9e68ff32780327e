"""The command line: puts the commands together and turns errors into a sentence and an exit code."""

import sys
import warnings
from typing import Annotated

import typer
from tqdm import tqdm

from cogvideo import __version__
from cogvideo.cli import bench, data, evaluate, sweep, weights
from cogvideo.cli.doctor import doctor
from cogvideo.cli.explore import explore
from cogvideo.cli.generate import generate
from cogvideo.cli.options import Group
from cogvideo.cli.report import report
from cogvideo.cli.train import Train, train
from cogvideo.errors import CogVideoError

app = typer.Typer(
    cls=Group,
    help="Videos from sentences.",
    no_args_is_help=True,
    context_settings={"max_content_width": 110},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (generate, explore, report, doctor):
    app.command()(command)
app.command(cls=Train)(train)
for group in (data, evaluate, sweep, weights, bench):
    app.add_typer(group.app)


def show_version(asked: bool) -> None:
    """Print the version and end, if it was asked for."""
    if asked:
        typer.echo(f"cogvideo {__version__}")
        raise typer.Exit


@app.callback(no_args_is_help=True)
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Videos from sentences."""


def warn(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as one line, without the line of code it came from; the terminal's bars stay whole."""
    tqdm.write(f"Warning: {' '.join(str(message).split())}", file=sys.stderr)


def main() -> None:
    """Run a command; exit codes: 0 done, 2 an error that the user can mend, 130 stopped with Ctrl-C."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = warn
            app(prog_name="cogvideo")  # also under python -m
    except CogVideoError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # how typer ends on Ctrl-C, without a word
            print("Stopped.", file=sys.stderr)
        raise
