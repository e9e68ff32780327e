"""Fréchet, kernel and sliced distances against stored values, SciPy, closed forms and slow loops."""

import json
import math

import numpy as np
import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment

from cogvideo.errors import CogVideoError
from cogvideo.evaluation import frechet_distance, frechet_from_statistics, kernel_distance, sliced_distance

CASES = json.loads((DATA / "fvd" / "meta.json").read_text())["cases"]
IO = load_file(DATA / "fvd" / "io.safetensors")


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("case", ["main", "rank_deficient"])
def test_equals_the_reference(case, unbiased):
    expected = CASES[case]["unbiased_ddof1" if unbiased else "biased_ddof0"]["exact_nuclear_norm"]
    a, b = IO[f"{case}.a"], IO[f"{case}.b"]
    assert frechet_distance(a, b, unbiased=unbiased) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(b.numpy(), a.numpy(), unbiased=unbiased) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("case", "rel"), [("main", 1e-12), ("rank_deficient", 1e-7)])
def test_statistics_equal_the_reference(case, rel):
    statistics = [IO[f"{case}.{kind}_{side}"] for side in "ab" for kind in ("mean", "cov_unbiased")]
    expected = CASES[case]["unbiased_ddof1"]["exact_nuclear_norm"]
    assert frechet_from_statistics(*statistics) == pytest.approx(expected, rel=rel)


def test_a_set_is_at_no_distance_from_itself():
    a = IO["same_set.a"]
    assert frechet_distance(a, IO["same_set.b"]) == pytest.approx(0, abs=1e-11)
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-11)


@pytest.mark.parametrize("seed", range(10))
def test_equals_scipys_matrix_root(seed):
    generator = np.random.default_rng(seed)
    dim = int(generator.integers(2, 30))
    n, m = generator.integers(dim + 5, 4 * dim + 10, 2)  # regular: the matrix root is exact there
    a = generator.standard_normal((n, dim)) @ generator.standard_normal(
        (dim, dim)
    ) + generator.standard_normal(dim)
    b = generator.standard_normal((m, dim)) @ generator.standard_normal((dim, dim))
    root = np.real(np.asarray(sqrtm(np.cov(a.T) @ np.cov(b.T))))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    statistics = (a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
    assert frechet_from_statistics(*statistics) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("n", "m", "rank"), [(5, 7, 20), (5, 60, 20), (60, 5, 20), (60, 50, 3), (2, 2, 20), (2, 60, 1)]
)
def test_singular_covariances(n, m, rank):
    """Directions without samples add nothing: the distance in the span, where the root has full rank."""
    generator = np.random.default_rng(n + m)
    basis = np.linalg.qr(generator.standard_normal((20, rank)))[0].T
    a, b = generator.standard_normal((n, rank)) @ basis, (generator.standard_normal((m, rank)) + 1) @ basis
    scaled_a, scaled_b = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    # tr (S_a S_b)^(1/2) = tr (M M^T)^(1/2), M = A B^T, by eigenvalues of the small M M^T
    product = scaled_a @ scaled_b.T
    root_trace = np.sqrt(np.linalg.eigvalsh(product @ product.T).clip(0)).sum()
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.square(scaled_a).sum() + np.square(scaled_b).sum()
    assert frechet_distance(a, b) == pytest.approx(expected - 2 * root_trace, rel=1e-6)


def test_closed_form_of_independent_columns():
    """Columns that are exactly uncorrelated: the sum over columns of (m1 - m2)^2 + (s1 - s2)^2."""
    signs = np.array(
        [[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    )  # Hadamard: orthogonal columns of mean zero
    deviations, means = (
        np.array([[1.0, 2.0, 0.0], [3.0, 0.5, 4.0]]),
        np.array([[0.0, 1.0, 2.0], [5.0, 1.0, -1.0]]),
    )
    a, b = (signs * deviation + mean for deviation, mean in zip(deviations, means, strict=True))
    expected = np.square(means[0] - means[1]).sum() + np.square(deviations[0] - deviations[1]).sum()
    assert frechet_distance(a, b, unbiased=False) == pytest.approx(expected, rel=1e-12)
    spread = np.square(deviations[0] - deviations[1]).sum() * 4 / 3
    assert frechet_distance(a, b) == pytest.approx(np.square(means[0] - means[1]).sum() + spread, rel=1e-12)


def test_invariance_and_scale():
    a, b = IO["main.a"], IO["main.b"]
    rotation = torch.linalg.qr(
        torch.randn(40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )[0]
    distance = frechet_distance(a, b)
    assert frechet_distance(3 * a @ rotation + 7, 3 * b @ rotation + 7) == pytest.approx(
        9 * distance, rel=1e-10
    )


def test_kernel_distance_equals_a_loop_over_pairs():
    a, b = IO["rank_deficient.a"][:6].numpy(), IO["rank_deficient.b"][:5].numpy()

    def kernel(x, y):
        return (sum(p * q for p, q in zip(x, y, strict=True)) / len(x) + 1) ** 3

    def mmd(a, b):
        within = [
            np.mean([kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j])
            for s in (a, b)
        ]
        return sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b])

    value, error = kernel_distance(a, b)
    assert value == pytest.approx(mmd(a, b), rel=1e-10)
    without_a = [mmd(np.delete(a, i, 0), b) for i in range(6)]
    without_b = [mmd(a, np.delete(b, i, 0)) for i in range(5)]
    assert error == pytest.approx((5 * np.var(without_a) + 4 * np.var(without_b)) ** 0.5, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(7, 7), (6, 4), (3, 8)])
def test_one_dimension_is_optimal_transport(n, m):
    """Each sample as often as makes both sides equally many, assigned at the least cost by SciPy."""
    rng = np.random.default_rng(n)
    a, b = rng.standard_normal((n, 1)), 2 * rng.standard_normal((m, 1)) + 1
    many = math.lcm(n, m)
    cost = (np.repeat(a, many // n, 0) - np.repeat(b, many // m, 0).T) ** 2
    least = cost[linear_sum_assignment(cost)].mean()
    assert sliced_distance(a, b, directions=3) == pytest.approx(3 * least, rel=1e-12)


def test_sliced_distance_of_two_directions_by_hand():
    """Every direction of the plane: the mean over angles, by quadrature, each transport by assignment."""
    rng = np.random.default_rng(0)
    a, b, total = rng.standard_normal((5, 2)), rng.exponential(size=(5, 2)), 0.0
    angles = (np.arange(720) + 0.5) * np.pi / 720
    for angle in angles:
        along = np.array([np.cos(angle), np.sin(angle)])
        cost = ((a @ along)[:, None] - (b @ along)) ** 2
        total += cost[linear_sum_assignment(cost)].mean()
    expected = 3 * 2 * total / len(angles)
    assert sliced_distance(a, b, directions=40_000) == pytest.approx(expected, rel=0.02)


def test_a_shift_counts_three_times_its_square():
    a = np.random.default_rng(0).standard_normal((50, 6))
    shift = np.array([1.0, -2.0, 0, 0.5, 0, 0])
    assert sliced_distance(a, a + shift, directions=20_000) == pytest.approx(3 * 5.25, rel=0.03)
    assert sliced_distance(a, a) == 0 and sliced_distance(a, a + shift) == sliced_distance(a + shift, a)


def test_the_sliced_distance_feels_what_two_moments_do_not():
    """Coins and Gaussians of one mean and covariance: near one another for Fréchet's distance alone."""
    rng = np.random.default_rng(0)
    normal, other, coins = rng.standard_normal((3, 4000, 2))
    coins = np.sign(coins)
    assert frechet_distance(normal, coins) < 5 * frechet_distance(normal, other) + 1e-3
    assert sliced_distance(normal, coins) > 20 * sliced_distance(normal, other)


def test_the_standard_error_is_the_spread_over_new_samples():
    generator = np.random.default_rng(0)
    draws = [
        kernel_distance(generator.standard_normal((60, 4)), 1.3 * generator.standard_normal((80, 4)) + 0.7)
        for _ in range(400)
    ]
    spread = np.std([draw.value for draw in draws])
    assert np.mean([draw.standard_error for draw in draws]) == pytest.approx(spread, rel=0.15)
    same = [kernel_distance(*generator.standard_normal((2, 50, 4))).value for _ in range(400)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 20  # no bias


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((1, 3)), np.zeros((4, 3)), "at least 2 samples"),
        (np.zeros((4, 3)), np.zeros((0, 3)), "at least 2 samples"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "one D"),
        (np.zeros(4), np.zeros(4), "one D"),
        (np.full((4, 3), np.nan), np.zeros((4, 3)), "NaN"),
        (np.zeros((4, 3)), torch.full((4, 3), torch.inf), "infinity"),
    ],
)
def test_bad_features(a, b, message):
    for distance in (frechet_distance, kernel_distance, sliced_distance):
        with pytest.raises(
            CogVideoError, match=message if distance is frechet_distance else "samples|one D|NaN"
        ):
            distance(a, b)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ((np.zeros(3), np.eye(3), np.zeros(2), np.eye(2)), "one D"),
        ((np.zeros(3), np.eye(3), np.zeros(3), np.zeros(3)), "one D"),
        ((np.zeros(2), np.eye(2), np.zeros(2), np.diag([1.0, -1.0])), "no negative eigenvalue"),
        ((np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]), np.zeros(2), np.eye(2)), "symmetric"),
        ((np.zeros(2), np.eye(2) * np.nan, np.zeros(2), np.eye(2)), "NaN"),
    ],
)
def test_bad_statistics(statistics, message):
    with pytest.raises(CogVideoError, match=message):
        frechet_from_statistics(*statistics)
