"""The explorer as one HTML file: front end, frames and packed maps inside, no network, no kernel."""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cogvideo.errors import CogVideoError
from cogvideo.explore.explorer.payload import (
    Selection,
    describe,
    pack,
    pack_losses,
    pack_rollout,
    select,
    silences,
    token_sheet,
)
from cogvideo.explore.explorer.scenes import Scene
from cogvideo.io import html_page, write_whole

APP = Path(__file__).parent / "app"
BODY = """<div id="explorer"></div>
<noscript>The explorer needs JavaScript, which is part of this file.</noscript>
<script type="application/json" id="payload">{payload}</script>
<script type="module">{script}</script>"""
PAGE_STYLE = "body { margin: 0; background: #f6f5f2; }\n"
PARTS = (  # of the front end; a part's constants are needed by those after it
    "maps", "reading", "draw", "elements", "names", "share", "layout", "fill", "view", "show", "telling",
    "beside", "anew", "sides", "hands", "tour", "explorer", "main",
)  # fmt: skip
FRAME_HEIGHT = 900  # pixels, of the page inside a notebook


def front_end() -> tuple[str, str]:
    """The module's JavaScript, its parts joined into one, and the style sheet.

    Joined, the parts see each other's names, so that their imports and exports are left out.
    """
    parts = [(APP / f"{name}.js").read_text("utf-8") for name in PARTS]
    script = re.sub(r"^import [^;]*;\n|^export (?!default)", "", "\n".join(parts), flags=re.M)
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
        """Write the file, whole or not at all."""
        return write_whole(path, self.html)

    def _repr_html_(self) -> str:
        # In a frame of its own, which keeps the page's styles and scripts apart from the notebook's.
        return (
            '<iframe title="Attention explorer" sandbox="allow-scripts allow-downloads" '
            f'srcdoc="{escape(self.html)}" style="width:100%;height:{FRAME_HEIGHT}px;border:0"></iframe>'
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
    """A page of scenes with the maps of chosen layers and heads (None: all).

    patch: (frame, row, column) that is shown first. max_megabytes: the largest size, in 10^6 bytes; later
    scenes are left out where they do not fit, and it is an error if the first does not.
    """
    selection = select(scenes[0].model.config, layers, heads, patch)
    info: dict[str, Any] = {**describe(scenes, selection), "live": False}
    described, info["scenes"] = info["scenes"], []
    room = max_megabytes * 1e6 - _size(_render(info))
    total = len(scenes) * (len(selection.layers) + 3)
    with tqdm(desc="maps", total=total, unit="part", disable=not progress) as bar:
        for scene, description in zip(scenes, described, strict=True):
            description |= _answers(scene, selection, bar)
            room -= _size(_json(description | {"maps": []})) + 1  # a comma
            description["maps"], room = _maps(scene, selection, room, bar)
            if room < 0:
                break
            info["scenes"].append(description)
    kept = len(info["scenes"])
    if not kept:
        raise CogVideoError(
            f"The maps of {len(selection.layers)} layers and {len(selection.heads)} heads do not fit into "
            f"{max_megabytes:g} MB: choose fewer layers or heads, or allow more."
        )
    return Page(_render(info), tuple(scene.title for scene in scenes[kept:]))


def _answers(scene: Scene, selection: Selection, bar: tqdm) -> dict[str, Any]:
    """What the live explorer computes when it is asked: token pictures, what silence costs, the rollout."""
    recording, which = scene.record(), silences(scene, selection)
    n = scene.frames.shape[1]
    made = [time * n + patch for time in scene.made for patch in range(n)]
    answers: dict[str, Any] = {"silences": which}
    for name, make in (
        ("sheet", lambda: token_sheet(scene, made)),
        ("losses", lambda: pack_losses(recording, which)),
        ("rollout", lambda: pack_rollout(recording)),
    ):
        answers[name] = make()
        bar.update()
    return answers


def _maps(scene: Scene, selection: Selection, room: float, bar: tqdm) -> tuple[list[str], float]:
    """Packed maps of one layer after the other, and the bytes then left; stops where there is no room."""
    recording, packed = scene.record(selection.layers), []
    for layer in selection.layers:
        packed.append(pack(recording.capture(layers=[layer], heads=selection.heads)))
        room -= len(packed[-1]) + 3  # quotes and a comma
        if room < 0:
            break
        bar.update()
    return packed, room


def _render(info: dict) -> str:
    script, style = front_end()
    script, style = f"{script}\nopen();\n", PAGE_STYLE + style
    policy = f"img-src data:; script-src {_hash(script)}; style-src {_hash(style)}"
    return html_page(info["prompt"], BODY.format(payload=_json(info), script=script), style, policy)


def _json(value: dict) -> str:
    """JSON for a <script> element: no "<" inside can end the element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _size(text: str) -> int:
    return len(text.encode())


def _hash(text: str) -> str:
    """What a content security policy calls an inline script or style sheet that may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
