"""A view of the model laid out for decoding on a CPU, where a step has a row or a few and its time is that of reading weights.

GB/s at which weights [O,I] are read, 2 rows, 2 threads, memory 22.8: `x @ W.T` 4-6, `W @ x.T` 19-22 but 13 where inputs are
many (512 x 2048); oneDNN's packed weights with the rows filled up to 4: 17 there, 12-20 elsewhere. `W @ x.T` needs the rows
of x contiguous: with the columns so, it is four times slower. 8 rows and more: packed weights are the quickest everywhere.
"""

from copy import copy

import torch
from einops import rearrange
from torch import Tensor, nn

from cogvideo.model import Block, CogVideoTransformer, QueriesKeysValues
from cogvideo.offload import StreamedBlocks

MAX_TRANSPOSED = 3  # rows up to which W @ x.T is the quickest
FEWEST_PACKED = 4  # oneDNN is slower with fewer rows than with these
MANY_INPUTS = 4  # times the outputs: from there on packed weights are quicker with any number of rows
MAX_PACKED = 64  # rows from which a plain product computes more than it reads
MOST_COPIED = (
    4 * 10**9
)  # bytes of a model up to which its matrices are copied, fused or packed; larger ones are read as they lie


class SmallBatchLinear(nn.Module):
    """The same as nn.Linear up to rounding. Packs its weights (a second copy of them) when packed ones are first needed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, copies: bool = True):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.packed: Tensor | None = None
        self.packing = copies and _packing_works()
        self.column = None if bias is None else bias[:, None]
        outputs, inputs = weight.shape
        self.max_transposed = 0 if inputs >= MANY_INPUTS * outputs and self.packing else MAX_TRANSPOSED

    def forward(self, x: Tensor) -> Tensor:
        """[*,I] -> [*,O]."""
        rows = x.reshape(-1, x.shape[-1]).contiguous()
        count = len(rows)
        if count <= self.max_transposed:
            # One row is done as two: for a matrix times a vector a slower kernel is taken, and for an expanded row, too.
            columns = (rows if count > 1 else rows.repeat(2, 1)).t()
            out = self.weight @ columns if self.column is None else torch.addmm(self.column, self.weight, columns)
            return out.t()[:count].reshape(*x.shape[:-1], -1)
        if count > MAX_PACKED or not self.packing:
            return nn.functional.linear(x, self.weight, self.bias)
        if count < FEWEST_PACKED:
            rows = nn.functional.pad(rows, (0, 0, 0, FEWEST_PACKED - count))
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), len(rows))
        out = torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, "none", [], "")
        return out[:count].reshape(*x.shape[:-1], -1)


class FusedBlock(Block):
    """A view of a block of both channels: one product makes all queries, keys and values, one closes both channels.

    The gate goes into the latter's weights, [diag(s) W, diag(1 - s) W']. The fused matrices are copies: half as many numbers
    as the block has.
    """

    def __init__(self, block: Block):
        nn.Module.__init__(self)
        self.__dict__.update(_with_small_batch_linears(block, copies=True).__dict__)
        assert block.temporal is not None and block.gate is not None
        spatial, temporal = block.spatial, block.temporal
        weight = torch.cat([spatial.qkv.weight.detach(), temporal.qkv.weight.detach()])
        self.qkv = SmallBatchLinear(weight, torch.cat([spatial.qkv.bias.detach(), temporal.qkv.bias.detach()]))
        share = torch.sigmoid(block.gate.detach())
        parts = [share[:, None] * spatial.dense.weight, (1 - share)[:, None] * temporal.dense.weight]
        bias = share * spatial.dense.bias + (1 - share) * temporal.dense.bias
        self.dense = SmallBatchLinear(torch.cat([part.detach() for part in parts], 1), bias.detach())

    def project(self, h: Tensor, both: bool) -> tuple[QueriesKeysValues, QueriesKeysValues | None]:
        if not both:
            return super().project(h, both)
        heads = self.spatial.num_heads
        q, k, v, *later = rearrange(self.qkv(h), "... p (six h d) -> six ... h p d", six=6, h=heads)
        return (q, k, v), tuple(later)  # type: ignore[return-value]

    def merge(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        return self.dense(torch.cat([spatial, temporal], -1))


@torch.no_grad()
def prepare_for_decoding(model: CogVideoTransformer) -> CogVideoTransformer:
    """A view of the model that is quick with few rows; its other weights are the model's own.

    The model itself comes back where that would not pay (another device than the CPU, other precision than fp32, blocks
    that come and go) or where something hooks into its modules.
    """
    weight = model.word_embedding.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or any(map(in_the_way, model.modules())):
        return model
    copies = sum(p.nbytes for p in model.parameters()) <= MOST_COPIED
    view = _with_small_batch_linears(model, copies)
    assert isinstance(view, CogVideoTransformer)
    view.image_head = SmallBatchLinear(weight.detach()[: model.config.image_tokens], None, copies)
    return view


def _with_small_batch_linears(module: nn.Module, copies: bool) -> nn.Module:
    if type(module) is nn.Linear and module.weight.dtype == torch.float32:
        return SmallBatchLinear(module.weight.detach(), None if module.bias is None else module.bias.detach(), copies)
    view = copy(module)
    view._modules = {name: None if child is None else _view(child, copies) for name, child in module._modules.items()}
    return view


def _view(module: nn.Module, copies: bool) -> nn.Module:
    if copies and type(module) is Block and module.temporal is not None:
        linears = (module.spatial.qkv, module.spatial.dense, module.temporal.qkv, module.temporal.dense)
        if all(type(linear) is nn.Linear for linear in linears):  # not those in int8
            return FusedBlock(module)
    return _with_small_batch_linears(module, copies)


def in_the_way(module: nn.Module) -> bool:
    """Whether a module keeps the model from being replaced by a quicker view: hooks, or blocks that come and go."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or isinstance(module, StreamedBlocks)


def _packing_works() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
