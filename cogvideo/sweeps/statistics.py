"""Is one variant better than another? Paired differences over seeds, with intervals and a correction.

Every seed trains all variants on the same data and scores them on the same prompts, so differences are taken
within a seed and the test is Student's for pairs. p values are corrected after Holm for the number of
comparisons, and intervals have the confidence at which Holm tests each, so that both say the same.
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
    """`variant` less `baseline`, in pairs of the same seed, its interval, and a two-sided p."""

    variant: str
    baseline: str
    metric: str
    mean: float
    low: float
    high: float
    p: float
    n: int
    confidence: float = CONFIDENCE  # of the interval

    @property
    def clear(self) -> bool:
        """Whether the difference counts; the interval then leaves zero out."""
        return self.p < 1 - CONFIDENCE

    @property
    def deviation(self) -> float:
        """The standard deviation of the pairs' differences."""
        from scipy import stats

        half = (self.high - self.low) / 2
        return half * self.n**0.5 / float(stats.t.ppf((1 + self.confidence) / 2, self.n - 1))


def values(rows: Sequence[Mapping[str, Any]], by: str, variant: str, metric: str) -> dict[Any, float]:
    """The metric of a variant by seed, without rows that do not have it (of points that failed)."""
    found: dict[Any, float] = {}
    for row in rows:
        if row[by] == variant and row.get(metric) is not None and np.isfinite(row[metric]):
            if row["seed"] in found:
                raise CogVideoError(f"{variant} has two results for seed {row['seed']}: keep one.")
            found[row["seed"]] = float(row[metric])
    return found


def summarize(rows: Sequence[Mapping[str, Any]], by: str, metrics: Sequence[str]) -> list[Summary]:
    """Every metric of every variant that has it, variants in the order of the rows."""
    found = []
    for variant in dict.fromkeys(row[by] for row in rows):
        for metric in metrics:
            if numbers := list(values(rows, by, variant, metric).values()):
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
    mean = float(pairs.mean())
    if pairs.std() == 0:  # the same in every seed
        return Difference(variant, baseline, metric, mean, mean, mean, float(mean == 0), n)
    test: Any = stats.ttest_1samp(pairs, 0)
    low, high = map(float, test.confidence_interval(CONFIDENCE))
    return Difference(variant, baseline, metric, mean, low, high, float(test.pvalue), n)


def differences(
    rows: Sequence[Mapping[str, Any]], by: str, baseline: str, metrics: Sequence[str]
) -> list[Difference]:
    """All other variants less the baseline; p values are those of each comparison alone (see corrected)."""
    variants = list(dict.fromkeys(row[by] for row in rows))
    if baseline not in variants:
        known = ", ".join(map(str, variants))
        raise CogVideoError(f"The table has no {by} {baseline!r}: choose one of {known}.")
    others = [variant for variant in variants if variant != baseline]
    found = [difference(rows, by, variant, baseline, metric) for metric in metrics for variant in others]
    return [d for d in found if d is not None]


def corrected(found: Sequence[Difference]) -> list[Difference]:
    """The same after Holm over all comparisons of one metric: p values, and intervals that agree with them.

    Holm tests the k-th smallest of m values of p at 5 % / (m - k + 1) and stops at the first that fails.
    Intervals have that confidence, those of comparisons that fail that of the first. Equal values of p share
    the strictest.
    """
    new = list(found)
    for metric in {d.metric for d in found}:
        rows = sorted((i for i, d in enumerate(found) if d.metric == metric), key=lambda i: found[i].p)
        p = holm([found[i].p for i in rows])
        passed = sum(value < 1 - CONFIDENCE for value in p)
        for k, i in enumerate(rows):
            smaller = sum(found[j].p < found[i].p for j in rows)
            confidence = 1 - (1 - CONFIDENCE) / (len(rows) - min(smaller, passed))
            new[i] = replace(_widened(found[i], confidence), p=p[k])
    return new


def _widened(d: Difference, confidence: float) -> Difference:
    """The same with an interval of this confidence."""
    from scipy import stats

    now, wanted = (stats.t.ppf((1 + level) / 2, d.n - 1) for level in (d.confidence, confidence))
    half = (d.high - d.low) / 2 * float(wanted / now)
    return replace(d, low=d.mean - half, high=d.mean + half, confidence=confidence)


def detectable(deviation: float, seeds: int, comparisons: int, power: float = 0.8) -> float:
    """The smallest true difference that is found with this chance where differences deviate so much.

    Found: the two-sided paired test passes Holm's first and strictest step, at 5 % / comparisons. Exact, by
    the noncentral t distribution.
    """
    from scipy import optimize, stats

    limit = stats.t.ppf(1 - (1 - CONFIDENCE) / comparisons / 2, seeds - 1)

    def missing(noncentrality: float) -> float:
        return float(stats.nct.sf(limit, seeds - 1, noncentrality)) - power

    found = optimize.brentq(missing, 0, 10 * limit)
    return deviation * float(found) / seeds**0.5  # type: ignore[arg-type]  # a number without full_output


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): bounds the chance of a single wrong claim among all."""
    order = np.argsort(p)
    steps = np.minimum(1.0, np.asarray(p)[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(steps)
    return corrected.tolist()
