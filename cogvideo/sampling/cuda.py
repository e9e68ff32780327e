"""Steps with static shapes, captured as CUDA graphs: one launch instead of about a thousand a step.

What changes from step to step lies in tensors of the device. A step is captured once for the frames that it
decodes and every BUCKET positions of the temporal cache, and replayed for the others. The same steps run
uncaptured on any device, which is how they are tested. Captures and their caches stay with the model from
call to call.
"""

import warnings
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.sampling.cpu import FusedBlock, fused_view
from cogvideo.sampling.halving import out_of_memory
from cogvideo.sampling.steps import Decoding, Step

BUCKET = 256  # positions: attention reads the live part of the temporal cache rounded up to these
WARM_UPS = 2  # runs before a capture, so that libraries have made their workspaces and Triton its kernels
KEPT = 2  # decodings of a model that stay: in a pipeline, the first frame's and the key frames'


class StaticSteps:
    """Makes the steps of a decoding, captured where the device can."""

    def __init__(self, model: CogVideoTransformer, decoding: Decoding):
        self.model, self.decoding = model, decoding
        self.graphs: dict[tuple[int, int, int], tuple[Step, torch.cuda.CUDAGraph, Tensor]] = {}
        self.capture = decoding.tokens.is_cuda

    def restart(self, fresh: Decoding) -> Decoding:
        """Take the texts and tables of another call of the same shapes."""
        for own, new in zip(self.decoding.tables(), fresh.tables(), strict=True):
            own.copy_(new)
        for own, new in zip(self.decoding.text.layers, fresh.text.layers, strict=True):
            own.spatial.set_text(new.spatial.text)
            if own.temporal is not None and new.temporal is not None:
                own.temporal.set_text(new.temporal.text)
        return self.decoding

    def __call__(self, step: Step) -> Tensor:
        """Logits [B,F,V]; valid until the next call."""
        tables = self.decoding.temporal_bias
        end = min(-(-step.temporal_end // BUCKET) * BUCKET, tables[0].shape[-1]) if tables else 0
        step = replace(step, spatial_end=self.decoding.spatial_bias.shape[-1], temporal_end=end, static=True)
        key = step.cache_frames.start, step.cache_frames.stop, end
        if self.capture and key not in self.graphs:
            try:
                self.graphs[key] = self._captured(replace(step, index=step.index.clone()))
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                message = f"A decoding step could not be captured ({error}): steps run uncaptured, slower."
                warnings.warn(message, stacklevel=2)
                self.capture = False
        if not self.capture:
            return self.decoding.logits(self.model, step)
        static, graph, out = self.graphs[key]
        static.index.copy_(step.index)
        graph.replay()
        return out

    def _captured(self, step: Step) -> tuple[Step, torch.cuda.CUDAGraph, Tensor]:
        """Record a step.

        Running it before writes the same keys and values that the replay will write again.
        """
        device = step.index.device
        current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.decoding.logits(self.model, step)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # All graphs share the memory of the first: they never run at the same time, and only the last output
        # is read.
        pool = next(iter(self.graphs.values()))[1].pool() if self.graphs else None
        with (
            torch.cuda.stream(current),
            torch.cuda.graph(graph, pool=pool),
        ):  # the first: a failed end leaves its stream
            out = self.decoding.logits(self.model, step)
        return step, graph, out


@dataclass
class _Kept:
    """What stays with a model: the view that its graphs were captured of, and the latest decodings."""

    weights: list[int]  # where they lie
    view: CogVideoTransformer
    steps: dict[tuple, StaticSteps] = field(default_factory=dict)


_KEPT: WeakKeyDictionary[CogVideoTransformer, _Kept] = WeakKeyDictionary()


def kept_view(model: CogVideoTransformer) -> CogVideoTransformer:
    """The view of a model for decoding on CUDA, with its weights as they are now."""
    weights = [t.data_ptr() for t in (*model.parameters(), *model.buffers())]
    kept = _KEPT.get(model)
    if kept is None or kept.weights != weights:
        kept = _KEPT[model] = _Kept(weights, fused_view(model))
    for block in kept.view.blocks:
        if isinstance(block, FusedBlock):
            block.refresh()
    return kept.view


def static_steps(model: CogVideoTransformer, fresh: Decoding, frames: int, temporal: int) -> StaticSteps:
    """The steps of a decoding, with the caches and captures of an earlier one of the same shapes."""
    kept = _KEPT[model]
    key = (frames, temporal, *((t.shape, t.dtype) for t in fresh.tables()))
    steps = kept.steps.pop(key, None)
    if steps is not None:
        steps.restart(fresh)
    else:
        while len(kept.steps) >= KEPT:
            kept.steps.pop(next(iter(kept.steps)))
        steps = StaticSteps(kept.view, fresh.allocate(frames, temporal))
    kept.steps[key] = steps  # the latest stands last
    return steps


def release(model: CogVideoTransformer | None = None) -> None:
    """Let go of what is kept for a model, or for all."""
    if model is None:
        _KEPT.clear()
    else:
        _KEPT.pop(model, None)
