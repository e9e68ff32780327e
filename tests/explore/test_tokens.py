"""What was nearly drawn, against the distributions that the sampler meets while it decodes."""

import numpy as np
import pytest
import torch
from explore.small import CONFIGS, clip, small_model

import cogvideo
from cogvideo.explore import tokens
from cogvideo.sampling import decode

IDS = torch.tensor([12, 13, 14])


@pytest.fixture(scope="module")
def pipe() -> cogvideo.Pipeline:
    return cogvideo.Pipeline.from_pretrained("demo", device="cpu")


def test_the_likeliest_by_hand():
    p = torch.tensor([[[0.5, 0.125, 0.25, 0.125], [0.0, 1.0, 0.0, 0.0]]])
    found = tokens.likeliest(p, torch.tensor([[3, 1]]), 2)
    assert found.tokens[0, 0].tolist() == [0, 2] and found.probabilities[0, 0].tolist() == [0.5, 0.25]
    np.testing.assert_allclose(found.entropy[0], [1.75 * np.log(2), 0], atol=1e-6)
    np.testing.assert_allclose(found.surprise[0], [3 * np.log(2), 0], atol=1e-6)
    assert found.rank.tolist() == [[3, 1]]


@pytest.mark.parametrize("name", ["windowed stage 1", "stage 2"])
def test_teacher_forced_are_the_models_own(name):
    model, frames = small_model(CONFIGS[name]), clip(CONFIGS[name])
    found = tokens.teacher_forced(model, IDS, frames)
    losses = model.token_losses(IDS[None], frames[None])[0].detach()
    np.testing.assert_allclose(tokens.likeliest(found, frames).surprise, losses, atol=1e-4)


@pytest.mark.parametrize("stage, quirks", [(1, False), (2, False), (2, True)])
def test_sampled_are_the_distributions_that_tokens_were_drawn_from(pipe, monkeypatch, stage, quirks):
    """With guidance and a text bonus, which the demo itself does without."""
    changed = pipe.with_sampling(
        key_guidance=2.0, fill_guidance=1.5, key_text_bonus=0.7, fill_text_bonus=1.1, temperature=0.8,
        release_quirks=quirks,
    )  # fmt: skip
    seen = []

    def spy(strategy, logits, step, generator=None):
        seen.append(strategy.probabilities(logits)[0])
        return torch.full((len(logits),), (7 * len(seen)) % 4096)  # the clip is what came of it

    monkeypatch.setattr(decode, "draw", spy)
    given = torch.randint(4096, (1, 64 if stage == 1 else 320), generator=torch.Generator().manual_seed(0))
    if stage == 1:
        frames = changed.later_key_frame_tokens(given, ["a lion drinks milk"], 2.0)[0]
        model, made, span, told = changed.stage1, [1, 2, 3, 4], 2.0, None
    else:
        frames = changed.interpolate_once(given.view(1, 5, 64), ["a lion drinks milk"], 2.0, 1)[0, :5]
        model, made, span = changed.stage2, [1, 3], 1.0
        told = decode.places(model, 1, 2)
        assert told is not None
        told = told[:1]  # of the first of two sequences
    ids = torch.tensor(changed.text.encode_prompt("a lion drinks milk", span))
    found = tokens.sampled(changed, model, ids, frames, span, told)[made].flatten(0, 1)
    torch.testing.assert_close(found, torch.stack(seen), atol=2e-4, rtol=0)


def test_pictures_are_patches_of_frames_with_one_token_exchanged(pipe):
    frames = torch.randint(4096, (2, 64), generator=torch.Generator().manual_seed(1))
    patches, ids = np.array([0, 4, 27, 63]), np.arange(8).reshape(4, 2) * 500
    found = tokens.pictures(pipe, frames, 1, patches, ids)
    for patch, row, drawn in zip(patches, ids, found, strict=True):
        for token, picture in zip(row, drawn, strict=True):
            other = frames[1:].clone()
            other[0, patch] = int(token)
            y, x = 8 * (patch // 8), 8 * (patch % 8)
            own = pipe.pixels(other[None])[0, 0, y : y + 8, x : x + 8]
            assert np.abs(picture.astype(int) - own).max() <= 1
