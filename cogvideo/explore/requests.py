"""The parts that a capture is asked for, checked and spelled out, and the memory it takes."""

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
RUN_TENSORS = 24  # a layer's peak, its MLP included, in tensors of the size of all positions' hidden states


def memory_needed(
    c: ModelConfig, *, text_length: int, num_frames: int, layers: int, heads: int, queries: int,
    channels: Sequence[str] = CHANNELS, itemsize: int = 4, recorded: bool = False,
) -> tuple[int, int]:  # fmt: skip
    """Bytes of a capture beside the model: (maps in host memory, inputs and work space on its device).

    layers, heads, queries: how many. itemsize: bytes of one number of the model. recorded: the run has been
    made.
    """
    positions = num_frames * c.frame_tokens
    keys = {"spatial": text_length + c.frame_tokens, "temporal": text_length + positions}
    maps = sum(layers * queries * (4 * heads + 1) * keys[kind] for kind in channels)
    stream = positions * c.hidden_size * itemsize
    work = 4 * CHUNK_BYTES + RUN_TENSORS * stream
    if not recorded:
        text = 4 * c.num_layers * text_length * c.hidden_size * itemsize
        masks = (1 + itemsize) * positions * (2 * keys["temporal"] + keys["spatial"])
        work += text + masks + layers * stream
    return maps, work


class Chosen(NamedTuple):
    layers: list[int]
    heads: list[int]
    queries: np.ndarray  # [Q,2]
    channels: list[str]


def check_memory(
    model: CogVideoTransformer,
    text_ids: Tensor,
    frames: Tensor,
    chosen: Chosen,
    max_bytes: int,
    recorded: bool = False,
) -> None:
    """Refuse more memory than max_bytes, or than is free; announce much of it on stderr."""
    maps, work = memory_needed(
        model.config, text_length=len(text_ids), num_frames=len(frames), layers=len(chosen.layers),
        heads=len(chosen.heads), queries=len(chosen.queries), channels=chosen.channels,
        itemsize=model.word_embedding.weight.element_size(), recorded=recorded,
    )  # fmt: skip
    said = f"This capture needs {(maps + work) / GB:.2f} GB ({maps / GB:.2f} of them maps)"
    remedy = "choose fewer layers, heads or queries"
    if maps + work > max_bytes:
        raise CogVideoError(
            f"{said}, more than max_bytes allows ({max_bytes / GB:.2f} GB): {remedy}, or raise max_bytes."
        )
    home = str(frames.device)
    for device, need in [("cpu", maps + work)] if home == "cpu" else [("cpu", maps), (home, work)]:
        if torch.device(device).type in ("cpu", "cuda") and need > (free := free_memory(device)):
            raise CogVideoError(f"{said}, and {free / GB:.2f} GB are free on {device}: {remedy}.")
    if maps + work > TOLD_BYTES:
        print(f"{said}.", file=sys.stderr)


def choose(
    c: ModelConfig, default: Sequence[int], layers: Sequence[int] | None, heads: Sequence[int] | None,
    queries: Sequence[tuple[int, int]] | np.ndarray | None, channels: Sequence[str], num_frames: int,
) -> Chosen:  # fmt: skip
    """The parts asked for, checked and spelled out; layers None: the default."""
    if unknown := [kind for kind in channels if kind not in CHANNELS]:
        raise CogVideoError(f"There is no channel {unknown[0]!r}: choose spatial, temporal or both.")
    if not len(channels):
        raise CogVideoError("No channel was chosen: choose spatial, temporal or both.")
    kinds = [kind for kind in CHANNELS if kind in channels and (c.temporal or kind == "spatial")]
    if not kinds:
        raise CogVideoError("An image model has no temporal channel: choose the spatial one.")
    t, n = num_frames, c.frame_tokens
    pairs = np.argwhere(np.ones((t, n), bool)) if queries is None else np.asarray(queries)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not len(pairs) or pairs.dtype.kind not in "iu":
        raise CogVideoError(
            "queries should be pairs of a frame's number and a position in it, such as [(0, 0), (1, 5)]."
        )
    if len(outside := pairs[((pairs < 0) | (pairs >= (t, n))).any(1)]):
        time, position = outside[0]
        raise CogVideoError(
            f"There is no position {position} of frame {time}: this clip has frames 0..{t - 1} and positions "
            f"0..{n - 1}."
        )
    layers, heads = numbers("layers", layers, c.num_layers, default), numbers("heads", heads, c.num_heads)
    return Chosen(layers, heads, pairs.astype(np.int64), kinds)


def numbers(
    name: str, values: Sequence[int] | None, end: int, default: Sequence[int] | None = None
) -> list[int]:
    """Chosen layers or heads below `end` as a list without repetition, or the default, or all."""
    default = range(end) if default is None else default
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
    """Text, frames and mask of one clip, checked, with a batch dimension of one, on the model's device."""
    c, device = model.config, model.word_embedding.weight.device
    text_ids, frames = (torch.as_tensor(t, device=device) for t in (text_ids, frames))
    mask = torch.ones_like(text_ids) if text_mask is None else torch.as_tensor(text_mask, device=device)
    text_ids = text_ids[None] if text_ids.ndim == 1 else text_ids
    mask = (mask[None] if mask.ndim == 1 else mask).bool()
    frames = frames[None] if frames.ndim == 2 else frames
    text_fits = text_ids.ndim == 2 and len(text_ids) == 1 and mask.shape == text_ids.shape
    if not text_fits or frames.ndim != 3 or len(frames) != 1:
        raise CogVideoError(
            f"A capture takes one clip: text [L], its mask [L] and frames [T,{c.frame_tokens}], "
            f"not {list(text_ids.shape)}, {list(mask.shape)} and {list(frames.shape)}."
        )
    if not 1 <= text_ids.shape[1] <= c.text_length:
        raise CogVideoError(
            f"The text has {text_ids.shape[1]} slots, but this model takes 1..{c.text_length}."
        )
    check_ids(text_ids, c.vocab_size, "The text")
    check_ids(frames, c.image_tokens, "The clip")
    return text_ids, frames, mask
