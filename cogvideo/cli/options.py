"""Options that several commands share, each declared once; and the names that options had before."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from cogvideo.config import check_guidance, check_seed
from cogvideo.errors import CogVideoError
from cogvideo.io import check_folder, check_place

Number = TypeVar("Number", int, float)
FORMER = {"--out": "--output", "--sheet": "--output", "--hidden": "--width"}


def output(help: str, check: Callable[[Path], Path] = check_place):
    """The option for the file that a command writes; whether it can be written is tried before the work."""
    return typer.Option("-o", "--output", help=help, callback=_unless_missing(check))


def folder(help: str, metavar: str | None = None):
    """The argument for the folder that a command makes or fills; tried likewise."""
    return typer.Argument(help=help, metavar=metavar, callback=_unless_missing(check_folder))


def _unless_missing(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else check(value)  # without hints, which typer would read


# What runs, and where.
Weights = Annotated[str, typer.Option(help="demo, a pipeline folder, or the folder of the released files.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DTYPES = "fp32, bf16, fp16 or int8."
Dtype = Annotated[str, typer.Option(help=DTYPES)]
FileDtype = Annotated[str, typer.Option("--dtype", help="fp32, bf16, fp16, or keep that of the files.")]
Offload = Annotated[str, typer.Option(help="Keep weights in host memory: none, stages or layers.")]
Threads = Annotated[int, typer.Option(help="CPU threads, at most the cores that are free.")]
ImageTokens = Annotated[int, typer.Option(help="Image tokens of a released folder.")]
BeginOfImage = Annotated[int, typer.Option(help="Begin-of-image id of a released folder.")]

# What is generated or scored.
Seconds = Annotated[float, typer.Option(help="Length of a clip; the demo knows 0.5, 1, 2, 4 and 8.")]
Seed = Annotated[
    int, typer.Option(help="The same seed on the same device gives the same result.", callback=check_seed)
]
OtherSeed = Annotated[
    int | None, typer.Option(help="Another seed, side by side.", callback=_unless_missing(check_seed))
]
Guidance = Annotated[
    float | None,
    typer.Option(help="Guidance of key frames; by default the weights' own.", callback=check_guidance),
]
Report = Annotated[Path | None, output("Write the result to a JSON file, too.")]

# The size of a model with random weights.
Width = Annotated[int, typer.Option(help="Hidden size; the release's is 3072.")]
Layers = Annotated[int, typer.Option(help="Transformer layers; the release has 48.")]
Heads = Annotated[int, typer.Option(help="Attention heads; the release has 48.")]
HeadsOf64 = Annotated[int | None, typer.Option("--heads", help="Attention heads; by default width / 64.")]
Side = Annotated[int, typer.Option(help="Tokens along a side of a frame.")]
Window = Annotated[int, typer.Option(help="Window of windowed temporal attention.")]
Batch = Annotated[int, typer.Option("--clips", help="Clips at once.")]


class Group(TyperGroup):
    """The commands; they accept options by their former names, which no help text shows."""

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        split = (arg.partition("=") for arg in args)
        return super().parse_args(ctx, [FORMER.get(name, name) + sign + value for name, sign, value in split])


def numbers(text: str | None, option: str, kind: Callable[[str], Number]) -> tuple[Number, ...] | None:
    """ "0,2" -> (0, 2), in numbers of `kind` (int or float)."""
    try:
        return None if text is None else tuple(kind(part) for part in text.split(","))
    except ValueError:
        whole, example = ("whole ", "0,2") if kind is int else ("", "0.5,1,2")
        form = f"{whole}numbers with commas between, such as {example}"
        raise CogVideoError(f"{option} should be {form}, not {text!r}.") from None
