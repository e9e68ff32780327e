"""Paired differences against scipy's test, Holm against an example by hand, how often intervals are right."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from cogvideo import CogVideoError
from cogvideo.sweeps.statistics import (
    Difference,
    Summary,
    corrected,
    detectable,
    difference,
    differences,
    holm,
    summarize,
)


def table(**scores):
    return [
        {"variant": name, "seed": seed, "fvd": score}
        for name, row in scores.items()
        for seed, score in enumerate(row)
    ]


ROWS = table(ours=[1.0, 2.0, 4.0, 3.0], theirs=[2.0, 2.5, 7.0, 4.0], broken=[None, float("nan"), 3.0, 2.0])


def test_equals_scipys_paired_test():
    found = difference(ROWS, "variant", "theirs", "ours", "fvd")
    truth = stats.ttest_rel([2.0, 2.5, 7.0, 4.0], [1.0, 2.0, 4.0, 3.0])
    low, high = truth.confidence_interval(0.95)
    assert found is not None and found.n == 4
    assert (found.mean, found.low, found.high, found.p) == pytest.approx((1.375, low, high, truth.pvalue))
    assert found.clear == (low > 0)


def test_only_seeds_of_both_count():
    found = difference(ROWS, "variant", "broken", "ours", "fvd")
    assert found is not None and found.n == 2 and found.mean == pytest.approx(-1)
    assert difference(ROWS[:9], "variant", "broken", "ours", "fvd") is None


def test_summary_has_spread_and_number():
    first = summarize(ROWS, "variant", ["fvd", "loss"])[0]
    assert (first.mean, first.n) == (2.5, 4) and first.deviation == pytest.approx((5 / 3) ** 0.5)
    assert summarize(ROWS[:1], "variant", ["fvd"]) == [Summary("ours", "fvd", 1.0, None, 1)]


def test_the_same_in_every_seed():
    same, apart = table(a=[1.0, 2.0], b=[1.0, 2.0]), table(a=[1.0, 2.0], b=[2.0, 3.0])
    equal, shifted = (difference(rows, "variant", "b", "a", "fvd") for rows in (same, apart))
    assert equal is not None and shifted is not None
    assert (equal.p, equal.clear) == (1.0, False) and (shifted.mean, shifted.p, shifted.clear) == (
        1.0,
        0.0,
        True,
    )


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and holm([]) == []


def test_many_looks_are_corrected_by_metric():
    rng = np.random.default_rng(0)
    rows = table(
        **{name: rng.normal(shift, 1, 6) for name, shift in (("ours", 0), ("a", 3), ("b", 0.1), ("c", 1))}
    )
    rows = [row | {"loss": row["fvd"] ** 2} for row in rows]
    alone = differences(rows, "variant", "ours", ["fvd", "loss"])
    assert [(d.variant, d.metric) for d in alone] == [
        (name, metric) for metric in ("fvd", "loss") for name in "abc"
    ]
    assert alone == [difference(rows, "variant", d.variant, "ours", d.metric) for d in alone]
    found = corrected(alone[::2] + alone[1::2])  # in any order
    for metric in ("fvd", "loss"):
        raw, after = ([d.p for d in some if d.metric == metric] for some in (alone[::2] + alone[1::2], found))
        assert after == holm(raw) != raw
    assert {d.clear for d in found} == {True, False}
    assert all(d.clear == (d.low > 0 or d.high < 0) for d in found)


def test_intervals_have_the_confidence_of_holm_s_steps():
    """Of p .001, .02, .04: the first passes at 5 % / 3, the second at 5 % / 2, the third at 5 %."""
    for last, clear, confidences in (
        (0.04, [True, True, True], [1 - 0.05 / 3, 1 - 0.05 / 2, 0.95]),
        (0.06, [True, True, False], [1 - 0.05 / 3, 1 - 0.05 / 2, 0.95]),
        (0.5, [True, True, False], [1 - 0.05 / 3, 1 - 0.05 / 2, 0.95]),
    ):
        found = corrected([of_p(p) for p in (last, 0.001, 0.02)])
        found = [found[1], found[2], found[0]]
        assert [d.clear for d in found] == clear
        assert [d.confidence for d in found] == pytest.approx(confidences)
        assert [d.low > 0 for d in found] == clear
    stopped = corrected([of_p(p) for p in (0.03, 0.04, 0.049)])  # Holm stops at once
    assert not any(d.clear or d.low > 0 for d in stopped)
    assert [d.confidence for d in stopped] == pytest.approx([1 - 0.05 / 3] * 3)


def test_detectable_differences_are_detected_in_four_of_five_repetitions():
    """By 4,000 draws each, at Holm's strictest step of six comparisons; within 3.5 deviations."""
    rng = np.random.default_rng(3)
    for deviation, seeds in ((1.0, 3), (2.0, 6), (0.1, 12)):
        truth = detectable(deviation, seeds, 6)
        test: Any = stats.ttest_1samp(rng.normal(truth, deviation, (seeds, 4000)), 0)
        assert abs(np.mean(test.pvalue < 0.05 / 6) - 0.8) < 3.5 * (0.8 * 0.2 / 4000) ** 0.5
    assert detectable(1, 6, 6) > detectable(1, 12, 6) and detectable(1, 6, 6) > detectable(1, 6, 1)
    found = difference(ROWS, "variant", "theirs", "ours", "fvd")
    assert found is not None and found.deviation == pytest.approx(np.std([1, 0.5, 3, 1], ddof=1))


def of_p(p: float) -> Difference:
    """A difference of 1 over six seeds with this p alone."""
    error = 1 / float(stats.t.ppf(1 - p / 2, 5))
    half = float(error * stats.t.ppf(0.975, 5))
    return Difference("a", "b", "fvd", 1.0, 1 - half, 1 + half, p, 6)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Seeds shift all variants together, which pairing removes: 95 % of 800, within 3 deviations."""
    rng, hits = np.random.default_rng(1), 0
    for _ in range(800):
        seeds = rng.normal(0, 5, 5)
        found = difference(
            table(a=seeds + rng.normal(0, 1, 5), b=seeds + 2 + rng.normal(0, 1, 5)),
            "variant",
            "b",
            "a",
            "fvd",
        )
        assert found is not None
        hits += found.low <= 2 <= found.high
    assert abs(hits / 800 - 0.95) < 3 * (0.95 * 0.05 / 800) ** 0.5


def test_what_is_refused():
    with pytest.raises(CogVideoError, match="ours, theirs"):
        differences(ROWS, "variant", "nobody", ["fvd"])
    with pytest.raises(CogVideoError, match="two results for seed 0"):
        summarize(ROWS + ROWS[:1], "variant", ["fvd"])
