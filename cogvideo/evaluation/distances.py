"""Distances of two sets of features, in float64: Fréchet (FID, FVD), kernel (KID, KVD) and sliced (MIND)."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cogvideo.errors import CogVideoError


def frechet_distance(a: Any, b: Any, *, unbiased: bool = True) -> float:
    """Squared Fréchet (2-Wasserstein) distance of Gaussians fitted to features a [n,D], b [m,D].

    |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), not square-rooted (Dowson and Landau 1982).
    unbiased: covariances divide by n - 1 (TATS, VideoGPT, TF-GAN); False: by n (StyleGAN-V). Exact for any n
    and rank: with centred A [n,D] and B [m,D] the trace of the root is the sum of the singular values of
    A B^T. Where D is the smaller, triangular factors of A and B (QR) stand for them.
    """
    a, b = check_features(a, b)
    mean_a, mean_b = a.mean(0), b.mean(0)
    factor_a, factor_b = (_factor(x - mean, len(x) - unbiased) for x, mean in ((a, mean_a), (b, mean_b)))
    traces = np.square(factor_a).sum() + np.square(factor_b).sum()
    return _distance(mean_a - mean_b, traces, factor_a @ factor_b.T)


def frechet_from_statistics(mean_a: Any, covariance_a: Any, mean_b: Any, covariance_b: Any) -> float:
    """The same from means [D] and covariances [D,D], for statistics that were stored without their samples.

    The trace is the nuclear norm of the product of symmetric square roots. A covariance is only known to
    about 1e-16 of its largest eigenvalue: in singular cases good to 1e-8 of the traces, frechet_distance to
    1e-14.
    """
    mean_a, covariance_a, mean_b, covariance_b = map(_array, (mean_a, covariance_a, mean_b, covariance_b))
    size = mean_a.shape
    if mean_a.ndim != 1 or mean_b.shape != size or not covariance_a.shape == covariance_b.shape == size * 2:
        shapes = ", ".join(str(list(x.shape)) for x in (mean_a, covariance_a, mean_b, covariance_b))
        raise CogVideoError(f"Statistics must be means [D] and covariances [D, D] of one D; got {shapes}.")
    root_a, root_b = _root(covariance_a), _root(covariance_b)
    traces = np.trace(covariance_a) + np.trace(covariance_b)
    return _distance(mean_a - mean_b, traces, root_a @ root_b)


class KernelDistance(NamedTuple):
    value: float  # unbiased: around zero, half of the time below it, when both sides have one distribution
    standard_error: float


def kernel_distance(a: Any, b: Any) -> KernelDistance:
    """Unbiased squared MMD of a [n,D], b [m,D] under the kernel (x.y / D + 1)^3 (KID, Binkowski et al. 2018).

    Over all pairs, with the jackknife's standard error; n, m >= 3. Memory: 16 (n^2 + m^2 + nm) bytes.
    """
    a, b = check_features(a, b, least=3)
    within_a, within_b, across = _kernel(a, a), _kernel(b, b), _kernel(a, b)
    np.fill_diagonal(within_a, 0)  # no sample is compared with itself
    np.fill_diagonal(within_b, 0)
    n, m = across.shape
    mean_a, mean_b, mean_ab = within_a.sum() / (n * (n - 1)), within_b.sum() / (m * (m - 1)), across.mean()
    without_a = _means_without_one(within_a) + mean_b - 2 * (across.sum() - across.sum(1)) / ((n - 1) * m)
    without_b = _means_without_one(within_b) + mean_a - 2 * (across.sum() - across.sum(0)) / (n * (m - 1))
    variance = (n - 1) * without_a.var() + (m - 1) * without_b.var()
    return KernelDistance(float(mean_a + mean_b - 2 * mean_ab), float(variance**0.5))


def sliced_distance(a: Any, b: Any, *, directions: int = 1000, seed: int = 0) -> float:
    """MIND of features a [n,D], b [m,D]: 3 D times their mean squared distance along random directions.

    Along each direction it is the 2-Wasserstein distance of the projected samples themselves, exact for any
    n and m: no Gaussian is fitted (Berthet et al. 2026, arXiv:2605.06797; 1000 directions and the factor 3 D
    are theirs). Two distributions that differ by a shift s alone are 3 |s|^2 apart. Never negative, so above
    zero for samples of one distribution, the more the fewer they are. seed: of the directions.
    """
    a, b = check_features(a, b)
    n, m = len(a), len(b)
    # Both quantile functions are constant between these levels (in 1 / (n m)).
    levels = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
    of_a, of_b, widths = levels[:-1] // m, levels[:-1] // n, np.diff(levels) / (n * m)
    rng, total = np.random.default_rng(seed), 0.0
    for some in np.array_split(rng.standard_normal((directions, a.shape[1])), -(-directions // 100)):
        some /= np.linalg.norm(some, axis=1, keepdims=True)
        along_a, along_b = (np.sort(some @ side.T, axis=1) for side in (a, b))
        total += (np.square(along_a[:, of_a] - along_b[:, of_b]) @ widths).sum()
    return float(3 * a.shape[1] * total / directions)


def check_features(a: Any, b: Any, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 arrays; CogVideoError unless they are finite [n,D] and [m,D] with n, m >= least."""
    a, b = _array(a), _array(b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.shape[1] == 0:
        raise CogVideoError(f"Features must be [n, D] and [m, D] with one D; got {a.shape} and {b.shape}.")
    if min(len(a), len(b)) < least:
        raise CogVideoError(f"A side needs at least {least} samples; got {len(a)} and {len(b)}.")
    return a, b


def _array(values: Any) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise CogVideoError("Features hold NaN or infinity: look for broken frames or a float16 overflow.")
    return values


def _factor(centred: np.ndarray, divisor: int) -> np.ndarray:
    """F with F^T F = the covariance and as few rows as possible: the samples, or their triangular factor."""
    scaled = centred / divisor**0.5
    return scaled if len(scaled) <= scaled.shape[1] else np.asarray(np.linalg.qr(scaled, mode="r"))


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    slack = 1e-6 * max(abs(values).max(), 1e-300)
    if values.min() < -slack or abs(covariance - covariance.T).max() > slack:
        raise CogVideoError("A covariance must be symmetric, with no negative eigenvalue.")
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def _distance(difference: np.ndarray, traces: float, roots: np.ndarray) -> float:
    """The trace of the common root is the sum of the singular values of the product of both roots."""
    trace = torch.linalg.svdvals(torch.from_numpy(roots)).numpy().sum()
    return float(difference @ difference + traces - 2 * trace)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # much quicker than base**3


def _means_without_one(within: np.ndarray) -> np.ndarray:
    """[n] means over pairs of a symmetric matrix [n,n] with zero diagonal, with sample i left out."""
    n = len(within)
    return (within.sum() - 2 * within.sum(1)) / ((n - 1) * (n - 2))
