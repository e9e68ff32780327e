"""Why no score here comes with a bootstrap: on Gaussians, whose distance is known, it misses the truth and even the value.

Drawing n samples n times with replacement leaves about 0.63 n distinct ones, and the distance grows as samples get fewer.
"""

from dataclasses import dataclass

import numpy as np

from cogvideo.evaluation.distances import frechet_distance
from cogvideo.evaluation.fvd import fvd


@dataclass(frozen=True)
class Study:
    """Distances of two Gaussians from n samples a side."""

    dim: int
    n: int
    truth: float  # from the means and covariances themselves
    fresh: np.ndarray  # [draws], new samples each time: the true spread of the value
    extrapolated: np.ndarray  # [draws], the same samples extrapolated in 1/n
    bootstrapped: np.ndarray  # [draws], the first samples drawn with replacement
    curve: list[tuple[int, float]]  # of the first samples, see FVDResult

    @property
    def interval(self) -> tuple[float, float]:
        """What a bootstrap would state: from the 2.5 to the 97.5 percentile."""
        low, high = np.quantile(self.bootstrapped, [0.025, 0.975])
        return float(low), float(high)


def study_gaussians(dim: int = 32, n: int = 128, draws: int = 100, seed: int = 0) -> Study:
    """Gaussians [dim] whose means are 2 apart; the deviations of one fall from 2 to 0.2, of the other from 2.4 to 0.24."""
    rng = np.random.default_rng(seed)
    deviations, wider = np.geomspace(2, 0.2, dim), np.geomspace(2.4, 0.24, dim)
    shift = np.full(dim, 2 / dim**0.5)
    truth = (
        shift @ shift + np.square(deviations - wider).sum()
    )  # covariances commute: their roots can be subtracted
    pairs = [
        (rng.standard_normal((n, dim)) * deviations, rng.standard_normal((n, dim)) * wider + shift)
        for _ in range(draws)
    ]
    results = [fvd(a, b, seed=seed) for a, b in pairs]
    return Study(
        dim,
        n,
        float(truth),
        np.array([result.value for result in results]),
        np.array([result.extrapolated for result in results]),
        bootstrap(*pairs[0], draws=draws, seed=seed),
        results[0].curve,
    )


def bootstrap(real: np.ndarray, generated: np.ndarray, *, draws: int = 100, seed: int = 0) -> np.ndarray:
    """Distances [draws] of features [n,D] and [m,D] drawn with replacement: too high, for demonstration only."""
    rng, (n, m) = np.random.default_rng(seed), (len(real), len(generated))
    return np.array(
        [
            frechet_distance(real[rng.integers(n, size=n)], generated[rng.integers(m, size=m)])
            for _ in range(draws)
        ]
    )
