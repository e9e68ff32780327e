"""The paper's two machine evaluations (section 5.1): UCF-101 by class and frame prediction on Kinetics-600.

What the paper leaves open is decided here and printed with every score: see ucf101_samples, predict_frames and
kinetics_predictions.
"""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import accumulate
from pathlib import Path
from urllib.parse import quote, urlencode

import numpy as np
import torch

from cogvideo.data.classes import class_of, class_prompts, kinetics_labels
from cogvideo.data.reading import fit
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.c3d import C3D
from cogvideo.evaluation.fvd import check_place, evaluate
from cogvideo.evaluation.recipes import KINETICS, check_frames, choose_clip
from cogvideo.evaluation.scores import SPLITS, check_splits, evaluate_inception_score, lines
from cogvideo.evaluation.sources import (
    Side,
    check_seconds,
    dataset,
    keep,
    lazy_pipeline,
    sampler,
    samples_folder,
    weights_place,
)
from cogvideo.io import write_json
from cogvideo.sampling.pipeline import Pipeline, Seeds

COMPRESS = 8  # pixels along a side of a frame token
GIVEN, PREDICTED = 5, 11  # frames of Kinetics-600 clips
ALL = "all"  # in place of a split file


def ucf101_samples(
    folder: Path,
    n: int,
    seed: int,
    weights: str,
    *,
    split: str | None = None,
    seconds: float | None = None,
    prompts: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Side:
    """n samples whose prompts are classes of UCF-101, drawn in proportion to the classes' videos in the split.

    Sample i has the class of one video of the split, drawn with replacement by seed and i alone, so that more samples may be
    asked for later. The prompt is the class in words ("ApplyEyeMakeup": "apply eye makeup") or what the file `prompts` says
    (see class_prompts). Clips last `seconds` (4 if not given) at the weights' own frame rate and size; they are kept, and a
    stopped run goes on. Raises CogVideoError for a missing folder, split, or prompt, and for videos outside of class folders.
    """
    seconds = 4.0 if seconds is None else seconds
    check_seconds(weights, seconds)
    counts = class_counts(folder, split)
    texts = class_prompts([name for name, _ in counts], prompts)
    sums = list(accumulate(count for _, count in counts))
    drawn = [int(np.random.default_rng([seed, i]).integers(sums[-1])) for i in range(n)]
    chosen = [texts[counts[bisect_right(sums, number)][0]] for number in drawn]
    # The text is in the name: files made for other prompts are not taken for these.
    files = [f"{i:06d}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.npz" for i, text in enumerate(chosen)]
    place = samples_folder(weights, f"ucf101-{seconds:g}s-seed{seed}")
    make, read = keep(place, files, sampler(weights, chosen, seed, seconds, device), progress=progress)
    return Side(f"ucf101-samples of {weights}", files, read, dict(zip(files, chosen, strict=True)), make)


def class_counts(folder: Path, split: str | None) -> list[tuple[str, int]]:
    """Classes of UCF-101 in the order of their names, and how many videos of the split each has."""
    parents = [Path(name).parent for name in dataset("ucf101", folder, split, 10**9, 0).names]
    if folder in parents:
        raise CogVideoError(
            f"{folder} has videos outside of class folders: put each into the folder of its class."
        )
    return sorted(Counter(parent.name for parent in parents).items())


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
    """Continue clips: uint8 [B,K,H,W,3] -> uint8 [B,K+frames,h,w,3] in the size of stage 1, the given frames unchanged.

    Stage 1 writes sequences of 5 frames, so clips are continued in windows that slide: the last `overlap` frames (tokens)
    are given as the first ones of a sequence, the frames after them are drawn, and so on. overlap: by default as many as fit,
    4, so that each window draws one frame and sees the four before it; 1 draws four at a time and sees one. No
    stage 2: neighbouring frames are key frames to the model. The paper does not tell how its model of 5 frames saw 5 and
    wrote 11. seconds: the frame-rate text, the span of 5 frames; by default the shortest that was trained. The same seed
    gives the same clip, whatever else is in the batch. Frames of another size are cropped at their centre to the model's
    shape and resized (bilinear, antialiased). Raises CogVideoError for an overlap that leaves no room or is not given.
    """
    c = pipe.stage1.config
    most = min(c.num_frames - 1, given.shape[1])
    overlap = most if overlap is None else overlap
    if not 1 <= overlap <= most:
        raise CogVideoError(
            f"Windows of {c.num_frames} frames can overlap by 1 to {most} frames, not by {overlap}."
        )
    seconds = min(pipe.sampling.spans) if seconds is None else seconds
    seeds = [seed] * len(given) if isinstance(seed, int) else list(seed)
    known = np.stack([fit(clip, c.frame_height * COMPRESS, c.frame_width * COMPRESS) for clip in given])
    tokens = pipe.tokens(known)
    windows = -(-frames // (c.num_frames - overlap))
    for window in range(windows):
        own = [
            1000 * one + window for one in seeds
        ]  # else every window would draw by the same random numbers
        made = pipe.later_key_frame_tokens(tokens[:, -overlap:], prompts, seconds, own)
        tokens = torch.cat([tokens, made[:, overlap:]], 1)
    drawn = pipe.pixels(tokens[:, given.shape[1] :][:, :frames])
    return np.concatenate([known, drawn], 1)


def kinetics_predictions(
    folder: Path,
    n: int,
    seed: int,
    weights: str,
    *,
    split: str | None = None,
    seconds: float | None = None,
    overlap: int | None = None,
    prompts: str | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Side:
    """Clips of 16 frames: 5 real ones and 11 that the weights predict (predict_frames), kept so that a stopped run goes on.

    The videos, and the place in each, are those that the side kinetics:FOLDER?split=.. gives with the same seed under the
    preset paper-kinetics. The prompt is the class: the name of the video's folder in words, or what the file `prompts` says
    of it, or the split's label where a video lies in FOLDER itself. Raises CogVideoError for videos that are too short or
    whose class is unknown.
    """
    if seconds is not None:
        check_seconds(weights, seconds)
    real = dataset("kinetics", folder, split, n, seed)
    labels = kinetics_labels(folder, split)
    classes = [class_of(Path(name), folder, labels) for name in real.names]
    texts = class_prompts(sorted(set(classes)), prompts)
    chosen = [texts[name] for name in classes]
    keys = zip(real.names, chosen, strict=True)
    files = [
        f"{i:06d}-{hashlib.sha256(repr(key).encode()).hexdigest()[:12]}.npz" for i, key in enumerate(keys)
    ]
    pipeline = lazy_pipeline(weights, device)

    def make(some: list[int]) -> list[np.ndarray | None]:
        clips: dict[int, np.ndarray] = {}
        for i in some:
            try:
                video = real.read(real.names[i])
            except CogVideoError:
                continue  # told when the file is asked for
            where = f"{real.label}, {real.names[i]}"
            clip = choose_clip(check_frames(video, where), KINETICS, np.random.default_rng([seed, i]), where)
            # Videos differ in size and are predicted together: to the size that predict_frames would give them.
            c = pipeline().stage1.config
            clips[i] = fit(clip[:GIVEN], c.frame_height * COMPRESS, c.frame_width * COMPRESS)
        if not clips:
            return [None] * len(some)
        made = predict_frames(
            pipeline(), np.stack(list(clips.values())), [chosen[i] for i in clips], frames=PREDICTED,
            seconds=seconds, seed=[1_000_003 * seed + i for i in clips],
            overlap=overlap,
        )  # fmt: skip
        done = dict(zip(clips, made, strict=True))
        return [done.get(i) for i in some]

    settings = f"kinetics-{'' if seconds is None else f'{seconds:g}s-'}{'' if overlap is None else f'{overlap:g}o-'}seed{seed}"
    make_all, kept = keep(
        samples_folder(weights, settings), files, make, title="predicting", progress=progress
    )
    originals = dict(zip(files, real.names, strict=True))

    def read(name: str) -> np.ndarray:
        try:
            return kept(name)
        except FileNotFoundError:
            real.read(originals[name])  # raises: why there is no prediction
            raise

    return Side(
        f"kinetics-predictions of {weights}", files, read, dict(zip(files, chosen, strict=True)), make_all
    )


def evaluate_ucf101(
    folder: str | Path,
    weights: str,
    *,
    n: int = 2048,
    split: str = "trainlist01.txt",
    seconds: float = 4.0,
    prompts: str | Path | None = None,
    seed: int = 0,
    c3d: str | Path | None = None,
    c3d_mean: str | Path | None = None,
    splits: int = SPLITS,
    i3d: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> dict:
    """Class-conditional UCF-101 (paper section 5.1): FVD with preset `paper`, and the Inception Score if C3D is given.

    split: a split file of the data set, or "all". Prints the cards and what was done, returns {"fvd", "inception_score",
    "protocol"} as written to `out`. Raises CogVideoError for what folder, weights and files have wrong, before sampling where
    it can be known.
    """
    if out:
        check_place(out)
    # All that can be known before hours of sampling.
    weights_place(weights)
    class_prompts([name for name, _ in class_counts(Path(folder), None if split == ALL else split)], prompts)
    network = None
    if c3d is not None:
        check_splits(n, splits)
        network = C3D.from_pretrained(c3d, mean=c3d_mean, device=device)
    generated = _spec(
        "ucf101-samples", folder, weights=weights, split=split, seconds=seconds, prompts=prompts
    )
    real = _spec("ucf101", folder, split=split)
    fvd = evaluate(real, generated, preset="paper", n=n, seed=seed, i3d=i3d, device=device, progress=progress)
    score = None
    if network is not None:
        score = evaluate_inception_score(
            generated, network, n=n, splits=splits, seed=seed, device=device, progress=progress
        )
    protocol = {
        "classes": f"drawn with replacement in proportion to the videos of the split {split}",
        "prompts": str(prompts) if prompts else "class names in words",
        "samples": f"{seconds:g} s at the weights' own frame rate, of which 16 frames in a row are scored; not enlarged",
        "published": "for weights fine-tuned on all of UCF-101 FVD 626 at first and 305 later, IS 50.46 at first and 51.11 later, "
        "with 2048 and 10000 samples",
    }
    return _finish(protocol, out, fvd=asdict(fvd), inception_score=asdict(score) if score else None)


def evaluate_kinetics(
    folder: str | Path,
    weights: str,
    *,
    n: int | None = None,
    split: str = ALL,
    seconds: float | None = None,
    overlap: int | None = None,
    prompts: str | Path | None = None,
    seed: int = 0,
    i3d: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> dict:
    """Frame prediction on Kinetics-600 (paper section 5.1): 5 frames given, 11 generated; FVD at 64 x 64 pixels.

    n: by default 50000, as published. split: a CSV file of the data set, or "all". overlap, seconds: see predict_frames.
    Prints the card and what was done, returns {"fvd", "protocol"} as written to `out`.
    """
    if out:
        check_place(out)
    weights_place(weights)
    options = {"split": split, "seconds": seconds, "overlap": overlap, "prompts": prompts}
    real = _spec("kinetics", folder, split=split)
    generated = _spec("kinetics-predictions", folder, weights=weights, **options)
    fvd = evaluate(
        real, generated, preset=KINETICS.name, n=n, seed=seed, i3d=i3d, device=device, progress=progress
    )
    protocol = {
        "prediction": f"{GIVEN} real frames, {PREDICTED} drawn by stage 1 in windows of its sequence length that slide: the last "
        f"{overlap or 'frames that fit, 4 of 5,'} known ones come first, the rest is drawn; no stage 2, not enlarged",
        "frames": "neighbouring frames of the video as they are, whatever its frame rate",
        "frame-rate text": "the shortest span trained" if seconds is None else f"{seconds:g} s",
        "prompts": str(prompts) if prompts else "class names in words",
        "published": "FVD 109.23 for weights fine-tuned on the training split, with 50000 samples",
    }
    return _finish(protocol, out, fvd=asdict(fvd))


def _spec(kind: str, folder: str | Path, **options: object) -> str:
    """What sources.open_side takes."""
    told = {
        name: value
        for name, value in options.items()
        if value is not None and (name, value) != ("split", ALL)
    }
    return f"{kind}:{folder}" + (f"?{urlencode(told, quote_via=quote)}" if told else "")


def _finish(protocol: dict, out: str | Path | None, **scores: dict | None) -> dict:
    print(lines(*protocol.items()))
    result = scores | {"protocol": protocol}
    if out:
        write_json(out, result)
    return result
