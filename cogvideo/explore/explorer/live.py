"""The explorer as a widget in Jupyter: the same front end, maps computed when they are asked for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cogvideo.errors import CogVideoError
from cogvideo.explore.explorer.scenes import Scene

if TYPE_CHECKING:
    from cogvideo.explore.explorer.widget import LiveExplorer


def live(
    scenes: Sequence[Scene],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    patch: Sequence[int] | None = None,
) -> "LiveExplorer":
    """A widget over scenes; layers, heads: numbers, None for all; patch: (frame, row, column) that is shown first.

    Raises CogVideoError where anywidget is not installed, and for layers, heads and a patch that do not exist.
    """
    try:
        from cogvideo.explore.explorer.widget import LiveExplorer
    except ImportError:
        raise CogVideoError('The live explorer needs anywidget: pip install "cogvideo[notebooks]".') from None
    return LiveExplorer(scenes, layers=layers, heads=heads, patch=patch)
