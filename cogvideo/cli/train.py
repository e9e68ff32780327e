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
    """Train one part, or a whole pipeline by a recipe. The same command resumes a stopped run."""
    from cogvideo.config import load_yaml
    from cogvideo.theatre import recipe as demo
    from cogvideo.training import frame_tokenizer, recipe, run

    values = load_yaml(config, overrides)
    one = frame_tokenizer if values.get("stage") == "tokenizer" else run
    (one if "stage" in values else recipe if "data" in values else demo).train(config, overrides)
