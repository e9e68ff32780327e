"""The head's loss without logits against torch's own, with them."""

import pytest
import torch
import torch.nn.functional as F

from cogvideo.cross_entropy import CHUNK, linear_cross_entropy


@pytest.mark.parametrize("places", [(3, 5), (CHUNK,), (2, CHUNK - 100)])
@pytest.mark.parametrize("frozen", ["", "hidden", "weight"])
def test_the_loss_and_its_gradients_are_those_of_torch(places, frozen):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*places, 8, generator=generator, dtype=torch.float64).requires_grad_(frozen != "hidden")
    weight = (40 * torch.randn(17, 8, generator=generator, dtype=torch.float64)).requires_grad_(frozen != "weight")
    targets = torch.randint(17, places, generator=generator)
    trained = [x for x in (hidden, weight) if x.requires_grad]
    wanted = F.cross_entropy((hidden @ weight.T).flatten(0, -2), targets.flatten())
    made = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(made, wanted)
    for ours, theirs in zip(
        torch.autograd.grad(3 * made, trained), torch.autograd.grad(3 * wanted, trained), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_without_gradients_it_is_a_number():
    with torch.inference_mode():
        loss = linear_cross_entropy(torch.zeros(2, 4), torch.zeros(10, 4), torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(torch.tensor(10.0).log().item())
