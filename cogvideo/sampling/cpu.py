"""A view of the model for decoding on a CPU, where a step has few rows and mostly reads weights.

Weights are packed by oneDNN: with 1 to 8 rows it reads them at half to two thirds of what memory gives,
`x @ W.T` at a fifth (see `cogvideo bench sampler`). The products of both attention channels are fused.
"""

from copy import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideo.model.transformer import Block, CogVideoTransformer, Mlp, split_heads
from cogvideo.runtime.quantize import Int8Linear

MAX_TRANSPOSED = 3  # rows up to which W @ x.T is quicker than x @ W.T where weights cannot be packed
MAX_PACKED = 64  # rows; with more of them a plain product computes more than it reads
ROWS_AHEAD = 16  # what packing is tuned for: it then suits 1 to 64 rows; tuned for 1 or 2, more would be slow
# Bytes of a model up to which its matrices are fused and packed, so that three times as much memory is used
# while decoding; larger ones are read as they lie.
MOST_COPIED = 2 * 10**9


class SmallBatchLinear(nn.Module):
    """nn.Linear up to rounding; packs its weights (a second copy of them) when they are first needed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, copies: bool = True):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.packed: Tensor | None = None
        self.packing = copies and weight.dtype == torch.float32 and weight.is_cpu and _packing_works()

    def forward(self, x: Tensor) -> Tensor:
        """[*,I] -> [*,O]."""
        count = x.numel() // x.shape[-1]
        if self.packing and count <= MAX_PACKED:
            return self._packed(x, "none")
        if count > MAX_TRANSPOSED or not x.is_cpu:
            return F.linear(x, self.weight, self.bias)
        # One row is done as two: for a matrix times a vector a slower kernel is taken. The rows have to be
        # contiguous.
        rows = x.reshape(count, -1).contiguous()
        columns = (rows if count > 1 else rows.repeat(2, 1)).t()
        bias = self.bias
        out = self.weight @ columns if bias is None else torch.addmm(bias[:, None], self.weight, columns)
        return out.t()[:count].reshape(*x.shape[:-1], -1)

    def gelu(self, x: Tensor) -> Tensor:
        """The same with the MLP's GELU after it, in one pass where weights are packed."""
        if self.packing and x.numel() <= MAX_PACKED * x.shape[-1]:
            return self._packed(x, "gelu")
        return F.gelu(self(x), approximate="tanh")

    def _packed(self, x: Tensor, then: str) -> Tensor:
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), ROWS_AHEAD)
        how = "tanh" if then == "gelu" else ""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, then, [], how)


class GeluMlp(nn.Module):
    """A view of an Mlp whose first layer makes the GELU with its product."""

    def __init__(self, up: SmallBatchLinear | Int8Linear, down: nn.Module):
        super().__init__()
        self.up, self.down = up, down

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up.gelu(x))


class FusedBlock(Block):
    """A view of a block of both channels: one product makes all queries, keys and values, one closes both.

    The gate goes into the latter's weights, [diag(s) W, diag(1 - s) W']. The fused matrices are copies: half
    as many numbers as the block has.
    """

    def __init__(self, block: Block):
        nn.Module.__init__(self)
        self.__dict__.update(copy(block).__dict__)
        self._modules = {
            name: child and _with_small_batch_linears(child, True) for name, child in block.named_children()
        }
        assert block.temporal is not None
        self.mlp = GeluMlp(*(_small_batch_linear(one, True) for one in (block.mlp.up, block.mlp.down)))
        both = block.spatial.qkv, block.temporal.qkv
        weight, bias = (
            torch.cat([getattr(one, name).detach() for one in both]) for name in ("weight", "bias")
        )
        self.qkv = SmallBatchLinear(weight, bias)
        self.dense = SmallBatchLinear(*gated_dense(block))

    def project(self, h: Tensor, both: bool) -> tuple[Tensor, ...]:
        if not both:
            return super().project(h, both)
        q, kv, later_q, later_kv = split_heads(self.qkv(h), [1, 2, 1, 2], self.spatial.num_heads)
        return q.squeeze(0), kv, later_q.squeeze(0), later_kv

    def merge(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        return self.dense(torch.cat([spatial, temporal], -1))


def gated_dense(block: Block) -> tuple[Tensor, Tensor]:
    """Weight [D,2D] and bias [D] of the product that closes both channels, the gate in it."""
    assert block.temporal is not None and block.gate is not None
    weight = torch.sigmoid(block.gate.detach())
    one, two = block.spatial.dense, block.temporal.dense
    parts = [weight[:, None] * one.weight.detach(), (1 - weight)[:, None] * two.weight.detach()]
    return torch.cat(parts, 1), weight * one.bias.detach() + (1 - weight) * two.bias.detach()


@torch.no_grad()
def packed_view(model: CogVideoTransformer) -> CogVideoTransformer:
    """A view of an fp32 model on the CPU that is quick with few rows, for one call under inference mode.

    Fused and packed weights do not follow when the model is trained or moved; the others are the model's own.
    """
    copies = sum(p.nbytes for p in model.parameters()) <= MOST_COPIED
    view = _with_small_batch_linears(model, copies)
    assert isinstance(view, CogVideoTransformer)
    head = model.word_embedding.weight.detach()[: model.config.image_tokens]
    view.image_head = SmallBatchLinear(head, None, copies)
    return view


def _can_be_fused(block: nn.Module) -> bool:
    if type(block) is not Block or block.temporal is None or type(block.mlp) is not Mlp:
        return False
    linears = [block.spatial.qkv, block.spatial.dense, block.temporal.qkv, block.temporal.dense]
    linears += [block.mlp.up, block.mlp.down]
    return all(type(linear) is nn.Linear for linear in linears)  # not those in int8


def _small_batch_linear(linear: nn.Linear, copies: bool) -> SmallBatchLinear:
    bias = None if linear.bias is None else linear.bias.detach()
    return SmallBatchLinear(linear.weight.detach(), bias, copies)


def _with_small_batch_linears(module: nn.Module, copies: bool) -> nn.Module:
    if type(module) is nn.Linear:
        return _small_batch_linear(module, copies)
    if copies and _can_be_fused(module):
        assert isinstance(module, Block)
        return FusedBlock(module)
    view = copy(module)
    view._modules = {
        name: None if child is None else _with_small_batch_linears(child, copies)
        for name, child in module._modules.items()
    }
    return view


def _packing_works() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
