"""What the front end is given: what there is to see as plain values (`describe`), and packed maps (`pack`).

A weight a of a row whose largest is m is stored as the byte round(255 sqrt(a / m)): the error is at most
sqrt(a m) / 255 + m / 260100.
"""

import base64
import io
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.explore.explorer.scenes import Scene
from cogvideo.explore.recording import CHANNELS, Captured
from cogvideo.explore.requests import numbers
from cogvideo.model import masks


class Selection(NamedTuple):
    layers: list[int]
    heads: list[int]
    start: int | None  # number of the patch that is shown first


def select(
    c: ModelConfig,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    patch: Sequence[int] | None = None,
) -> Selection:
    """Layers and heads (None: all) and a patch (frame, row, column), checked and spelled out."""
    shape, start = (c.num_frames, c.frame_height, c.frame_width), None
    if patch is not None:
        try:
            start = int(np.ravel_multi_index(tuple(patch), shape))
        except ValueError:
            ranges = "frame 0..{}, row 0..{} and column 0..{}".format(*(size - 1 for size in shape))
            given = ",".join(map(str, patch))
            raise CogVideoError(f"There is no patch {given}: give {ranges}.") from None
    layers, heads = numbers("layers", layers, c.num_layers), numbers("heads", heads, c.num_heads)
    return Selection(layers, heads, start)


def describe(scenes: Sequence[Scene], selection: Selection) -> dict[str, Any]:
    """All but the maps, as values for JSON."""
    c = scenes[0].model.config
    return {
        "prompt": scenes[0].prompt,
        "about": scenes[0].settings,
        "layers": selection.layers,
        "heads": selection.heads,
        "height": c.frame_height,
        "width": c.frame_width,
        "start": {"patch": scenes[0].brightest if selection.start is None else selection.start},
        "masks": {scene.stage: _masks(scene.model.config, len(scene.frames)) for scene in scenes},
        "scenes": [_describe_scene(scene, selection.layers) for scene in scenes],
    }


def quantise(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [..., K] >= 0 -> (bytes [..., K], float32 [...] the largest of each row)."""
    largest = maps.max(-1)
    return np.rint(255 * np.sqrt(maps / largest[..., None])).astype(np.uint8), largest.astype("<f4")


def pack(captured: Captured) -> str:
    """Maps of one layer and all positions: largest weights of rows, norms, bytes; spatial before temporal."""
    codes, largest = zip(*(quantise(captured.maps(channel)[0]) for channel in CHANNELS), strict=True)
    norms = [captured.norm(channel) for channel in CHANNELS]
    return _deflated(b"".join(np.ascontiguousarray(part).tobytes() for part in (*largest, *norms, *codes)))


def _deflated(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _masks(c: ModelConfig, frames: int) -> dict[str, Any]:
    """Bits of which position may attend to which, from masks.py; the text is always seen."""
    total = frames * c.frame_tokens
    spatial = rearrange(masks.spatial_visible(c)[:frames], "t q k -> (t q) k")
    temporal = [masks.temporal_visible(c, layer)[:total, :total] for layer in range(2 if c.window else 1)]
    spatial, *temporal = (_deflated(np.packbits(mask.numpy()).tobytes()) for mask in (spatial, *temporal))
    return {"spatial": spatial, "temporal": temporal}


def _describe_scene(scene: Scene, layers: list[int]) -> dict[str, Any]:
    c, made = scene.model.config, scene.made
    steps = np.zeros(scene.frames.shape, int)
    steps[made] = masks.decoding_steps(c, made).numpy()
    blocks: list[Any] = list(scene.model.blocks)
    gates = np.stack([blocks[layer].gate.detach().sigmoid().float().cpu().numpy() for layer in layers])
    low, high = np.quantile(gates, [0.1, 0.9], 1)
    spread = {"mean": gates.mean(1), "low": low, "high": high}
    return {
        "title": scene.title,
        "stage": scene.stage,
        "words": [{"text": text, "hint": hint} for text, hint in scene.words],
        "frames": [
            {"image": _png(pixels), "seconds": f"{seconds:g}", "given": time not in made}
            for time, (pixels, seconds) in enumerate(zip(scene.pixels, scene.seconds, strict=True))
        ],
        "steps": steps.ravel().tolist(),
        "gates": [{name: float(value[i]) for name, value in spread.items()} for i in range(len(layers))],
    }


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
