"""`cogvideo train`."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml")],
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable.")
    ] = [],
) -> None:
    """Train on a tokenized folder, or make weights by a recipe. The same command resumes a stopped run."""
    from cogvideo.config import load_yaml
    from cogvideo.theatre import recipe
    from cogvideo.training import run

    (run if "stage" in load_yaml(config, overrides) else recipe).train(config, overrides)
