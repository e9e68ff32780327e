"""What a capture is asked for: checked, spelled out, and the memory that it takes."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.memory import GB, TOLD_BYTES, free_memory
from cogvideo.sampling.decode import check_ids

CHANNELS = ("spatial", "temporal")
CHUNK_BYTES = 64 * 2**20  # of the scores that are computed at once
RUN_TENSORS = (
    24  # tensors of the size of all places that a layer holds at its peak, its MLP's four-fold width included
)


def memory_needed(
    c: ModelConfig, *, text_length: int, num_frames: int, layers: int, heads: int, queries: int,
    channels: Sequence[str] = CHANNELS, itemsize: int = 4, recorded: bool = False,
) -> tuple[int, int]:  # fmt: skip
    """Bytes that a capture takes beside the model: (maps in host memory, inputs and work space on the model's device).

    layers, heads, queries: how many. itemsize: bytes of one number of the model. recorded: the run has been made.
    """
    places = num_frames * c.frame_tokens
    keys = {"spatial": text_length + c.frame_tokens, "temporal": text_length + places}
    maps = sum(layers * queries * (4 * heads + 1) * keys[kind] for kind in channels)
    stream = places * c.hidden_size * itemsize
    work = 4 * CHUNK_BYTES + RUN_TENSORS * stream
    if not recorded:
        text = 4 * c.num_layers * text_length * c.hidden_size * itemsize
        masks = 2 * (1 + itemsize) * keys["temporal"] * places + (1 + itemsize) * keys["spatial"] * places
        work += text + masks + layers * stream
    return maps, work


def check_memory(
    model: CogVideoTransformer,
    text_ids: Tensor,
    frames: Tensor,
    chosen: "Chosen",
    max_bytes: int,
    recorded: bool = False,
) -> None:
    embedding = model.word_embedding.weight
    maps, work = memory_needed(
        model.config, text_length=len(text_ids), num_frames=len(frames), layers=len(chosen.layers), heads=len(chosen.heads),
        queries=len(chosen.queries), channels=chosen.channels, itemsize=embedding.element_size(), recorded=recorded,
    )  # fmt: skip
    device = frames.device
    said = f"This capture needs {(maps + work) / GB:.2f} GB ({maps / GB:.2f} of them maps)"
    remedy = "choose fewer layers, heads or queries"
    if maps + work > max_bytes:
        raise CogVideoError(
            f"{said}, more than max_bytes allows ({max_bytes / GB:.2f} GB): {remedy}, or raise max_bytes."
        )
    places = {"cpu": maps + work} if device.type == "cpu" else {"cpu": maps, str(device): work}
    for where, need in places.items():
        if torch.device(where).type in ("cpu", "cuda") and need > (free := free_memory(where)):
            raise CogVideoError(f"{said}, and {free / GB:.2f} GB are free on {where}: {remedy}.")
    if maps + work > TOLD_BYTES:
        print(f"{said}.", file=sys.stderr)


class Chosen(NamedTuple):
    layers: list[int]
    heads: list[int]
    queries: np.ndarray  # [Q,2]
    channels: list[str]


def choose(
    c: ModelConfig, default: Sequence[int], layers: Sequence[int] | None, heads: Sequence[int] | None,
    queries: Sequence[tuple[int, int]] | np.ndarray | None, channels: Sequence[str], num_frames: int,
) -> Chosen:  # fmt: skip
    """The parts asked for, checked and spelled out."""
    if unknown := [kind for kind in channels if kind not in CHANNELS]:
        raise CogVideoError(f"There is no channel {unknown[0]!r}: choose spatial, temporal or both.")
    if not len(channels):
        raise CogVideoError("No channel was chosen: choose spatial, temporal or both.")
    kinds = [kind for kind in CHANNELS if kind in channels and (c.temporal or kind == "spatial")]
    if not kinds:
        raise CogVideoError("An image model has no temporal channel: choose the spatial one.")
    shape = (num_frames, c.frame_tokens)
    places = np.argwhere(np.ones(shape, bool)) if queries is None else np.asarray(queries)
    if places.ndim != 2 or places.shape[1] != 2 or not len(places) or places.dtype.kind not in "iu":
        raise CogVideoError(
            "queries should be pairs of a frame's number and a place in it, such as [(0, 0), (1, 5)]."
        )
    outside = ((places < 0) | (places >= shape)).any(1)
    if outside.any():
        time, place = places[outside][0]
        raise CogVideoError(
            f"There is no place {place} of frame {time}: this clip has frames 0..{shape[0] - 1} and places 0..{shape[1] - 1}."
        )
    return Chosen(
        numbers("layers", layers, c.num_layers, default),
        numbers("heads", heads, c.num_heads, range(c.num_heads)),
        places.astype(np.int64),
        kinds,
    )


def numbers(name: str, values: Sequence[int] | None, end: int, default: Sequence[int]) -> list[int]:
    """Chosen layers or heads as a list without repetition, or the default; refuses what is not there."""
    chosen = list(dict.fromkeys(default if values is None else values))
    if not chosen:
        raise CogVideoError(f"No {name} were chosen: give some of 0..{end - 1}.")
    for value in chosen:
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 0 <= value < end:
            raise CogVideoError(f"There is no {name[:-1]} {value}: this model has {name} 0..{end - 1}.")
    return [int(value) for value in chosen]


def one_clip(
    model: CogVideoTransformer, text_ids: Tensor, frames: Tensor, text_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Text, frames and mask of one clip with their batch of one, on the model's device; refuses what does not fit."""
    c, device = model.config, model.word_embedding.weight.device
    text_ids, frames = (torch.as_tensor(t, device=device) for t in (text_ids, frames))
    text_mask = (
        torch.ones_like(text_ids, dtype=torch.bool) if text_mask is None else torch.as_tensor(text_mask)
    )
    text_ids = text_ids[None] if text_ids.ndim == 1 else text_ids
    text_mask = (text_mask[None] if text_mask.ndim == 1 else text_mask).to(device).bool()
    frames = frames[None] if frames.ndim == 2 else frames
    if (
        text_ids.ndim != 2
        or len(text_ids) != 1
        or frames.ndim != 3
        or len(frames) != 1
        or text_mask.shape != text_ids.shape
    ):
        raise CogVideoError(
            f"A capture takes one clip: text [L], its mask [L] and frames [T,{c.frame_tokens}], "
            f"not {list(text_ids.shape)}, {list(text_mask.shape)} and {list(frames.shape)}."
        )
    if not 1 <= text_ids.shape[1] <= c.text_length:
        raise CogVideoError(
            f"The text has {text_ids.shape[1]} slots, but this model takes 1..{c.text_length}."
        )
    check_ids(text_ids, c.vocab_size, "The text")
    check_ids(frames, c.image_tokens, "The clip")
    return text_ids, frames, text_mask


def labels(words: Sequence[str] | None, text_ids: Tensor) -> tuple[str, ...]:
    labels = tuple(map(str, text_ids.tolist())) if words is None else tuple(words)
    if len(labels) != len(text_ids):
        raise CogVideoError(
            f"There are {len(labels)} words for {len(text_ids)} text slots: give one for each."
        )
    return labels
