"""Wavefront decoding against one token after the other."""

import pytest
import torch
from sampling.test_decode import FixtureDraw, fixture, released, tiny

from cogvideo.sampling import TopKStrategy, backends
from cogvideo.sampling.decode import generate_key_frames, interpolate_frames


class ByStep(FixtureDraw):
    """Keeps the logits by step, in whatever order they come."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def __call__(self, logits, step):
        self.steps.append(step)
        return super().__call__(logits, step)

    def seen(self):
        return super().seen()[:, torch.tensor(self.steps).argsort()]


@pytest.mark.parametrize("guided", [False, True])
def test_stage_2_equals_the_release(guided):
    model, io = released("interpolation"), fixture("interpolation_sampling" + "_guided" * guided)
    draw = ByStep()
    settings = {"guidance_ids": io["guide_ids"], "text_bonus": 0.0} if guided else {"text_bonus": 1.4}
    frames = interpolate_frames(
        model,
        io["text_ids"],
        io["given_frames"].long(),
        strategy=draw,
        release_quirks=True,
        wavefront=True,
        **settings,
    )
    assert draw.steps != sorted(draw.steps)  # the frames did overlap
    assert torch.equal(frames, io["generated_frames"].long())
    torch.testing.assert_close(draw.seen()[:, io["logit_steps"].long()], io["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("window", [None, 1, 2, 3])
@pytest.mark.parametrize("order", ["sequential", "interpolation"])
@pytest.mark.parametrize("several", [False, True])
def test_random_draws_equal_those_of_one_after_the_other(order, window, several, monkeypatch):
    """On the quick path and, third, on the plain one."""
    model, strategy = tiny(order, window), TopKStrategy(top_k=5)
    text = torch.tensor([[11, 11, 12, 13], [14, 15, 16, 17]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    known = torch.randint(10, (2, 3, 12), generator=torch.Generator().manual_seed(0))
    made, after = [], []
    for wavefront, plain in ((False, False), (True, False), (True, True)):
        if plain:
            monkeypatch.setattr(backends, "backend_of", lambda model: "plain")
        streams = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        settings = {
            "text_mask": mask, "guidance_ids": torch.tensor([[18, 17]]), "strategy": strategy,
            "wavefront": wavefront, "generator": streams if several else streams[0],
        }  # fmt: skip
        if order == "sequential":
            made.append(generate_key_frames(model, text, known[:, 0], **settings))
        else:
            made.append(interpolate_frames(model, text, known, **settings))
        after.append(torch.rand(3, generator=streams[0]))
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])
    assert torch.equal(after[0], after[1])  # the caller's stream stands where it would have stood
