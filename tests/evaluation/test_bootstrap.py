"""The demonstration that a bootstrap misses: its truth against another formula, and what it shows."""

import numpy as np
import pytest

from cogvideo.evaluation.bootstrap import bootstrap, study_gaussians
from cogvideo.evaluation.distances import frechet_from_moments
from cogvideo.evaluation.fvd import fvd


def test_truth_is_the_distance_of_the_moments():
    study = study_gaussians(dim=6, n=12, draws=2)
    deviations, wider = np.geomspace(2, 0.2, 6), np.geomspace(2.4, 0.24, 6)
    moments = np.zeros(6), np.diag(deviations**2), np.full(6, (4 / 6) ** 0.5), np.diag(wider**2)
    assert study.truth == pytest.approx(frechet_from_moments(*moments))


def test_the_bootstrap_misses_the_truth_and_the_value():
    study = study_gaussians(dim=16, n=64, draws=60)
    low, _ = study.interval
    assert low > study.fresh[0] > study.truth  # the interval holds neither
    assert study.bootstrapped.mean() > np.quantile(
        study.fresh, 0.95
    )  # and its middle is a value that hardly comes up
    errors = [
        abs(values.mean() - study.truth) for values in (study.extrapolated, study.fresh, study.bootstrapped)
    ]
    assert errors[0] < errors[1] / 3 < errors[2] / 3
    assert study.curve[-1] == (64, study.fresh[0])


def test_drawing_with_replacement():
    """From one sample repeated, every draw is the same; a seed gives the same draws."""
    same = np.ones((5, 3))
    assert bootstrap(same, same + 2, draws=3) == pytest.approx([12, 12, 12])
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((20, 3)), rng.standard_normal((30, 3))
    assert np.array_equal(bootstrap(a, b, draws=4, seed=1), bootstrap(a, b, draws=4, seed=1))
    assert bootstrap(a, b, draws=20).mean() > fvd(a, b).value
