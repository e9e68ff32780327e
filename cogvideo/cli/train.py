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
) -> None:
    """Train on a tokenized folder, or make weights by a recipe. The same command resumes a stopped run."""
    from cogvideo.config import load_yaml
    from cogvideo.theatre import recipe
    from cogvideo.training import run

    (run if "stage" in load_yaml(config, overrides) else recipe).train(config, overrides)
