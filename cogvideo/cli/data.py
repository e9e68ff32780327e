"""`cogvideo data`: make a data set, look into one, turn one into training sequences of tokens."""

from pathlib import Path
from typing import Annotated

import typer

from cogvideo.cli.options import Device, Seed, Weights, folder, numbers, output

app = typer.Typer(name="data", help="Make, inspect and tokenize data sets.", no_args_is_help=True)

DataSet = Annotated[
    str,
    typer.Argument(
        help="A folder with captions.jsonl or captions.csv (path, caption, perhaps start and end), or such a "
        "file; ucf101:FOLDER?split=trainlist01.txt; kinetics:FOLDER?split=FILE.csv; "
        "vatex:FOLDER?captions=FILE.json&language=zh; webvid:FOLDER?captions=FILE.csv; "
        "theatre:train?clips=1000."
    ),
]
KINDS = (
    "sequential (stage 1), interpolation (stage 2), image or superres; for comparisons also fixed-rate, "
    "one-stage-1, one-stage-2."
)
Rates = Annotated[
    str | None, typer.Option(help="Frame rates, such as 1,2,4,8; by default the paper's 0.25,0.5,1,2,4,8.")
]
MinRate = Annotated[float, typer.Option(help="Leave out lower frame rates.")]


@app.command()
def make_theatre(
    out: Annotated[Path, folder("A folder, made if missing.")],
    clips: Annotated[int, typer.Option(help="Number of clips.")],
    seed: Seed = 0,
    split: Annotated[str, typer.Option(help="train, seen, unseen, picture-only or pictures.")] = "train",
) -> None:
    """Write captioned clips of the puppet theatre. They are mp4 files beside a captions.jsonl."""
    from cogvideo.theatre.dataset import make_theatre

    captions = make_theatre(out, clips=clips, seed=seed, split=split)
    typer.echo(f"{captions}: {clips} clips")


@app.command()
def cut(
    source: Annotated[str, typer.Argument(help="A folder of videos, or any data set of video files.")],
    out: Annotated[Path, folder("The folder of the pieces and their captions.csv.")],
    seconds: Annotated[float, typer.Option(help="Length of a piece.")] = 1.0,
    moment: Annotated[
        float | None, typer.Option(help="Seconds that are held out together; by default 5/4 of a piece.")
    ] = None,
    pieces: Annotated[int, typer.Option(min=1, help="Overlapping pieces of a moment.")] = 5,
    side: Annotated[int, typer.Option(min=16, help="Pixels of the shorter side, at most.")] = 240,
) -> None:
    """Cut videos into short captioned pieces. Videos without captions are called what their files are."""
    from cogvideo.data.cut import cut

    count = cut(source, out, seconds=seconds, moment=moment, pieces=pieces, side=side)
    typer.echo(f"{out}: {count} pieces")


@app.command()
def inspect(
    dataset: DataSet,
    rates: Rates = None,
    min_rate: MinRate = 0.0,
    output: Annotated[Path, output("The contact sheet, a .png file.")] = Path("contact_sheet.png"),
    rows: Annotated[int, typer.Option(min=1, help="Clips on the contact sheet.")] = 8,
    weights: Weights = "demo",
) -> None:
    """Show what a data set holds. Counts, lengths, frame rates, unreadable files, unknown words, samples."""
    from cogvideo.checkpoints.tokenizers import load_tokenizers
    from cogvideo.data.frame_rates import RATES, check_rates
    from cogvideo.data.inspect import contact_sheet, inspect, report
    from cogvideo.data.sources import open_dataset

    chosen = check_rates(numbers(rates, "--rates", float) or RATES, min_rate)
    text = load_tokenizers(weights).text
    found = inspect(open_dataset(dataset), chosen)
    typer.echo(report(found, text))
    lines = contact_sheet(found, output, chosen, rows)
    typer.echo("\n".join(["", f"{output}:", *lines]))


@app.command()
def tokenize(
    dataset: DataSet,
    out: Annotated[Path, folder("The folder to make, or to resume.")],
    weights: Weights = "demo",
    kind: Annotated[str, typer.Option(help=KINDS)] = "sequential",
    rates: Rates = None,
    min_rate: MinRate = 0.0,
    rate: Annotated[float, typer.Option(help="The frame rate of --kind fixed-rate.")] = 2.0,
    per_clip: Annotated[int, typer.Option(help="Sequences of a clip at each of its frame rates.")] = 1,
    shard_clips: Annotated[int, typer.Option(help="Clips in a file; a kill loses those in work.")] = 64,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    device: Device = "auto",
) -> None:
    """Write a data set as training sequences of tokens. The same command resumes a stopped run."""
    from functools import partial

    from cogvideo.checkpoints.tokenizers import load_tokenizers
    from cogvideo.data.sources import open_dataset
    from cogvideo.data.tokenize import Settings, tokenize
    from cogvideo.data.tokenized import summary
    from cogvideo.runtime.device import choose_device

    settings = Settings(kind, numbers(rates, "--rates", float), min_rate, per_clip, rate, shard_clips)
    load, where = partial(load_tokenizers, weights), choose_device(device)
    made = tokenize(open_dataset(dataset), out, load, settings, workers=workers, device=where)
    typer.echo(f"{out}: {summary(made)}")
