from itertools import pairwise

import pytest

from cogvideo.theatre.motion import TABLE_Y, arm_path, looks
from cogvideo.theatre.scenes import PAIRS, PHASES, STATES


def first_state(action: str, phase: str) -> int:
    return dict(PHASES[action])[phase]


@pytest.mark.parametrize(("action", "thing"), PAIRS)
def test_every_action_has_17_looks_with_neighbours_that_differ(action, thing):
    path = looks(action, thing)
    assert len(path) == STATES
    assert all(before != after for before, after in pairwise(path))


@pytest.mark.parametrize("thing", ["tea", "cake", "ball", "hat", "bell"])
def test_the_object_leaves_the_table_when_the_phase_says_so(thing):
    action = next(action for action, known in PAIRS if known == thing)
    lifts = first_state(action, "lifts")
    heights = [look.place[1] for look in looks(action, thing)[: lifts + 1]]
    assert heights[:-1] == [TABLE_Y] * lifts and isinstance(heights[-1], int) and heights[-1] < TABLE_Y


def test_phases_begin_where_their_picture_does():
    def drawings(action, thing):
        return [look.drawing for look in looks(action, thing)]

    assert drawings("drinks", "milk").index("milk 4 tilted") == first_state("drinks", "drinks")
    assert drawings("eats", "apple").index("apple 1") == first_state("eats", "takes the first bite")
    assert drawings("eats", "apple").index("apple 2") == first_state("eats", "takes the second bite")
    assert drawings("eats", "apple").index(None) == first_state("eats", "takes the third bite")
    assert drawings("rings", "bell").index("bell left 1") == first_state("rings", "swings left")
    assert drawings("rings", "bell").index("bell right 1") == first_state("rings", "swings right")
    worn = [look.place == "worn" for look in looks("puts on", "hat")]
    assert worn.index(True) == first_state("puts on", "sets on the head") and all(worn[worn.index(True) :])
    off = [look.place == "worn" for look in looks("takes off", "hat")]
    assert off.index(False) == first_state("takes off", "lifts off the head")
    x = [look.place[0] for look in looks("pushes away", "car")]
    moves = [state for state in range(1, STATES) if x[state] != x[state - 1]]
    assert moves[0] == first_state("pushes away", "pushes")
    assert moves[-1] + 1 == first_state("pushes away", "draws the hand back")


def test_a_thrown_object_is_highest_where_it_begins_to_fall():
    heights = [look.place[1] for look in looks("throws", "orange")]
    assert heights.index(min(heights)) + 1 == first_state("throws", "falls")


def test_every_hand_stays_in_the_frame():
    for action, thing in PAIRS:
        for look in looks(action, thing):
            x, y = arm_path(look.arm)[-1]
            assert 4 <= x <= 60 and 4 <= y <= 56
