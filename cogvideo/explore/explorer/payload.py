"""What the front end is given: what there is to see as plain values (`describe`), and packed maps (`pack`).

A weight a of a row whose largest is m is stored as the byte round(255 sqrt(a / m)): the error is at most
sqrt(a m) / 255 + m / 260100.
"""

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange

from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.explore.analysis import both_channels, rollout_of
from cogvideo.explore.explorer.scenes import Scene
from cogvideo.explore.knockout import token_losses
from cogvideo.explore.recording import CHANNELS, Captured, Recording
from cogvideo.explore.requests import numbers
from cogvideo.explore.silence import Silent
from cogvideo.explore.tokens import likeliest, pictures, sampled, teacher_forced
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
    _check_alike(scenes)
    c = scenes[0].model.config
    patch = scenes[0].brightest if selection.start is None else selection.start
    layer = telling_layer(scenes[0].record(selection.layers), selection.layers, patch)
    return {
        "prompt": scenes[0].prompt,
        "about": scenes[0].settings,
        "layers": selection.layers,
        "heads": selection.heads,
        "height": c.frame_height,
        "width": c.frame_width,
        "start": {"patch": patch, "layer": layer},
        "masks": {scene.stage: _masks(scene.model.config, len(scene.frames)) for scene in scenes},
        "scenes": [_describe_scene(scene, selection.layers) for scene in scenes],
    }


def _check_alike(scenes: Sequence[Scene]) -> None:
    """Scenes lie in one page if a patch, a layer and a head of one are those of all others."""
    shapes = {
        (c.num_layers, c.num_heads, c.num_frames, c.frame_height, c.frame_width)
        for c in (scene.model.config for scene in scenes)
    }
    if len(shapes) > 1:
        raise CogVideoError(
            "These clips were made by models of different sizes: give each a page of its own."
        )


def telling_layer(recording: Recording, layers: Sequence[int], patch: int) -> int:
    """Index into layers of the one whose map of this patch says most.

    It is the one with most weight on patches beyond what even attention would give them. A map that lies on
    the words and the begin-of-images alone, black all over, says nothing.
    """
    c = recording.model.config
    made = np.isin(patch // c.frame_tokens, masks.trained_frames(c))
    query = min(patch + (not made), recording.frames.numel() - 1)
    captured = recording.capture(layers=layers, queries=[divmod(query, c.frame_tokens)])
    grid = captured.patches(both_channels(captured)[:, 0]).grid
    return int(np.clip(grid - 1 / grid[0].size, 0, None).sum((1, 2, 3)).argmax())


def describe_tokens(scene: Scene) -> str:
    """The likeliest tokens of all positions, packed as int32 and float32 arrays, one after the other.

    tokens [P,K], probabilities [P,K] of the model and of the sampler (NaN: not known); then of the model and
    of the sampler entropy [P], surprise [P] and rank [P].
    """
    clip = scene.model, scene.text_ids, scene.frames
    own = teacher_forced(*clip, scene.conditioning)
    found = likeliest(own, scene.frames)
    chances, drawn = np.full(found.probabilities.shape, np.nan), found
    if scene.pipe is not None and scene.model.config.temporal:
        p = sampled(scene.pipe, *clip, scene.span, scene.conditioning)
        ids = torch.from_numpy(found.tokens).to(p.device)
        chances, drawn = p.gather(-1, ids).cpu().numpy(), likeliest(p, scene.frames)
    parts: list[np.ndarray] = [found.tokens.astype("<i4"), found.probabilities, chances]
    for one in (found, drawn):
        parts += [one.entropy, np.minimum(one.surprise, 99.0), one.rank.astype("<i4")]
    return _deflated(
        b"".join(part.astype("<i4" if part.dtype.kind == "i" else "<f4").tobytes() for part in parts)
    )


def token_sheet(scene: Scene, patches: Sequence[int]) -> str:
    """A picture with a row for each patch (numbers in the clip): what its likeliest tokens would draw."""
    if scene.pipe is None:
        return ""
    c, numbers = scene.model.config, np.asarray(patches)
    p = teacher_forced(scene.model, scene.text_ids, scene.frames, scene.conditioning)
    found = likeliest(p, scene.frames)
    tokens = found.tokens.reshape(-1, found.tokens.shape[-1])
    rows = [
        pictures(scene.pipe, scene.frames, time, own % c.frame_tokens, tokens[own])
        for time in np.unique(numbers // c.frame_tokens)
        for own in [numbers[numbers // c.frame_tokens == time]]
    ]
    return picture(rearrange(np.concatenate(rows), "p k h w c -> (p h) (k w) c"))


def silences(scene: Scene, selection: Selection) -> list[dict[str, Any]]:
    """The set whose results a page holds: every word, every channel and head of the chosen layers."""
    channels = CHANNELS if scene.model.config.temporal else CHANNELS[:1]
    found: list[dict[str, Any]] = [{"parts": [], "words": [slot]} for slot in range(len(scene.words))]
    for layer in selection.layers:
        for channel in channels:
            heads = [None, *selection.heads] if len(channels) > 1 else selection.heads
            found += [{"parts": [[channel, layer, head]], "words": []} for head in heads]
    return found


def losses(recording: Recording, which: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Nats float32 [S,T*N] that tokens cost more, in each case, without these parts and these words."""
    own = token_losses(recording)
    found = [
        token_losses(recording, hide=one["words"], parts=[Silent(*part) for part in one["parts"]]) - own
        for one in which
    ]
    return torch.stack(found).flatten(1).cpu().numpy().astype("<f4")


def pack_rollout(recording: Recording) -> str:
    """The rollout through all layers: largest weight of every position, then bytes [T*N, L+T*N]."""
    codes, largest = quantise(rollout_of(recording))
    return _deflated(largest.tobytes() + codes.tobytes())


def quantise(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights [..., K] >= 0 -> (bytes [..., K], float32 [...] the largest of each row)."""
    largest = maps.max(-1)
    return np.rint(255 * np.sqrt(maps / largest[..., None])).astype(np.uint8), largest.astype("<f4")


def pack(captured: Captured) -> str:
    """Maps of one layer and all positions: largest weights of rows, norms, lengths of values, bytes.

    Of each the spatial channel's, then the temporal one's.
    """
    codes, largest = zip(*(quantise(captured.maps(channel)[0]) for channel in CHANNELS), strict=True)
    norms = [captured.norm(channel) for channel in CHANNELS]
    values = [captured.values(channel) for channel in CHANNELS]
    parts = (*largest, *norms, *values, *codes)
    return _deflated(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))


def pack_losses(recording: Recording, which: Sequence[Mapping[str, Any]]) -> str:
    """Losses of all of them, one after the other."""
    return _deflated(losses(recording, which).tobytes())


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
        "prompt": scene.prompt,
        "about": scene.settings,
        "tokens": describe_tokens(scene),
        "stage": scene.stage,
        "words": [{"text": text, "hint": hint} for text, hint in scene.words],
        "frames": [
            {"image": picture(pixels), "seconds": f"{seconds:g}", "given": time not in made}
            for time, (pixels, seconds) in enumerate(zip(scene.pixels, scene.seconds, strict=True))
        ],
        "steps": steps.ravel().tolist(),
        "gates": [{name: float(value[i]) for name, value in spread.items()} for i in range(len(layers))],
    }


def picture(pixels: np.ndarray) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
