"""`cogvideo explore`: the attention explorer as one HTML file."""

from pathlib import Path
from typing import Annotated

import typer

from cogvideo.cli.options import Device, OtherSeed, Seconds, Seed, Weights, numbers, output


def explore(
    prompt: Annotated[str, typer.Argument(help="The sentence of the clip.")],
    output: Annotated[Path, output("The HTML file to write.")] = Path("attention.html"),
    weights: Weights = "demo",
    seconds: Seconds = 4.0,
    seed: Seed = 0,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds of interpolation; 0: key frames only.")] = 1,
    clip: Annotated[
        Path | None, typer.Option(help="A video of any size, instead of a generated one.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Numbers from 0, such as 0,2; by default all.")] = None,
    heads: Annotated[str | None, typer.Option(help="Numbers from 0, such as 0,2; by default all.")] = None,
    patch: Annotated[str | None, typer.Option(help="FRAME,ROW,COLUMN, from 0, selected at first.")] = None,
    max_mb: Annotated[float, typer.Option(help="Largest size of the file in MB.")] = 10.0,
    other_prompt: Annotated[str | None, typer.Option(help="Another sentence, side by side.")] = None,
    other_seed: OtherSeed = None,
    other_weights: Annotated[str | None, typer.Option(help="Other weights over the same clips.")] = None,
    device: Device = "auto",
) -> None:
    """Write an HTML page that shows the attention of a clip. Click a patch to see what it was made from."""
    from cogvideo.data.video import read_video
    from cogvideo.explore import explorer
    from cogvideo.sampling.pipeline import Pipeline

    texts = {"layers": layers, "heads": heads, "patch": patch}
    chosen = {name: numbers(text, f"--{name}", int) for name, text in texts.items()}
    frames = None if clip is None else read_video(clip)[0]
    pipe = Pipeline.from_pretrained(weights, device=device)
    explorer.select(pipe.stage1.config, **chosen)  # now, not after the work
    pipe.warn_of_unknown_words([prompt])
    if frames is None:
        scenes = explorer.scenes(pipe, prompt, seconds=seconds, seed=seed, rounds=rounds, progress=True)
    else:
        scenes = [explorer.clip_scene(pipe, prompt, frames, seconds=seconds)]
    if other_prompt is not None or other_seed is not None:
        sentence, number = other_prompt or prompt, seed if other_seed is None else other_seed
        options = {"seconds": seconds, "seed": number, "rounds": rounds, "progress": True}
        scenes += explorer.scenes(pipe, sentence, **options)
    if other_weights is not None:
        other = Pipeline.from_pretrained(other_weights, device=device)
        scenes += [explorer.seen_by(scene, other, other_weights) for scene in scenes]
    page = explorer.page(scenes, **chosen, max_megabytes=max_mb, progress=True)
    left = f", without {', '.join(page.left_out)}: no room" if page.left_out else ""
    typer.echo(f"{page.save(output)}: {page.megabytes:.1f} MB{left}")
