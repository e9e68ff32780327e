"""The ablation's variants: how models begin, what they train on, what they make, how clips are scored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from cogvideo import CogVideoError, Pipeline
from cogvideo.theatre.ablation import (
    frame_rate_control,
    make_clips,
    questions,
    real_clips,
    right_by_time,
    score_clips,
    score_groups,
    train_variant,
    whole_clips_right,
)
from cogvideo.theatre.inheritance import image_model_of
from cogvideo.theatre.questions import draw_questions
from cogvideo.theatre.variants import VARIANTS, Request, find_variant


@pytest.fixture(scope="module")
def base() -> Pipeline:
    return Pipeline.from_pretrained("demo", device="cpu")


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """Variants that make clips in other ways, after two steps."""
    folder = tmp_path_factory.mktemp("runs")
    return {
        name: train_variant(name, base, folder / name, steps=2, batch_size=2)
        for name in ("overlap-1", "overlap-2", "fixed-rate")
    }


def short_questions(seconds: float):
    """Two questions about actions of one length."""
    asked = questions(16)
    return asked[np.flatnonzero(asked.spans == seconds)[:2]]


def test_one_channel_begins_as_the_image_model(base):
    image = image_model_of(base.stage1)
    model, _ = VARIANTS["one-channel"].start(image, image.config.video(), 0)
    text, frame = torch.arange(9)[None], torch.arange(64)[None, None]
    assert torch.allclose(model(text, frame), image(text, frame), atol=1e-4)
    later = model(text, frame.expand(1, 2, -1))[:, 64:]  # and its only channel looks at the frame before
    assert not torch.allclose(later, model(text, torch.cat([frame + 7, frame], 1))[:, 64:], atol=1e-2)


def test_what_is_trained(base):
    image = image_model_of(base.stage1)
    config = image.config.video()
    starts = {name: variant.start(image, config, 0) for name, variant in VARIANTS.items()}
    sizes = {name: sum(w.numel() for w in trained) for name, (_, trained) in starts.items()}
    everything = sum(w.numel() for w in starts["from-nothing"][0].parameters())
    gates = config.num_layers * config.hidden_size
    assert sizes["from-nothing"] == sizes["unfrozen"] == everything
    assert sizes["one-channel"] == everything - gates
    added = everything - sum(w.numel() for w in image.parameters())
    assert sizes["cogvideo"] == sizes["fixed-rate"] == sizes["overlap-1"] == added
    frozen, unfrozen = (starts[name][0].state_dict() for name in ("cogvideo", "unfrozen"))
    assert all(torch.equal(weight, unfrozen[name]) for name, weight in frozen.items())


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
        train_variant("cogvideo", base, tmp_path, steps=4, batch_size=4)


def test_windows_follow_one_another(base, trained):
    asked = short_questions(2.0)
    wild = {
        name: trained[name][0].with_sampling(temperature=3.0, top_k=500)  # no copies
        for name in ("overlap-1", "overlap-2")
    }
    clips = {name: np.stack(make_clips(name, pipe, base, asked)) for name, pipe in wild.items()}
    one, two = clips["overlap-1"], clips["overlap-2"]
    assert one.shape == two.shape == (2, 17, 64, 64, 3)
    # The same weights, and the first window has one frame to begin with.
    assert np.array_equal(one[:, :5], two[:, :5])
    assert not np.array_equal(one[:, 5:], two[:, 5:])
    first = base.pixels(base.first_frame_tokens(asked.prompts, asked.seeds.tolist())[:, None])
    assert np.array_equal(one[:, :1], first)


def test_pieces_follow_one_another_until_the_action_is_over(base, trained):
    """A slow oracle: each piece by hand, from the last frame of the one before."""
    pipe = trained["fixed-rate"][0].with_sampling(temperature=3.0, top_k=500)
    asked = short_questions(2.0)
    prompts, seeds = asked.prompts, asked.seeds.tolist()
    made = np.stack(make_clips("fixed-rate", pipe, base, asked))
    tokens = base.first_frame_tokens(prompts, seeds)[:, None]
    for piece in range(2):
        own = [1000 * seed + piece for seed in seeds]
        keys = pipe.later_key_frame_tokens(tokens[:, -1], prompts, 1.0, own)
        tokens = torch.cat([tokens, pipe.interpolate(keys, prompts, 1.0, own)[:, 1:]], 1)
    assert made.shape == (2, 17, 64, 64, 3) and np.array_equal(made, pipe.pixels(tokens))


def test_clips_last_as_long_as_their_actions(base):
    asked = questions(16)
    asked = asked[[np.flatnonzero(asked.spans == seconds)[0] for seconds in (2.0, 1.0)]]
    clips = make_clips("cogvideo", base, base, asked)
    assert [len(clip) for clip in clips] == [17, 9] and asked.clips.duration.tolist() == [2.0, 1.0]
    alone = make_clips("cogvideo", base, base, asked[[1]])
    assert np.array_equal(alone[0], clips[1])  # in the order of the questions, whatever else is asked


@pytest.mark.parametrize("name", ["cogvideo", "fixed-rate", "overlap-2"])
def test_teacher_forcing_draws_every_frame_after_true_ones(base, name, monkeypatch):
    """Stages that copy what they are given: a frame is then that of a true frame before it."""
    asked = short_questions(2.0)
    truth = torch.stack([torch.full((2, 64), t) for t in range(17)], 1)  # frame t is all token t
    given = []

    def key_frames(first, prompts, seconds, seed, **_):
        first = first[:, None] if first.ndim == 2 else first
        given.append(first[0, :, 0].tolist())
        return torch.cat([first, first[:, -1:].expand(-1, 5 - first.shape[1], -1)], 1)

    def between(tokens, prompts, seconds, number, seed, **_):
        return tokens.repeat_interleave(2, 1)[:, :-1]

    def windows(model, ids, first, **_):
        return key_frames(first, None, None, None)

    monkeypatch.setattr(base, "later_key_frame_tokens", key_frames)
    monkeypatch.setattr(base, "interpolate_once", between)
    monkeypatch.setattr("cogvideo.theatre.variants.generate_key_frames", windows)
    whole = np.ones(2, bool)
    request = Request(truth[:, 0], asked.prompts, asked.seeds.tolist(), asked.spans, whole, truth)
    made = VARIANTS[name].make(base, request)[0][:, 0].tolist()
    if name == "cogvideo":
        assert given == [[0], [0, 4], [0, 4, 8], [0, 4, 8, 12]]
        assert made == [0, 0, 0, 2, 0, 4, 4, 6, 4, 8, 8, 10, 8, 12, 12, 14, 12]
    elif name == "fixed-rate":
        assert given[:5] == [[0], [0, 2], [0, 2, 4], [0, 2, 4, 6], [8]]
        assert made == [0, 0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14]
    else:
        assert given == [[0], [3, 4], [6, 7], [9, 10], [12, 13]]
        assert made == [0, 0, 0, 0, 0, 4, 4, 4, 7, 7, 7, 10, 10, 10, 13, 13, 13]


def test_scores_of_real_and_of_frozen_clips():
    asked = questions(24, seed=5)
    real = real_clips(asked)
    right = score_clips(real, asked)
    assert right.keys() == {"order", "same", "actor", "object", "background"} | {
        f"order_{duration}s" for duration in (1, 2, 4, 8)
    }
    assert set(right.values()) == {1.0} and right_by_time(real, asked).tolist() == [1.0] * 8
    assert whole_clips_right(real, asked) == 1
    frozen = [np.repeat(clip[:1], len(clip), 0) for clip in real]
    wrong, drift = score_clips(frozen, asked), right_by_time(frozen, asked)
    assert wrong["actor"] == wrong["object"] == wrong["same"] == 1
    assert wrong["order"] == whole_clips_right(frozen, asked) == 0
    assert drift[0] > drift[3] and drift[0] > 0.3


def test_groups_of_questions():
    for group in ("seen", "unseen", "picture-only"):
        asked = questions(8, group=group)
        assert np.array_equal(asked.spans, asked.clips.duration)
    assert questions(8).prompts != questions(8, group="unseen").prompts


def test_groups_are_scored_apart_and_named():
    """True clips of one group and frozen ones of another, one after the other."""
    asked = {"seen": questions(8, 1), "picture-only": questions(4, 1, "picture-only")}
    clips = real_clips(asked["seen"]) + [clip[[0] * 5] for clip in real_clips(asked["picture-only"])]
    scores = score_groups(clips, asked)
    assert scores["order"] == scores["actor_picture_only"] == 1 and scores["order_picture_only"] == 0
    joined = asked["seen"] + asked["picture-only"]
    assert joined.prompts == asked["seen"].prompts + asked["picture-only"].prompts
    assert joined.spans.tolist() == [*asked["seen"].spans, *asked["picture-only"].spans]


def test_clips_of_which_only_the_key_frames_are_wanted(base, trained):
    """They are the whole clips' own: five of two stages, four a second at a fixed rate, all of one stage."""
    asked = short_questions(2.0) + short_questions(1.0)
    wanted = np.array([True, False, False, True])
    for name, pipe, step in (("cogvideo", base, 4), ("fixed-rate", trained["fixed-rate"][0], 2)):
        whole = make_clips(name, pipe, base, asked)
        some = make_clips(name, pipe, base, asked, whole=wanted)
        assert [len(clip) for clip in whole] == [17, 17, 9, 9]
        assert np.array_equal(some[0], whole[0]) and np.array_equal(some[3], whole[3])
        assert np.array_equal(some[1], whole[1][::step])
        assert np.array_equal(some[2], whole[2][:: step if name == "fixed-rate" else 2])
    windows = make_clips("overlap-1", trained["overlap-1"][0], base, asked, whole=wanted)
    assert [len(clip) for clip in windows] == [17, 17, 9, 9]


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


def test_every_variant_says_where_the_paper_describes_it():
    for variant in VARIANTS.values():
        assert variant.paper and variant.start.__doc__ and replace(variant, title="x").title == "x"
        assert getattr(variant.make, "func", variant.make).__doc__
