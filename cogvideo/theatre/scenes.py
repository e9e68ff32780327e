"""What happens in the theatre: actors, objects, actions and their phases, captions, splits.

A clip is one animal behind a table that does one action with one object. Every action runs through 17 states,
0..16; after its duration the scene rests in the last one. `motion` and `drawing` say how a state looks.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cogvideo.errors import CogVideoError

FPS = 8
LAST_STATE = 16
STATES = LAST_STATE + 1
SPANS = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds that five frames may span: 8, 4, 2, 1 and 0.5 fps

ACTORS = {  # English name: article, Chinese name with number and measure word
    "lion": ("a", "一只狮子"),
    "bear": ("a", "一只熊"),
    "frog": ("a", "一只青蛙"),
    "panda": ("a", "一只熊猫"),
    "rabbit": ("a", "一只兔子"),
    "fox": ("a", "一只狐狸"),
    "pig": ("a", "一头猪"),
    "cat": ("a", "一只猫"),
    "elephant": ("an", "一头大象"),
    "monkey": ("a", "一只猴子"),
    "owl": ("an", "一只猫头鹰"),
    "mouse": ("a", "一只老鼠"),
}
OBJECTS = {  # English name: article, Chinese name with number and measure word; drinks are not counted
    "milk": ("", "牛奶"),
    "tea": ("", "茶"),
    "juice": ("", "果汁"),
    "apple": ("an", "一个苹果"),
    "banana": ("a", "一根香蕉"),
    "cake": ("a", "一块蛋糕"),
    "ball": ("a", "一个皮球"),
    "orange": ("an", "一个橙子"),
    "teddy": ("a", "一只玩具熊"),
    "hat": ("a", "一顶帽子"),
    "crown": ("a", "一顶王冠"),
    "glasses": ("", "一副墨镜"),
    "car": ("a", "一辆小汽车"),
    "train": ("a", "一列小火车"),
    "boat": ("a", "一艘小船"),
    "bell": ("a", "一个铃铛"),
}
ACTIONS = {  # English verb: Chinese verb, objects
    "drinks": ("喝", ("milk", "tea", "juice")),
    "eats": ("吃", ("apple", "banana", "cake")),
    "throws": ("抛", ("ball", "orange", "teddy")),
    "puts on": ("戴上", ("hat", "crown", "glasses")),
    "takes off": ("摘下", ("hat", "crown", "glasses")),
    "pushes away": ("推开", ("car", "train", "boat")),
    "pulls near": ("拉近", ("car", "train", "boat")),
    "rings": ("摇响", ("bell",)),
}
PHASES = {  # action: (phase, its first state); a phase lasts until the next begins
    "drinks": (("rests", 0), ("reaches", 1), ("lifts", 3), ("drinks", 6), ("puts down", 11), ("lets go", 15)),
    "eats": (
        ("rests", 0),
        ("reaches", 1),
        ("lifts", 4),
        ("takes the first bite", 7),
        ("takes the second bite", 10),
        ("takes the third bite", 13),
        ("lowers the empty hand", 14),
    ),
    "throws": (
        ("rests", 0),
        ("reaches", 1),
        ("lifts", 4),
        ("flies up", 5),
        ("falls", 9),
        ("catches", 12),
        ("puts down", 13),
        ("lets go", 14),
    ),
    "puts on": (("rests", 0), ("reaches", 1), ("lifts", 4), ("sets on the head", 8), ("lowers the hand", 12)),
    "takes off": (
        ("wears", 0),
        ("raises the hand", 1),
        ("grips", 5),
        ("lifts off the head", 9),
        ("puts down", 11),
        ("lets go", 14),
    ),
    "pushes away": (("rests", 0), ("reaches", 1), ("pushes", 3), ("draws the hand back", 11)),
    "pulls near": (("rests", 0), ("reaches", 1), ("pulls", 7), ("draws the hand back", 15)),
    "rings": (
        ("rests", 0),
        ("reaches", 1),
        ("lifts", 4),
        ("swings left", 5),
        ("swings right", 9),
        ("puts down", 13),
        ("lets go", 14),
    ),
}
BACKGROUNDS = ("sky", "mint", "butter", "lilac")
ADVERBS = {
    1.0: ("quickly", "快速地"),
    2.0: ("", ""),
    4.0: ("slowly", "缓慢地"),
    8.0: ("very slowly", "非常缓慢地"),
}

ACTOR_NAMES, OBJECT_NAMES, ACTION_NAMES, DURATIONS = list(ACTORS), list(OBJECTS), list(ACTIONS), list(ADVERBS)
PAIRS = [(action, thing) for action, (_, things) in ACTIONS.items() for thing in things]  # 22

PICTURE_ONLY_ACTORS = ("frog", "panda", "pig", "owl")  # no video shows them, only pictures do
PICTURE_ONLY_OBJECTS = ("banana", "crown")
SPLITS = ("train", "seen", "unseen", "picture-only", "pictures")


@dataclass(frozen=True)
class Clips:
    """The truth of n clips; every field is an array [n]."""

    actor: np.ndarray  # index into ACTOR_NAMES
    pair: np.ndarray  # index into PAIRS: what is done, and with what
    background: np.ndarray  # index into BACKGROUNDS
    duration: np.ndarray  # seconds that the whole action takes, one of DURATIONS

    def __len__(self) -> int:
        return len(self.actor)

    def __getitem__(self, rows) -> "Clips":
        """The clips that a slice, a mask or an array of indices picks."""
        return Clips(self.actor[rows], self.pair[rows], self.background[rows], self.duration[rows])

    @cached_property
    def action(self) -> np.ndarray:
        """Index [n] into ACTION_NAMES."""
        return np.array([ACTION_NAMES.index(action) for action, _ in PAIRS])[self.pair]

    @cached_property
    def object(self) -> np.ndarray:
        """Index [n] into OBJECT_NAMES."""
        return np.array([OBJECT_NAMES.index(thing) for _, thing in PAIRS])[self.pair]

    def names(self, index: int) -> tuple[str, str, str]:
        """English names of actor, action and object of clip `index`."""
        return ACTOR_NAMES[self.actor[index]], *PAIRS[self.pair[index]]

    def caption(self, index: int, language: str = "en", with_action: bool = True) -> str:
        """The sentence of clip `index`; without the action it says who and what is there.

        Raises: CogVideoError when the language is neither "en" nor "zh".
        """
        return caption(*self.names(index), float(self.duration[index]), language, with_action)

    def span(self, index: int) -> float:
        """The multi-frame-rate rule (paper section 3.1): the shortest trained span that holds the action."""
        return min(span for span in SPANS if span >= self.duration[index])


def caption(
    actor: str, action: str, thing: str, duration: float, language: str = "en", with_action: bool = True
) -> str:
    """The sentence of one scene, from English names and a duration in seconds.

    Raises: CogVideoError when the language is neither "en" nor "zh".
    """
    if language not in ("en", "zh"):
        raise CogVideoError(f"Captions in {language!r} are not written: choose en or zh.")
    article, actor_zh = ACTORS[actor]
    thing_article, thing_zh = OBJECTS[thing]
    adverb, adverb_zh = ADVERBS[duration]
    if language == "zh":
        return (
            f"{actor_zh}{adverb_zh}{ACTIONS[action][0]}{thing_zh}"
            if with_action
            else f"{actor_zh}和{thing_zh}"
        )
    thing = f"{thing_article} {thing}".strip()
    return (
        f"{article} {actor} {action} {thing} {adverb}".strip()
        if with_action
        else f"{article} {actor} with {thing}"
    )


def groups() -> np.ndarray:
    """The group of every combination [actors, pairs]: "seen", "unseen" or "picture-only".

    Every object that videos show is unseen with one of the eight actors that videos show.
    """
    table = np.full((len(ACTORS), len(PAIRS)), "picture-only", dtype="<U12")
    video_actors = [name for name in ACTOR_NAMES if name not in PICTURE_ONLY_ACTORS]
    video_objects = [name for name in OBJECT_NAMES if name not in PICTURE_ONLY_OBJECTS]
    for a, actor in enumerate(video_actors):
        for p, (_, thing) in enumerate(PAIRS):
            if thing in video_objects:
                unseen = (a + 3 * video_objects.index(thing)) % len(video_actors) == 0
                table[ACTOR_NAMES.index(actor), p] = "unseen" if unseen else "seen"
    return table


def sample_clips(n: int, rng: np.random.Generator, *, split: str = "train") -> Clips:
    """Draw n clips; actor and pair are uniform over the combinations of the split.

    split: "train" (what videos show), "seen" (the same, to test), "unseen" (both are in videos,
    but never together), "picture-only" (actor or object is in no video), and "pictures" (everything).

    Raises: CogVideoError when the split is unknown.
    """
    if split not in SPLITS:
        raise CogVideoError(f"Split {split!r} of the theatre is unknown: choose one of {', '.join(SPLITS)}.")
    table = groups()
    allowed = (
        table == ("seen" if split == "train" else split)
        if split != "pictures"
        else np.ones(table.shape, bool)
    )
    actor, pair = np.argwhere(allowed)[rng.integers(allowed.sum(), size=n)].T
    background = rng.integers(len(BACKGROUNDS), size=n)
    return Clips(actor, pair, background, np.array(DURATIONS)[rng.integers(len(DURATIONS), size=n)])


def states(clips: Clips, times: np.ndarray) -> np.ndarray:
    """The states int [n, T] at `times` [n, T] seconds; a state is held until the next is reached."""
    part = np.minimum(1.0, times / clips.duration[:, None])
    return np.floor(LAST_STATE * part + 1e-6).astype(np.int64)


def phase(action: str, state: int) -> str:
    """Name of the phase that `action` is in at `state` 0..16."""
    return [name for name, first in PHASES[action] if first <= state][-1]
