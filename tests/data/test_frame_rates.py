"""The paper's rule on clips of many lengths, and the sequences that it and its baselines cut."""

from itertools import pairwise

import numpy as np
import pytest

from cogvideo.data.frame_rates import FRAMES, RATES, check_rates, choose_rate, plan
from cogvideo.errors import CogVideoError
from cogvideo.theatre.scenes import SPANS, sample_clips
from cogvideo.tokenizers.text import frame_rate_text


@pytest.mark.parametrize(
    ("seconds", "rate", "text"),
    [
        (0.4, None, None),  # five frames at 8 a second span half a second
        (0.6, 8, "0.5秒"),
        (1, 4, "1.0秒"),
        (2.5, 2, "2.0秒"),
        (4, 1, "4.0秒"),
        (10, 0.5, "8.0秒"),
        (40, 0.25, "16.0秒"),
    ],
)
def test_the_lowest_rate_that_still_gives_five_frames(seconds, rate, text):
    assert choose_rate(seconds) == rate
    windows = plan("sequential", seconds)
    assert [frame_rate_text(window.span) for window in windows] == ([text] if text else [])
    for window in windows:
        assert len(window.times) == FRAMES and window.times[0] >= 0 and window.times[-1] <= seconds


def test_the_rule_by_counting_frames():
    """The paper's words, done slowly: count the frames of a clip at every rate from the lowest on."""
    for seconds in np.random.default_rng(0).uniform(0.1, 50, 300):
        counts = {rate: len([k for k in range(500) if k / rate <= seconds]) for rate in RATES}
        enough = [rate for rate in sorted(RATES) if counts[rate] >= 5]
        assert choose_rate(seconds) == (enough[0] if enough else None)


def test_a_minimum_rate_and_own_rates():
    """Paper section 4: trained at first from 0.25 frames a second on, then from 1."""
    assert [choose_rate(s, check_rates(RATES, 1.0)) for s in (0.6, 2.5, 4, 10, 40)] == [8, 2, 1, 1, 1]
    assert check_rates([4, 1, 4]) == (1.0, 4.0) and choose_rate(3, check_rates([4, 1, 4])) == 4
    for rates, minimum in (([], 0), ([0, 1], 0), ([1, 2], 4)):
        with pytest.raises(CogVideoError):
            check_rates(rates, minimum)


def test_no_frame_is_shown_twice():
    assert choose_rate(1, fps=3) is None and choose_rate(2.5, fps=3) == 2
    assert choose_rate(0.6, fps=7.99) == 8 and plan("interpolation", 4, fps=3) == plan(
        "interpolation", 4, rates=[1, 2]
    )


def test_the_demo_world_obeys_the_rule():
    clips = sample_clips(100, np.random.default_rng(0))
    rates = [4 / span for span in SPANS]
    for i in range(100):
        (window,) = plan("sequential", clips.duration[i], rates=rates)
        assert window.span == clips.span(i) and window.start == 0


def test_several_sequences_of_a_clip_are_spread_over_it():
    assert [w.start for w in plan("sequential", 10)] == [1]  # 8 s in the middle of 10
    assert [w.start for w in plan("sequential", 10, per_clip=3)] == [0, 1, 2]
    assert [w.start for w in plan("sequential", 40, per_clip=2)] == [0, 24]
    assert {w.span for w in plan("sequential", 40, per_clip=2)} == {16}


def test_interpolation_takes_the_higher_rates():
    windows = plan("interpolation", 4, per_clip=100)
    by_rate = {rate: [w.start for w in windows if w.rate == rate] for rate in RATES}
    assert by_rate == {
        0.25: [], 0.5: [], 1: [], 2: [0, 2], 4: [0, 1, 2, 3], 8: [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]
    }  # fmt: skip
    assert len(plan("interpolation", 4)) == 3 and len(plan("interpolation", 4, per_clip=2)) == 6
    assert plan("interpolation", 0.6) == []  # 8 a second is the rule's own choice


def test_fixed_rate_pieces_share_their_ends():
    """The baseline: 5 s at 2 a second give two parts of 2 s; the rest is lost, and so are short clips."""
    assert [w.times.tolist() for w in plan("fixed-rate", 5)] == [[0, 0.5, 1, 1.5, 2], [2, 2.5, 3, 3.5, 4]]
    assert plan("fixed-rate", 1.5) == [] and len(plan("fixed-rate", 1.5, rate=4)) == 1


@pytest.mark.parametrize("overlap", [1, 2])
def test_one_stage_windows_overlap(overlap):
    windows = [np.rint(w.times * 8).astype(int).tolist() for w in plan(f"one-stage-{overlap}", 2)]
    assert all(len(set(a) & set(b)) == overlap for a, b in pairwise(windows))
    assert len(windows) == {1: 4, 2: 5}[overlap] and {w.span for w in plan(f"one-stage-{overlap}", 2)} == {
        0.5
    }
    assert max(windows[-1]) <= 16 and plan(f"one-stage-{overlap}", 0.4) == []


def test_single_frames_have_no_frame_rate():
    windows = plan("image", 3, per_clip=3)
    assert [w.times.tolist() for w in windows] == [[0], [1.5], [3]] and {w.span for w in windows} == {None}
    assert [w.start for w in plan("superres", 3)] == [1.5]


def test_an_unknown_kind():
    with pytest.raises(CogVideoError, match="sequential, interpolation"):
        plan("stage3", 4)
