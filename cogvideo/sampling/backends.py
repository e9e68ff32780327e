"""Who makes decoding steps: plain on any device, cpu with packed weights, cuda with captured graphs."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, float32, nn

from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.offload import StreamedBlocks
from cogvideo.sampling.cpu import packed_view
from cogvideo.sampling.cuda import kept_view, static_steps
from cogvideo.sampling.steps import Decoding, Step
from cogvideo.sampling.windows import order_by_window

Backend = Literal["plain", "cpu", "cuda"]


def backend_of(model: CogVideoTransformer) -> Backend:
    """The quickest for a model; plain where something is hooked in, or blocks are streamed from the host."""
    weight = model.word_embedding.weight
    if any(map(_keeps_plain, model.modules())):
        return "plain"
    if weight.is_cuda:
        return "cuda"
    return "cpu" if weight.device.type == "cpu" and weight.dtype == float32 else "plain"


def _keeps_plain(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks) or isinstance(module, StreamedBlocks)


def view_for(model: CogVideoTransformer, backend: Backend) -> CogVideoTransformer:
    """The model as this backend decodes it; it shares the model's weights."""
    return {"plain": lambda same: same, "cpu": packed_view, "cuda": kept_view}[backend](model)


def steps_for(
    model: CogVideoTransformer,
    backend: Backend,
    view: CogVideoTransformer,
    decoding: Decoding,
    frames: int,
    temporal: int,
) -> tuple[Decoding, Callable[[Step], Tensor]]:
    """A decoding with room in its caches, and what makes its steps -> logits [B,F,V], valid until the next.

    frames: whose spatial caches are needed at the same time; temporal: positions of the temporal cache.
    """
    if backend == "cuda":
        steps = static_steps(model, decoding, frames, temporal)
        return steps.decoding, steps
    by_window = backend == "cpu" and bool(model.config.window)
    decoding.allocate(frames, 0 if by_window else temporal)
    if by_window:
        order_by_window(model.config, decoding, temporal)
    return decoding, lambda step: decoding.logits(view, step)
