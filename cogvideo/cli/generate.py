"""`cogvideo generate`: sentences become video files."""

from pathlib import Path
from typing import Annotated

import typer

from cogvideo.cli.options import DTYPES, Device, Guidance, Offload, Seconds, Seed, Weights
from cogvideo.errors import CogVideoError


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="Each sentence becomes a clip.")
    ] = None,
    prompts_file: Annotated[
        Path | None, typer.Option("--prompts", help="A text file with one prompt a line; needs --out-dir.")
    ] = None,
    out_dir: Annotated[Path | None, typer.Option(help="A folder of clips; a stopped run resumes.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Clips of a batch, with --out-dir.")] = 8,
    output: Annotated[  # tried by write_clips: it may be several files
        Path, typer.Option("-o", "--output", help="An .mp4 or .gif; several clips are numbered.")
    ] = Path("clip.mp4"),
    seconds: Seconds = 4.0,
    seed: Seed = 0,
    weights: Weights = "demo",
    device: Device = "auto",
    guidance: Guidance = None,
    enlarge: Annotated[bool, typer.Option(help="Upsample the frames by super-resolution.")] = True,
    dtype: Annotated[str | None, typer.Option(help=DTYPES + " By default that of the weights.")] = None,
    offload: Offload = "none",
) -> None:
    """Make videos from sentences."""
    from cogvideo.sampling.batches import read_prompts, write_clips, write_folder

    if bool(prompts) == bool(prompts_file) or (prompts_file and not out_dir):
        raise CogVideoError("Give sentences, or a file of them by --prompts together with --out-dir.")
    prompts = read_prompts(prompts_file) if prompts_file else list(prompts or [])
    models = {"weights": weights, "device": device, "dtype": dtype, "offload": offload}
    settings = {"seconds": seconds, "guidance_scale": guidance, "enlarge": enlarge}
    if out_dir:
        lines = write_folder(prompts, out_dir, models, seed=seed, at_once=at_once, **settings)
    else:
        lines = write_clips(prompts, output, models, seed=seed, **settings)
    typer.echo("\n".join(lines))
