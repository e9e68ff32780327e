"""FVD with what is needed to trust it: its recipe, its floor, its spread, and its value for endless samples."""

import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import numpy as np

from cogvideo.data.sources import read_options
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.distances import check_features, frechet_distance, kernel_distance
from cogvideo.evaluation.recipes import Recipe, find_recipe
from cogvideo.io import commit, write_json

if TYPE_CHECKING:
    from cogvideo.evaluation.sources import Side

SUBSETS = 4  # disjoint ones for the spread
SIZES = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 1)  # shares of the samples that the value is extrapolated from
DRAWS = 8  # subsets of each such size
LEAST = 3 * SUBSETS  # samples a side for spread and extrapolation


@dataclass(frozen=True)
class FVDResult:
    """A score and what it takes to read it. Distances are squared Fréchet distances of I3D logits."""

    value: float
    extrapolated: float | None  # to endless samples, by a line in 1/n; None below LEAST samples a side
    curve: list[tuple[int, float]]  # (n, mean value over subsets of n), which the line goes through
    spread: tuple[float, float] | None  # mean and standard deviation over disjoint subsets of n / SUBSETS
    floor: float | None  # real against other real clips
    floor_n: int  # clips a side in the floor: equal to the counts, or the floor is too high in comparison
    kernel: float | None  # kernel distance (KVD) beside it, and its standard error
    kernel_error: float | None
    by_seed: list[float]  # values of independent generations against the same real clips, `value` first
    seed_spread: tuple[float, float] | None  # mean and standard deviation of by_seed; None for one generation
    n_real: int
    n_generated: int
    protocol: dict

    def save(self, path: str | Path) -> Path:
        """Write JSON, whole or not at all. Raises CogVideoError if the place cannot be written."""
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

    more_real [k,D]: other real samples, for the floor (real against real). more_generated: what other seeds generated, [m,D]
    each. seed: of the subsets. protocol: what else to remember of the features' making. Raises CogVideoError for fewer than two samples a side, NaN and other shapes.

    The spread is over disjoint subsets and the curve over subsets without replacement. A bootstrap would draw samples
    twice, which is as if there were fewer, and the distance grows with every sample that is missing.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    real, generated = check_features(real, generated)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return frechet_distance(a, b, unbiased=recipe.unbiased)

    value, rng, n = distance(real, generated), np.random.default_rng(seed), min(len(real), len(generated))
    curve, extrapolated, spread = [], None, None
    if n >= LEAST:
        for size in (round(share * n) for share in SIZES):
            values = [
                distance(_subset(real, size, rng), _subset(generated, size, rng))
                for _ in range(DRAWS if size < n else 1)
            ]
            curve.append((size, float(np.mean(values))))
        extrapolated = line_in_1_over_n(curve)[0]
        parts = [np.array_split(rng.permutation(side[:n]), SUBSETS) for side in (real, generated)]
        values = [distance(a, b) for a, b in zip(*parts, strict=True)]
        spread = float(np.mean(values)), float(np.std(values, ddof=1))
    floor_n = 0 if more_real is None else min(len(real), len(more_real))
    floor = distance(real[:floor_n], check_features(more_real, real)[0][:floor_n]) if floor_n >= 2 else None
    kernel = kernel_distance(real, generated) if n >= 3 else None
    by_seed = [value] + [distance(*check_features(real, other)) for other in more_generated]
    return FVDResult(
        value, extrapolated, curve, spread, floor, floor_n,
        kernel and kernel.value, kernel and kernel.standard_error,
        by_seed, (float(np.mean(by_seed)), float(np.std(by_seed, ddof=1))) if more_generated else None,
        len(real), len(generated), {"recipe": asdict(recipe), "seed": seed} | (protocol or {}),
    )  # fmt: skip


def line_in_1_over_n(curve: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """The line value = a + b / n through (n, value) -> a, which is the value for endless samples, and b.

    The bias of the distance is b / n to first order, once n is well above the number of features that vary.
    """
    sizes, values = np.array(curve).T
    slope, end = np.polyfit(1 / sizes, values, 1)
    return float(end), float(slope)


def evaluate(
    real: str,
    generated: str,
    *,
    preset: str = "paper",
    n: int | None = None,
    seed: int = 0,
    seeds: int = 1,
    i3d: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> FVDResult:
    """FVD between two sides (see sources.open_side) with n clips each; prints the protocol card.

    n: by default the preset's own. Up to n other real clips give the floor. i3d: another file of I3D weights.
    seeds: how many independent generations are scored (see generations): mean and deviation are beside the value, which stays
    that of the first. Each costs n clips sampled and put through I3D: with the demo weights 2 s and 0.7 s a clip on one core.
    Raises CogVideoError for what the sides, the clips and the place of `out` may have wrong.
    """
    from cogvideo.evaluation.features import features_of
    from cogvideo.evaluation.i3d import I3D
    from cogvideo.evaluation.sources import open_side

    recipe = find_recipe(preset)
    n = recipe.samples if n is None else n
    check_count(n)
    if out:
        check_place(out)
    sides = generations(generated, seed, seeds)
    network = I3D.from_pretrained(
        i3d, device=device, batch_norm_eps=recipe.batch_norm_eps
    )  # before hours of sampling
    begin = time.perf_counter()
    right, others = real_sides(real, n, seed, device=device, progress=progress)
    to_make = [
        open_side(spec, n, seed=own, device=device, progress=progress) for spec, own in sides
    ]  # mistakes now
    truth = features_of(right, recipe, network, seed=seed, title="real", progress=progress)
    more = None
    if len(others.names) >= 2:
        more = features_of(
            others, recipe, network, seed=seed, size=truth.size, title="other real", progress=progress
        )
    middle, made = time.perf_counter(), []
    for number, side in enumerate(to_make):
        title = "generated" if seeds == 1 else f"generated {number + 1}/{seeds}"
        made.append(
            features_of(side, recipe, network, seed=seed, size=truth.size, title=title, progress=progress)
        )
    protocol = {
        "real": real,
        "generated": generated,
        "seeds": seeds,
        "skipped": {
            "real": truth.skipped + (more.skipped if more else []),
            "generated": [line for some in made for line in some.skipped],
        },
        **versions(network),
        "seconds": {"real": middle - begin, "generated": time.perf_counter() - middle},
    }
    first, *further = (some.values for some in made)
    result = fvd(
        truth.values, first, recipe=recipe, more_real=more and more.values, more_generated=further, seed=seed,
        protocol=protocol,
    )  # fmt: skip
    print(card(result))
    if out:
        result.save(out)
    return result


def generations(spec: str, seed: int, seeds: int = 1) -> list[tuple[str, int]]:
    """The sides and seeds of independent generations; raises CogVideoError for several of a side that cannot be made anew.

    The demo world and samples of its captions are made with seed + 1, seed + 2, ...: captions that both sides share would
    bring them nearer to each other than real clips are to other real ones. The first has the captions of real_sides' other
    real clips, so that floor and score see the same content.
    """
    if seeds < 1:
        raise CogVideoError(f"There cannot be {seeds} generations: give 1 or more seeds.")
    place, options = spec.partition("?")[0], read_options(spec)
    if place.startswith("digits:") or spec == "demo" or (Path(spec) / "pipeline.json").exists():
        seed += 1
    elif seeds > 1 and "weights" not in options:
        raise CogVideoError(f"{spec} cannot be generated anew: give weights or digits:..., or one seed.")
    if seeds > 1 and "seed" in options:  # goes before ours
        return [(_reseeded(spec, i), seed + i) for i in range(seeds)]
    return [(spec, seed + i) for i in range(seeds)]


def real_sides(
    spec: str, n: int, seed: int, *, device: str = "auto", progress: bool = True
) -> "tuple[Side, Side]":
    """n real clips, and up to n others that a floor comes from: of the demo world those of the next seed."""
    from cogvideo.evaluation.sources import open_side

    if spec.startswith("digits:"):
        other = _reseeded(spec, 1) if "seed" in read_options(spec) else spec
        return open_side(spec, n, seed=seed), open_side(other, n, seed=seed + 1)
    side = open_side(spec, 2 * n, seed=seed, device=device, progress=progress)
    return replace(side, names=side.names[:n]), replace(side, names=side.names[n:])


def _reseeded(spec: str, step: int) -> str:
    place, options = spec.partition("?")[0], read_options(spec)
    if not options["seed"].isdigit():
        raise CogVideoError(f"{options['seed']!r} in {spec} is no number: correct it.")
    return f"{place}?{urlencode(options | {'seed': int(options['seed']) + step}, quote_via=quote)}"


def check_count(n: int) -> None:
    """Raises CogVideoError for fewer than two clips."""
    if n < 2:
        raise CogVideoError(f"FVD needs at least 2 clips a side, not {n}: give a larger n.")


def check_place(out: str | Path) -> None:
    """Raises CogVideoError unless files can be made where `out` shall be: asked before the work."""
    if Path(out).is_dir() or not os.access(Path(out).resolve().parent, os.W_OK):
        raise CogVideoError(f"The result cannot be written to {out}: choose a file in a folder that exists.")


def versions(network: Any) -> dict:
    """What a result says of the I3D that it comes from and of the code."""
    import torch

    return {
        "i3d_sha256": network.digest,
        "i3d_known": network.known,
        "commit": commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }


def card(result: FVDResult) -> str:
    """The score and its protocol as lines of text."""
    p, r = result.protocol, result.protocol["recipe"]
    first = (
        f"short side to {r['side']}{', antialiased' if r['antialias'] else ''}, crop; " if r["side"] else ""
    )
    rows = [("FVD", f"{result.value:.2f}")]
    if result.extrapolated is not None and result.spread is not None:
        size = min(result.n_real, result.n_generated) // SUBSETS
        rows.append(("for endless samples", f"{result.extrapolated:.2f} (a line in 1/n through subsets)"))
        rows.append(
            ("disjoint subsets", f"{result.spread[0]:.2f} ± {result.spread[1]:.2f} ({SUBSETS} of {size})")
        )
    if result.seed_spread is not None:
        mean, deviation = result.seed_spread
        values = ", ".join(f"{value:.2f}" for value in result.by_seed)
        rows.append(
            ("generation seeds", f"{mean:.2f} ± {deviation:.2f} ({values}; the real clips are the same)")
        )
    if result.floor is not None:
        rows.append(("real against real", f"{result.floor:.2f} (n = {result.floor_n})"))
    if result.kernel is not None:
        rows.append(("kernel distance", f"{result.kernel:.4g} ± {result.kernel_error:.2g}"))
    rows += [
        ("clips", f"{result.n_real} real, {result.n_generated} generated"),
        ("preset", f"{r['name']}: {r['source']}; published with n = {r['samples']}"),
        ("frames", f"{r['frames']}, stride {r['stride']}, {r['clip']} place in the video"),
        ("resize", f"{first}bilinear {'short side to 224, crop' if r['crop'] else 'squeeze to 224 x 224'}"),
        ("covariance", f"divided by {'n - 1' if r['unbiased'] else 'n'}"),
        ("seed", str(p["seed"])),
    ]
    if "i3d_sha256" in p:
        skipped = [line for lines in p["skipped"].values() for line in lines]
        rows += [
            ("real", p["real"]),
            ("generated", p["generated"]),
            ("skipped", "; ".join(skipped) or "none"),
            ("I3D", f"{p['i3d_sha256'][:16]}{'' if p['i3d_known'] else ' (not the known weights)'}"),
            ("commit", p["commit"]),
            ("versions", ", ".join(f"{name} {version}" for name, version in p["versions"].items())),
            ("time", ", ".join(f"{side} side {seconds:.0f} s" for side, seconds in p["seconds"].items())),
        ]
    if r["notes"]:
        rows.append(("note", r["notes"]))
    return "\n".join(f"{name:<20} {text}" for name, text in rows)


def _subset(samples: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return samples[rng.permutation(len(samples))[:size]]
