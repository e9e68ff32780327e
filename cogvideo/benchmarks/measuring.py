"""What several benchmarks need: models with random weights, and the bytes that a step moves."""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cogvideo.checkpoints.sat import fill_model
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.machine import bytes_of
from cogvideo.runtime.offload import StreamedBlocks
from cogvideo.runtime.tensors import Weights, without_memory


def random_weights(make: Callable[[], nn.Module], seed: int) -> Callable[..., Any]:
    """A loader, as pipeline_folder.Loader calls it, that draws each weight when and where it is needed."""
    with without_memory():
        meta = {name: tensor.detach().half() for name, tensor in make().named_parameters()}

    def draw(name: str, out: Tensor) -> None:
        generator = torch.Generator(out.device).manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        out.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.02, generator=generator)

    return partial(fill_model, make, Weights(meta, draw), where="The model with random weights")


def step_bytes(model: CogVideoTransformer, *, temporal: bool = True) -> int:
    """Bytes of weights that a decoding step moves: the blocks that it uses, and the head for image tokens."""
    blocks = model.get_submodule("blocks")
    named = {**dict(blocks.named_parameters()), **dict(blocks.named_buffers())}
    if isinstance(blocks, StreamedBlocks):  # copied whole; the head stays
        return bytes_of(named.values())
    used = [tensor for name, tensor in named.items() if temporal or ".temporal." not in name]
    return bytes_of([*used, model.word_embedding.weight[: model.config.image_tokens]])
