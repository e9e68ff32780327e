"""The explorer: click a patch and see what it read, in one HTML file (`page`) or live in JupyterLab (`live`).

    scenes = explorer.scenes(pipe, "a red 3 bounces", seconds=4, seed=0)
    explorer.page(scenes).save("attention.html")
    explorer.live(scenes)

Both homes have one front end, in app/: plain JavaScript without a build step, nothing loaded from outside.
"""

from cogvideo.explore.explorer.live import live
from cogvideo.explore.explorer.page import Page, page
from cogvideo.explore.explorer.payload import select
from cogvideo.explore.explorer.scenes import Scene, clip_scene, scenes

__all__ = ["Page", "Scene", "clip_scene", "live", "page", "scenes", "select"]
