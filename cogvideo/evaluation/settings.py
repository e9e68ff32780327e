"""What all evaluations share: settings, and the card of two columns that they print."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cogvideo.checkpoints.registry import cache_dir
from cogvideo.errors import CogVideoError
from cogvideo.io import check_folder, check_place, write_json


@dataclass(frozen=True)
class Settings:
    """How many clips are scored, by which seed, and where.

    n: clips a side; None for the number that the evaluation names. seed: of all random choices. i3d: a file
    of I3D weights; None for the one in the cache. out: a JSON file for the result.
    """

    n: int | None = None
    seed: int = 0
    device: str = "auto"
    i3d: str | Path | None = None
    out: str | Path | None = None
    progress: bool = True

    @property
    def sampling(self) -> dict[str, Any]:
        """What all sides share that are opened (sources.open_side)."""
        return {"device": self.device, "progress": self.progress}

    def count(self, default: int) -> int:
        """The number of clips a side; CogVideoError for fewer than FVD can compare."""
        n = default if self.n is None else self.n
        if n < 2:
            raise CogVideoError(f"FVD needs at least 2 clips a side, not {n}: give a larger n.")
        return n

    def check_out(self) -> None:
        """CogVideoError if the result, or features and samples, cannot be written: asked before the work."""
        check_folder(cache_dir(), "set COGVIDEO_CACHE to another")
        if self.out:
            check_place(self.out)

    def finish(self, card: str, result: dict[str, Any]) -> None:
        """Print the card; write the result to `out`, if given."""
        print(card)
        if self.out:
            write_json(self.out, result)


def lines(*rows: tuple[str, str]) -> str:
    """Names and texts in two columns."""
    return "\n".join(f"{name:<20} {text}" for name, text in rows)
