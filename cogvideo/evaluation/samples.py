"""Sides that weights sample: captions of the demo world, classes of UCF-101, next frames of Kinetics-600.

The last two follow section 5.1 of the paper; what it leaves open is decided here and printed with every
score.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cogvideo.checkpoints.pipeline_folder import read_sampling
from cogvideo.checkpoints.registry import PIPELINE, cache_dir, no_pipeline, weights_folder
from cogvideo.checkpoints.released import SAMPLING, is_released
from cogvideo.data.classes import class_of, class_prompts, kinetics_labels
from cogvideo.data.reading import fit
from cogvideo.data.sources import open_dataset
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.recipes import KINETICS, check_frames, choose_clip
from cogvideo.evaluation.sides import Side, dataset, drawn_prompts, sampled_side
from cogvideo.sampling.batches import identity
from cogvideo.sampling.pipeline import Pipeline, Seeds

COMPRESS = 8  # pixels along a side of a frame token
GIVEN, PREDICTED = 5, 11  # frames of Kinetics-600 clips


@dataclass(frozen=True)
class Request:
    """n clips of some weights. Clip i depends on seed and i alone.

    seconds, split, prompts (a file), overlap: as options of a side, see sources.open_side.
    """

    weights: str
    n: int
    seed: int = 0
    seconds: float | None = None
    split: str | None = None
    prompts: str | None = None
    overlap: int | None = None
    device: str = "auto"
    progress: bool = True

    @cached_property
    def pipeline(self) -> Pipeline:
        """Loaded when the first clips are asked for."""
        return Pipeline.from_pretrained(self.weights, device=self.device)

    def seeds(self, some: Sequence[int]) -> list[int]:
        return [1_000_003 * self.seed + i for i in some]

    def folder(self, settings: str) -> Path:
        """Where clips of these weights with these settings are kept."""
        return cache_dir() / "samples" / f"{identity(find_weights(self.weights))}-{settings}"


def find_weights(weights: str) -> Path:
    """The folder of these weights; CogVideoError if there are none."""
    source = weights_folder(weights)
    if not ((source / PIPELINE).is_file() or is_released(source)):
        raise no_pipeline(source)
    return source


def check_seconds(weights: str, seconds: float) -> None:
    """CogVideoError for seconds that the weights were not trained for, before anything is loaded."""
    folder = find_weights(weights)
    (SAMPLING if is_released(folder) else read_sampling(folder)).check_span(seconds)


def demo_samples(request: Request) -> Side:
    """Samples of captions of the demo world (test split, English), 4 seconds each."""
    seconds = 4.0
    check_seconds(request.weights, seconds)
    prompts = drawn_prompts("theatre", "test", request.n, request.seed)
    return sampled_side(
        f"{request.weights}?seed={request.seed}&seconds={seconds:g}",
        request.folder(f"{seconds:g}s-seed{request.seed}"),
        {f"{i:06d}.npz": prompt for i, prompt in enumerate(prompts)},
        sampler(request, prompts, seconds),
        progress=request.progress,
    )


def own_samples(data: str, request: Request) -> Side:
    """Samples of the captions of any data set (see data.sources.open_dataset), as many as are asked for.

    Caption i is drawn with replacement by seed and i alone. Clips last `seconds` (default 4) at the weights'
    own frame rate and size.
    """
    seconds = 4.0 if request.seconds is None else request.seconds
    check_seconds(request.weights, seconds)
    captions = [clip.caption for clip in open_dataset(data).clips if clip.caption.strip()]
    if not captions:
        raise CogVideoError(f"{data} has no captions to sample: give each clip one.")
    drawn = (np.random.default_rng([request.seed, i]).integers(len(captions)) for i in range(request.n))
    prompts = [captions[number] for number in drawn]
    return sampled_side(
        f"samples of {request.weights} for the captions of {data}",
        request.folder(f"own-{seconds:g}s-seed{request.seed}"),
        {_file(i, prompt): prompt for i, prompt in enumerate(prompts)},
        sampler(request, prompts, seconds),
        progress=request.progress,
    )


def sampler(
    request: Request, prompts: Sequence[str], seconds: float
) -> Callable[[list[int]], Sequence[np.ndarray | None]]:
    """make(numbers) for sampled_side: clips of these prompts, without super-resolution."""

    def make(some: list[int]) -> list[np.ndarray]:
        texts, seeds = [prompts[i] for i in some], request.seeds(some)
        videos = request.pipeline(texts, seconds=seconds, seed=seeds, enlarge=False, progress=False)
        return [video.frames for video in (videos if isinstance(videos, list) else [videos])]

    return make


def ucf101_samples(folder: Path, request: Request) -> Side:
    """Samples whose prompts are classes of UCF-101, drawn in proportion to the classes' videos in the split.

    Sample i has the class of one video of the split, drawn with replacement by seed and i alone, so that a
    larger n only adds samples. The prompt is the class in words ("ApplyEyeMakeup": "apply eye makeup") or
    what the file `prompts` says (data.classes.class_prompts). Clips last `seconds` (default 4) at the
    weights' own frame rate and size.
    """
    seconds = 4.0 if request.seconds is None else request.seconds
    check_seconds(request.weights, seconds)
    counts = class_counts(folder, request.split)
    texts = class_prompts([name for name, _ in counts], request.prompts)
    classes = [name for name, count in counts for _ in range(count)]  # of all videos
    drawn = (np.random.default_rng([request.seed, i]).integers(len(classes)) for i in range(request.n))
    prompts = [texts[classes[number]] for number in drawn]
    return sampled_side(
        f"ucf101-samples of {request.weights}",
        request.folder(f"ucf101-{seconds:g}s-seed{request.seed}"),
        {_file(i, prompt): prompt for i, prompt in enumerate(prompts)},
        sampler(request, prompts, seconds),
        progress=request.progress,
    )


def class_counts(folder: Path, split: str | None) -> list[tuple[str, int]]:
    """Classes of UCF-101 in the order of their names, and how many videos of the split each has."""
    parents = [Path(name).parent for name in dataset("ucf101", folder, split, 10**9, 0).names]
    if folder in parents:
        raise CogVideoError(f"{folder} has videos outside of class folders: put each into its class.")
    return sorted(Counter(parent.name for parent in parents).items())


def _file(number: int, key: str) -> str:
    """What a clip was made from is part of its name, so a clip of another prompt is not taken for it."""
    return f"{number:06d}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"


def predict_frames(
    pipe: Pipeline,
    given: np.ndarray,
    prompts: Sequence[str],
    *,
    frames: int = PREDICTED,
    seconds: float | None = None,
    seed: Seeds = 0,
    overlap: int | None = None,
) -> np.ndarray:
    """Continue clips: uint8 [B,K,H,W,3] -> [B,K+frames,h,w,3] in the size of stage 1, those given unchanged.

    Stage 1 writes sequences of 5 frames, so the window slides: the last `overlap` frames (tokens) begin a
    sequence, the frames after them are drawn, and so on. The default overlap is the largest, 4: each window
    draws one frame and sees the four before it; 1 draws four at a time and sees one. Stage 2 is not used:
    neighbouring frames are key frames to the model. (The paper does not say how its model of 5 frames saw 5
    and wrote 11.) seconds: the frame-rate text, the span of 5 frames; by default the shortest that was
    trained. The same seed gives the same clip, whatever else is in the batch. Frames of another size are
    cropped at the centre to the model's shape and resized (bilinear, antialiased).
    """
    c = pipe.stage1.config
    most = min(c.num_frames - 1, given.shape[1])
    overlap = most if overlap is None else overlap
    if not 1 <= overlap <= most:
        raise CogVideoError(f"Windows of {c.num_frames} frames can overlap by 1 to {most}, not by {overlap}.")
    seconds = min(pipe.sampling.spans) if seconds is None else seconds
    seeds = [seed] * len(given) if isinstance(seed, int) else list(seed)
    known = np.stack([_to_size(clip, pipe) for clip in given])
    tokens = pipe.tokens(known)
    for window in range(-(-frames // (c.num_frames - overlap))):
        own = [1000 * one + window for one in seeds]  # with one seed all windows would draw the same numbers
        made = pipe.later_key_frame_tokens(tokens[:, -overlap:], prompts, seconds, own)
        tokens = torch.cat([tokens, made[:, overlap:]], 1)
    drawn = pipe.pixels(tokens[:, given.shape[1] :][:, :frames])
    return np.concatenate([known, drawn], 1)


def _to_size(clip: np.ndarray, pipe: Pipeline) -> np.ndarray:
    c = pipe.stage1.config
    return fit(clip, c.frame_height * COMPRESS, c.frame_width * COMPRESS)


def kinetics_predictions(folder: Path, request: Request) -> Side:
    """Clips of 16 frames: 5 real ones and 11 that the weights predict (predict_frames).

    The videos, and the frames of each, are those that the side kinetics:FOLDER?split=.. gives with the same
    seed under the preset paper-kinetics. The prompt is the class: the name of the video's folder in words, or
    what the file `prompts` says of it, or the split's label where a video lies in FOLDER itself.
    """
    if request.seconds is not None:
        check_seconds(request.weights, request.seconds)
    real = dataset("kinetics", folder, request.split, request.n, request.seed)
    labels = kinetics_labels(folder, request.split)
    classes = [class_of(Path(name), folder, labels) for name in real.names]
    texts = class_prompts(sorted(set(classes)), request.prompts)
    prompts = [texts[name] for name in classes]
    files = [_file(i, repr(key)) for i, key in enumerate(zip(real.names, prompts, strict=True))]
    options = [(request.seconds, "s-"), (request.overlap, "o-")]
    settings = "".join("" if value is None else f"{value:g}{unit}" for value, unit in options)
    kept = sampled_side(
        f"kinetics-predictions of {request.weights}",
        request.folder(f"kinetics-{settings}seed{request.seed}"),
        dict(zip(files, prompts, strict=True)),
        _predictor(request, real, prompts),
        title="predicting",
        progress=request.progress,
    )
    originals = dict(zip(files, real.names, strict=True))

    def read(name: str) -> np.ndarray:
        try:
            return kept.read(name)
        except FileNotFoundError:
            real.read(originals[name])  # raises: why there is no prediction
            raise

    return Side(kept.label, kept.names, read, kept.prompts, kept.make)


def _predictor(
    request: Request, real: Side, prompts: Sequence[str]
) -> Callable[[list[int]], Sequence[np.ndarray | None]]:
    """make(numbers) for sampled_side: the first frames of real videos continued; None if unreadable."""

    def make(some: list[int]) -> list[np.ndarray | None]:
        clips: dict[int, np.ndarray] = {}
        for i in some:
            try:
                video = real.read(real.names[i])
            except CogVideoError:
                continue  # raised again when the prediction is read
            where = f"{real.label}, {real.names[i]}"
            rng = np.random.default_rng([request.seed, i])
            clip = choose_clip(check_frames(video, where), KINETICS, rng, where)
            clips[i] = _to_size(
                clip[:GIVEN], request.pipeline
            )  # videos differ in size and are predicted together
        if not clips:
            return [None] * len(some)
        made = predict_frames(
            request.pipeline, np.stack(list(clips.values())), [prompts[i] for i in clips],
            seconds=request.seconds, seed=request.seeds(list(clips)), overlap=request.overlap,
        )  # fmt: skip
        done = dict(zip(clips, made, strict=True))
        return [done.get(i) for i in some]

    return make
