"""Which of two clips fits its prompt better? Blinded pairs, strengths with intervals, agreement of raters.

Strengths are those of Bradley and Terry (1952): the odds that a is preferred to b are exp(strength of a -
strength of b), "same" counts half for each. Their intervals count all answers about one pair of clips as one
observation. Agreement is Krippendorff's alpha for nominal answers.
"""

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from cogvideo.errors import CogVideoError

FOR_LEFT = {"left": 1.0, "same": 0.5, "right": 0.0}  # answers, and what each counts for the left clip
WITHIN = 1.959964  # standard errors of a 95 % interval
SMOOTHING = 0.5  # answers for each side added to every pair of variants where the likelihood has no maximum


@dataclass(frozen=True)
class Pair:
    """Two clips of one prompt as a rater sees them. id: the same for all raters, whatever the sides."""

    id: str
    prompt: str
    left: str  # variants: hidden from the rater
    right: str
    left_clip: str  # files
    right_clip: str


@dataclass(frozen=True)
class Rating:
    """One answer. simulated: by a program of known strengths, not by a person."""

    pair: str
    rater: str
    left: str
    right: str
    answer: str
    seconds: float = 0.0
    simulated: bool = False

    @property
    def choice(self) -> str:
        """The variant preferred, or "same"."""
        return {"left": self.left, "right": self.right, "same": "same"}[self.answer]


@dataclass(frozen=True)
class Strength:
    """log odds of a variant against the mean of all, its 95 % interval, and the answers that it rests on."""

    mean: float
    low: float
    high: float
    wins: float  # "same" counts a half
    answers: int


def make_pairs(
    clips: Mapping[str, Mapping[str, tuple[str, str | Path]]],
    rater: str,
    *,
    seed: int = 0,
    most: int | None = None,
) -> list[Pair]:
    """All pairs of variants for every clip that both have, in an order and on sides of the rater's own.

    clips: by variant, by key (such as prompt and seed) the prompt and the file. The same rater and seed give
    the same order. most: how many pairs are asked, the same ones of all raters.
    """
    found = [
        (key, a, b)
        for a, b in combinations(sorted(clips), 2)
        for key in sorted(clips[a].keys() & clips[b].keys())
    ]
    if not found:
        raise CogVideoError("No two variants have clips of the same prompt: there is nothing to compare.")
    chosen = np.random.default_rng(seed).permutation(len(found))[:most]
    own = np.random.default_rng([seed, *rater.encode()])
    order, pairs = own.permutation(np.sort(chosen)), []
    for i, swap in zip(order, own.random(len(order)) < 0.5, strict=True):
        key, a, b = found[i]
        left, right = (b, a) if swap else (a, b)
        (prompt, left_clip), (_, right_clip) = clips[left][key], clips[right][key]
        pairs.append(Pair(f"{key}: {a} / {b}", prompt, left, right, str(left_clip), str(right_clip)))
    return pairs


class Study:
    """One rater's way through the pairs; every answer is on disk before the next pair is shown."""

    def __init__(self, pairs: Sequence[Pair], file: str | Path, rater: str, *, simulated: bool = False):
        if not rater.strip():
            raise CogVideoError("Answers need the rater's name: give one, it may be made up.")
        self.pairs, self.file, self.rater, self.simulated = list(pairs), Path(file), rater, simulated
        known = read_ratings(self.file) if self.file.exists() else []
        self.done = {rating.pair: rating for rating in known if rating.rater == rater}
        self.shown = time.monotonic()

    @property
    def current(self) -> Pair | None:
        """The next pair without an answer; None at the end."""
        return next((pair for pair in self.pairs if pair.id not in self.done), None)

    @property
    def answered(self) -> int:
        return sum(pair.id in self.done for pair in self.pairs)

    def answer(self, answer: str) -> None:
        """Keep an answer ("left", "right" or "same") to the current pair."""
        pair = self.current
        if pair is None:
            return
        if answer not in FOR_LEFT:
            raise CogVideoError(f"An answer is one of left, right, same, not {answer!r}.")
        seconds = round(time.monotonic() - self.shown, 2)
        rating = Rating(pair.id, self.rater, pair.left, pair.right, answer, seconds, self.simulated)
        _append(self.file, rating)
        self.done[pair.id] = rating
        self.shown = time.monotonic()


def _append(file: Path, rating: Rating) -> None:
    line = json.dumps(asdict(rating), ensure_ascii=False) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "ab+") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                if stream.read(1) != b"\n":  # a killed process left a line half-written
                    line = "\n" + line
            stream.write(line.encode())
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise CogVideoError(
            f"The answer cannot be kept in {file} ({error.strerror}): choose another file."
        ) from None


def read_ratings(file: str | Path) -> list[Rating]:
    """Answers of a file of JSON lines, without those that were cut off when a process was killed."""
    try:
        lines = Path(file).read_text("utf-8", errors="replace").split("\n")  # a line may end within a letter
    except OSError as error:
        raise CogVideoError(f"{file} cannot be read ({error}): give the file of a study.") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(Rating(**json.loads(line)))
            FOR_LEFT[found[-1].answer]
        except (ValueError, TypeError, KeyError) as error:
            if line.endswith("}") or isinstance(error, KeyError):  # else it is empty, or cut off
                raise CogVideoError(f"Line {number} of {file} is no answer of a study: remove it.") from None
    return found


def strengths(ratings: Sequence[Rating]) -> dict[str, Strength]:
    """Bradley-Terry strengths by variant, the strongest first; their mean is 0.

    Where some variants have won all or none of their answers against the others, the most likely strengths
    are infinite: then SMOOTHING answers for each side are added to every pair of variants that was asked, and
    intervals are at least those of independent answers.
    """
    names = sorted({name for r in ratings for name in (r.left, r.right)})
    if not names:
        raise CogVideoError("There are no answers yet: rate some pairs first.")
    left, right = (np.searchsorted(names, [getattr(r, side) for r in ratings]) for side in ("left", "right"))
    points = np.array([FOR_LEFT[r.answer] for r in ratings])
    won = np.zeros((len(names), len(names)))  # [a,b] answers for a against b
    np.add.at(won, (left, right), points)
    np.add.at(won, (right, left), 1 - points)
    asked = (won + won.T) > 0
    if not _reaches_all(asked):
        raise CogVideoError("Some variants were not compared, not even by way of others: rate more pairs.")
    infinite = not (_reaches_all(won > 0) and _reaches_all(won.T > 0))
    wins = won + SMOOTHING * asked if infinite else won
    mean = _most_likely(wins)
    inverse = _inverse(mean, wins)
    # All answers to one pair of clips count together (Huber's sandwich).
    pairs, units = np.unique([r.pair for r in ratings], return_inverse=True)
    slopes = np.zeros((len(pairs), len(names)))
    surprise = points - _odds(mean)[left, right]
    np.add.at(slopes, (units, left), surprise)
    np.add.at(slopes, (units, right), -surprise)
    deviation = np.sqrt(np.diag(inverse @ slopes.T @ slopes @ inverse))
    if infinite:  # unanimous answers are so near to their expectation that this is far too small
        deviation = np.maximum(deviation, np.sqrt(np.diag(inverse)))
    low, high = mean - WITHIN * deviation, mean + WITHIN * deviation
    table = [values.tolist() for values in (mean, low, high, won.sum(1), (won + won.T).sum(1).astype(int))]
    found = {name: Strength(*row) for name, *row in zip(names, *table, strict=True)}
    return dict(sorted(found.items(), key=lambda item: -item[1].mean))


def _reaches_all(edges: np.ndarray) -> bool:
    """Whether all nodes can be reached from the first by edges [from,to]."""
    seen = np.arange(len(edges)) == 0
    for _ in edges:
        seen = seen | edges[seen].any(0)
    return bool(seen.all())


def _odds(mean: np.ndarray) -> np.ndarray:
    """[a,b] the chance that a is preferred to b."""
    return 1 / (1 + np.exp(mean[None] - mean[:, None]))


def _inverse(mean: np.ndarray, wins: np.ndarray) -> np.ndarray:
    """Of the information: the covariance of the strengths if all answers were independent."""
    chance = _odds(mean)
    weight = (wins + wins.T) * chance * (1 - chance)
    np.fill_diagonal(weight, 0)
    return np.linalg.pinv(np.diag(weight.sum(1)) - weight, hermitian=True)


def _most_likely(wins: np.ndarray) -> np.ndarray:
    """The maximum of the likelihood, which is concave, by Newton's method; strengths have mean 0."""
    counts, mean = wins + wins.T, np.zeros(len(wins))
    for _ in range(100):
        slope = (wins - counts * _odds(mean)).sum(1)
        step = _inverse(mean, wins) @ slope
        mean += step * min(1.0, 2.0 / max(1e-12, float(abs(step).max())))
        if abs(step).max() < 1e-10:
            break
    return mean - mean.mean()


def agreement(ratings: Sequence[Rating]) -> float | None:
    """Krippendorff's alpha between raters over pairs: 1 full, 0 as by chance; see `alpha`."""
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    for r in ratings:
        answers[r.pair][r.rater] = r.choice
    return alpha([list(by_rater.values()) for by_rater in answers.values()])


def alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for nominal values: units of any number of values each (Krippendorff 2011).

    None where no unit has two values, or where all values are the same.
    """
    units = [unit for unit in units if len(unit) > 1]
    total: Counter[str] = Counter(value for unit in units for value in unit)
    n = sum(total.values())
    expected = n * n - sum(count * count for count in total.values())
    if expected == 0:
        return None
    observed = sum(
        (len(unit) ** 2 - sum(count * count for count in Counter(unit).values())) / (len(unit) - 1)
        for unit in units
    )
    return 1 - (n - 1) * observed / expected


def simulate(
    pairs: Sequence[Pair],
    truth: Mapping[str, float],
    file: str | Path,
    rater: str,
    *,
    ties: float = 0.1,
    seed: int = 0,
) -> None:
    """Let a program of known strengths answer all pairs, marked as simulated. ties: fraction of "same"."""
    study, rng = Study(pairs, file, rater, simulated=True), np.random.default_rng([seed, *rater.encode()])
    while (pair := study.current) is not None:
        left = 1 / (1 + np.exp(truth[pair.right] - truth[pair.left]))
        study.answer("same" if rng.random() < ties else "left" if rng.random() < left else "right")
