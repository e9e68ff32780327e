"""Cross entropy of a linear head without its logits: what training spends most on when the vocabulary is large."""

import torch
from einops import rearrange
from torch import Tensor

CHUNK = 256  # places whose logits exist at the same time: 4 MB of them for 4,096 tokens stay in a CPU's cache


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean of F.cross_entropy(hidden @ weight.T, targets); hidden [..., D], weight [V, D], targets [...] ids.

    The same loss and gradients, in half the time on a CPU and without the memory for logits: they are made for a few places
    at a time, and turned into gradients at once. Gradients of gradients cannot be had.
    """
    return _LinearCrossEntropy.apply(hidden.flatten(0, -2), weight, targets.flatten().long())  # type: ignore[return-value]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:  # type: ignore[override]
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        total = hidden.new_zeros(())
        for first in range(0, len(hidden), CHUNK):
            some = slice(first, first + CHUNK)
            x, wanted = hidden[some], rearrange(targets[some], "m -> m 1")
            logits = x @ weight.T
            right = logits.gather(1, wanted)
            largest = logits.amax(1, keepdim=True)
            chances = logits.sub_(largest).exp_()  # once divided by their sum
            sums = chances.sum(1, keepdim=True)
            total += (sums.log() + largest - right).sum()
            if of_hidden is not None:
                of_hidden[some] = (chances @ weight).div_(sums).sub_(weight[targets[some]])
            if of_weight is not None:
                of_weight += chances.div_(sums).scatter_add_(1, wanted, -torch.ones_like(sums)).T @ x
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.count = len(hidden)
        return total / len(hidden)

    @staticmethod
    def backward(ctx, gradient: Tensor):  # type: ignore[override]
        scale = gradient / ctx.count
        return *(None if saved is None else saved * scale for saved in ctx.saved_tensors), None
