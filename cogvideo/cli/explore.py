"""The command `cogvideo explore`; cli.py puts it beside the others."""

from pathlib import Path
from typing import Annotated

import typer

from cogvideo.errors import CogVideoError


def explore(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The sentence of the clip.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path(
        "attention.html"
    ),
    weights: Annotated[
        str, typer.Option(help="demo, a pipeline folder, or the folder of the released files.")
    ] = "demo",
    seconds: Annotated[float, typer.Option(help="How long the clip lasts.")] = 4.0,
    seed: Annotated[int, typer.Option(help="The same seed on the same device gives the same clip.")] = 0,
    rounds: Annotated[
        int, typer.Option(min=0, help="Rounds of frames between to look into; 0: key frames alone.")
    ] = 1,
    clip: Annotated[
        Path | None,
        typer.Option(help="Look into this video, of the models' frame size, instead of generating one."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Numbers from 0, such as 0,2; all if not given.")] = None,
    heads: Annotated[str | None, typer.Option(help="Numbers from 0, such as 0,2; all if not given.")] = None,
    patch: Annotated[
        str | None, typer.Option(help="FRAME,ROW,COLUMN, from 0, that is chosen at first.")
    ] = None,
    max_mb: Annotated[float, typer.Option(help="The file is at most so large, in MB.")] = 10.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Write one HTML file in which you click a patch of a clip and see what it was made from."""
    from cogvideo.data.video import check_place, read_video
    from cogvideo.explore import explorer
    from cogvideo.sampling.pipeline import Pipeline

    chosen = {"layers": _numbers("--layers", layers), "heads": _numbers("--heads", heads)}
    chosen["patch"] = _numbers("--patch", patch)
    check_place(output)  # now, not after the work
    frames = None if clip is None else read_video(clip)[0]
    pipe = Pipeline.from_pretrained(weights, device=device)
    explorer.select(pipe.stage1.config, **chosen)  # likewise
    if frames is None:
        scenes = explorer.scenes(pipe, prompt, seconds=seconds, seed=seed, rounds=rounds, progress=True)
    else:
        scenes = [explorer.clip_scene(pipe, prompt, frames, seconds=seconds)]
    page = explorer.page(scenes, **chosen, max_megabytes=max_mb, progress=True)
    left = f", without {', '.join(page.left_out)}: no room" if page.left_out else ""
    typer.echo(f"{page.save(output)}: {page.megabytes:.1f} MB{left}")


def _numbers(option: str, text: str | None) -> list[int] | None:
    """ "0,2" -> [0, 2]."""
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError:
        raise CogVideoError(
            f"{option} should be whole numbers with commas between, such as 0,2, not {text!r}."
        ) from None


def add_to(app: typer.Typer) -> None:
    """Make it a command of `app`."""
    app.command()(explore)
