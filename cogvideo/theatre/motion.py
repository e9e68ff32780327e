"""Where arm and object are in each of the 17 states of every action.

Lengths are in pixels of the 64 x 64 frame, mostly multiples of 4, so that tokens of 8 x 8 pixels repeat. The actions
share one path of the arm: rest, along the table, up, and then to the mouth or to the head.
"""

from functools import lru_cache
from typing import NamedTuple

from cogvideo.theatre.scenes import LAST_STATE

TABLE_Y = 48  # centre of an object that stands on the table (its box is 16 x 16)
OBJECT_X = 48  # centre of an object that waits to be taken
TOY_NEAR, TOY_FAR = 40, 56
HAND_Y = 52
REACH = 8  # a paw beside a toy is this far left of the toy's centre

# Hands that lie on the table are named by x, the others by what they do: elbow and hand.
RAISED = {
    "half": ((31, 52), (44, 48)),
    "lift": ((31, 52), (44, 44)),
    "carry": ((32, 51), (37, 41)),
    "mouth": ((33, 50), (33, 38)),
    "side": ((36, 46), (36, 30)),
    "above": ((37, 40), (34, 20)),
    "head": ((37, 38), (30, 17)),
}
REST, NEAR, GRIP = 24, 36, 44


class Look(NamedTuple):
    """What of a scene moves: the arm's pose (x of a hand on the table, or a name of RAISED), the object's drawing and place."""

    arm: int | str
    drawing: str | None  # None when nothing remains
    place: tuple[int, int] | str  # centre of the object; "worn" where the actor wears it


HALF, LIFT, CARRY, MOUTH, SIDE = (48, 44), (48, 40), (36, 36), (28, 32), (36, 24)
TABLE = (OBJECT_X, TABLE_Y)


@lru_cache
def looks(action: str, thing: str) -> tuple[Look, ...]:
    """The 17 looks of an action with an object."""
    if action == "takes off":
        return looks("puts on", thing)[::-1]
    if action == "pulls near":
        return looks("pushes away", thing)[::-1]
    makers = {"drinks": _drinks, "eats": _eats, "throws": _throws, "puts on": _puts_on, "rings": _rings}
    result = tuple(Look(*look) for look in (_pushes(thing) if action == "pushes away" else makers[action](thing)))
    assert len(result) == LAST_STATE + 1
    return result


def _take(thing: str) -> list:
    return [(REST, thing, TABLE), (NEAR, thing, TABLE), (GRIP, thing, TABLE)]


def _drinks(thing: str) -> list:
    full, empty = f"{thing} 4", f"{thing} 0"
    lift = [("lift", full, LIFT), ("carry", full, CARRY), ("mouth", full, MOUTH)]
    tilted = [("mouth", f"{thing} {level} tilted", MOUTH) for level in (4, 3, 2, 1, 0)]
    back = [(arm, empty, place) for arm, _, place in reversed(_take(full) + lift)]
    return _take(full) + lift + tilted + back


def _eats(thing: str) -> list:
    whole, one, two = (f"{thing} {bites}" for bites in range(3))
    lift = [("half", whole, HALF), ("lift", whole, LIFT), ("carry", whole, CARRY), ("mouth", whole, MOUTH)]
    first = [("mouth", one, MOUTH), ("carry", one, CARRY), ("mouth", one, MOUTH)]
    second = [("mouth", two, MOUTH), ("carry", two, CARRY), ("mouth", two, MOUTH)]
    return _take(whole) + lift + first + second + [(arm, None, MOUTH) for arm in ("mouth", "carry", NEAR, REST)]


def _throws(thing: str) -> list:
    up = [("half", thing, HALF), *(("lift", thing, (OBJECT_X, y)) for y in (40, 32, 24, 16, 8))]
    return _take(thing) + up + (_take(thing) + up)[-2::-1]


def _puts_on(thing: str) -> list:
    lift = [("half", thing, HALF), ("lift", thing, LIFT), ("carry", thing, CARRY), ("side", thing, SIDE)]
    over = [("above", thing, "above")]
    settle = [("head", f"{thing}{tilt}", "worn") for tilt in (" tilted", "", " tilted", "")]
    back = [(arm, thing, "worn") for arm in ("above", "side", "carry", NEAR, REST)]
    return _take(thing) + lift + over + settle + back


def _pushes(thing: str) -> list:
    reach = [(arm, thing, (TOY_NEAR, TABLE_Y)) for arm in (REST, REST + 4)]
    push = [(x - REACH, thing, (x, TABLE_Y)) for x in range(TOY_NEAR, TOY_FAR + 1, 2)]
    back = [(arm, thing, (TOY_FAR, TABLE_Y)) for arm in range(TOY_FAR - REACH - 4, REST - 1, -4)]
    return reach + push + back


def _rings(thing: str) -> list:
    lift = [("half", thing, HALF), ("lift", thing, LIFT)]
    swing = [" left 1", " left 2", " left 1", "", " right 1", " right 2", " right 1"]
    return _take(thing) + lift + [("lift", thing + way, LIFT) for way in swing] + lift[::-1] + _take(thing)[::-1]
