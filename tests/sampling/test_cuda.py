"""Steps with static shapes, run uncaptured, against backends that give the release's tokens and logits."""

import pytest
import torch
from sampling.test_decode import FixtureDraw, fixture, released, tiny

from cogvideo.sampling import TopKStrategy, backends, cuda, decode


@pytest.fixture(params=["cpu", "plain"])
def both_ways(request, monkeypatch):
    """Calls a sampler with another backend and with static steps.

    Buckets of 5 positions, so that there are several.
    """
    monkeypatch.setattr(cuda, "BUCKET", 5)

    def call(sample):
        results = []
        for backend in (request.param, "cuda"):
            monkeypatch.setattr(backends, "backend_of", lambda model, backend=backend: backend)
            results.append(sample())
        return results

    return call


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("order", ["sequential", "interpolation"])
@pytest.mark.parametrize("wavefront", [False, True])
def test_tokens_equal_those_of_other_backends(order, window, wavefront, both_ways):
    model = tiny(order, window)
    known = torch.randint(10, (2, 3, 12), generator=torch.Generator().manual_seed(0))
    text = torch.tensor([[11, 11, 12, 13], [14, 15, 16, 17]])
    settings = {
        "text_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), "guidance_ids": torch.tensor([[18, 17]]),
        "strategy": TopKStrategy(top_k=5), "text_bonus": 1.4, "wavefront": wavefront,
    }  # fmt: skip

    def sample():
        settings["generator"] = torch.Generator().manual_seed(1)
        if order == "sequential":
            return decode.generate_key_frames(model, text, known[:, :2], **settings)
        return decode.interpolate_frames(model, text, known, **settings)

    plain, static = both_ways(sample)
    assert torch.equal(plain, static)


@pytest.mark.parametrize("order", ["first", "interpolation"])
def test_logits_equal_those_of_other_backends(order, both_ways):
    model, io = released("interpolation"), fixture("interpolation_sampling")

    def sample():
        draw = FixtureDraw()
        if order == "first":
            decode.generate_first_frame(model, io["text_ids"], strategy=draw)
        else:
            decode.interpolate_frames(
                model, io["text_ids"], io["given_frames"].long(), strategy=draw, release_quirks=True
            )
        return draw.seen()

    plain, static = both_ways(sample)
    torch.testing.assert_close(static, plain, atol=1e-4, rtol=0)


def test_what_is_kept_serves_other_texts_and_changed_weights(monkeypatch):
    model = tiny("interpolation", 2)
    known = torch.randint(10, (1, 3, 12), generator=torch.Generator().manual_seed(0))
    kept = []
    for text in ([11, 12, 13], [14, 15, 16]):
        made = []
        for backend in ("plain", "cuda"):
            monkeypatch.setattr(backends, "backend_of", lambda model, backend=backend: backend)
            draw = FixtureDraw()
            decode.interpolate_frames(model, torch.tensor([text]), known, strategy=draw)
            made.append(draw.seen())
        torch.testing.assert_close(made[1], made[0], atol=1e-4, rtol=0)
        kept.append(next(iter(cuda._KEPT[model].steps.values())))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.1)
    assert kept[0] is kept[1]
    cuda.release(model)
    assert model not in cuda._KEPT
