"""The command `cogvideo bench train`; cli.py puts it beside the others."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    width: Annotated[int, typer.Option(help="Hidden size; the release's is 3072.")] = 256,
    layers: Annotated[int, typer.Option(help="Transformer layers; the release's are 48.")] = 2,
    heads: Annotated[int | None, typer.Option(help="Attention heads; as the release, width / 64.")] = None,
    side: Annotated[int, typer.Option(help="Tokens along a side of a frame.")] = 20,
    window: Annotated[int, typer.Option(help="Of stage 2's temporal channel.")] = 10,
    clips: Annotated[int, typer.Option(help="In a step.")] = 1,
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; not more than cores that are free.")] = 2,
    recompute: Annotated[
        bool, typer.Option(help="Compute blocks again for their gradients: less memory, more time.")
    ] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Blocks by torch.compile.")] = False,
    steps: Annotated[int, typer.Option(help="Timed ones; the quickest counts.")] = 3,
    compare: Annotated[bool, typer.Option(help="On a CPU: with the plain dense-mask loop.")] = True,
    seed: Annotated[int, typer.Option(help="Of weights and tokens.")] = 0,
    out: Annotated[Path, typer.Option(help="The report, as JSON.")] = Path("reports/benchmarks/train.json"),
) -> None:
    """Time training steps of stages 1 and 2 with random weights: tokens a second, MFU, peak memory."""
    from cogvideo.benchmarks import train as benchmark
    from cogvideo.io import write_json

    settings = benchmark.Settings(
        width, layers, heads or max(1, width // 64), side, window, clips, dtype, device, threads, recompute, compiled,
        steps, compare, seed,
    )  # fmt: skip
    report = benchmark.run(settings)
    write_json(out, report, parents=True)
    typer.echo(benchmark.render(report))


def add_to(bench: typer.Typer) -> None:
    bench.command("train")(train)
