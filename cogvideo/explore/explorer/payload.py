"""What the front end is given: what there is to see as plain values (`describe`), and packed maps (`pack`).

A weight a of a row whose largest is m is stored as the byte round(255 sqrt(a / m)), read back as m (byte / 255)^2: it is
wrong by at most sqrt(a m) / 255 + m / 260100, so a large weight by less than 0.4 % of the largest, a small one by less.
"""

import base64
import io
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange

from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.explore.capture import Captured
from cogvideo.explore.explorer.scenes import Scene
from cogvideo.explore.requests import numbers
from cogvideo.model import masks


class Selection(NamedTuple):
    layers: list[int]
    heads: list[int]
    place: int | None


def select(
    c: ModelConfig, layers: Sequence[int] | None, heads: Sequence[int] | None, patch: Sequence[int] | None
) -> Selection:
    """What is asked for, spelled out: numbers of layers and heads (None: all), and the place of (frame, row, column).

    Raises CogVideoError for layers, heads and a patch that do not exist.
    """
    shape, place = (c.num_frames, c.frame_height, c.frame_width), None
    if patch is not None:
        if len(patch) != 3 or not all(0 <= value < size for value, size in zip(patch, shape, strict=True)):
            t, h, w = (size - 1 for size in shape)
            given = ",".join(map(str, patch))
            raise CogVideoError(
                f"There is no patch {given}: give frame 0..{t}, row 0..{h} and column 0..{w}."
            )
        place = int(np.ravel_multi_index(tuple(patch), shape))
    return Selection(
        numbers("layers", layers, c.num_layers, range(c.num_layers)),
        numbers("heads", heads, c.num_heads, range(c.num_heads)),
        place,
    )


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
        "start": {"patch": scenes[0].brightest if selection.place is None else selection.place},
        "masks": {scene.stage: _masks(scene.model.config, len(scene.frames)) for scene in scenes},
        "scenes": [_describe_scene(scene, selection.layers) for scene in scenes],
    }


def quantise(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [..., K] >= 0 -> (bytes [..., K], float32 [...] the largest of each row); see the head of this file."""
    largest = maps.max(-1)
    return np.rint(255 * np.sqrt(maps / largest[..., None])).astype(np.uint8), largest.astype("<f4")


def pack(captured: Captured) -> str:
    """Maps of one layer and all places as deflated text: largest weights of rows, norms, bytes; spatial before temporal."""
    spatial, temporal = captured.spatial, captured.temporal
    assert len(captured.layers) == 1 and spatial is not None and temporal is not None
    codes, largest = zip(quantise(spatial[0]), quantise(temporal[0]), strict=True)
    norms = (captured.spatial_norm, captured.temporal_norm)
    return _text(b"".join(np.ascontiguousarray(part).tobytes() for part in (*largest, *norms, *codes)))


def _text(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


def _masks(c: ModelConfig, frames: int) -> dict[str, Any]:
    """Bits of who may see whom among frame places, from masks.py; the text is always seen."""
    places = frames * c.frame_tokens
    spatial = rearrange(masks.spatial_visible(c)[:frames], "t q k -> (t q) k")
    temporal = [masks.temporal_visible(c, layer)[:places, :places] for layer in range(2 if c.window else 1)]
    return {"spatial": _bits(spatial), "temporal": [_bits(mask) for mask in temporal]}


def _bits(mask: torch.Tensor) -> str:
    return _text(np.packbits(mask.numpy()).tobytes())


def _describe_scene(scene: Scene, layers: list[int]) -> dict[str, Any]:
    c, made = scene.model.config, scene.made
    steps = np.zeros(scene.frames.shape, int)
    steps[made] = masks.decoding_steps(c, made).numpy()
    gates = [block.gate.detach().sigmoid().float().cpu().numpy() for block in scene.model.blocks]  # type: ignore[union-attr]
    return {
        "title": scene.title,
        "stage": scene.stage,
        "words": [{"text": text, "hint": hint} for text, hint in scene.words],
        "frames": [
            {"image": _png(pixels), "seconds": f"{seconds:g}", "given": time not in made}
            for time, (pixels, seconds) in enumerate(zip(scene.pixels, scene.seconds, strict=True))
        ],
        "steps": steps.ravel().tolist(),
        "gates": [_spread(gates[layer]) for layer in layers],
    }


def _spread(gate: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(gate, [0.1, 0.9])
    return {"mean": float(gate.mean()), "low": float(low), "high": float(high)}


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
