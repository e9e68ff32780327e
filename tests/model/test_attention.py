"""Block-sparse attention against the dense mask, and the loss of a frozen head against torch's own."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from cogvideo.config import ModelConfig
from cogvideo.model import masks
from cogvideo.model.attention import attend, block_sparse_bias, hidden_bias
from cogvideo.model.losses import ROWS, linear_cross_entropy
from cogvideo.model.transformer import CogVideoTransformer

CONFIG = ModelConfig(
    num_layers=3, hidden_size=16, num_heads=2, frame_height=6, frame_width=5, num_frames=5, text_length=4,
    first_frame_position=4, image_tokens=50, vocab_size=80, begin_of_image=70, base_positions=34,
    extra_positions=120,
)  # fmt: skip
CASES = [
    {}, {"window": 2}, {"window": 4}, {"order": "interpolation"}, {"order": "interpolation", "window": 3},
    {"num_frames": 2, "order": "interpolation"}, {"num_frames": 3, "window": 9},
]  # fmt: skip


@pytest.mark.parametrize("changes", CASES)
@pytest.mark.parametrize("layer", [0, 1])
def test_the_block_sparse_bias_equals_the_dense_mask(changes, layer):
    c = replace(CONFIG, **changes)
    p = c.num_frames * c.frame_tokens
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, length, 8, generator=generator) for length in (p, 4 + p, 4 + p))
    text = torch.tensor([[False, False, True, True], [True] * 4])[:, None, None]
    visible = masks.temporal_visible(c, layer)
    whole = torch.cat([text.expand(2, 1, p, 4), visible.expand(2, 1, p, p)], -1)
    expected = ((q @ k.mT / 8**0.5).masked_fill(~whole, float("-inf"))).softmax(-1) @ v
    sparse = block_sparse_bias(c, layer, visible, hidden_bias(text))
    torch.testing.assert_close(sparse.attend(q, k, v), expected, atol=1e-5, rtol=0)
    computed = sum(g.windows * (b.last - b.first) * b.last for g in sparse.groups for b in g.blocks)
    needed = int(visible.sum())
    assert needed <= computed < p * p and computed < 2.2 * needed + p * c.frame_tokens


@pytest.mark.parametrize("changes", [{}, {"order": "interpolation", "window": 3}])
@pytest.mark.parametrize("recompute", [False, True])
def test_losses_and_gradients_equal_the_dense_forward(changes, recompute):
    c = replace(CONFIG, **changes)
    model = CogVideoTransformer(c).initialize(0)
    trained = model.temporal_parameters()
    for name, weight in model.named_parameters():
        weight.data += 0.1 * torch.randn(
            weight.shape, generator=torch.Generator().manual_seed(weight.numel())
        )
        weight.requires_grad_(name in trained)
    generator = torch.Generator().manual_seed(1)
    text, frames = (
        torch.randint(*limits, shape, generator=generator)
        for limits, shape in (((50, 70), (2, 4)), ((0, 50), (2, 5, 30)))
    )
    mask = torch.tensor([[False, True, True, True], [True] * 4])
    dense = model.token_losses(text, frames, mask)[:, masks.trained_frames(c)].mean((0, 2))
    lean = model.frame_losses(text, frames, mask, recompute=recompute)
    torch.testing.assert_close(lean, dense, atol=1e-5, rtol=0)
    gradients = [torch.autograd.grad(loss.mean(), list(trained.values())) for loss in (dense, lean)]
    for name, one, other in zip(trained, *gradients, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5 * float(one.abs().max()) + 1e-9, rtol=0, msg=name)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_loss_of_a_head_and_its_gradients(frozen):
    generator = torch.Generator().manual_seed(0)
    m = 2 * ROWS["cpu"] + 37
    x, weight = torch.randn(m, 12, generator=generator), torch.randn(40, 12, generator=generator)
    targets, upstream = torch.randint(40, (m,), generator=generator), torch.rand(m, generator=generator)
    x.requires_grad_()
    weight.requires_grad_(not frozen)
    inputs = [x] if frozen else [x, weight]
    expected = F.cross_entropy(x @ weight.T, targets, reduction="none")
    losses = linear_cross_entropy(x, weight, targets)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=0)
    pairs = zip(*(torch.autograd.grad(loss, inputs, upstream) for loss in (losses, expected)), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_no_scores_of_all_positions_are_held():
    """What a step saves for its gradients, at the release's frame size.

    Nothing as large as one head's scores.
    """
    c = replace(
        CONFIG, frame_height=20, frame_width=20, text_length=64, first_frame_position=64, base_positions=464,
        extra_positions=2000, num_layers=2,
    )  # fmt: skip
    model = CogVideoTransformer(c).initialize(0)
    trained = model.temporal_parameters()
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        model.frame_losses(torch.full((1, 64), 60), torch.zeros(1, 5, 400, dtype=torch.long)).mean()
    assert max(sizes) <= 5 * 400 * 464  # the spatial channel's mask; scores of a head would have 2064 * 2064


@pytest.mark.parametrize("frames", [None, 1, 3])
@pytest.mark.parametrize("queries", [1, 2])
def test_a_few_queries_on_a_cpu_against_the_formula(frames, queries):
    """Over a part of a cache, as in decoding: as bags of embeddings without gradients, else as a product."""
    generator = torch.Generator().manual_seed(0)
    lead = [2] if frames is None else [2, frames]
    q = torch.randn(*lead, 4, queries, 8, generator=generator)
    kv = torch.randn(2, *lead, 4, 40, 8, generator=generator)
    if frames is not None:  # such caches have the frames first in memory
        kv = kv.transpose(1, 2).contiguous().transpose(1, 2)
    k, v = kv.narrow(-2, 0, 23).unbind(0)
    bias = torch.where(torch.rand(*lead, 1, queries, 23, generator=generator) < 0.3, float("-inf"), 0.0)
    weights = (q.double() @ k.double().transpose(-1, -2) * 8**-0.5 + bias).softmax(-1)
    with torch.inference_mode():
        made = attend(q, k, v, bias)
    torch.testing.assert_close(made.double(), weights @ v.double(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(attend(q, k, v, bias), made, atol=1e-6, rtol=1e-5)
