"""The command line: puts the commands together and turns errors into a sentence and an exit code."""

import sys

import typer

from cogvideo.cli import bench, data, evaluate, sweep, weights
from cogvideo.cli.doctor import doctor
from cogvideo.cli.explore import explore
from cogvideo.cli.generate import generate
from cogvideo.cli.options import Group
from cogvideo.cli.report import report
from cogvideo.cli.train import train
from cogvideo.errors import CogVideoError

app = typer.Typer(
    cls=Group,
    help="Videos from sentences.",
    no_args_is_help=True,
    context_settings={"max_content_width": 110},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (generate, train, explore, report, doctor):
    app.command()(command)
for group in (data, evaluate, sweep, weights, bench):
    app.add_typer(group.app)


def main() -> None:
    """Run a command; exit codes: 0 done, 2 an error that the user can mend, 130 stopped with Ctrl-C."""
    try:
        app(prog_name="cogvideo")  # also under python -m
    except CogVideoError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # how typer ends on Ctrl-C, without a word
            print("Stopped.", file=sys.stderr)
        raise
