"""From names of sides to scores: FVD, and the paper's two machine evaluations (section 5.1).

UCF-101 by class, and frame prediction on Kinetics-600; what the paper leaves open is printed with the score.
"""

import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from cogvideo.data.classes import class_prompts
from cogvideo.evaluation.c3d import C3D
from cogvideo.evaluation.features import features_of
from cogvideo.evaluation.fvd_score import FVDResult, card, fvd, versions
from cogvideo.evaluation.i3d import I3D
from cogvideo.evaluation.recipes import KINETICS, find_recipe
from cogvideo.evaluation.samples import GIVEN, PREDICTED, class_counts, find_weights
from cogvideo.evaluation.scores import SPLITS, check_splits, evaluate_inception_score
from cogvideo.evaluation.settings import Settings, lines
from cogvideo.evaluation.sources import generations, open_side, real_sides, weights_of

ALL = "all"  # in place of a split file


def evaluate(
    real: str, generated: str, settings: Settings = Settings(), *, preset: str = "paper", seeds: int = 1
) -> FVDResult:
    """FVD between two sides (see sources.open_side), with the preset's number of clips if n is None.

    Up to n other real clips give the floor. seeds: how many independent generations are scored (see
    generations): their mean and deviation are beside the value, which stays that of the first.
    """
    recipe = find_recipe(preset)
    n, seed = settings.count(recipe.samples), settings.seed
    settings.check_out()
    specs = generations(generated, seed, seeds)
    # Before hours of work: mistakes in weights and sides raise here.
    network = I3D.from_pretrained(settings.i3d, device=settings.device, batch_norm_eps=recipe.batch_norm_eps)
    begin = time.perf_counter()
    first, others = real_sides(real, n, seed, **settings.sampling)
    to_make = [open_side(spec, n, seed=own, **settings.sampling) for spec, own in specs]
    features = partial(features_of, recipe=recipe, network=network, seed=seed, progress=settings.progress)
    truth = features(first, title="real")
    features = partial(features, size=truth.size)
    more = features(others, title="other real") if len(others.names) >= 2 else None
    middle, titles = time.perf_counter(), [f"generated {number}/{seeds}" for number in range(1, seeds + 1)]
    titles = ["generated"] if seeds == 1 else titles
    made = [features(side, title=title) for side, title in zip(to_make, titles, strict=True)]
    skipped = {
        "real": truth.skipped + (more.skipped if more else []),
        "generated": [line for some in made for line in some.skipped],
    }
    protocol = {"real": real, "generated": generated, "seeds": seeds, "skipped": skipped, **versions(network)}
    protocol["weights"] = weights_of(generated)
    protocol["seconds"] = {"real": middle - begin, "generated": time.perf_counter() - middle}
    result = fvd(
        truth.values, made[0].values, recipe=recipe, more_real=more and more.values,
        more_generated=[some.values for some in made[1:]], seed=seed, protocol=protocol,
    )  # fmt: skip
    settings.finish(card(result), asdict(result))
    return result


def evaluate_ucf101(
    folder: str | Path,
    weights: str,
    settings: Settings = Settings(),
    *,
    split: str = "trainlist01.txt",
    seconds: float = 4.0,
    prompts: str | Path | None = None,
    c3d: str | Path | None = None,
    c3d_mean: str | Path | None = None,
    splits: int = SPLITS,
) -> dict:
    """Class-conditional UCF-101: FVD with preset `paper` and, given C3D, Inception Score; n: 2048 if None.

    split: a split file of the data set, or "all". Prints the cards and what was done, returns {"fvd",
    "inception_score", "protocol"} as written to `out`.
    """
    settings.check_out()
    find_weights(weights)
    class_prompts([name for name, _ in class_counts(Path(folder), None if split == ALL else split)], prompts)
    own, network, inception = replace(settings, n=settings.count(2048), out=None), None, None
    if c3d is not None:
        check_splits(settings.count(2048), splits)
        network = C3D.from_pretrained(c3d, mean=c3d_mean, device=settings.device)
    options = {"weights": weights, "split": split, "seconds": seconds, "prompts": prompts}
    generated = _spec("ucf101-samples", folder, **options)
    score = evaluate(_spec("ucf101", folder, split=split), generated, own)
    if network is not None:
        inception = evaluate_inception_score(generated, network, own, splits=splits)
    protocol = {
        "classes": f"drawn with replacement in proportion to the videos of the split {split}",
        "prompts": str(prompts) if prompts else "class names in words",
        "samples": f"{seconds:g} s at the weights' own frame rate, of which 16 frames in a row are scored; "
        "not enlarged",
        "published": "for weights fine-tuned on all of UCF-101 FVD 626 at first and 305 later, IS 50.46 at "
        "first and 51.11 later, with 2048 and 10000 samples",
    }
    return _finish(settings, protocol, fvd=asdict(score), inception_score=inception and asdict(inception))


def evaluate_kinetics(
    folder: str | Path,
    weights: str,
    settings: Settings = Settings(),
    *,
    split: str = ALL,
    seconds: float | None = None,
    overlap: int | None = None,
    prompts: str | Path | None = None,
) -> dict:
    """Frame prediction on Kinetics-600: 5 frames given, 11 generated; FVD at 64 x 64 pixels; 50000 clips.

    split: a CSV file of the data set, or "all". overlap, seconds: see samples.predict_frames. Prints the card
    and what was done, returns {"fvd", "protocol"} as written to `out`.
    """
    settings.check_out()
    find_weights(weights)
    options = {"weights": weights, "split": split, "seconds": seconds, "overlap": overlap, "prompts": prompts}
    generated = _spec("kinetics-predictions", folder, **options)
    real = _spec("kinetics", folder, split=split)
    score = evaluate(real, generated, replace(settings, out=None), preset=KINETICS.name)
    protocol = {
        "prediction": f"{GIVEN} real frames, {PREDICTED} drawn by stage 1 in windows of its sequence length "
        f"that slide: the last {overlap or 'frames that fit, 4 of 5,'} known ones come first, the rest is "
        "drawn; no stage 2, not enlarged",
        "frames": "neighbouring frames of the video as they are, whatever its frame rate",
        "frame-rate text": "the shortest span trained" if seconds is None else f"{seconds:g} s",
        "prompts": str(prompts) if prompts else "class names in words",
        "published": "FVD 109.23 for weights fine-tuned on the training split, with 50000 samples",
    }
    return _finish(settings, protocol, fvd=asdict(score))


def _finish(settings: Settings, protocol: dict[str, str], **scores: Any) -> dict:
    result = scores | {"protocol": protocol}
    settings.finish(lines(*protocol.items()), result)
    return result


def _spec(kind: str, folder: str | Path, **options: object) -> str:
    """What sources.open_side takes."""
    if options["split"] == ALL:
        options["split"] = None
    given = {name: value for name, value in options.items() if value is not None}
    return f"{kind}:{folder}" + (f"?{urlencode(given, quote_via=quote)}" if given else "")
