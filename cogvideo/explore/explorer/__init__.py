"""The explorer: click a patch and see what it read, in one HTML file (`page`) or live in JupyterLab (`live`).

    scenes = explorer.scenes(pipe, "a lion drinks milk", seconds=4, seed=0)
    explorer.page(scenes).save("attention.html")
    explorer.live(scenes)

Both have one front end, in app/: plain JavaScript without a build step, nothing loaded from outside.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cogvideo.errors import CogVideoError
from cogvideo.explore.explorer.page import Page, page
from cogvideo.explore.explorer.payload import select
from cogvideo.explore.explorer.scenes import Scene, clip_scene, drawn_anew, scenes, seen_by

if TYPE_CHECKING:
    from cogvideo.explore.explorer.widget import LiveExplorer

__all__ = ["Page", "Scene", "clip_scene", "drawn_anew", "live", "page", "scenes", "seen_by", "select"]


def live(scenes: Sequence[Scene], **chosen: Any) -> "LiveExplorer":
    """A Jupyter widget over scenes that computes maps on demand. chosen: as in `page`."""
    try:
        from cogvideo.explore.explorer.widget import LiveExplorer
    except ImportError:
        raise CogVideoError('The live explorer needs anywidget: pip install "cogvideo[notebooks]".') from None
    return LiveExplorer(scenes, **chosen)
