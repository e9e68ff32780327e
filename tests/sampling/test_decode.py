"""Cached decoding against the release's clips, and against the model's own training forward."""

import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file

from cogvideo.checkpoints.native import inherit_image_model
from cogvideo.checkpoints.sat import load_sat_checkpoint
from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.sampling.decode import generate_first_frame, generate_key_frames, interpolate_frames

TINY = ModelConfig(
    num_layers=2, hidden_size=16, num_heads=2, frame_height=3, frame_width=4, num_frames=1, text_length=6,
    first_frame_position=6, image_tokens=10, vocab_size=20, begin_of_image=19, base_positions=18,
    temporal=False,
)  # fmt: skip


class FixtureDraw:
    """The deterministic draw of the fixtures; keeps the logits it was shown."""

    def __init__(self):
        self.logits = []

    def __call__(self, logits, step):
        self.logits.append(logits.clone())
        v = torch.arange(logits.shape[-1], dtype=torch.float64)
        return (logits.double() + 4 * torch.sin(12.9898 * step + 78.233 * v)).float().argmax(-1)

    def seen(self):
        return torch.stack(self.logits, 1)


def fixture(name: str):
    return load_file(DATA / "cogvideo" / f"{name}.io.safetensors")


def released(name: str) -> CogVideoTransformer:
    return load_sat_checkpoint(DATA / "cogvideo" / name, image_tokens=256, begin_of_image=310)


def test_first_frame_and_guided_key_frames_equal_the_release():
    model, io = released("sequential_full"), fixture("sequential_sampling")
    draw = FixtureDraw()
    first = generate_first_frame(model, io["first_text"][None], strategy=draw)
    assert torch.equal(first, io["first_tokens"].long())
    torch.testing.assert_close(draw.seen()[:, ::11], io["first_logits"], atol=1e-4, rtol=0)
    draw = FixtureDraw()
    clips = generate_key_frames(
        model,
        io["text_ids"],
        io["first_frames"].long(),
        guidance_ids=io["guide_ids"],
        guidance_scale=3.0,
        strategy=draw,
    )
    assert torch.equal(clips, io["clip_tokens"].long())
    steps = io["guided_logit_steps"].long()
    torch.testing.assert_close(draw.seen()[:, steps], io["guided_logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("guided", [False, True])
def test_interpolation_equals_the_release(guided):
    model, io = released("interpolation"), fixture("interpolation_sampling" + "_guided" * guided)
    draw = FixtureDraw()
    settings = {"guidance_ids": io["guide_ids"], "text_bonus": 0.0} if guided else {"text_bonus": 1.4}
    frames = interpolate_frames(
        model, io["text_ids"], io["given_frames"].long(), strategy=draw, release_quirks=True, **settings
    )
    assert torch.equal(frames, io["generated_frames"].long())
    torch.testing.assert_close(draw.seen()[:, io["logit_steps"].long()], io["logits"], atol=1e-4, rtol=0)


def test_the_quirks_matter():
    model, io = released("interpolation"), fixture("interpolation_sampling")
    frames = interpolate_frames(model, io["text_ids"], io["given_frames"].long(), strategy=FixtureDraw())
    assert not torch.equal(frames, io["generated_frames"].long())


def tiny(order: str, window: int | None) -> CogVideoTransformer:
    image = CogVideoTransformer(TINY).initialize(0)
    return inherit_image_model(image, config=TINY.video(num_frames=5, order=order, window=window), seed=1)


@pytest.mark.parametrize("window", [None, 2])
@torch.no_grad()
def test_decoding_sees_the_logits_of_the_training_forward(window):
    """Also with prompts of different lengths in one batch."""
    text = torch.tensor([[11, 11, 12, 13], [14, 15, 16, 17]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    draw, model = FixtureDraw(), tiny("sequential", window)
    first = torch.randint(10, (2, 12), generator=torch.Generator().manual_seed(0))
    clips = generate_key_frames(model, text, first, text_mask=mask, strategy=draw)
    torch.testing.assert_close(draw.seen(), model(text, clips, mask)[:, 12:], atol=1e-5, rtol=0)
    draw, model = FixtureDraw(), tiny("interpolation", window)
    given = torch.randint(10, (2, 3, 12), generator=torch.Generator().manual_seed(0))
    between = interpolate_frames(model, text, given, text_mask=mask, text_bonus=0.0, strategy=draw)
    frames = torch.stack([given[:, 0], between[:, 0], given[:, 1], between[:, 1], given[:, 2]], 1)
    logits = model(text, frames, mask)
    torch.testing.assert_close(
        draw.seen(), torch.cat([logits[:, 12:24], logits[:, 36:48]], 1), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_guidance_mixes_the_logits_of_both_texts():
    model = tiny("sequential", None)
    text, guide = torch.tensor([[12, 13, 14]]), torch.tensor([[18, 17]])
    first = torch.zeros(1, 12, dtype=torch.long)
    draw = FixtureDraw()
    clips = generate_key_frames(model, text, first, guidance_ids=guide, guidance_scale=2.5, strategy=draw)
    conditional, unguided = model(text, clips)[:, 12:], model(guide, clips)[:, 12:]
    torch.testing.assert_close(draw.seen(), unguided + 2.5 * (conditional - unguided), atol=1e-5, rtol=0)


def test_models_of_the_wrong_stage_are_refused():
    text, frame = torch.tensor([[12]]), torch.zeros(1, 12, dtype=torch.long)
    with pytest.raises(CogVideoError, match="stage 1"):
        generate_key_frames(tiny("interpolation", None), text, frame, strategy=FixtureDraw())
    with pytest.raises(CogVideoError, match="stage 2"):
        interpolate_frames(
            tiny("sequential", None), text, frame[:, None].expand(-1, 3, -1), strategy=FixtureDraw()
        )


@pytest.mark.parametrize(
    "text, first, message",
    [
        ([[12, 99]], (1, 12), "ids outside"),
        ([[12, -1]], (1, 12), "ids outside"),
        ([[12], [13], [14]], (2, 12), "Texts should have"),
        ([[12]], (1, 11), "first_frames should have"),
        ([[12]], (12,), "first_frames should have"),
    ],
)
def test_texts_and_frames_that_do_not_fit_are_refused(text, first, message):
    frames = torch.zeros(first, dtype=torch.long)
    with pytest.raises(CogVideoError, match=message):
        generate_key_frames(tiny("sequential", None), torch.tensor(text), frames, strategy=FixtureDraw())


def test_frames_of_another_codebook_are_refused():
    given = torch.full((1, 3, 12), 10)
    with pytest.raises(CogVideoError, match="given_frames holds ids outside 0..9"):
        interpolate_frames(tiny("interpolation", None), torch.tensor([[12]]), given, strategy=FixtureDraw())


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="wavefrond"):
        generate_first_frame(
            tiny("sequential", None), torch.tensor([[12]]), strategy=FixtureDraw(), wavefrond=1
        )
