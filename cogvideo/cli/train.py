"""`cogvideo train`."""

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand


class Train(TyperCommand):
    """The command, whose help ends with the settings, as the code has them: it takes a second to import."""

    def format_epilog(self, ctx, formatter) -> None:
        from cogvideo.config import settings_help
        from cogvideo.training.run import TrainingConfig

        with formatter.section("Settings of a training (those of a recipe stand in configs/demo.yaml)"):
            formatter.write_dl(settings_help(TrainingConfig))


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Settings, as listed below.")],
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable.")
    ] = [],
    plan: Annotated[bool, typer.Option("--plan", help="Only say what it will need: memory, hours.")] = False,
    clips: Annotated[int | None, typer.Option(help="Sequences for --plan; else those in `data`.")] = None,
    gpus: Annotated[int, typer.Option(help="GPUs for --plan.")] = 1,
) -> None:
    """Train one part, or a whole pipeline by a recipe. The same command resumes a stopped run."""
    from cogvideo.config import load_yaml
    from cogvideo.theatre import recipe as demo
    from cogvideo.training import frame_tokenizer, recipe, run

    if plan:
        from cogvideo.training import plan as plans

        typer.echo(plans.plan(config, overrides, clips, gpus))
        return
    values = load_yaml(config, overrides)
    one = frame_tokenizer if values.get("stage") == "tokenizer" else run
    (one if "stage" in values else recipe if "data" in values else demo).train(config, overrides)
