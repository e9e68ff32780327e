"""The two sides of a comparison: a folder of videos, the demo world, UCF-101, Kinetics-600, or weights to sample from."""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
from einops import rearrange

from cogvideo.data.classes import VIDEOS, class_videos, videos_below
from cogvideo.data.sources import number, parse_spec, read_captions, world
from cogvideo.errors import CogVideoError, first_sentence

ARRAYS = (".npy", ".npz")  # frames without a codec, whose traces a score of videos feels
OPTIONS = {
    "digits": {"seed", "seconds"},
    "ucf101": {"split"},
    "kinetics": {"split"},
    "ucf101-samples": {"split", "weights", "seconds", "prompts"},
    "kinetics-predictions": {"split", "weights", "seconds", "prompts", "overlap"},
}
AT_ONCE = 8  # prompts that are sampled together, and what a killed run loses at most


@dataclass(frozen=True)
class Side:
    """Videos that are read one at a time. read(name) -> uint8 [T,H,W,3]; CogVideoError where one cannot be read.

    prompts: by name, of videos whose prompt is known. make(): sample what is to be sampled and is not there yet; what goes
    wrong in it is no fault of a single video. Reading begins with it if nobody has asked for it before.
    """

    label: str
    names: list[str]
    read: Callable[[str], np.ndarray]
    prompts: dict[str, str] = field(default_factory=dict)
    make: Callable[[], None] = lambda: None


def open_side(spec: str, n: int, *, seed: int = 0, device: str = "auto", progress: bool = True) -> Side:
    """At most n videos of what `spec` names, chosen by seed. Nothing is sampled yet: see Side.

    A folder: its videos, and those in folders below it; with captions.jsonl it knows their prompts. Frames may be stored as
    uint8 [T,H,W,3] in .npy, or in .npz with one array or one called frames.
    digits:test or digits:train, with options as in digits:test?seed=1&seconds=4: real clips of the demo world, 64 pixels.
    ucf101:FOLDER?split=trainlist01.txt: class folders and a split file of the data set.
    kinetics:FOLDER?split=validate.csv: class folders (or one folder) and a split file with youtube_id, time_start, time_end.
    demo or a folder of weights: samples of captions of the demo world, kept so that a stopped run goes on; 64 pixels.
    ucf101-samples:FOLDER?weights=W and kinetics-predictions:FOLDER?weights=W: see protocols.py.
    Raises CogVideoError for a spec that names nothing, unknown options, seconds that weights were not trained for, a negative
    seed and folders without videos.
    """
    if seed < 0:
        raise CogVideoError(f"The seed cannot be {seed}: give 0 or more.")
    if named := parse_spec(spec, OPTIONS):
        kind, place, options = named
        known = OPTIONS[kind]
        if kind == "digits":
            own_seed, seconds = (
                number(options.get("seed", seed), spec),
                number(options.get("seconds", 4), spec),
            )
            return digits(place, n, int(own_seed), seconds)
        if "weights" in known:
            from cogvideo.evaluation.protocols import kinetics_predictions, ucf101_samples

            if "weights" not in options:
                raise CogVideoError(
                    f"{spec} does not tell the weights: add ?weights=demo or those of a folder."
                )
            seconds, overlap = (
                number(options[k], spec) if k in options else None for k in ("seconds", "overlap")
            )
            common = {"split": options.get("split"), "prompts": options.get("prompts"), "device": device}
            if kind == "ucf101-samples":
                return ucf101_samples(
                    Path(place), n, seed, options["weights"], seconds=seconds, progress=progress, **common
                )
            return kinetics_predictions(
                Path(place), n, seed, options["weights"], seconds=seconds, overlap=None if overlap is None else int(overlap),
                progress=progress, **common,
            )  # fmt: skip
        return dataset(kind, Path(place), options.get("split"), n, seed)
    folder = Path(spec)
    if spec == "demo" or (folder / "pipeline.json").exists():
        return samples(spec, n, seed, device=device, progress=progress)
    if not folder.is_dir():
        raise CogVideoError(
            f"{spec} is no folder, no data set and no weights: see `cogvideo evaluate fvd --help`."
        )
    from cogvideo.checkpoints.released import is_released

    if is_released(folder):
        raise CogVideoError(
            f"{spec} holds the release's weights, for which no prompts are told: make a folder of clips with `cogvideo generate "
            f"--prompts`, or give ucf101-samples:UCF-101?weights={spec}."
        )
    side = _of_files(spec, videos_below(folder, VIDEOS + ARRAYS), n, seed)
    return replace(side, prompts=_captions(folder))


def digits(split: str, n: int, seed: int, seconds: float) -> Side:
    """n real clips of the demo world, 8 frames a second at 64 pixels; clip i depends on seed and i alone."""
    drawn = world("digits")
    if not 0 < seconds <= 60:
        raise CogVideoError(f"Clips cannot last {seconds:g} seconds: choose more than 0 and at most 60.")
    times = np.arange(round(seconds * drawn.FPS) + 1)[None] / drawn.FPS

    def read(name: str) -> np.ndarray:
        frames = drawn.render(drawn.digits_clip(split, seed, int(name)), times)[0]
        return rearrange((frames * 255).round().byte(), "t c h w -> t h w c").numpy()

    drawn.digits_clip(split, seed, 0)  # refuses an unknown split now
    prompts = {str(i): drawn.digits_clip(split, seed, i).caption(0) for i in range(n)}
    return Side(f"digits:{split}?seed={seed}&seconds={seconds:g}", list(prompts), read, prompts)


def samples(
    weights: str, n: int, seed: int, *, seconds: float = 4.0, device: str = "auto", progress: bool = True
) -> Side:
    """n samples of captions of the demo world (test split, English); those of an earlier run are kept."""
    check_seconds(weights, seconds)
    prompts = [world("digits").digits_clip("test", seed, i).caption(0) for i in range(n)]
    names = [f"{i:06d}.npz" for i in range(n)]
    make = sampler(weights, prompts, seed, seconds, device)
    make, read = keep(samples_folder(weights, f"{seconds:g}s-seed{seed}"), names, make, progress=progress)
    return Side(
        f"{weights}?seed={seed}&seconds={seconds:g}",
        names,
        read,
        dict(zip(names, prompts, strict=True)),
        make,
    )


def weights_place(weights: str) -> Path:
    """The folder of these weights; raises CogVideoError if there are none."""
    from cogvideo.checkpoints.released import is_released
    from cogvideo.checkpoints.registry import DEMO

    source = DEMO if weights == "demo" else Path(weights)
    if not source.is_dir() or not ((source / "pipeline.json").is_file() or is_released(source)):
        raise CogVideoError(
            f"There are no weights at {source}: give demo or a folder with pipeline.json in it."
        )
    return source


def check_seconds(weights: str, seconds: float) -> None:
    """Raises CogVideoError for seconds that weights were not trained for, before anything is loaded."""
    from cogvideo.checkpoints.pipeline_folder import read_sampling
    from cogvideo.checkpoints.released import SAMPLING, is_released

    place = weights_place(weights)
    (SAMPLING if is_released(place) else read_sampling(place)).check_span(seconds)


def samples_folder(weights: str, settings: str) -> Path:
    """Where samples of these weights with these settings are kept."""
    from cogvideo.checkpoints.registry import cache_dir
    from cogvideo.sampling.batches import identity

    return cache_dir() / "samples" / f"{identity(weights_place(weights))}-{settings}"


def sampler(weights: str, prompts: list[str], seed: int, seconds: float, device: str):
    """make(numbers) for `keep`: clips of these prompts, small. The weights are loaded when the first are asked for."""
    pipeline = lazy_pipeline(weights, device)

    def make(some: list[int]) -> list[np.ndarray | None]:
        seeds = [1_000_003 * seed + i for i in some]
        texts = [prompts[i] for i in some]
        videos = pipeline()(texts, seconds=seconds, seed=seeds, enlarge=False, progress=False)
        assert isinstance(videos, list)  # one for each prompt
        return [video.frames for video in videos]

    return make


def lazy_pipeline(weights: str, device: str):
    """A function that loads the pipeline when it is first called."""

    @cache
    def load():
        from cogvideo.sampling.pipeline import Pipeline

        return Pipeline.from_pretrained(weights, device=device)

    return load


def keep(
    folder: Path,
    names: list[str],
    make: Callable[[list[int]], list[np.ndarray | None]],
    *,
    title: str = "sampling",
    progress: bool = True,
) -> tuple[Callable[[], None], Callable[[str], np.ndarray]]:
    """Clips in the files folder/name: make(numbers) is asked for those not there, AT_ONCE at a time.

    Returns `make` and `read` of a Side; read(name) raises OSError where make(numbers) gave None.
    """

    @cache
    def make_missing() -> None:
        missing = [i for i, name in enumerate(names) if not (folder / name).exists()]
        if not missing:
            return
        from tqdm import tqdm

        folder.mkdir(parents=True, exist_ok=True)
        with tqdm(
            total=len(names), initial=len(names) - len(missing), desc=title, unit="clip", disable=not progress
        ) as bar:
            for some in (missing[at : at + AT_ONCE] for at in range(0, len(missing), AT_ONCE)):
                for i, frames in zip(some, make(some), strict=True):
                    if frames is not None:
                        part = folder / f"{names[i]}.{os.getpid()}.part"
                        with part.open("wb") as file:
                            np.savez_compressed(file, frames=frames)  # exact: a codec would be scored, too
                        os.replace(part, folder / names[i])
                bar.update(len(some))

    def read(name: str) -> np.ndarray:
        make_missing()
        with np.load(folder / name, allow_pickle=False) as stored:
            return stored["frames"]

    return make_missing, read


def dataset(kind: str, folder: Path, split: str | None, n: int, seed: int) -> Side:
    """Videos of UCF-101 or Kinetics-600 in the data sets' own layout, those of a split file if one is given.

    split: a path, or the name of a file in `folder` or in its folder ucfTrainTestlist.
    """
    label = f"{kind}:{folder}" + (f"?split={split}" if split else "")
    return _of_files(label, class_videos(kind, folder, split), n, seed)


def _of_files(label: str, paths: list[Path], n: int, seed: int) -> Side:
    if not paths:
        raise CogVideoError(f"{label} holds no videos ({' '.join(VIDEOS)}): give a folder that does.")
    order = np.random.default_rng(seed).permutation(len(paths))[:n]
    return Side(label, [str(paths[i]) for i in order], _read_file)


def _read_file(name: str) -> np.ndarray:
    """The frames in a video file, or the array in an .npy or .npz file, whatever it is."""
    from cogvideo.data.video import read_video

    if Path(name).suffix.lower() not in ARRAYS:
        return read_video(name)[0]
    try:
        stored = np.load(name, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return stored
        with stored:
            return stored["frames" if "frames" in stored.files or len(stored.files) != 1 else stored.files[0]]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CogVideoError(
            f"{name} cannot be read as frames ({first_sentence(error)}): write it again."
        ) from None


def _captions(folder: Path) -> dict[str, str]:
    """The English captions in a folder's captions.jsonl by the paths of the files, if there is one."""
    file = folder / "captions.jsonl"
    return (
        {str(folder / row["path"]): row["caption"] for row in read_captions(file)} if file.is_file() else {}
    )
