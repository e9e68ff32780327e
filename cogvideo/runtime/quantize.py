"""Weight-only int8: half the memory of 16 bit, and half the bytes that a decoding step has to move.

Only the large matrices of the blocks are quantised: qkv and dense of both channels, both layers of the MLP.
Embeddings, norms and gates are small or read by row, and stay as they are.

Why not a library: torchao's weight-only int8 is quick on CUDA under torch.compile alone, and torch's own
`_weight_int8pack_mm` gives every output number one CUDA thread that walks along its whole row. A decoding
step has a few rows and is bound by reading weights, so what is needed is one small kernel that reads int8 and
multiplies in 16 bit (kernels/int8.py). On CPU torch's function is used where it is quick: in bfloat16 with
few rows.
"""

from collections.abc import Callable
from types import ModuleType
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideo import kernels

M = TypeVar("M", bound=nn.Module)

FEW_ROWS_CUDA = 16  # as many as one tile of the tensor cores takes; more are computed from widened weights
FEW_ROWS_CPU = 4  # measured, one core of an EPYC with AVX-512: quicker than widened weights up to here


def quantize_rows(weight: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """[N,K] -> int8 [N,K], scale [N] of `dtype` (None: like weight); |weight - int8 * scale| <= scale / 2."""
    wide = weight.detach().float()
    # The scale is rounded to its type first, and the weights are divided by the rounded one: no error but
    # their own.
    dtype = dtype or weight.dtype
    smallest = torch.finfo(dtype).tiny  # rows of zeros need a scale, too
    scale = (wide.abs().amax(1) / 127).clamp(min=smallest).to(dtype)
    return (wide / scale.float()[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


class Int8Linear(nn.Module):
    """A linear layer [*,K] -> [*,N] with an int8 weight and a scale for each output; for inference only."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype | None = None):
        super().__init__()
        self.weight_int8: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        values, scale = quantize_rows(linear.weight, dtype)
        self.register_buffer("weight_int8", values)  # [N,K]
        self.register_buffer("scale", scale)  # [N]
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().to(scale.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x [*,K] in the type of the scales -> [*,N] of the same type."""
        rows = x.numel() // x.shape[-1]
        if (kernel := self._kernel(x)) is not None:
            return kernel.int8_linear(x, self.weight_int8, self.scale, self.bias)
        if not x.is_cuda and rows <= FEW_ROWS_CPU and x.dtype == torch.bfloat16:
            flat = torch.ops.aten._weight_int8pack_mm(
                x.reshape(rows, -1).contiguous(), self.weight_int8, self.scale
            )
            out = flat.view(*x.shape[:-1], -1)
        else:
            # Integers up to 127 are exact in every type; the scale is applied to the sums, as in the kernel,
            # except in float16, where sums of integers would overflow.
            weight, late = self.weight_int8.to(x.dtype), x.dtype != torch.float16
            out = F.linear(x, weight) * self.scale if late else F.linear(x, weight * self.scale[:, None])
        return out if self.bias is None else out + self.bias

    def gelu(self, x: Tensor) -> Tensor:
        """The same with the MLP's GELU after it, in one launch where our kernel runs."""
        if (kernel := self._kernel(x)) is not None:
            return kernel.int8_linear(x, self.weight_int8, self.scale, self.bias, gelu=True)
        return F.gelu(self(x), approximate="tanh")

    def _kernel(self, x: Tensor) -> ModuleType | None:
        few = x.is_cuda and x.numel() <= FEW_ROWS_CUDA * x.shape[-1] and x.itemsize == 2
        return kernels.loaded("int8", x.device) if few else None

    def extra_repr(self) -> str:
        outputs, inputs = self.weight_int8.shape
        return f"{inputs} -> {outputs}, {self.scale.dtype}"


def quantize_int8(model: M, dtype: torch.dtype | None = None) -> M:
    """Replace every nn.Linear inside `model` by an Int8Linear, in place; returns it.

    One layer after another, on the device where it lies, so that never more than one block's matrices exist
    twice. dtype: of scales, biases and activations (None: the weights').
    """
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                setattr(parent, name, Int8Linear(child, dtype))
    return model


def load_int8(
    read: Callable[..., M], *, device: str | torch.device, home: str | torch.device, dtype: torch.dtype
) -> M:
    """The model of a loader such as load_sat_checkpoint, quantised while it is read; in the end on `home`.

    Every block is quantised on `device` as soon as its weights are there, so that neither device nor home
    ever holds more than one block in full width. dtype: of everything that stays wide.
    """

    def shrink(block: nn.Module) -> None:
        quantize_int8(block, dtype).to(device=home, dtype=dtype)

    return read(device=device, dtype=None, block_done=shrink).to(device=home, dtype=dtype)
