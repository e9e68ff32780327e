"""A view of the model laid out for decoding on a CPU, where a step has a row or a few and its time is that of reading weights.

Weights are packed by oneDNN: with 1 to 8 rows it reads them at half to two thirds of what memory gives, `x @ W.T` at a fifth
(`cogvideo bench sampler` tells the share). What is left is the host's own work, so a step of one place has a forward of its
own: fewer and simpler operations than Block.forward, the same result up to rounding.
"""

from copy import copy

import torch
from einops import rearrange
from torch import Tensor, nn

from cogvideo.model.attention import Pieces, attend
from cogvideo.model.transformer import Block, CogVideoTransformer, LayerMemory, Mlp, QueriesKeysValues
from cogvideo.runtime.offload import StreamedBlocks

MAX_TRANSPOSED = 3  # rows up to which W @ x.T is quicker than x @ W.T where weights cannot be packed
MAX_PACKED = 64  # rows; with more of them a plain product computes more than it reads
# Rows that packing is told: the layout is then right for 1 to 64; told 1 or 2, more of them would be slow.
ROWS_AHEAD = 16
# Bytes of a model up to which its matrices are fused and packed, so that three times as much is held while decoding; larger
# ones are read as they lie.
MOST_COPIED = 2 * 10**9


class SmallBatchLinear(nn.Module):
    """The same as nn.Linear up to rounding. Packs its weights (a second copy of them) when packed ones are first needed."""

    def __init__(self, weight: Tensor, bias: Tensor | None, copies: bool = True):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.packed: Tensor | None = None
        self.packing = copies and _packing_works()

    def forward(self, x: Tensor) -> Tensor:
        """[*,I] -> [*,O]."""
        count = x.numel() // x.shape[-1]
        if self.packing and count <= MAX_PACKED:
            return self._packed(x, "none")
        if count > MAX_TRANSPOSED:
            return nn.functional.linear(x, self.weight, self.bias)
        # One row is done as two: for a matrix times a vector a slower kernel is taken. The rows have to be contiguous.
        rows = x.reshape(count, -1).contiguous()
        columns = (rows if count > 1 else rows.repeat(2, 1)).t()
        out = (
            self.weight @ columns
            if self.bias is None
            else torch.addmm(self.bias[:, None], self.weight, columns)
        )
        return out.t()[:count].reshape(*x.shape[:-1], -1)

    def gelu(self, x: Tensor) -> Tensor:
        """The same with the MLP's GELU after it, in one pass where weights are packed."""
        if self.packing and x.numel() <= MAX_PACKED * x.shape[-1]:
            return self._packed(x, "gelu")
        return nn.functional.gelu(self(x), approximate="tanh")

    def _packed(self, x: Tensor, then: str) -> Tensor:
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), ROWS_AHEAD)
        return torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, then, [], "tanh" if then == "gelu" else ""
        )


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
        self.qkv = SmallBatchLinear(
            weight, torch.cat([spatial.qkv.bias.detach(), temporal.qkv.bias.detach()])
        )
        share = torch.sigmoid(block.gate.detach())
        parts = [share[:, None] * spatial.dense.weight, (1 - share)[:, None] * temporal.dense.weight]
        bias = share * spatial.dense.bias + (1 - share) * temporal.dense.bias
        self.dense = SmallBatchLinear(torch.cat([part.detach() for part in parts], 1), bias.detach())

    def forward(
        self, x: Tensor, memory: LayerMemory, spatial_bias: Tensor, temporal_bias: Tensor | Pieces | None
    ) -> Tensor:
        """Block.forward; a chunk of one place a frame goes the short way."""
        if x.shape[2] > 1:
            return super().forward(x, memory, spatial_bias, temporal_bias)
        b, f, _, size = x.shape
        heads, both = self.spatial.num_heads, temporal_bias is not None
        # No einops here: with a few rows its bookkeeping alone would be a fifth of the step.
        qkv = (self.qkv if both else self.spatial.qkv)(self.attention_norm(x))
        q, k, v, *later = qkv.view(b, f, -1, heads, 1, size // heads).unbind(2)  # each [b,f,h,1,d]
        # Frames first: so lies the cache of several frames, which is then read where it is.
        frames_first = (t.transpose(0, 1) for t in (q, *memory.spatial_extend(k, v), spatial_bias))
        out = attend(*frames_first).transpose(0, 1).reshape(b, f, 1, size)
        if both:
            q, k, v = (t.squeeze(3).transpose(1, 2) for t in later)  # each [b,h,f,d]
            later = (
                attend(q, *memory.temporal_extend(k, v), temporal_bias).transpose(1, 2).reshape(b, f, 1, size)
            )
            out = torch.cat([out, later], -1)
        x = x + self.attention_out_norm((self.dense if both else self.spatial.dense)(out))
        return x + self.mlp_out_norm(self.mlp.down(self.mlp.up.gelu(self.mlp_norm(x))))  # type: ignore[operator]

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
    """A view of the model that is quick with few rows, for one call under inference mode: fused and packed weights do not
    follow when the model is trained or moved, and there are no gradients. Its other weights are the model's own.

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
        return SmallBatchLinear(
            module.weight.detach(), None if module.bias is None else module.bias.detach(), copies
        )
    view = copy(module)
    view._modules = {
        name: None if child is None else _view(child, copies) for name, child in module._modules.items()
    }
    return view


def _view(module: nn.Module, copies: bool) -> nn.Module:
    if copies and type(module) is Block and module.temporal is not None:
        linears = [module.spatial.qkv, module.spatial.dense, module.temporal.qkv, module.temporal.dense]
        linears += [module.mlp.up, module.mlp.down] if type(module.mlp) is Mlp else [None]
        if all(type(linear) is nn.Linear for linear in linears):  # not those in int8
            return FusedBlock(module)
    return _with_small_batch_linears(module, copies)


def in_the_way(module: nn.Module) -> bool:
    """Whether a module keeps the model from being replaced by a quicker view: hooks, or blocks that come and go."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or isinstance(module, StreamedBlocks)


def _packing_works() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
