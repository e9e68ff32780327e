"""`cogvideo bench`: time and memory, with random weights of any size."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cogvideo.cli import options
from cogvideo.io import check_folder

app = typer.Typer(name="bench", help="Measure time and memory.", no_args_is_help=True)

RESULTS = Path("reports/benchmarks")


def _check_report(path: Path) -> Path:
    """The path, if it can be written with the folders missing above it; a report of before may be there."""
    check_folder(path.parent)
    return path


ReportFile = Annotated[Path, options.output("The report, as JSON; missing folders are made.", _check_report)]


def _show(report: dict[str, Any], render: Any, path: Path | None) -> None:
    from cogvideo.io import write_json

    if path:
        write_json(path, report, parents=True)
    typer.echo(render(report))


@app.command()
def sampler(
    width: options.Width = 512,
    layers: options.Layers = 8,
    heads: options.Heads = 8,
    side: options.Side = 20,
    frames: Annotated[int, typer.Option(help="Frames of a sequence, an odd number.")] = 5,
    window: options.Window = 10,
    clips: options.Batch = 1,
    guided: Annotated[bool, typer.Option(help="Two rows a clip instead of one.")] = True,
    dtype: options.Dtype = "fp32",
    device: options.Device = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; 0: torch's own choice.")] = 2,
    most_steps: Annotated[int, typer.Option(help="Steps of each kind; 0 for all.")] = 0,
    seed: options.Seed = 0,
    output: ReportFile = RESULTS / "sampler.json",
    plan: Annotated[
        bool, typer.Option("--plan", help="Only print what a step of the released model should take.")
    ] = False,
    gpu: Annotated[str, typer.Option(help="For --plan: h100, h200, a100, 4090 or t4.")] = "h100",
) -> None:
    """Time decoding beside moving its weights and caches."""
    from cogvideo.benchmarks.sampler import Settings, render, run
    from cogvideo.benchmarks.step_plan import render_plan

    if plan:
        typer.echo(render_plan(gpu))
        return
    settings = Settings(
        width, layers, heads, side, frames, window, clips, guided, dtype, device, threads, most_steps, seed
    )
    _show(run(settings), render, output)


@app.command()
def train(
    width: options.Width = 256,
    layers: options.Layers = 2,
    heads: options.HeadsOf64 = None,
    side: options.Side = 20,
    window: options.Window = 10,
    clips: options.Batch = 1,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    device: options.Device = "cpu",
    threads: options.Threads = 2,
    recompute: Annotated[bool, typer.Option(help="Checkpoint activations: less memory, more time.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Run blocks by torch.compile.")] = False,
    steps: Annotated[int, typer.Option(help="Timed steps; the quickest counts.")] = 3,
    compare: Annotated[bool, typer.Option(help="On a CPU: with the plain dense-mask loop.")] = True,
    seed: options.Seed = 0,
    output: ReportFile = RESULTS / "train.json",
) -> None:
    """Time training steps: tokens a second, MFU, peak memory."""
    from cogvideo.benchmarks.train import Settings, render, run

    settings = Settings(
        width, layers, heads or max(1, width // 64), side, window, clips, dtype, device, threads,
        recompute, compiled, steps, compare, seed,
    )  # fmt: skip
    _show(run(settings), render, output)


@app.command()
def superres(
    width: options.Width = 512,
    layers: options.Layers = 4,
    heads: options.Heads = 8,
    side: options.Side = 20,
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    repeats: Annotated[int, typer.Option(help="Timed calls; the quickest counts.")] = 3,
    seed: options.Seed = 0,
    output: ReportFile = RESULTS / "superres.json",
) -> None:
    """Compare local and dense attention in super-resolution."""
    from cogvideo.benchmarks.superres import Settings, render, run

    _show(run(Settings(width, layers, heads, side, device, threads, repeats, seed)), render, output)


@app.command()
def i3d(
    frames: Annotated[int, typer.Option(help="Frames of a video.")] = 16,
    batch: Annotated[int, typer.Option(help="Videos at once.")] = 4,
    threads: Annotated[int | None, typer.Option(help="CPU threads; by default torch's own choice.")] = None,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, or fp16 (on a GPU).")] = "fp32",
    device: options.Device = "auto",
    output: options.Report = None,
) -> None:
    """Measure videos a second of I3D, the network behind FVD."""
    from cogvideo.benchmarks.i3d import measure, render

    report = measure(frames=frames, batch=batch, threads=threads, dtype=dtype, device=device)
    _show(report, render, output)


@app.command()
def full_size(
    layers: options.Layers = 48,
    width: options.Width = 3072,
    heads: options.Heads = 48,
    side: options.Side = 20,
    dtype: options.Dtype = "bf16",
    device: options.Device = "cuda",
    offload: options.Offload = "none",
    clips: options.Batch = 1,
    seconds: options.Seconds = 4.0,
    seed: options.Seed = 0,
    source: Annotated[
        Path | None, typer.Option("--from", help="Released files instead of random weights.")
    ] = None,
    output: ReportFile = RESULTS / "full_size.json",
    plan: Annotated[bool, typer.Option("--plan", help="Only print what memory each choice needs.")] = False,
) -> None:
    """Time the whole released pipeline with random weights."""
    from cogvideo.benchmarks.full_size import Settings, render, run
    from cogvideo.benchmarks.memory_plan import plan_table, released_geometry

    if plan:
        typer.echo(plan_table(released_geometry(layers, width, heads, side), clips))
        return
    settings = Settings(layers, width, heads, side, dtype, device, offload, clips, seconds, seed)
    _show(run(settings, source=source), render, output)


@app.command()
def gpu_table(
    minutes: Annotated[float, typer.Option(help="What is not done by then is left out.")] = 9.5,
    output: Annotated[
        Path, options.output("The folder of the table and the reports.", check_folder)
    ] = RESULTS / "gpu",
) -> None:
    """Measure steps, clips, training, offloading on a GPU."""
    from cogvideo.benchmarks.gpu_table import run

    typer.echo(run(output, minutes))


@app.command()
def make_checkpoint(
    out: Annotated[Path, options.folder("The folder to make; for all, of four folders.")],
    kind: Annotated[str, typer.Option(help="coglm, stage1, stage2, dsr, itersr, or all but itersr.")] = "all",
    layers: options.Layers = 48,
    width: options.Width = 3072,
    heads: options.HeadsOf64 = None,
    ranks: Annotated[int, typer.Option(help="Files of each model.")] = 1,
    dtype: Annotated[str, typer.Option(help="fp16, bf16 or fp32.")] = "fp16",
    seed: options.Seed = 0,
) -> None:
    """Write random weights as the release lays them out. All take 58 GB at full size."""
    from cogvideo.checkpoints.synthetic import make_checkpoint

    sizes = {"layers": layers, "hidden": width, "heads": heads, "ranks": ranks}
    typer.echo("\n".join(map(str, make_checkpoint(out, kind=kind, dtype=dtype, seed=seed, **sizes))))


@app.command()
def load(
    folder: Annotated[Path, typer.Argument(help="A released or native folder.")],
    device: options.Device = "cpu",
    dtype: options.FileDtype = "keep",
    image_tokens: options.ImageTokens = 20000,
    begin_of_image: options.BeginOfImage = 150000,
) -> None:
    """Measure the time and host memory of loading a model."""
    from cogvideo.checkpoints.convert import measure_load
    from cogvideo.runtime.device import choose_device

    ids = {"image_tokens": image_tokens, "begin_of_image": begin_of_image}
    typer.echo(measure_load(folder, device=choose_device(device), dtype=dtype, **ids))
