"""Inheritance: where weights come from, a muted temporal channel is the image model, what the comparison trains."""

from dataclasses import replace

import pytest
import torch

from cogvideo.checkpoints.native import inherit_image_model
from cogvideo.config import COGVIDEO_9B, ModelConfig
from cogvideo.data.tokenized import Batch
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.theatre.inheritance import (
    compare_starts,
    frame_losses,
    image_model_of,
    origin,
    parts,
    set_gates,
)
from cogvideo.training.loop import OptimizerConfig

TINY = ModelConfig(
    num_layers=2, hidden_size=16, num_heads=2, frame_height=2, frame_width=3, num_frames=1, text_length=4,
    first_frame_position=4, image_tokens=10, vocab_size=20, begin_of_image=19, base_positions=10, temporal=False,
)  # fmt: skip


def batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    text, mask = torch.randint(10, 19, (4, 3), generator=generator), torch.ones(4, 3, dtype=torch.bool)
    return Batch(text, mask, torch.randint(3, (4, 5, 6), generator=generator))


def test_origins_are_what_inheriting_does():
    image = CogVideoTransformer(TINY).initialize(0)
    video, twin = (inherit_image_model(image, config=TINY.video(), seed=seed) for seed in (0, 1))
    base = image.state_dict()
    for name, weight in video.state_dict().items():
        assert (name in base and torch.equal(weight, base[name])) == (origin(name) == "inherited")
        if origin(name) == "copied" and ".temporal." in name:
            assert torch.equal(weight, base[name.replace(".temporal.", ".spatial.")])
        if name.endswith("temporal.dense.weight"):  # random: new
            assert origin(name) == "new" and not torch.equal(weight, twin.state_dict()[name])


def test_counts_of_the_full_size_are_those_of_the_release():
    numbers = {"inherited": 0, "copied": 0, "new": 0}
    for part in parts(COGVIDEO_9B):
        numbers[part.origin] += part.numbers
    assert round(numbers["inherited"] / 1e9, 2) == 5.90
    assert round((numbers["copied"] + numbers["new"]) / 1e9, 2) == 1.82


@torch.no_grad()
def test_a_muted_video_model_is_the_image_model_on_every_frame():
    image = CogVideoTransformer(TINY).initialize(0)
    video = set_gates(inherit_image_model(image, config=TINY.video(), seed=0), 0.0)
    b = batch(0)
    logits = video(b.text_ids, b.frames, b.text_mask).view(4, 5, 6, 10)
    for time in range(5):
        alone = image(b.text_ids, b.frames[:, time : time + 1], b.text_mask)
        torch.testing.assert_close(logits[:, time], alone, atol=1e-6, rtol=0)
    opened = set_gates(video, 0.5)(b.text_ids, b.frames, b.text_mask).view(4, 5, 6, 10)
    assert (opened - logits).abs().max() > 1e-3
    assert all(
        (p == 0).all() for name, p in video.named_parameters() if name.endswith(".gate")
    )  # sigmoid(0) = 0.5


def test_the_image_model_inside_a_stage_is_found_again():
    image = CogVideoTransformer(TINY).initialize(3)
    video = inherit_image_model(image, config=TINY.video(order="interpolation", window=2), seed=0)
    again = image_model_of(video)
    assert again.config == image.config
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in image.state_dict().items())
    with pytest.raises(CogVideoError, match="image model already"):
        image_model_of(image)


def test_the_comparison_trains_both_starts_on_the_same_batches_and_goes_on(tmp_path):
    image, seen = CogVideoTransformer(TINY).initialize(0), []
    optimizer = OptimizerConfig(steps=12, batch_size=4, lr=1e-2, warmup=2)

    def batches(step: int) -> Batch:
        seen.append(step)
        return batch(step)

    def run():
        return compare_starts(
            image, TINY.video(), batches, [batch(99)], optimizer, tmp_path, seed=0, evaluations=3
        )  # fmt: skip

    rows = run()
    assert seen == [*range(12), *range(12)] and rows.keys() == {"inherited", "from nothing"}
    for name, curve in rows.items():
        assert [row["step"] for row in curve] == [0, 4, 8, 12] and curve[-1]["loss"] < curve[0]["loss"], name
    start = frame_losses(inherit_image_model(image, config=TINY.video(), seed=0), [batch(99)])[1:].mean()
    assert rows["inherited"][0]["loss"] == pytest.approx(float(start))
    assert run() == rows and len(seen) == 24  # finished runs are read, not repeated
    with pytest.raises(CogVideoError, match="other settings"):
        compare_starts(
            image, TINY.video(), batches, [batch(99)], replace(optimizer, lr=1.0), tmp_path, seed=0
        )
