"""The command line: thin commands over the package. Errors a user can mend are one sentence and exit code 2."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cogvideo.errors import CogVideoError

app = typer.Typer(
    help="Videos from sentences.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Make data sets.", no_args_is_help=True)
evaluate = typer.Typer(help="Score weights.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(evaluate, name="evaluate")
bench_app = typer.Typer(help="Measure time and memory.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

Weights = Annotated[str, typer.Option(help="demo, or a pipeline folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Guidance = Annotated[
    float | None, typer.Option(help="Guidance scale of the key frames; the weights' own if not given.")
]


def main() -> None:
    """Run a command; exit codes: 0 done, 2 a mistake that can be mended, 130 stopped with Ctrl-C."""
    try:
        app(prog_name="cogvideo")  # also under python -m
    except CogVideoError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as end:
        if end.code == 130:  # how typer ends on Ctrl-C, without a word
            print("Stopped.", file=sys.stderr)
        raise


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Each sentence becomes a clip.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="An .mp4 or .gif; several clips are numbered.")] = Path(
        "clip.mp4"
    ),
    seconds: Annotated[float, typer.Option(help="How long the clip lasts.")] = 4.0,
    seed: Annotated[int, typer.Option(help="The same seed on the same device gives the same clip.")] = 0,
    weights: Weights = "demo",
    device: Device = "auto",
    guidance: Guidance = None,
    enlarge: Annotated[bool, typer.Option(help="Enlarge the frames by super-resolution.")] = True,
) -> None:
    """Make videos of sentences."""
    from cogvideo.data.video import check_writable
    from cogvideo.sampling.pipeline import Pipeline

    paths = [output] if len(prompts) == 1 else [output.with_stem(f"{output.stem}-{i + 1}") for i in range(len(prompts))]
    for path in paths:
        check_writable(path)  # now, not after the work
    pipe = Pipeline.from_pretrained(weights, device=device)
    videos = pipe(prompts, seconds=seconds, seed=seed, guidance_scale=guidance, enlarge=enlarge)
    assert isinstance(videos, list)  # one for each prompt
    for video, path in zip(videos, paths, strict=True):
        video.save(path)
        typer.echo(f"{path}: {video}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml")],
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable.")
    ] = [],
) -> None:
    """Train weights by a recipe; the same command goes on where a killed one stopped."""
    from cogvideo.training.recipe import train

    train(config, overrides)


@app.command()
def doctor() -> None:
    """Tell versions, devices, memory and the weights found."""
    from cogvideo.doctor import report

    typer.echo(report())


@data.command()
def make_digits(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder, made if missing.")],
    clips: Annotated[int, typer.Option(help="How many.")],
    seed: Annotated[int, typer.Option(help="Clip i depends on seed and i alone.")] = 0,
    split: Annotated[str, typer.Option(help="train or test.")] = "train",
    glyphs: Annotated[str, typer.Option(help="clean, handwriting or shapes.")] = "clean",
    objects: Annotated[int, typer.Option(help="1 or 2 in every clip.")] = 1,
) -> None:
    """Write captioned clips of bouncing digits: mp4 files and captions.jsonl."""
    from cogvideo.data.dataset import make_digits
    from cogvideo.data.digits import World

    captions = make_digits(out, clips=clips, seed=seed, split=split, world=World(glyphs, objects))
    typer.echo(f"{captions}: {clips} clips")


@evaluate.command()
def alignment(
    weights: Weights = "demo",
    n: Annotated[int, typer.Option("-n", help="Prompts of each kind.")] = 200,
    seed: Annotated[int, typer.Option(help="Chooses the prompts.")] = 0,
    device: Device = "auto",
    guidance: Guidance = None,
    out: Annotated[Path | None, typer.Option(help="Write the result to a JSON file, too.")] = None,
) -> None:
    """Ask demo weights for test prompts and print how often a judge sees what was asked for."""
    from cogvideo.evaluation.alignment import evaluate

    evaluate(weights, n, seed, guidance=guidance, out=out, device=device)


@bench_app.command("sampler")
def bench_sampler(
    width: Annotated[int, typer.Option(help="Hidden size.")] = 512,
    layers: Annotated[int, typer.Option(help="Transformer layers.")] = 8,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 8,
    side: Annotated[int, typer.Option(help="Tokens along a side of a frame.")] = 20,
    frames: Annotated[int, typer.Option(help="Frames of a sequence, an odd number.")] = 5,
    window: Annotated[int, typer.Option(help="Of the windowed stages.")] = 10,
    clips: Annotated[int, typer.Option(help="Made at once.")] = 1,
    guided: Annotated[bool, typer.Option(help="Two rows a clip instead of one.")] = True,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    threads: Annotated[int, typer.Option(help="CPU threads; not more than cores that are free.")] = 2,
    repeats: Annotated[int, typer.Option(help="Runs of each stage; the median counts.")] = 1,
    out: Annotated[Path, typer.Option(help="The report, as JSON.")] = Path("reports/benchmarks/sampler.json"),
) -> None:
    """Time decoding with random weights on the CPU, and tell how near it is to moving its weights."""
    from cogvideo.benchmarks import sampler

    report = sampler.run(
        sampler.Settings(width, layers, heads, side, frames, window, clips, guided, dtype, threads, repeats)
    )
    sampler.write(report, out)
    typer.echo(sampler.render(report))
