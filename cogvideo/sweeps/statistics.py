"""Is one variant better than another? Paired differences over seeds, with intervals, and a correction for many looks.

Every seed trains all variants on the same data and scores them on the same prompts, so differences are taken within a seed and
the test is Student's for pairs. Intervals are for each comparison alone; p values are corrected after Holm for the number of
comparisons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cogvideo.errors import CogVideoError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """A metric of one variant: mean and standard deviation (None for a single seed) over n seeds."""

    variant: str
    metric: str
    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """`variant` less `baseline`, in pairs of the same seed; p is two-sided."""

    variant: str
    baseline: str
    metric: str
    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def values(rows: Sequence[Mapping[str, Any]], by: str, variant: str, metric: str) -> dict[Any, float]:
    """The metric of a variant by seed; rows without it (of points that failed) are left out.

    Raises CogVideoError when a variant has two rows of one seed: they would count twice.
    """
    found: dict[Any, float] = {}
    for row in rows:
        if row[by] == variant and row.get(metric) is not None and np.isfinite(row[metric]):
            if row["seed"] in found:
                raise CogVideoError(
                    f"{variant} has two results for seed {row['seed']}: keep one in the table."
                )
            found[row["seed"]] = float(row[metric])
    return found


def summarize(rows: Sequence[Mapping[str, Any]], by: str, metrics: Sequence[str]) -> list[Summary]:
    """Every metric of every variant that has it, variants in the order of the rows."""
    found = []
    for variant in dict.fromkeys(row[by] for row in rows):
        for metric in metrics:
            numbers = list(values(rows, by, variant, metric).values())
            if numbers:
                deviation = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
                found.append(Summary(variant, metric, float(np.mean(numbers)), deviation, len(numbers)))
    return found


def difference(
    rows: Sequence[Mapping[str, Any]], by: str, variant: str, baseline: str, metric: str
) -> Difference | None:
    """The paired difference of two variants; None where fewer than two seeds have both."""
    from scipy import stats

    one, other = values(rows, by, variant, metric), values(rows, by, baseline, metric)
    pairs = np.array([one[seed] - other[seed] for seed in one if seed in other])
    n = len(pairs)
    if n < 2:
        return None
    mean, error = float(pairs.mean()), float(pairs.std(ddof=1) / n**0.5)
    if error == 0:  # the same in every seed
        return Difference(variant, baseline, metric, mean, mean, mean, float(mean == 0), n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean / error), n - 1))
    return Difference(variant, baseline, metric, mean, mean - half, mean + half, p, n)


def differences(
    rows: Sequence[Mapping[str, Any]], by: str, baseline: str, metrics: Sequence[str]
) -> list[Difference]:
    """All other variants less the baseline; p values are those of each comparison alone (see corrected).

    Raises CogVideoError when the table does not have the baseline.
    """
    variants = list(dict.fromkeys(row[by] for row in rows))
    if baseline not in variants:
        raise CogVideoError(
            f"The table has no {by} {baseline!r}: choose one of {', '.join(map(str, variants))}."
        )
    others = [variant for variant in variants if variant != baseline]
    found = [difference(rows, by, variant, baseline, metric) for metric in metrics for variant in others]
    return [d for d in found if d is not None]


def corrected(found: Sequence[Difference]) -> list[Difference]:
    """The same with p values after Holm over all comparisons of one metric."""
    p: dict[int, float] = {}
    for metric in {d.metric for d in found}:
        places = [i for i, d in enumerate(found) if d.metric == metric]
        p |= zip(places, holm([found[i].p for i in places]), strict=True)
    return [replace(d, p=p[i]) for i, d in enumerate(found)]


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): the chance of a single wrong claim among all stays below the level."""
    order = np.argsort(p)
    corrected, least = np.empty(len(p)), 0.0
    for rank, index in enumerate(order):
        least = max(least, min(1.0, (len(p) - rank) * p[index]))
        corrected[index] = least
    return corrected.tolist()
