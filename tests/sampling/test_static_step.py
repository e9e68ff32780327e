"""The step with static shapes, run as it is, against the simple path (whose tokens and logits are the release's)."""

import pytest
import torch
from sampling.test_decode import FixtureDraw, fixture, released, tiny

from cogvideo.sampling import TopKStrategy, decode, static_step


@pytest.fixture(params=[False, True], ids=["view", "model"])
def both_ways(request, monkeypatch):
    """Calls a sampler with the simple path and with static steps; buckets of 5 places, so that there are several."""
    monkeypatch.setattr(static_step, "BUCKET", 5)

    def call(sample):
        results = []
        for static in (False, True):
            monkeypatch.setattr(decode, "static_step_pays", lambda model, static=static: static)
            if request.param:
                monkeypatch.setattr(decode, "prepare_for_decoding", lambda model: model)
            results.append(sample())
        return results

    return call


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("order", ["sequential", "interpolation"])
def test_tokens_equal_those_of_the_simple_path(order, window, both_ways):
    model = tiny(order, window)
    known = torch.randint(10, (2, 3, 12), generator=torch.Generator().manual_seed(0))
    text = torch.tensor([[11, 11, 12, 13], [14, 15, 16, 17]])
    settings = {
        "text_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]), "guidance_ids": torch.tensor([[18, 17]]),
        "strategy": TopKStrategy(top_k=5), "text_bonus": 1.4, "wavefront": False,
    }  # fmt: skip

    def sample():
        settings["generator"] = torch.Generator().manual_seed(1)
        if order == "sequential":
            return decode.generate_key_frames(model, text, known[:, :2], **settings)
        return decode.interpolate_frames(model, text, known, **settings)

    plain, static = both_ways(sample)
    assert torch.equal(plain, static)


@pytest.mark.parametrize("order", ["first", "interpolation"])
def test_logits_equal_those_of_the_simple_path(order, both_ways):
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
