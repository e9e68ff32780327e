"""FVD with floor, spread and extrapolation on Gaussians of known distance, and why not to bootstrap it."""

from importlib.util import find_spec

import numpy as np
import pytest

from cogvideo import evaluation
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.distances import frechet_from_statistics, sliced_distance
from cogvideo.evaluation.fvd_score import bootstrap, card, fvd, line_in_1_over_n, study_gaussians


def gaussians(n: int, seed: int, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 8)) + shift


def test_extrapolation_is_nearer_to_the_truth_than_the_value():
    """Equal covariances and means 0.5 apart in 8 directions: the distance is 2."""
    results = [fvd(gaussians(200, s), gaussians(200, 100 + s, 0.5), seed=s) for s in range(10)]
    plain = np.mean([r.value for r in results]) - 2
    extrapolated = np.mean([r.extrapolated or np.nan for r in results]) - 2
    assert plain > 0.03 and abs(extrapolated) < plain / 2


def test_the_line_in_1_over_n():
    assert line_in_1_over_n([(n, 3 + 40 / n) for n in (5, 10, 80)]) == pytest.approx((3, 40))


def test_floor_spread_and_counts():
    result = fvd(gaussians(64, 0), gaussians(80, 1, 1.0), more_real=gaussians(64, 2), recipe="stylegan-v")
    assert result.floor is not None and result.spread is not None
    assert 0 < result.floor < result.value and result.floor_n == 64
    assert result.spread[0] > result.value and result.spread[1] > 0  # subsets are smaller, so higher
    assert (result.n_real, result.n_generated) == (64, 80)
    assert [n for n, _ in result.curve] == [16, 21, 32, 43, 64]
    assert result.mind is not None
    assert result.mind == sliced_distance(gaussians(64, 0), gaussians(80, 1, 1.0))
    assert result.mind_floor == sliced_distance(gaussians(64, 0), gaussians(64, 2))
    assert result.mind_floor is not None and result.mind_floor < result.mind
    falling = [value for _, value in result.mind_curve]  # as samples get more
    assert (
        falling[0]
        > falling[-1]
        == pytest.approx(sliced_distance(gaussians(64, 0), gaussians(80, 1, 1.0)), rel=0.1)
    )
    assert [n for n, _ in result.mind_curve] == [16, 21, 32, 43, 64]
    assert f"MIND                 {result.mind:.4g}, real against real {result.mind_floor:.4g}" in card(
        result
    )
    assert "n = 64" in card(result) and "divided by n\n" in card(result)


def test_several_generations():
    real, made = gaussians(64, 0), [gaussians(64, 1 + i, 0.2 * i) for i in range(3)]
    result = fvd(real, made[0], more_generated=made[1:])
    assert result.by_seed == [fvd(real, some).value for some in made] and result.by_seed[0] == result.value
    assert result.seed_spread == (np.mean(result.by_seed), np.std(result.by_seed, ddof=1))
    assert result.seed_spread is not None
    mean, deviation = result.seed_spread
    assert f"generation seeds     {mean:.2f} ± {deviation:.2f} ({result.value:.2f}, " in card(result)
    assert fvd(real, made[0]).seed_spread is None and "generation seeds" not in card(fvd(real, made[0]))


def test_few_samples_have_no_spread():
    result = fvd(gaussians(5, 0), gaussians(5, 1))
    assert result.extrapolated is None and result.spread is None and result.floor is None
    with pytest.raises(CogVideoError, match="at least 2"):
        fvd(gaussians(1, 0), gaussians(5, 1))


def test_truth_is_the_distance_of_the_statistics():
    study = study_gaussians(dim=6, n=12, draws=2)
    deviations, wider = np.geomspace(2, 0.2, 6), np.geomspace(2.4, 0.24, 6)
    statistics = np.zeros(6), np.diag(deviations**2), np.full(6, (4 / 6) ** 0.5), np.diag(wider**2)
    assert study.truth == pytest.approx(frechet_from_statistics(*statistics))


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


def test_no_public_name_hides_a_module():
    """`import cogvideo.evaluation.fvd` would give a function."""
    assert all(find_spec(f"cogvideo.evaluation.{name}") is None for name in evaluation.__all__)
