"""FVD with what is needed to trust it: its recipe, its floor, its spread, and its value for endless samples."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cogvideo.errors import CogVideoError
from cogvideo.evaluation.distances import check_features, frechet_distance, kernel_distance
from cogvideo.evaluation.recipes import Recipe, find_recipe

SUBSETS = 4  # disjoint ones for the spread
SIZES = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 1)  # shares of the samples that the value is extrapolated from
DRAWS = 8  # subsets of each such size


@dataclass(frozen=True)
class FVDResult:
    """A score and what it takes to read it. Distances are squared Fréchet distances of I3D logits."""

    value: float
    extrapolated: float | None  # to endless samples, by a line in 1/n; None below 16 samples a side
    curve: list[tuple[int, float]]  # (n, mean value over subsets of n), which the line goes through
    spread: tuple[float, float] | None  # mean and standard deviation over disjoint subsets of n / SUBSETS
    floor: float | None  # real against other real clips
    floor_n: int  # clips a side in the floor: equal to the counts, or the floor is too high in comparison
    kernel: float | None  # kernel distance (KVD) beside it, and its standard error
    kernel_error: float | None
    n_real: int
    n_generated: int
    protocol: dict

    def save(self, path: str | Path) -> Path:
        """Write JSON, whole or not at all. Raises CogVideoError if the place cannot be written."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            raise CogVideoError(
                f"The result cannot be written to {path} ({error.strerror}): choose another file."
            ) from None
        return path


def fvd(
    real: np.ndarray,
    generated: np.ndarray,
    *,
    recipe: Recipe | str = "paper",
    more_real: np.ndarray | None = None,
    seed: int = 0,
    protocol: dict | None = None,
) -> FVDResult:
    """Compare features real [n,D] and generated [m,D] as a recipe says.

    more_real [k,D]: other real samples, for the floor (real against real). seed: of the subsets. protocol: what else to
    remember of the features' making. Raises CogVideoError for fewer than two samples a side, NaN and other shapes.

    The spread is over disjoint subsets and the curve over subsets without replacement. A bootstrap would draw samples
    twice, which is as if there were fewer, and the distance grows with every sample that is missing.
    """
    recipe = find_recipe(recipe) if isinstance(recipe, str) else recipe
    real, generated = check_features(real, generated)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return frechet_distance(a, b, unbiased=recipe.unbiased)

    value, rng, n = distance(real, generated), np.random.default_rng(seed), min(len(real), len(generated))
    curve, extrapolated, spread = [], None, None
    if n >= 16:
        for size in (round(share * n) for share in SIZES):
            values = [
                distance(_subset(real, size, rng), _subset(generated, size, rng))
                for _ in range(DRAWS if size < n else 1)
            ]
            curve.append((size, float(np.mean(values))))
        sizes, means = np.array(curve).T
        extrapolated = float(np.polyfit(1 / sizes, means, 1)[1])
        parts = [np.array_split(rng.permutation(side[:n]), SUBSETS) for side in (real, generated)]
        values = [distance(a, b) for a, b in zip(*parts, strict=True)]
        spread = float(np.mean(values)), float(np.std(values, ddof=1))
    floor_n = 0 if more_real is None else min(len(real), len(more_real))
    floor = distance(real[:floor_n], check_features(more_real, real)[0][:floor_n]) if floor_n >= 2 else None
    kernel = kernel_distance(real, generated) if n >= 3 else None
    return FVDResult(
        value, extrapolated, curve, spread, floor, floor_n,
        kernel and kernel.value, kernel and kernel.standard_error,
        len(real), len(generated), {"recipe": asdict(recipe), "seed": seed} | (protocol or {}),
    )  # fmt: skip


def evaluate(
    real: str,
    generated: str,
    *,
    preset: str = "paper",
    n: int | None = None,
    seed: int = 0,
    i3d: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> FVDResult:
    """FVD between two sides (see sources.open_side) with n clips each; prints the protocol card.

    n: by default the preset's own. Up to n further real clips give the floor. i3d: another file of I3D weights.
    Raises CogVideoError for what the sides, the clips and the place of `out` may have wrong.
    """
    import torch

    from cogvideo.evaluation.alignment import commit
    from cogvideo.evaluation.features import clips_of, extract
    from cogvideo.evaluation.i3d import I3D
    from cogvideo.evaluation.sources import open_side

    recipe = find_recipe(preset)
    n = recipe.samples if n is None else n
    if n < 2:
        raise CogVideoError(f"FVD needs at least 2 clips a side, not {n}: give a larger n.")
    if out and not os.access(Path(out).resolve().parent, os.W_OK):
        raise CogVideoError(f"The result cannot be written to {out}: choose a file in a folder that exists.")
    network = I3D.from_pretrained(i3d, device=device, batch_norm_eps=recipe.batch_norm_eps)  # before hours of sampling
    key = f"{network.digest} {network.batch_norm_eps} fp32"
    features, skipped, sizes = {}, {}, {}
    for title, spec, count in (("real", real, 2 * n), ("generated", generated, n)):
        side = open_side(spec, count, seed=seed, device=device, progress=progress)
        clips, skipped[title] = clips_of(side, recipe, seed)
        if len(clips) < 2:
            raise CogVideoError(f"{side.label} has only {len(clips)} readable video: FVD needs at least 2.")
        sizes[title] = clips[0].shape[1:3]
        features[title] = extract(clips, recipe, network, key=key, title=title, progress=progress)
    if recipe.side is None and sizes["real"] != sizes["generated"]:
        texts = [f"{w} x {h}" for h, w in sizes.values()]
        raise CogVideoError(
            f"Real videos have {texts[0]} pixels and generated ones {texts[1]}: bring both to one size first."
        )
    protocol = {
        "real": real,
        "generated": generated,
        "skipped": skipped,
        "i3d_sha256": network.digest,
        "i3d_known": network.known,
        "commit": commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
    first, more = features["real"][:n], features["real"][n:]
    result = fvd(first, features["generated"], recipe=recipe, more_real=more, seed=seed, protocol=protocol)
    print(card(result))
    if out:
        result.save(out)
    return result


def card(result: FVDResult) -> str:
    """The score and its protocol as lines of text."""
    p, r = result.protocol, result.protocol["recipe"]
    first = f"short side to {r['side']}{', antialiased' if r['antialias'] else ''}, crop; " if r["side"] else ""
    rows = [("FVD", f"{result.value:.2f}")]
    if result.extrapolated is not None and result.spread is not None:
        size = min(result.n_real, result.n_generated) // SUBSETS
        rows.append(("for endless samples", f"{result.extrapolated:.2f} (a line in 1/n through subsets)"))
        rows.append(("disjoint subsets", f"{result.spread[0]:.2f} ± {result.spread[1]:.2f} ({SUBSETS} of {size})"))
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
        ]
    if r["notes"]:
        rows.append(("note", r["notes"]))
    return "\n".join(f"{name:<20} {text}" for name, text in rows)


def _subset(samples: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    return samples[rng.permutation(len(samples))[:size]]
