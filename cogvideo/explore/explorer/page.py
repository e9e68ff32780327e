"""The explorer as one HTML file: front end, frames and packed maps inside, no network, no kernel."""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tqdm import tqdm

from cogvideo.errors import CogVideoError
from cogvideo.explore.explorer.payload import Selection, describe, pack, select
from cogvideo.explore.explorer.scenes import Scene
from cogvideo.io import write_whole

APP = Path(__file__).parent / "app"
HTML = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<div id="explorer"></div>
<noscript>The explorer needs JavaScript, which is part of this file.</noscript>
<script type="application/json" id="payload">{payload}</script>
<script type="module">{script}</script>
</body>
</html>
"""
PAGE_STYLE = "body { margin: 0; background: #f6f5f2; }\n"
FRAME_HEIGHT = 900  # pixels, of the page inside a notebook


def front_end() -> tuple[str, str]:
    """The module's JavaScript, its parts joined into one, and the style sheet."""
    script = "\n".join(
        (APP / name).read_text("utf-8") for name in ("maps.js", "draw.js", "layout.js", "explorer.js")
    )
    return script, (APP / "explorer.css").read_text("utf-8")


@dataclass(frozen=True)
class Page:
    """A whole page; shows itself in Jupyter. left_out: titles of scenes for which there was no room."""

    html: str
    left_out: tuple[str, ...] = ()

    @property
    def megabytes(self) -> float:
        return _size(self.html) / 1e6

    def save(self, path: str | Path) -> Path:
        """Write the file, whole or not at all; raises CogVideoError for a place that cannot be written."""
        return write_whole(path, self.html)

    def _repr_html_(self) -> str:
        # In a frame of its own: the notebook's styles and the page's do not meet, and its scripts see nothing of it.
        return (
            f'<iframe title="Attention explorer" sandbox="allow-scripts" srcdoc="{escape(self.html)}" '
            f'style="width:100%;height:{FRAME_HEIGHT}px;border:0"></iframe>'
        )


def page(
    scenes: Sequence[Scene],
    *,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    patch: Sequence[int] | None = None,
    max_megabytes: float = 10.0,
    progress: bool = False,
) -> Page:
    """A page of scenes with the maps of chosen layers and heads (None: all), of at most max_megabytes (10^6 bytes).

    patch: (frame, row, column) that is shown first. Later scenes are left out where they do not fit. Raises CogVideoError
    where not even the first fits, as soon as that is known, and for layers, heads and a patch that do not exist.
    """
    selection = select(scenes[0].model.config, layers, heads, patch)
    info = describe(scenes, selection)
    described, info["scenes"] = info["scenes"], []
    room = max_megabytes * 1e6 - _size(_render(info))
    with tqdm(
        desc="maps", total=len(scenes) * len(selection.layers), unit="layer", disable=not progress
    ) as bar:
        for scene, told in zip(scenes, described, strict=True):
            told["maps"] = []
            room -= _size(_json(told)) + 1  # a comma
            for packed in _packed(scene, selection):
                room -= len(packed) + 3  # quotes and a comma
                if room < 0:
                    break
                told["maps"].append(packed)
                bar.update()
            if room < 0:
                break
            info["scenes"].append(told)
    kept = len(info["scenes"])
    if not kept:
        count = f"{len(selection.layers)} layers and {len(selection.heads)} heads"
        raise CogVideoError(
            f"The maps of {count} do not fit into {max_megabytes:g} MB: choose fewer layers or heads, or allow more."
        )
    return Page(_render(info), tuple(scene.title for scene in scenes[kept:]))


def _packed(scene: Scene, selection: Selection) -> Iterator[str]:
    """Packed maps of one layer after the other."""
    recording = scene.record(selection.layers)
    for layer in selection.layers:
        yield pack(recording.capture(layers=[layer], heads=selection.heads))


def _render(info: dict) -> str:
    script, style = front_end()
    script, style = f"{script}\nopen();\n", PAGE_STYLE + style
    policy = f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}"
    return HTML.format(
        policy=policy, title=escape(info["prompt"]), style=style, payload=_json(info), script=script
    )


def _json(value: dict) -> str:
    """JSON for a <script> element: "<" is written as its escape, so that no text inside can end the element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _size(text: str) -> int:
    return len(text.encode())


def _hash(text: str) -> str:
    """What a content security policy calls an inline script or style sheet that may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
