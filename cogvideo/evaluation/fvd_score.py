"""FVD with what is needed to trust it: its recipe, its floor, its spread, and its value for endless samples.

No score here comes with a bootstrap: n samples drawn n times with replacement leave about 0.63 n distinct
ones, and the distance grows as samples get fewer (study_gaussians).
"""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from cogvideo.evaluation.distances import check_features, frechet_distance, kernel_distance, sliced_distance
from cogvideo.evaluation.i3d import I3D
from cogvideo.evaluation.recipes import Recipe, find_recipe
from cogvideo.evaluation.settings import lines
from cogvideo.io import commit, write_json

SUBSETS = 4  # disjoint ones for the spread
SIZES = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 1)  # fractions of the samples that the value is extrapolated from
DRAWS = 8  # subsets of each such size
LEAST = 3 * SUBSETS  # samples a side for spread and extrapolation


@dataclass(frozen=True)
class FVDResult:
    """A score and what it takes to read it. Distances are squared Fréchet distances of I3D logits."""

    value: float
    extrapolated: float | None  # to endless samples, by a line in 1/n; None below LEAST samples a side
    curve: list[tuple[int, float]]  # (n, mean value over subsets of n), which the line is fitted to
    spread: tuple[float, float] | None  # mean and standard deviation over disjoint subsets of n / SUBSETS
    floor: float | None  # real against other real clips
    floor_n: int  # clips a side in the floor: if fewer than the counts, the floor is too high in comparison
    kernel: float | None  # kernel distance (KVD) beside it, and its standard error
    kernel_error: float | None
    by_seed: list[float]  # values of independent generations against the same real clips, `value` first
    seed_spread: tuple[float, float] | None  # mean and standard deviation of by_seed; None for one generation
    n_real: int
    n_generated: int
    protocol: dict
    mind: float | None = None  # MIND (sliced_distance) of the same features; None in older results
    mind_floor: float | None = None  # real against the real clips of `floor`
    mind_curve: list[tuple[int, float]] = field(default_factory=list)  # as `curve`, of the same subsets

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, whole or not at all."""
        return write_json(path, asdict(self))


def fvd(
    real: np.ndarray,
    generated: np.ndarray,
    *,
    recipe: Recipe | str = "paper",
    more_real: np.ndarray | None = None,
    more_generated: Sequence[np.ndarray] = (),
    seed: int = 0,
    protocol: dict | None = None,
) -> FVDResult:
    """Compare features real [n,D] and generated [m,D] as a recipe says.

    more_real [k,D]: other real samples, for the floor (real against real). more_generated [m,D] each: of
    other generation seeds. seed: of the subsets. protocol: what else to keep of how features were made.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    real, generated = check_features(real, generated)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return frechet_distance(a, b, unbiased=recipe.unbiased)

    value, rng, n = distance(real, generated), np.random.default_rng(seed), min(len(real), len(generated))
    curve, mind_curve, extrapolated, spread = [], [], None, None
    if n >= LEAST:
        for size in (round(fraction * n) for fraction in SIZES):
            draws = DRAWS if size < n else 1
            subsets = [[x[rng.permutation(len(x))[:size]] for x in (real, generated)] for _ in range(draws)]
            for points, score in ((curve, distance), (mind_curve, sliced_distance)):
                points.append((size, float(np.mean([score(a, b) for a, b in subsets]))))
        extrapolated = line_in_1_over_n(curve)[0]
        parts = [np.array_split(rng.permutation(side[:n]), SUBSETS) for side in (real, generated)]
        spread = _mean_and_deviation([distance(a, b) for a, b in zip(*parts, strict=True)])
    floor_n = 0 if more_real is None else min(len(real), len(more_real))
    floor, mind_floor = None, None
    if floor_n >= 2:
        other = check_features(more_real, real)[0][:floor_n]
        floor, mind_floor = distance(real[:floor_n], other), sliced_distance(real[:floor_n], other)
    kernel = kernel_distance(real, generated) if n >= 3 else None
    by_seed = [value] + [distance(*check_features(real, other)) for other in more_generated]
    seed_spread = _mean_and_deviation(by_seed) if more_generated else None
    protocol = {"recipe": asdict(recipe), "seed": seed} | (protocol or {})
    return FVDResult(
        value, extrapolated, curve, spread, floor, floor_n, *(kernel or (None, None)), by_seed, seed_spread,
        len(real), len(generated), protocol, sliced_distance(real, generated), mind_floor, mind_curve,
    )  # fmt: skip


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values, ddof=1))


def line_in_1_over_n(curve: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The line value = a + b / n through (n, value) -> a, which is the value for endless samples, and b.

    The bias of the distance is b / n to first order, once n is well above the number of features that vary.
    """
    sizes, values = np.array(curve).T
    slope, end = np.polyfit(1 / sizes, values, 1)
    return float(end), float(slope)


def versions(network: I3D) -> dict:
    """What a result says of its I3D and of the code."""
    packages = {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    known = {"i3d_sha256": network.digest, "i3d_known": network.known}
    return known | {"commit": commit(), "versions": packages}


def card(result: FVDResult) -> str:
    """The score and its protocol as lines of text."""
    p, r = result.protocol, result.protocol["recipe"]
    rows = [("FVD", f"{result.value:.2f}")]
    if result.extrapolated is not None and result.spread is not None:
        (mean, deviation), size = result.spread, min(result.n_real, result.n_generated) // SUBSETS
        rows.append(("for endless samples", f"{result.extrapolated:.2f} (a line in 1/n through subsets)"))
        rows.append(("disjoint subsets", f"{mean:.2f} ± {deviation:.2f} ({SUBSETS} of {size})"))
    if result.seed_spread is not None:
        mean, deviation = result.seed_spread
        values = ", ".join(f"{value:.2f}" for value in result.by_seed)
        text = f"{mean:.2f} ± {deviation:.2f} ({values}; the real clips are the same)"
        rows.append(("generation seeds", text))
    if result.floor is not None:
        rows.append(("real against real", f"{result.floor:.2f} (n = {result.floor_n})"))
    if result.kernel is not None:
        rows.append(("kernel distance", f"{result.kernel:.4g} ± {result.kernel_error:.2g}"))
    if result.mind is not None:
        floor = "" if result.mind_floor is None else f", real against real {result.mind_floor:.4g}"
        fewer = ", ".join(f"{value:.4g} from {n}" for n, value in result.mind_curve[:-1])
        rows.append(("MIND", f"{result.mind:.4g}{floor}{f' ({fewer} a side)' if fewer else ''}"))
    squared = f"short side to {r['side']}{', antialiased' if r['antialias'] else ''}, crop; "
    last = "short side to 224, crop" if r["crop"] else "squeeze to 224 x 224"
    rows += [
        ("clips", f"{result.n_real} real, {result.n_generated} generated"),
        ("preset", f"{r['name']}: {r['source']}; published with n = {r['samples']}"),
        ("frames", f"{r['frames']}, stride {r['stride']}, {r['clip']} place in the video"),
        ("resize", f"{squared if r['side'] else ''}bilinear {last}"),
        ("covariance", f"divided by {'n - 1' if r['unbiased'] else 'n'}"),
        ("seed", str(p["seed"])),
    ]
    if "i3d_sha256" in p:
        skipped = [line for side in p["skipped"].values() for line in side]
        rows += [
            ("real", p["real"]),
            ("generated", p["generated"] + (f", weights {p['weights']}" if p.get("weights") else "")),
            ("skipped", "; ".join(skipped) or "none"),
            ("I3D", f"{p['i3d_sha256'][:16]}{'' if p['i3d_known'] else ' (not the known weights)'}"),
            ("commit", p["commit"]),
            ("versions", ", ".join(f"{name} {version}" for name, version in p["versions"].items())),
            ("time", ", ".join(f"{side} side {seconds:.0f} s" for side, seconds in p["seconds"].items())),
        ]
    if r["notes"]:
        rows.append(("note", r["notes"]))
    return lines(*rows)


@dataclass(frozen=True)
class BootstrapStudy:
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


def study_gaussians(dim: int = 32, n: int = 128, draws: int = 100, seed: int = 0) -> BootstrapStudy:
    """Gaussians [dim], means 2 apart; deviations fall from 2 to 0.2 on one side, 2.4 to 0.24 on the other."""
    rng = np.random.default_rng(seed)
    deviations, wider = np.geomspace(2, 0.2, dim), np.geomspace(2.4, 0.24, dim)
    shift = np.full(dim, 2 / dim**0.5)
    # Diagonal covariances commute: their roots can be subtracted.
    truth = float(shift @ shift + np.square(deviations - wider).sum())
    pairs = [
        (rng.standard_normal((n, dim)) * deviations, rng.standard_normal((n, dim)) * wider + shift)
        for _ in range(draws)
    ]
    results = [fvd(a, b, seed=seed) for a, b in pairs]
    fresh, extrapolated = np.array([(r.value, r.extrapolated) for r in results]).T
    bootstrapped = bootstrap(*pairs[0], draws=draws, seed=seed)
    return BootstrapStudy(dim, n, truth, fresh, extrapolated, bootstrapped, results[0].curve)


def bootstrap(real: np.ndarray, generated: np.ndarray, *, draws: int = 100, seed: int = 0) -> np.ndarray:
    """Distances [draws] of features [n,D], [m,D] drawn with replacement: too high, to demonstrate only."""
    rng = np.random.default_rng(seed)
    resampled = ([x[rng.integers(len(x), size=len(x))] for x in (real, generated)] for _ in range(draws))
    return np.array([frechet_distance(a, b) for a, b in resampled])
