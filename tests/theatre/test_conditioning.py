"""How the image model is conditioned on the phase: where it enters, and that stage 1 begins with it."""

import pytest
import torch
import torch.nn.functional as F

from cogvideo import CogVideoError
from cogvideo.checkpoints.native import inherit_image_model
from cogvideo.config import ModelConfig
from cogvideo.model import masks
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.sampling import TopKStrategy, interpolate_frames
from cogvideo.sampling.decode import places
from cogvideo.theatre.batches import ROUNDS, PhaseBatch, PictureBatch
from cogvideo.theatre.conditioning import PhaseConditioning, placed_inputs

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


def test_a_stage_1_without_its_temporal_channel_draws_the_pictures_of_its_places(image):
    """At octave 0 (the action fills the span) frame k costs what a picture at the k-th quarter costs."""
    phase = PhaseConditioning(16, seed=3)
    video = spatial_alone(inherit_image_model(image, config=CONFIG.video()))
    phase.start_stage(video)
    clip = torch.randint(10, (1, 5, 6), generator=torch.Generator().manual_seed(4))
    text = torch.tensor([[11, 12, 13, 14]])
    with torch.no_grad():
        losses = video.token_losses(text, clip)[0].mean(-1)
        for number in range(5):
            frame, told = clip[:, number : number + 1], None if number == 0 else phase.moments[16 * number]
            told = None if told is None else told[None, None, None]
            found = image.frame_losses(text, frame, conditioning=told)[0]
            assert torch.allclose(found, losses[number], atol=1e-5)


def spatial_alone(video: CogVideoTransformer) -> CogVideoTransformer:
    for name, weight in video.named_parameters():
        if name.endswith(".gate"):
            weight.data.fill_(100.0)
    return video


def a_stage_2(image: CogVideoTransformer, phase: PhaseConditioning) -> CogVideoTransformer:
    video = inherit_image_model(image, config=CONFIG.video(order="interpolation", placed_rounds=ROUNDS))
    phase.start_stage(video)
    return video


def test_every_place_has_a_row_of_its_own():
    c = CONFIG.video(order="interpolation", placed_rounds=ROUNDS)
    rows = [
        int(masks.place(c, round_, number))
        for round_ in range(1, ROUNDS + 1)
        for number in range(4 * 2**round_ + 1)
    ]
    assert rows == list(range(9 + 17 + 33 + 65))
    assert CogVideoTransformer(c).get_parameter("place_embedding.weight").shape == (len(rows), 16)
    assert CogVideoTransformer(CONFIG.video(order="interpolation")).place_embedding is None
    with pytest.raises(CogVideoError, match="Only interpolation"):
        CONFIG.video(placed_rounds=2)


def test_a_stage_2_without_its_temporal_channel_draws_the_pictures_of_its_places(image):
    """Frames 1 and 3 of a sequence cost what pictures at their places cost, where nothing shifts these."""
    phase = PhaseConditioning(16, seed=3)
    video = spatial_alone(a_stage_2(image, phase))
    clip = torch.randint(10, (1, 5, 6), generator=torch.Generator().manual_seed(4))
    text, mask = torch.tensor([[11, 12, 13, 14]]), torch.ones(1, 4, dtype=torch.bool)
    rounds, places = torch.tensor([3]), torch.tensor([[12, 13, 14, 15, 16]])
    batch = PhaseBatch(text, mask, clip, octaves=torch.zeros(1), rounds=rounds, places=places)
    with torch.no_grad():
        losses = video.frame_losses(*batch.inputs, conditioning=placed_inputs(video, batch))
        for found, number in zip(losses, (1, 3), strict=True):
            own = {"rounds": rounds, "places": places[:, number : number + 1], "octaves": torch.zeros(1)}
            frame = clip[:, number : number + 1]
            picture = PictureBatch(text, mask, frame, numbers=torch.zeros(1, dtype=torch.long), **own)
            assert torch.allclose(phase.loss(image, picture), found, atol=1e-5)
            # A moment is the same in any round, but for the octave that halving the span takes.
            finer = {**own, "rounds": rounds + 1, "places": 2 * own["places"], "octaves": -torch.ones(1)}
            other = PictureBatch(text, mask, frame, numbers=torch.zeros(1, dtype=torch.long), **finer)
            with_span = phase.of_places(rounds + 1, 2 * own["places"][:, 0]) + phase.of_texts(-torch.ones(1))
            assert torch.allclose(with_span, phase.of_places(rounds, own["places"][:, 0]), atol=1e-6)
            assert not torch.allclose(phase.loss(image, other), found, atol=1e-7)  # it enters in two places
    assert not torch.allclose(video.frame_losses(*batch.inputs), losses, atol=1e-4)  # not told


@pytest.mark.parametrize("guided", [False, True])
def test_decoding_is_told_what_training_is(image, guided):
    """Greedy tokens of the sampler are the likeliest under the forward pass of training, frame by frame."""
    video = a_stage_2(image, PhaseConditioning(16, seed=3))
    for weight in video.temporal_parameters().values():
        weight.data += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(weight)))
    given = torch.randint(10, (2, 3, 6), generator=torch.Generator().manual_seed(5))
    text = torch.tensor([[11, 12, 13, 14], [15, 16, 17, 11]])
    told = video.place_vectors(2, torch.tensor([[0, 1, 2, 3, 4], [8, 9, 10, 11, 12]]))
    guide = {"guidance_ids": text[:1], "guidance_scale": 1.0} if guided else {}  # 1.0: mixed, but unguided
    with torch.no_grad():
        made = interpolate_frames(
            video, text, given, text_bonus=0.0, strategy=TopKStrategy(top_k=1), conditioning=told, **guide
        )
        clip = torch.stack([given[:, 0], made[:, 0], given[:, 1], made[:, 1], given[:, 2]], 1)
        likeliest = video(text, clip, None, told).view(2, 5, 6, -1).argmax(-1)
        untold = video(text, clip).view(2, 5, 6, -1).argmax(-1)
    assert torch.equal(likeliest[:, [1, 3]], made) and not torch.equal(untold[:, [1, 3]], made)


def test_rounds_that_were_not_trained_are_refused(image):
    video = a_stage_2(image, PhaseConditioning(16))
    told = places(video, 2, 4)
    assert told is not None and told.shape == (4, 5, 1, 16) and torch.equal(told[1, 0], told[0, 4])
    assert places(inherit_image_model(image, config=CONFIG.video(order="interpolation")), 9, 3) is None
    for round_, sequences in ((ROUNDS + 1, 2 ** (ROUNDS + 1)), (2, 3)):
        with pytest.raises(CogVideoError, match="up to 4 rounds"):
            places(video, round_, sequences)
