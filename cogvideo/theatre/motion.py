"""Where arm and object are in each of the 17 states of every action.

Lengths are in pixels of the 64 x 64 frame, mostly multiples of 4, so that tokens of 8 x 8 pixels repeat. All
actions share one path of the arm: along the table, up, and then to the mouth or to the head.
"""

from functools import lru_cache
from typing import NamedTuple

TABLE_Y = 48  # centre of an object that stands on the table (its box is 16 x 16)
OBJECT_X = 48  # centre of an object that waits to be taken
TOY_NEAR, TOY_FAR = 40, 56
HAND_Y = 52
REACH = 8  # a paw beside a toy is this far left of the toy's centre

SHOULDER = (20, 43)
# Corners of the arm's path from the elbow on the table to the hand; it runs along columns and rows of tokens.
RAISED = {
    "lift": ((44, HAND_Y), (44, 44)),
    "carry": ((36, HAND_Y), (36, 38)),
    "mouth": ((36, HAND_Y), (36, 42), (33, 38)),
    "side": ((36, HAND_Y), (36, 30)),
    "above": ((36, HAND_Y), (36, 18)),
    "head": ((36, HAND_Y), (36, 22), (28.5, 17)),
}
REST, GRIP = 24, 44


def arm_path(pose: int | str) -> tuple[tuple[float, float], ...]:
    """Corners from the shoulder to the hand; the pose is x of a hand on the table, or a name of RAISED."""
    end = ((pose, HAND_Y),) if isinstance(pose, int) else RAISED[pose]
    return SHOULDER, (SHOULDER[0], HAND_Y), *end


class Look(NamedTuple):
    """What of a scene moves."""

    arm: int | str  # x of a hand that lies on the table, or a name of RAISED
    drawing: str | None  # of the object, as props.object_sprite names it; None when nothing remains
    place: tuple[int, int] | str  # centre of the object; "worn" where the actor wears it


LIFT, CARRY, MOUTH, SIDE, ABOVE = (48, 40), (40, 32), (24, 32), (40, 24), (32, 8)
TABLE = (OBJECT_X, TABLE_Y)


@lru_cache
def looks(action: str, thing: str) -> tuple[Look, ...]:
    """The 17 looks of an action with an object."""
    if action == "takes off":
        return looks("puts on", thing)[::-1]
    if action == "pulls near":
        return looks("pushes away", thing)[::-1]
    return tuple(Look(*look) for look in PATHS[action](thing))


def _take(thing: str) -> list:
    """The paw reaches and grips what stands on the table."""
    return [(arm, thing, TABLE) for arm in (REST, 36, GRIP)]


def _slow_take(thing: str) -> list:
    """The same with one more step."""
    return [(arm, thing, TABLE) for arm in (REST, 28, 36, GRIP)]


def _drinks(thing: str) -> list:
    full, empty = f"{thing} 4", f"{thing} 0"
    lift = [("lift", full, LIFT), ("carry", full, CARRY), ("mouth", full, MOUTH)]
    tilted = [("mouth", f"{thing} {level} tilted", MOUTH) for level in (4, 3, 2, 1, 0)]
    back = [(arm, empty, place) for arm, _, place in reversed(_take(full) + lift)]
    return _take(full) + lift + tilted + back


def _eats(thing: str) -> list:
    whole, one, two = (f"{thing} {bites}" for bites in range(3))
    lift = [("lift", whole, LIFT), ("carry", whole, CARRY), ("mouth", whole, MOUTH)]
    first = [("mouth", one, MOUTH), ("carry", one, CARRY), ("mouth", one, MOUTH)]
    second = [("mouth", two, MOUTH), ("carry", two, CARRY), ("mouth", two, MOUTH)]
    empty = [(arm, None, MOUTH) for arm in ("mouth", "carry", 36, REST)]
    return _slow_take(whole) + lift + first + second + empty


def _throws(thing: str) -> list:
    up = _slow_take(thing) + [("lift", thing, (OBJECT_X, y)) for y in (40, 32, 24, 16, 8)]
    return up + up[-2::-1]


def _puts_on(thing: str) -> list:
    lift = [("lift", thing, LIFT), ("carry", thing, CARRY), ("side", thing, SIDE), ("above", thing, ABOVE)]
    pats = ("head", "above", "head", "above")
    return _slow_take(thing) + lift + [(arm, thing, "worn") for arm in (*pats, "side", "carry", 36, 28, REST)]


def _pushes(thing: str) -> list:
    reach = [(arm, thing, (TOY_NEAR, TABLE_Y)) for arm in (REST, REST + 4)]
    push = [(x - REACH, thing, (x, TABLE_Y)) for x in range(TOY_NEAR, TOY_FAR + 1, 2)]
    back = [(arm, thing, (TOY_FAR, TABLE_Y)) for arm in range(TOY_FAR - REACH - 4, REST - 1, -4)]
    return reach + push + back


def _rings(thing: str) -> list:
    swing = ["", " left 1", " left 2", " left 1", "", " right 1", " right 2", " right 1", ""]
    return _slow_take(thing) + [("lift", thing + way, LIFT) for way in swing] + _slow_take(thing)[::-1]


PATHS = {  # the other two actions are these in opposite order
    "drinks": _drinks,
    "eats": _eats,
    "throws": _throws,
    "puts on": _puts_on,
    "pushes away": _pushes,
    "rings": _rings,
}
