"""`cogvideo data inspect` and `tokenize`: what a data set holds, and its training sequences as tokens on disk."""

from pathlib import Path
from typing import Annotated

import typer

from cogvideo.errors import CogVideoError

DataSet = Annotated[
    str,
    typer.Argument(
        metavar="DATASET",
        help="A folder with captions.jsonl or captions.csv (path, caption, perhaps start and end), or such a file; "
        "ucf101:FOLDER?split=trainlist01.txt; kinetics:FOLDER?split=FILE.csv; vatex:FOLDER?captions=FILE.json&language=zh; "
        "webvid:FOLDER?captions=FILE.csv; digits:train?clips=1000.",
    ),
]
Rates = Annotated[
    str | None, typer.Option(help="Frames a second, as 1,2,4,8; 0.25,0.5,1,2,4,8 of the paper if not given.")
]
Minimum = Annotated[float, typer.Option("--min-rate", help="Leave lower frame rates out.")]


def inspect_data(
    dataset: DataSet,
    rates: Rates = None,
    minimum: Minimum = 0.0,
    sheet: Annotated[Path, typer.Option(help="The contact sheet: a .png file.")] = Path("contact_sheet.png"),
    rows: Annotated[int, typer.Option(min=1, help="Clips on the contact sheet.")] = 8,
) -> None:
    """Tell counts, lengths, the frame rates that the multi-frame-rate rule chooses and unreadable files; show samples."""
    from cogvideo.data.frame_rates import RATES, check_rates
    from cogvideo.data.inspect import contact_sheet, inspect, report
    from cogvideo.data.sources import open_dataset

    chosen = check_rates(_numbers(rates) or RATES, minimum)
    found = inspect(open_dataset(dataset), chosen)
    typer.echo(report(found))
    lines = contact_sheet(found, sheet, chosen, rows)
    typer.echo("\n".join(["", f"{sheet}:", *lines]))


def tokenize_data(
    dataset: DataSet,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make, or to go on with.")],
    weights: Annotated[
        str, typer.Option(help="demo, a pipeline folder, or the release's: whose tokenizers.")
    ] = "demo",
    kind: Annotated[
        str,
        typer.Option(
            help="sequential (stage 1), interpolation (stage 2), image, superres; for comparison fixed-rate, one-stage-1, "
            "one-stage-2."
        ),
    ] = "sequential",
    rates: Rates = None,
    minimum: Minimum = 0.0,
    rate: Annotated[float, typer.Option(help="The one frame rate of fixed-rate.")] = 2.0,
    per_clip: Annotated[
        int, typer.Option(help="Sequences of a clip, at each of its frame rates, spread over it.")
    ] = 1,
    shard_clips: Annotated[int, typer.Option(help="Clips in a file; a kill loses those in hand.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Write the training sequences of a data set as frame tokens and text ids; the same command again goes on."""
    from functools import partial

    from cogvideo.runtime.device import choose_device
    from cogvideo.checkpoints.tokenizers import load_tokenizers
    from cogvideo.data.sources import open_dataset
    from cogvideo.data.tokenize import Settings, tokenize

    settings = Settings(kind, _numbers(rates), minimum, per_clip, rate, shard_clips)
    load = partial(load_tokenizers, weights)
    made = tokenize(open_dataset(dataset), out, load, settings, workers=workers, device=choose_device(device))
    if not made["complete"]:
        typer.echo(f"{out}: this process has done its {made['shards']} shards; others are still at work")
        return
    counts = ", ".join(f"{count} at {rate} fps" for rate, count in made["rates"].items() if rate != "0")
    typer.echo(
        f"{out}: {made['samples']} sequences of {made['clips']} clips{f' ({counts})' if counts else ''}"
    )
    problems = made["problems"]
    if problems["count"] or made["missing"]:
        typer.echo(
            f"{problems['count']} clips have something wrong, {made['missing']} are missing; see manifest.json:"
        )
        for source, sentence in problems["first"][:5]:
            typer.echo(f"  {source}: {sentence}")


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CogVideoError(
            f"Frame rates are numbers with commas between them, such as 1,2,4,8, not {text!r}."
        ) from None


def add_to(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    app.command("inspect")(inspect_data)
    app.command("tokenize")(tokenize_data)
