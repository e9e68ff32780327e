"""The ablation's variants: how models begin, what they train on, what they make, how clips are scored."""

import numpy as np
import pytest
import torch
from einops import rearrange

from cogvideo import CogVideoError, Pipeline
from cogvideo.theatre.ablation import (
    SECONDS,
    VARIANTS,
    find_variant,
    frame_rate_control,
    make_clips,
    questions,
    score_clips,
    start_model,
    train_variant,
)
from cogvideo.theatre.alignment import draw_questions
from cogvideo.theatre.batches import FIXED_SPAN, clip_times
from cogvideo.theatre.digits import sample_clips
from cogvideo.theatre.inheritance import image_model_of


@pytest.fixture(scope="module")
def base() -> Pipeline:
    return Pipeline.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """Both variants of one stage after two steps."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: train_variant(name, base, folder / name, steps=2, batch_size=2)
        for name in ("overlap-1", "overlap-2")
    }


def test_one_channel_begins_as_the_image_model(base):
    image = image_model_of(base.stage1)
    model, _ = start_model(VARIANTS["one-channel"], image, image.config.video(), seed=0)
    text, frame = torch.arange(9)[None], torch.arange(64)[None, None]
    assert torch.allclose(model(text, frame), image(text, frame), atol=1e-4)
    later = model(text, frame.expand(1, 2, -1))[:, 64:]  # and its only channel looks at the frame before
    assert not torch.allclose(later, model(text, torch.cat([frame + 7, frame], 1))[:, 64:], atol=1e-2)


def test_what_is_trained(base):
    image = image_model_of(base.stage1)
    config = image.config.video()
    sizes = {
        name: sum(w.numel() for w in start_model(v, image, config, 0)[1]) for name, v in VARIANTS.items()
    }
    everything = sum(
        w.numel() for w in start_model(VARIANTS["from-nothing"], image, config, 0)[0].parameters()
    )
    gates = config.num_layers * config.hidden_size
    assert sizes["from-nothing"] == everything and sizes["one-channel"] == everything - gates
    added = everything - sum(w.numel() for w in image.parameters())
    assert sizes["cogvideo"] == sizes["fixed-rate"] == sizes["overlap-1"] == added


def test_the_image_model_stays_bit_for_bit_and_runs_go_on(base, tmp_path):
    pipe, losses = train_variant("cogvideo", base, tmp_path, steps=4, batch_size=2)
    before = dict(image_model_of(base.stage1).named_parameters())
    for stage in (pipe.stage1, pipe.stage2):
        after = dict(image_model_of(stage).named_parameters())
        assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    again, same = train_variant("cogvideo", base, tmp_path, steps=4, batch_size=2)
    assert same == losses and set(losses) == {"stage1", "stage2"}
    weights = zip(pipe.stage1.parameters(), again.stage1.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in weights)
    with pytest.raises(CogVideoError, match="other settings"):
        train_variant("cogvideo", base, tmp_path, steps=6, batch_size=2)


def test_moments_of_the_baselines():
    clips = sample_clips(400, np.random.default_rng(0))
    duration = clips.duration.max(1)
    times, spans = clip_times("fixed rate", clips, np.random.default_rng(1))
    assert set(spans) == {FIXED_SPAN} and np.allclose(times[:, -1] - times[:, 0], FIXED_SPAN)
    starts = {(d, t) for d, t in zip(duration, times[:, 0], strict=True)}
    assert starts == {
        (1, 0),
        (2, 0),
        (4, 0),
        (4, 2),
        (8, 0),
        (8, 2),
        (8, 4),
        (8, 6),
    }  # pieces of the whole action
    times, spans = clip_times("one stage", clips, np.random.default_rng(1))
    assert set(spans) == {0.5} and np.allclose(np.diff(times), 1 / 8)
    assert (times[:, 0] <= duration).all() and len(set(times[:, 0])) > 30


def test_windows_follow_one_another(base, trained):
    asked = questions(2)
    wild = {
        name: pipe.with_sampling(temperature=3.0, top_k=500) for name, (pipe, _) in trained.items()
    }  # no copies
    clips = {name: make_clips(name, pipe, base, asked.prompts, [3, 4]) for name, pipe in wild.items()}
    one, two = clips["overlap-1"], clips["overlap-2"]
    assert one.shape == two.shape == (2, 17, 64, 64, 3)
    assert np.array_equal(
        one[:, :5], two[:, :5]
    )  # the same weights, and the first window has one frame to go on from
    assert not np.array_equal(one[:, 5:], two[:, 5:])
    first = base.pixels(base.first_frame_tokens(asked.prompts, [3, 4])[:, None])
    assert np.array_equal(one[:, :1], first)


def test_scores_of_real_and_of_frozen_clips():
    asked = questions(36, seed=5)
    real = (asked.real_frames(17) * 255).round().byte().numpy()
    assert score_clips(real, asked) == {name: 1.0 for name in ("digit", "color", "same", "part", "action")}
    frozen = score_clips(np.repeat(real[:, :1], 17, 1), asked)
    assert frozen["digit"] == frozen["same"] == 1 and frozen["action"] == 0
    assert asked.spans.tolist() == [SECONDS] * 36 and rearrange(asked.clips.duration, "n 1 -> n").max() == 8


def test_frame_rate_control_of_real_and_of_frozen_clips():
    """n = 70 is more than one batch. Frozen clips are right where next to nothing of the action fits in."""
    asked = draw_questions(70, 2, parts=True)

    class Oracle:
        def __init__(self, frames):
            self.frames, self.answered = (frames * 255).round().byte().numpy(), []

        def key_frames(self, prompts, seconds, seeds):
            begin = len(self.answered)
            self.answered += zip(prompts, seconds, seeds, strict=True)
            return self.frames[begin : begin + len(prompts)]

    real = Oracle(asked.real_frames())
    assert frame_rate_control(real, 70, 2) == 1  # type: ignore[arg-type]  # a stand-in
    assert real.answered == list(zip(asked.prompts, asked.spans.tolist(), asked.seeds.tolist(), strict=True))
    frozen = Oracle(asked.real_frames()[:, :1].expand(-1, 5, -1, -1, -1))
    assert 0 < frame_rate_control(frozen, 70, 2) < 0.5  # type: ignore[arg-type]  # a stand-in


def test_what_is_refused(base, tmp_path):
    with pytest.raises(CogVideoError, match="from-nothing"):
        find_variant("two-channels")
    with pytest.raises(CogVideoError, match="steps"):
        train_variant("cogvideo", base, tmp_path, steps=1)
