"""A model without one of its heads or without a channel of a layer: what does it do then?

Silencing is done in the weights, so that everything that takes a model takes a silenced one: losses over a
finished clip (`knockout.token_losses`) as well as decoding a new one, on any backend. All other weights are
the model's own, and nothing is copied but the matrices that change.
"""

from collections.abc import Iterable, Sequence
from copy import copy
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from cogvideo.errors import CogVideoError
from cogvideo.explore.requests import CHANNELS, numbers
from cogvideo.model.transformer import Block, Channel, CogVideoTransformer

M = TypeVar("M", bound=nn.Module)


class Silent(NamedTuple):
    """One head of a channel in a layer, or the whole channel there (head None)."""

    channel: str
    layer: int
    head: int | None = None


@torch.no_grad()
def silenced(model: CogVideoTransformer, parts: Sequence[Silent]) -> CogVideoTransformer:
    """The model without these parts; it shares its other weights.

    A silent head adds nothing to what its channel puts out. A silent channel counts nothing, as if the
    layer's gate gave all weight to the other one.

    Raises: CogVideoError for parts that the model does not have, an image model's only channel, and matrices
    in int8 or blocks that lie in host memory.
    """
    if not parts:
        return model
    for part in parts:
        _check(model, part)
    blocks = [_block(block, [p for p in parts if p.layer == i]) for i, block in enumerate(model.blocks)]
    return _with(model, blocks=nn.ModuleList(blocks))


def _check(model: CogVideoTransformer, part: Silent) -> None:
    c = model.config
    if part.channel not in (CHANNELS if c.temporal else CHANNELS[:1]):
        raise CogVideoError(f"There is no channel {part.channel!r} to silence in this model.")
    numbers("layers", [part.layer], c.num_layers)
    if part.head is not None:
        numbers("heads", [part.head], c.num_heads)
    elif not c.temporal:
        raise CogVideoError("An image model has one channel, which cannot be silenced: silence its heads.")
    if not isinstance(model.blocks, nn.ModuleList):
        raise CogVideoError("Blocks in host memory cannot be silenced: load the model without offloading.")
    if type(getattr(model.blocks[part.layer], part.channel).dense) is not nn.Linear:
        raise CogVideoError("Heads in int8 cannot be silenced: load the model in fp32, bf16 or fp16.")


def _block(block: Block, parts: Iterable[Silent]) -> Block:
    gate: dict[str, nn.Parameter] = {}
    changed: dict[str, nn.Module] = {}
    for channel, _, head in parts:
        if head is None:
            assert block.gate is not None
            alone = float("inf") if channel == "temporal" else float("-inf")
            gate["gate"] = nn.Parameter(torch.full_like(block.gate, alone), requires_grad=False)
        else:
            changed[channel] = _headless(
                changed[channel] if channel in changed else getattr(block, channel), head
            )
    return _with(block, **changed, **gate) if changed or gate else block


def _headless(channel: nn.Module, head: int) -> Channel:
    """The channel with zeros where its last product reads the head's output."""
    assert isinstance(channel, Channel)
    weight = channel.dense.weight.detach().clone()
    size = weight.shape[1] // channel.num_heads
    weight[:, head * size : (head + 1) * size] = 0
    return _with(channel, dense=_with(channel.dense, weight=nn.Parameter(weight, requires_grad=False)))


def _with(module: M, **changed: nn.Module | nn.Parameter) -> M:
    """A copy of the module alone, which shares its parts but for those that are given."""
    other = copy(module)
    parameters = {k: v for k, v in changed.items() if isinstance(v, nn.Parameter)}
    modules = {k: v for k, v in changed.items() if isinstance(v, nn.Module)}
    vars(other)["_parameters"] = {**module._parameters, **parameters}
    vars(other)["_modules"] = {**module._modules, **modules}
    return other
