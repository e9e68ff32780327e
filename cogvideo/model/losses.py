"""Scores of tokens, and cross entropy over many of them without holding their scores."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cogvideo.model.attention import compute_dtype

ROWS = {"cpu": 64, "cuda": 1024}  # positions whose scores are in memory at a time


def token_scores(x: Tensor, weight: Tensor) -> Tensor:
    """x [*,D], weight [V,D] -> [*,V] in fp32; CUDA reads both in 16 bits if they are, and adds in 32."""
    if x.is_cuda and x.itemsize == 2 and x.dtype == weight.dtype and not torch.is_grad_enabled():
        return torch.mm(x.flatten(0, -2), weight.t(), out_dtype=torch.float32).unflatten(0, x.shape[:-1])
    return F.linear(x.float(), weight.float())


class _FrozenHeadLoss(torch.autograd.Function):
    """The gradient is taken along with the loss, a few rows at a time; the weights get none."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        rows = ROWS.get(x.device.type, 1024)
        losses = x.new_empty(len(x), dtype=torch.float32)
        gradient = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        for begin in range(0, len(x), rows):
            some = slice(begin, begin + rows)
            scores = (x[some] @ weight.T).float()
            chosen = targets[some, None]
            total = scores.logsumexp(-1, keepdim=True)
            losses[some] = (total - scores.gather(1, chosen))[:, 0]
            if gradient is not None:
                slope = scores.sub_(total).exp_()
                slope.scatter_add_(1, chosen, torch.full_like(total, -1.0))
                gradient[some] = slope.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]  # torch types it *args
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[:, None].to(gradient.dtype), None, None


def linear_cross_entropy(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy [M] in nats, fp32, of the scores x [M,D] @ weight [V,D]^T against targets [M].

    With frozen weights only the scores of ROWS positions are in memory, nothing is computed twice; weights
    that are trained take the plain way. Under autocast the products are in its type, softmax and loss in
    fp32.
    """
    dtype = compute_dtype(x)
    x, weight = x.to(dtype), weight.to(dtype)
    if weight.requires_grad:
        return F.cross_entropy(F.linear(x, weight).float(), targets, reduction="none")
    return _FrozenHeadLoss.apply(x, weight, targets)
