"""How the image model is conditioned on the phase: where it enters, and that stage 1 begins with it."""

import pytest
import torch
import torch.nn.functional as F

from cogvideo.checkpoints.native import inherit_image_model
from cogvideo.config import ModelConfig
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.theatre.batches import PictureBatch
from cogvideo.theatre.conditioning import PhaseConditioning

CONFIG = ModelConfig(
    num_layers=2, hidden_size=16, num_heads=2, frame_height=2, frame_width=3, num_frames=1, text_length=4,
    first_frame_position=4, image_tokens=10, vocab_size=20, begin_of_image=19, base_positions=10,
    temporal=False,
)  # fmt: skip


@pytest.fixture
def image() -> CogVideoTransformer:
    model = CogVideoTransformer(CONFIG).initialize(0)
    for parameter in model.parameters():  # as wild as a trained one
        parameter.data += 0.1 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    return model


def a_batch(numbers: list[int], octaves: list[float]) -> PictureBatch:
    generator, n = torch.Generator().manual_seed(1), len(numbers)
    mask = torch.ones(n, 4, dtype=torch.bool)
    mask[0, 0] = False
    return PictureBatch(
        torch.randint(10, 19, (n, 4), generator=generator), mask,
        torch.randint(10, (n, 1, 6), generator=generator),
        numbers=torch.tensor(numbers), octaves=torch.tensor(octaves),
    )  # fmt: skip


def test_frames_without_a_number_cost_what_they_always_did(image):
    batch = a_batch([0, 0, 0], [1.0, -3.0, 0.5])
    assert torch.allclose(
        PhaseConditioning(16).loss(image, batch), image.loss(batch.text_ids, batch.frames, batch.text_mask)
    )


def test_the_phase_joins_the_stream_with_the_first_layers_attention(image):
    """Against the layer written out: x + norm(attention) + what span and duration add, then the MLP."""
    phase, batch = PhaseConditioning(16, seed=2), a_batch([1, 3, 4], [0.0, -2.0, 1.5])
    first, unit = phase.vectors.detach()
    added = [
        first + (-2 + 1) / 2 * unit,
        first + (torch.tensor(3 / 4).log2() + 1) / 2 * unit,
        first + 1 / 2 * unit,
    ]
    block = image.blocks[0]

    def add_attention(x, out):
        x = x + block.attention_out_norm(out)
        if x.ndim == 4:
            x = x + torch.tensor([0.0, -1.0, 0.75])[:, None, None, None] * unit
        return x + block.mlp_out_norm(block.mlp(block.mlp_norm(x)))

    with torch.no_grad():
        found = phase.loss(image, batch)
        x = image.embed_frames(batch.frames) + torch.stack(added)[:, None, None]
        text = image.encode_text(batch.text_ids, batch.text_mask)
        block.add_attention = add_attention
        logits = image.head(image.run(x, text.layers, image._spatial_bias(text.bias, 1), None))
    assert torch.allclose(found, F.cross_entropy(logits.flatten(0, 2), batch.frames.flatten()), atol=1e-5)
    assert not torch.allclose(found, image.loss(batch.text_ids, batch.frames, batch.text_mask), atol=1e-3)
    phase.loss(image, batch).backward()
    assert phase.vectors.grad is not None and (phase.vectors.grad.abs().amax(1) > 0).all()


def test_a_stage_1_without_its_temporal_channel_draws_its_frames_phases(image):
    """At octave 0 (the action fills the span) frame k costs what a picture of number k costs."""
    phase = PhaseConditioning(16, seed=3)
    video = inherit_image_model(image, config=CONFIG.video())
    phase.start_stage(video)
    for name, weight in video.named_parameters():
        if name.endswith(".gate"):
            weight.data.fill_(100.0)  # the spatial channel alone
    clip = torch.randint(10, (1, 5, 6), generator=torch.Generator().manual_seed(4))
    text = torch.tensor([[11, 12, 13, 14]])
    with torch.no_grad():
        losses = video.token_losses(text, clip)[0].mean(-1)
        for number in range(5):
            mask, frame = torch.ones_like(text).bool(), clip[:, number : number + 1]
            given = {"numbers": torch.tensor([number]), "octaves": torch.zeros(1)}
            batch = PictureBatch(text, mask, frame, **given)
            assert torch.allclose(phase.loss(image, batch), losses[number], atol=1e-5)
