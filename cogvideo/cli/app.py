"""The command line: thin commands over the package. Errors a user can mend are one sentence and exit code 2."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from cogvideo.cli import bench as cli_bench
from cogvideo.cli import data as cli_data
from cogvideo.cli import explore as cli_explore
from cogvideo.cli import report as cli_report
from cogvideo.cli import scores as cli_scores
from cogvideo.cli import sweep as cli_sweep
from cogvideo.cli import train_bench as cli_train
from cogvideo.errors import CogVideoError

app = typer.Typer(
    help="Videos from sentences.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data = typer.Typer(help="Make, inspect and tokenize data sets.", no_args_is_help=True)
evaluate = typer.Typer(help="Score weights.", no_args_is_help=True)
app.add_typer(data, name="data")
app.add_typer(evaluate, name="evaluate")
cli_data.add_to(data)
cli_scores.add_to(evaluate)
cli_sweep.add_to(app)
cli_report.add_to(app)
cli_explore.add_to(app)
weights_app = typer.Typer(help="Find, fetch and look into weights.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
bench_app = typer.Typer(help="Measure time and memory.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")
cli_bench.add_to(bench_app)
cli_train.add_to(bench_app)

Weights = Annotated[str, typer.Option(help="demo, or a pipeline folder.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Guidance = Annotated[
    float | None, typer.Option(help="Guidance scale of the key frames; the weights' own if not given.")
]
Precision = Annotated[
    str | None, typer.Option(help="fp32, bf16, fp16 or int8; as the weights are if not given.")
]
Offloading = Annotated[
    str, typer.Option(help="none, stages or layers: what of the weights waits in host memory.")
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
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT...", help="Each sentence becomes a clip.")
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option("--prompts", help="A text file instead, one prompt a line; needs --out-dir."),
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option(help="A folder for the clips; a stopped run goes on, processes of torchrun share it."),
    ] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Clips made together, with --out-dir.")] = 8,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="An .mp4 or .gif; several clips are numbered.")
    ] = Path("clip.mp4"),
    seconds: Annotated[float, typer.Option(help="How long the clip lasts.")] = 4.0,
    seed: Annotated[int, typer.Option(help="The same seed on the same device gives the same clip.")] = 0,
    weights: Weights = "demo",
    device: Device = "auto",
    guidance: Guidance = None,
    enlarge: Annotated[bool, typer.Option(help="Enlarge the frames by super-resolution.")] = True,
    dtype: Precision = None,
    offload: Offloading = "none",
) -> None:
    """Make videos of sentences."""
    from cogvideo.data.video import check_writable
    from cogvideo.sampling.batches import fill_folder, identity, read_prompts
    from cogvideo.sampling.pipeline import DEMO, Pipeline

    if bool(prompts) == bool(prompts_file) or (prompts_file and not out_dir):
        raise CogVideoError("Give sentences, or a file of them by --prompts together with --out-dir.")
    prompts = read_prompts(prompts_file) if prompts_file else list(prompts or [])
    if out_dir:
        pipe = Pipeline.from_pretrained(weights, device=device, dtype=dtype, offload=offload)
        made_with = {
            "weights": identity(DEMO if weights == "demo" else weights),
            "dtype": dtype,
            "device": pipe.device.type,
        }
        options = {"seconds": seconds, "guidance_scale": guidance, "enlarge": enlarge}
        for path in fill_folder(
            pipe, prompts, out_dir, seed=seed, at_once=at_once, made_with=made_with, **options
        ):
            typer.echo(str(path))
        return
    paths = (
        [output]
        if len(prompts) == 1
        else [output.with_stem(f"{output.stem}-{i + 1}") for i in range(len(prompts))]
    )
    for path in paths:
        check_writable(path)  # now, not after the work
    pipe = Pipeline.from_pretrained(weights, device=device, dtype=dtype, offload=offload)
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
    """Train on a tokenized folder, or weights by a recipe; the same command goes on where a killed one stopped."""
    from cogvideo.config import load_yaml
    from cogvideo.theatre import recipe
    from cogvideo.training import run

    (run if "stage" in load_yaml(config, overrides) else recipe).train(config, overrides)


@app.command()
def doctor() -> None:
    """Tell versions, devices, memory and the weights found."""
    from cogvideo.benchmarks.doctor import report

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
    from cogvideo.theatre.dataset import make_digits
    from cogvideo.theatre.digits import World

    captions = make_digits(out, clips=clips, seed=seed, split=split, world=World(glyphs, objects))
    typer.echo(f"{captions}: {clips} clips")


@evaluate.command()
def alignment(
    weights: Weights = "demo",
    n: Annotated[int, typer.Option("-n", help="Prompts of each kind.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the prompts.")] = 0,
    device: Device = "auto",
    guidance: Guidance = None,
    out: Annotated[Path | None, typer.Option(help="Write the result to a JSON file, too.")] = None,
) -> None:
    """Ask demo weights for test prompts and print how often a judge sees what was asked for."""
    from cogvideo.theatre.alignment import evaluate

    evaluate(weights, n, seed, guidance=guidance, out=out, device=device)


@evaluate.command("fvd")
def evaluate_fvd(
    real: Annotated[
        str, typer.Argument(metavar="REAL", help="As GENERATED; real clips for the floor come from it, too.")
    ],
    generated: Annotated[
        str,
        typer.Argument(
            metavar="GENERATED",
            help="A folder of videos, or of frames in .npy and .npz; digits:test?seed=1&seconds=4; ucf101:FOLDER?split=testlist01.txt; "
            "kinetics:FOLDER?split=FILE.csv; or weights to sample from (demo, or a pipeline folder).",
        ),
    ],
    preset: Annotated[str, typer.Option(help="paper, stylegan-v, videogpt or cd-fvd.")] = "paper",
    n: Annotated[
        int | None, typer.Option("-n", help="Clips a side; the preset's own number if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses videos, places in them, and prompts.")] = 0,
    seeds: Annotated[
        int, typer.Option(help="Score so many independent generations; each costs n clips.")
    ] = 1,
    i3d: Annotated[
        Path | None,
        typer.Option(
            help="Another file of I3D weights; a TorchScript file is a program and is run: only from those you trust."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result to a JSON file, too.")] = None,
    device: Device = "auto",
) -> None:
    """Compute FVD and print it with its recipe, its floor and its spread; a stopped run goes on where it was."""
    from cogvideo.evaluation.fvd import evaluate

    evaluate(real, generated, preset=preset, n=n, seed=seed, seeds=seeds, i3d=i3d, out=out, device=device)


@evaluate.command("sensitivity")
def evaluate_sensitivity(
    real: Annotated[
        str, typer.Argument(metavar="REAL", help="As in `cogvideo evaluate fvd`; 2 n videos are taken.")
    ],
    generated: Annotated[
        str | None, typer.Option(help="A side to score beside the damaged clips, such as demo.")
    ] = None,
    presets: Annotated[
        list[str] | None,
        typer.Option("--preset", help="Repeatable; paper, stylegan-v, videogpt and cd-fvd if not given."),
    ] = None,
    n: Annotated[int, typer.Option("-n", help="Clips a side.")] = 64,
    damages: Annotated[
        list[str] | None,
        typer.Option(
            "--damage", help="shuffled, frozen, reversed, blurred, noisy, recoded; repeatable; else all."
        ),
    ] = None,
    strengths: Annotated[
        list[float],
        typer.Option("--strength", help="More than 0 and at most 1, the whole damage; repeatable."),
    ] = [1.0],
    seed: Annotated[int, typer.Option(help="Chooses videos, places in them, prompts and damages.")] = 0,
    i3d: Annotated[
        Path | None,
        typer.Option(
            help="Another file of I3D weights; a TorchScript file is a program and is run: only from those you trust."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A JSON file; a picture (.png) goes beside it.")] = None,
    device: Device = "auto",
) -> None:
    """Score real clips against damaged ones: what FVD feels. Each line of the table costs n clips through I3D."""
    from cogvideo.evaluation.recipes import PRESETS
    from cogvideo.evaluation.sensitivity import DAMAGES, sensitivity

    options = {"n": n, "strengths": strengths, "seed": seed, "i3d": i3d, "out": out, "device": device}
    sensitivity(real, generated, presets=presets or tuple(PRESETS), damages=damages or DAMAGES, **options)


@weights_app.command("list")
def list_weights() -> None:
    """Tell which weights there are: what each is for, how large, where it lies here, where it comes from."""
    from cogvideo.checkpoints.registry import table

    typer.echo(table())


@weights_app.command("get")
def get_weights(
    name: Annotated[str, typer.Argument(help="As `cogvideo weights list` calls it.")],
    url: Annotated[str | None, typer.Option(help="Another address of the same file.")] = None,
    file: Annotated[Path | None, typer.Option(help="The file, downloaded by other means.")] = None,
) -> None:
    """Fetch weights into the cache ($COGVIDEO_CACHE), going on where an earlier run stopped, or check those there."""
    from cogvideo.checkpoints.download import get

    path, done = get(name, url, file)
    typer.echo(f"{path}: {done}")


@weights_app.command("inspect")
def inspect_weights(
    path: Annotated[Path, typer.Argument(help="A folder or file of weights, or a released zip.")],
) -> None:
    """Tell what weights are and what they need, without reading them."""
    from cogvideo.checkpoints.inspect import inspect
    from cogvideo.checkpoints.inspection import report

    typer.echo(report(inspect(path)))


@weights_app.command("convert")
def convert_weights(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC",
            help="A released folder or zip, a native folder, ice_image.pt, or the folder of the whole release.",
        ),
    ],
    target: Annotated[
        Path, typer.Argument(metavar="DST", help="The native folder, or pipeline folder, to make.")
    ],
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16, or keep.")] = "bf16",
    image_tokens: Annotated[int, typer.Option(help="Of a released folder.")] = 20000,
    begin_of_image: Annotated[int, typer.Option(help="Of a released folder.")] = 150000,
) -> None:
    """Write weights as a native folder in another type, tensor by tensor; the memory taken is one shard's."""
    from cogvideo.checkpoints.convert import convert

    typer.echo(convert(source, target, dtype=dtype, image_tokens=image_tokens, begin_of_image=begin_of_image))


@bench_app.command("make-checkpoint")
def make_checkpoint(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The folder to make; for all: holds the four folders.")
    ],
    kind: Annotated[
        str, typer.Option(help="coglm, stage1, stage2, dsr, itersr, or all (the first four).")
    ] = "all",
    layers: Annotated[int, typer.Option(help="Transformer layers; the default is the release's.")] = 48,
    hidden: Annotated[int, typer.Option(help="Width; the default is the release's.")] = 3072,
    heads: Annotated[int | None, typer.Option(help="Attention heads; as the release, hidden / 64.")] = None,
    ranks: Annotated[int, typer.Option(help="Files that each model is split into.")] = 1,
    dtype: Annotated[str, typer.Option(help="fp16, bf16 or fp32.")] = "fp16",
    seed: Annotated[int, typer.Option(help="The same seed gives the same weights.")] = 0,
) -> None:
    """Write random weights in the layout of the release: 58 GB for all at full size."""
    from cogvideo.checkpoints.synthetic import make_checkpoint

    sizes = {"layers": layers, "hidden": hidden, "heads": heads, "ranks": ranks}
    for path in make_checkpoint(out, kind=kind, dtype=dtype, seed=seed, **sizes):
        typer.echo(str(path))


@bench_app.command("full-size")
def bench_full_size(
    layers: Annotated[int, typer.Option(help="Transformer layers; the default is the release's.")] = 48,
    hidden: Annotated[int, typer.Option(help="Width; the default is the release's.")] = 3072,
    heads: Annotated[int, typer.Option(help="Attention heads; the default is the release's.")] = 48,
    side: Annotated[
        int, typer.Option(help="Tokens along a side of a frame; 24 pixels each in the end.")
    ] = 20,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8.")] = "bf16",
    device: Device = "cuda",
    offload: Offloading = "none",
    clips: Annotated[int, typer.Option(help="Made at once.")] = 1,
    seconds: Annotated[float, typer.Option(help="How long a clip lasts: 4, 2, 1 or 0.5.")] = 4.0,
    seed: Annotated[int, typer.Option(help="Of weights and draws.")] = 0,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Released checkpoints, or what make-checkpoint wrote; else drawn at random."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The report, as JSON.")] = Path(
        "reports/benchmarks/full_size.json"
    ),
    plan: Annotated[bool, typer.Option("--plan", help="Only print what memory each choice needs.")] = False,
) -> None:
    """Time the whole released pipeline, stage by stage, with random weights of its size."""
    from cogvideo.benchmarks import full_size
    from cogvideo.benchmarks.memory_plan import plan_table, released_geometry
    from cogvideo.io import write_json

    if plan:
        typer.echo(plan_table(released_geometry(layers, hidden, heads, side), clips))
        return
    settings = full_size.Settings(layers, hidden, heads, side, dtype, device, offload, clips, seconds, seed)
    report = full_size.run(settings, source=source)
    write_json(out, report, parents=True)
    typer.echo(full_size.render(report))


@bench_app.command("load")
def bench_load(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="A released or native folder.")],
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16, or keep.")] = "keep",
    image_tokens: Annotated[int, typer.Option(help="Of a released folder.")] = 20000,
    begin_of_image: Annotated[int, typer.Option(help="Of a released folder.")] = 150000,
) -> None:
    """Load a model and tell its size, the time and the peak of host memory."""
    from cogvideo.checkpoints.convert import measure_load
    from cogvideo.checkpoints.pipeline_folder import choose_device

    ids = {"image_tokens": image_tokens, "begin_of_image": begin_of_image}
    typer.echo(measure_load(source, device=choose_device(device), dtype=dtype, **ids))


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
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16 or int8.")] = "fp32",
    device: Device = "cpu",
    threads: Annotated[
        int, typer.Option(help="CPU threads; not more than cores that are free. 0: as many as torch takes.")
    ] = 2,
    most_steps: Annotated[int, typer.Option(help="Steps of each kind; 0 for all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    out: Annotated[Path, typer.Option(help="The report, as JSON.")] = Path("reports/benchmarks/sampler.json"),
) -> None:
    """Time decoding with random weights, and tell how near it is to moving its weights and caches."""
    from cogvideo.benchmarks import sampler
    from cogvideo.io import write_json

    report = sampler.run(
        sampler.Settings(
            width,
            layers,
            heads,
            side,
            frames,
            window,
            clips,
            guided,
            dtype,
            device,
            threads,
            most_steps,
            seed,
        )
    )
    write_json(out, report, parents=True)
    typer.echo(sampler.render(report))
