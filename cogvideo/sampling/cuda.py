"""Steps with static shapes, captured as CUDA graphs: one launch instead of about a thousand a step.

What changes from step to step lies in tensors of the device, and a step of a wavefront has an entry for every
frame. So one capture is replayed for all steps where our kernel attends, which reads what is seen; where
torch's does, which reads all that it is given, there is one for every BUCKET positions of the temporal cache.
The same steps run uncaptured on any device, which is how they are tested. Captures and their caches stay with
the model from call to call.
"""

import warnings
from copy import copy
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideo import kernels
from cogvideo.model.attention import kernel_for
from cogvideo.model.transformer import Block, CogVideoTransformer, split_heads
from cogvideo.runtime.quantize import Int8Linear
from cogvideo.sampling.cpu import GeluMlp, gated_dense
from cogvideo.sampling.halving import out_of_memory
from cogvideo.sampling.steps import Decoding, Step

BUCKET = 256  # positions: attention reads the live part of the temporal cache rounded up to these
WARM_UPS = 2  # runs before a capture, so that libraries have made their workspaces and Triton its kernels
KEPT = 2  # decodings of a model that stay: in a pipeline, the first frame's and the key frames'


class StaticSteps:
    """Makes the steps of a decoding, captured where the device can."""

    def __init__(self, model: CogVideoTransformer, decoding: Decoding, frames: int):
        self.model, self.decoding = model, decoding
        self.graphs: dict[int, tuple[Step, torch.cuda.CUDAGraph, Tensor]] = {}  # by how much is read
        self.capture = decoding.tokens.is_cuda
        self.bucket = BUCKET
        cache = decoding.text.layers[0].temporal
        if cache is not None and cache.buffer is not None and decoding.temporal_bias is not None:
            k, v = cache.buffer.unbind(0)
            if kernel_for(k[..., :frames, :], k, v, decoding.temporal_bias[0]) is not None:
                self.bucket = k.shape[-2]

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
        """Logits [B,F,V] of the step's frames; valid until the next call."""
        tables, rows = self.decoding.temporal_bias, step.cache_frames or (0, 1)
        end = min(-(-step.temporal_end // self.bucket) * self.bucket, tables[0].shape[-1]) if tables else 0
        ends = {"spatial_end": self.decoding.spatial_bias.shape[-1], "temporal_end": end}
        step = replace(step, cache_frames=None, static=True, **ends)
        if self.capture and end not in self.graphs:
            try:
                self.graphs[end] = self._captured(replace(step, index=step.index.clone()))
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                cause = error.__context__ or error  # after an error inside, the end of a capture fails, too
                message = f"A decoding step could not be captured ({cause}): steps run uncaptured, slower."
                warnings.warn(message, stacklevel=2)
                self.capture = False
        if not self.capture:
            return self.decoding.logits(self.model, step).narrow(1, *rows)
        static, graph, out = self.graphs[end]
        static.index.copy_(step.index)
        graph.replay()
        return out.narrow(1, *rows)

    def _captured(self, step: Step) -> tuple[Step, torch.cuda.CUDAGraph, Tensor]:
        """Record a step; running it before writes what the replay will write again."""
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
        # The first of these contexts: a failed end of a capture leaves its own stream current.
        with torch.cuda.stream(current), torch.cuda.graph(graph, pool=pool):
            out = self.decoding.logits(self.model, step)
        return step, graph, out


@dataclass
class _Kept:
    """What stays with a model: the view that its graphs were captured of, and the latest decodings."""

    weights: list[int]  # where they lie
    view: CogVideoTransformer
    steps: dict[tuple, StaticSteps] = field(default_factory=dict)


_KEPT: WeakKeyDictionary[CogVideoTransformer, _Kept] = WeakKeyDictionary()


@torch.no_grad()
@torch.inference_mode(False)  # weights made in inference mode could not be trained any more
def kept_view(model: CogVideoTransformer) -> CogVideoTransformer:
    """The view of a model for decoding on CUDA, with its weights as they are now."""
    kept = _KEPT.get(model)
    if kept is None or kept.weights != _addresses(model):
        view = _joined_view(model)
        kept = _KEPT[model] = _Kept(_addresses(model), view)
    for block in kept.view.blocks:
        if isinstance(block, JoinedBlock):
            block.refresh()
    return kept.view


def _addresses(model: nn.Module) -> list[int]:
    return [t.data_ptr() for t in (*model.parameters(), *model.buffers())]


def _joined_view(model: CogVideoTransformer) -> CogVideoTransformer:
    view, blocks = copy(model), []
    for block in model.blocks:
        joined = JoinedBlock.of(block) if type(block) is Block else None
        blocks.append(block if joined is None else joined)
    vars(view)["_modules"] = model._modules | {"blocks": nn.ModuleList(blocks)}
    return view


class Frozen(nn.Module):
    """A linear layer of given tensors, which are no parameters."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class JoinedBlock(Block):
    """A view of a block of both channels: one product makes all queries, keys and values, one closes both.

    The qkv matrices of both channels are laid side by side in memory and stay the block's own. The closing
    product has a copy of its matrices with the gate in them (an eighth of a block); int8 ones are mixed after
    the product instead.
    """

    @classmethod
    def of(cls, block: Block) -> "JoinedBlock | None":
        """None where the weights cannot be laid side by side without holding them twice."""
        kinds = set() if block.temporal is None else {type(block.spatial.qkv), type(block.temporal.qkv)}
        if kinds not in ({nn.Linear}, {Int8Linear}):
            return None
        assert block.temporal is not None
        qkv = _side_by_side(block.spatial.qkv, block.temporal.qkv)
        return None if qkv is None else cls(block, qkv)

    def __init__(self, block: Block, qkv: nn.Module):
        nn.Module.__init__(self)
        self.__dict__.update(copy(block).__dict__)
        self._modules = dict(block._modules)
        self.block, self.qkv = [block], qkv  # in a list: no part of this module
        if type(block.mlp.up) is Int8Linear:
            self.mlp = GeluMlp(block.mlp.up, block.mlp.down)
        assert block.gate is not None
        self.weight = torch.sigmoid(block.gate.detach())
        copied = type(block.spatial.dense) is nn.Linear and _alone(block.spatial.dense.weight)
        self.dense = Frozen(*gated_dense(block)) if copied else None

    def refresh(self) -> None:
        """Take the gate and the closing matrices again, which may have been trained since."""
        (block,) = self.block
        assert block.gate is not None
        self.weight.copy_(torch.sigmoid(block.gate.detach()))
        if self.dense is not None and self.dense.bias is not None:
            for own, new in zip((self.dense.weight, self.dense.bias), gated_dense(block), strict=True):
                own.copy_(new)

    def project(self, h: Tensor, both: bool) -> tuple[Tensor, ...]:
        if not both:
            return super().project(h, both)
        q, kv, later_q, later_kv = split_heads(self.qkv(h), [1, 2, 1, 2], self.spatial.num_heads)
        return q.squeeze(0), kv, later_q.squeeze(0), later_kv

    def add_attention(self, x: Tensor, out: Tensor) -> Tensor:
        kernel = kernels.loaded("norms", x.device) if x.is_cuda else None
        norms = self.attention_out_norm, self.mlp_norm, self.mlp_out_norm
        if kernel is None or not x.dtype == out.dtype == norms[0].weight.dtype:
            return super().add_attention(x, out)
        one, two, three = ((norm.weight, norm.bias) for norm in norms)
        eps = norms[0].eps
        x, h = kernel.add_norm(x, out, one, eps, two)
        return kernel.add_norm(x, self.mlp(h), three, eps, None)[0]

    def merge(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        if self.dense is not None:
            return self.dense(torch.cat([spatial, temporal], -1))
        assert self.temporal is not None
        return torch.lerp(self.temporal.dense(temporal), self.spatial.dense(spatial), self.weight)


def _side_by_side(one: nn.Module, two: nn.Module) -> nn.Module | None:
    """Both layers as one; their tensors become parts of its, or already lie one after the other."""
    named = dict([*one.named_parameters(), *one.named_buffers()])
    pairs = {name: (tensor, getattr(two, name)) for name, tensor in named.items()}
    if not all(_follows(*pair) or all(map(_alone, pair)) for pair in pairs.values()):
        return None
    made = {}
    for name, (first, second) in pairs.items():
        if _follows(first, second):
            shape = (2 * len(first), *first.shape[1:])
            made[name] = first.detach().as_strided(shape, first.stride(), first.storage_offset())
        else:
            made[name] = torch.cat([first.detach(), second.detach()])
            first.data, second.data = made[name].chunk(2)
    if not isinstance(one, Int8Linear):
        return Frozen(made["weight"], made.get("bias"))
    both = copy(one)
    both._buffers = {name: made.get(name) for name in one._buffers}
    return both


def _alone(tensor: Tensor) -> bool:
    """Whether no other tensor lies in its memory."""
    return tensor.untyped_storage().nbytes() == tensor.nbytes


def _follows(first: Tensor, second: Tensor) -> bool:
    there = first.is_contiguous() and second.is_contiguous()
    return (
        there
        and first.data_ptr() + first.nbytes == second.data_ptr()
        and (first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr())
    )


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
        steps = StaticSteps(kept.view, fresh.allocate(frames, temporal, clips_first=True), frames)
    kept.steps[key] = steps  # the latest stands last
    return steps


def release(model: CogVideoTransformer | None = None) -> None:
    """Let go of what is kept for a model, or for all."""
    if model is None:
        _KEPT.clear()
    else:
        _KEPT.pop(model, None)
