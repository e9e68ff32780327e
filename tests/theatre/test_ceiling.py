"""What perfectly trained variants could do, against cases that can be counted by hand."""

import numpy as np
import pytest

from cogvideo.theatre.ceiling import _go_on, order_at_best


def test_where_every_look_is_another_nothing_is_left_to_chance():
    right = np.arange(13)
    for overlap, length in ((1, 4), (2, 4), (1, 2)):
        drawn = _go_on(right, np.arange(9), overlap, length, 8, np.random.default_rng(0))
        assert drawn[:9].tolist() == list(range(9))


def test_looks_that_come_twice_are_a_toss_unless_the_frame_before_tells():
    """0 1 2 1 3 3 3: after a 1 that is alone, 2 or 3 follows as often; after 0 1, always 2; after 2 1, 3."""
    right, starts, rng = np.array([0, 1, 2, 1, 3, 3, 3]), np.arange(5), np.random.default_rng(0)
    alone = [_go_on(right, starts, 1, 1, 2, rng)[:3].tolist() for _ in range(400)]
    assert {tuple(some) for some in alone} == {(0, 1, 2), (0, 1, 3)}
    assert abs(np.mean([some[2] == 2 for some in alone]) - 0.5) < 3.5 * (0.25 / 400) ** 0.5
    both = [_go_on(right, starts, 2, 2, 4, rng)[:5].tolist() for _ in range(50)]
    assert all(some == [0, 1, 2, 1, 3] for some in both)


def test_an_action_that_seems_over_rests():
    drawn = _go_on(np.array([0, 1, 0, 2]), np.array([1]), 1, 2, 6, np.random.default_rng(0))
    assert drawn[:7].tolist() == [0] * 7  # no window of training begins with 0


@pytest.mark.parametrize("duration", [1.0, 8.0])
def test_the_whole_action_at_once_is_always_right_and_one_piece_is_the_whole_action(duration):
    assert order_at_best("cogvideo", duration, 20) == 1
    fixed = order_at_best("fixed-rate", duration, 40)
    assert fixed == 1 if duration == 1 else 0.2 < fixed < 0.8
