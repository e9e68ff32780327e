"""From a name to a side of a comparison: a folder, the demo world, a data set, or weights to sample from."""

from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlencode

from cogvideo.checkpoints.registry import PIPELINE, weights_folder, weights_hash
from cogvideo.checkpoints.released import is_released
from cogvideo.data.sources import WORLDS, number, parse_spec, read_options
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.samples import (
    Request,
    demo_samples,
    kinetics_predictions,
    own_samples,
    ucf101_samples,
)
from cogvideo.evaluation.sides import Side, dataset, drawn_side, folder_side

OPTIONS = {
    **{world: {"seed", "seconds"} for world in WORLDS},
    "ucf101": {"split"},
    "kinetics": {"split"},
    "samples": {"weights", "seconds"},
    "ucf101-samples": {"split", "weights", "seconds", "prompts"},
    "kinetics-predictions": {"split", "weights", "seconds", "prompts", "overlap"},
}


def open_side(spec: str, n: int, *, seed: int = 0, device: str = "auto", progress: bool = True) -> Side:
    """At most n videos of what `spec` names, chosen by seed. Nothing is sampled yet: see Side.

    A folder: its videos, and those in folders below it; with captions.jsonl their prompts are known. Frames
    may be stored as uint8 [T,H,W,3] in .npy, or in .npz with one array or one called frames.
    theatre:test or another split, also theatre:test?seed=1&seconds=4: real clips of the demo world, small.
    ucf101:FOLDER?split=trainlist01.txt: class folders and a split file of the data set.
    kinetics:FOLDER?split=validate.csv: class folders, or one folder, and a split file of the data set.
    demo or a folder of weights: samples of captions of the demo world, 64 pixels, kept for later runs.
    samples:DATA?weights=W&seconds=4: samples of the captions of a folder with captions.jsonl, or such a file.
    ucf101-samples:FOLDER?weights=W and kinetics-predictions:FOLDER?weights=W: see samples.py.
    """
    if seed < 0:
        raise CogVideoError(f"The seed cannot be {seed}: give 0 or more.")
    if named := parse_spec(spec, OPTIONS):
        kind, folder, options = named
        values = {
            name: number(options[name], spec) for name in ("seed", "seconds", "overlap") if name in options
        }
        if kind in WORLDS:
            return drawn_side(kind, folder, n, int(values.get("seed", seed)), values.get("seconds", 4.0))
        split = options.get("split")
        if "weights" not in OPTIONS[kind]:
            return dataset(kind, Path(folder), split, n, seed)
        if "weights" not in options:
            raise CogVideoError(f"{spec} does not name weights: add ?weights=demo or those of a folder.")
        request = Request(
            options["weights"],
            n,
            seed,
            seconds=values.get("seconds"),
            split=split,
            prompts=options.get("prompts"),
            overlap=int(values["overlap"]) if "overlap" in values else None,
            device=device,
            progress=progress,
        )
        if kind == "samples":
            return own_samples(folder, request)
        make = ucf101_samples if kind == "ucf101-samples" else kinetics_predictions
        return make(Path(folder), request)
    if _is_pipeline(spec):
        return demo_samples(Request(spec, n, seed, device=device, progress=progress))
    folder = Path(spec)
    if not folder.is_dir():
        raise CogVideoError(
            f"{spec} is no folder, no data set and no weights: see `cogvideo evaluate fvd --help`."
        )
    if is_released(folder):
        raise CogVideoError(
            f"{spec} holds the released weights, and no prompts for them are given: make a folder of clips "
            f"with `cogvideo generate --prompts`, or give samples:DATA?weights={spec}."
        )
    return folder_side(folder, n, seed)


def real_sides(
    spec: str, n: int, seed: int, *, device: str = "auto", progress: bool = True
) -> tuple[Side, Side]:
    """n real clips, and up to n others for the floor; of the demo world those of the next seed."""
    if _is_drawn(spec):
        other = _reseeded(spec, 1) if "seed" in read_options(spec) else spec
        return open_side(spec, n, seed=seed), open_side(other, n, seed=seed + 1)
    side = open_side(spec, 2 * n, seed=seed, device=device, progress=progress)
    return replace(side, names=side.names[:n]), replace(side, names=side.names[n:])


def generations(spec: str, seed: int, seeds: int = 1) -> list[tuple[str, int]]:
    """The specs and seeds of independent generations, of a side that can be made anew if there are several.

    The demo world and samples of its captions are made with seed + 1, seed + 2, ...: captions that both
    sides share would bring them nearer to each other than real clips are to other real ones. The first has
    the captions of the other real clips of real_sides, so that floor and score see the same content.
    """
    if seeds < 1:
        raise CogVideoError(f"There cannot be {seeds} generations: give 1 or more seeds.")
    options = read_options(spec)
    if _is_drawn(spec) or _is_pipeline(spec):
        seed += 1
    elif seeds > 1 and "weights" not in options:
        raise CogVideoError(f"{spec} cannot be generated anew: give weights or theatre:..., or one seed.")
    if seeds > 1 and "seed" in options:  # overrides ours
        return [(_reseeded(spec, i), seed + i) for i in range(seeds)]
    return [(spec, seed + i) for i in range(seeds)]


def weights_of(spec: str) -> str | None:
    """The hash of the weights that a side is sampled from (registry.weights_hash); None for other sides."""
    weights = spec if _is_pipeline(spec) else read_options(spec).get("weights")
    return weights and weights_hash(weights_folder(weights))


def _is_drawn(spec: str) -> bool:
    return spec.partition(":")[0] in WORLDS


def _is_pipeline(spec: str) -> bool:
    return (weights_folder(spec) / PIPELINE).exists()


def _reseeded(spec: str, step: int) -> str:
    place, options = spec.partition("?")[0], read_options(spec)
    if not options["seed"].isdigit():
        raise CogVideoError(f"{options['seed']!r} in {spec} is no number: correct it.")
    return f"{place}?{urlencode(options | {'seed': int(options['seed']) + step}, quote_via=quote)}"
