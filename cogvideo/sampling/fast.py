"""Linear layers laid out for decoding on a CPU, where a step has a row or a few and its time is that of reading the weights.

`x @ W.T` with 2 rows reads W at a quarter of the memory's bandwidth, with 8 rows at a tenth of it. Measured on one core that
reads 12-17 GB/s: `W @ x.T` reads 18 GB/s with 2 rows and 13 with 3; oneDNN's packed weights 10-12 with 4 to 16 rows.
"""

from copy import copy

import torch
from torch import Tensor, nn

from cogvideo.model import CogVideoTransformer

MAX_TRANSPOSED = 3  # rows up to which W @ x.T is the quickest
MAX_PACKED = 64  # rows from which a plain product computes more than it reads


class SmallBatchLinear(nn.Module):
    """The same as nn.Linear up to rounding. Packs its weights (a second copy of them) when 4 rows or more come first."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        super().__init__()
        self.weight, self.bias = weight, bias
        self.packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[*,I] -> [*,O]."""
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) <= MAX_TRANSPOSED:
            # One row is done as two: for a matrix times a vector a slower kernel is taken.
            out = (self.weight @ rows.expand(max(2, len(rows)), -1).t()).t()[: len(rows)]
            out = out if self.bias is None else out + self.bias
            return out.reshape(*x.shape[:-1], -1)
        if len(rows) > MAX_PACKED or not _packing_works():
            return nn.functional.linear(x, self.weight, self.bias)
        if self.packed is None:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), len(rows))
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.packed, self.bias, "none", [], "")


def prepare_for_decoding(model: CogVideoTransformer) -> CogVideoTransformer:
    """A view of the model whose linear layers are quick with few rows; its weights are the model's own.

    The model itself comes back where that would not pay (another device than the CPU, other precision than fp32) or where
    something hooks into its modules.
    """
    weight = model.word_embedding.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or any(map(_hooked, model.modules())):
        return model
    view = _with_small_batch_linears(model)
    assert isinstance(view, CogVideoTransformer)
    view.image_head = SmallBatchLinear(weight.detach()[: model.config.image_tokens], None)
    return view


def _with_small_batch_linears(module: nn.Module) -> nn.Module:
    if type(module) is nn.Linear and module.weight.dtype == torch.float32:
        return SmallBatchLinear(module.weight.detach(), None if module.bias is None else module.bias.detach())
    view = copy(module)
    view._modules = {
        name: None if child is None else _with_small_batch_linears(child) for name, child in module._modules.items()
    }
    return view


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _packing_works() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
