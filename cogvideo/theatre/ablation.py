"""The paper's ablations in the theatre: other ways to train, and other ways to make a clip.

Paper section 5.3 and table 3: CogVideo against generation in one stage, a fixed frame rate, an image model
without a second channel, and training from nothing. All variants see as many tokens in training, begin their
clips with the same first frames, and make clips as long as their actions, at the same frame rate; what tells
them apart stands in variants.py. No variant is given the action's phase as the recipe's stage 1 is
(conditioning.py): no frame number says what a piece or a window shows of its action, so not all could be
given it. Positions of later frames begin as copies of frame 0's.
"""

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from cogvideo.config import to_dict
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.features import features_of
from cogvideo.evaluation.fvd_score import FVDResult, fvd, versions
from cogvideo.evaluation.i3d import I3D
from cogvideo.evaluation.recipes import find_recipe
from cogvideo.evaluation.sides import Side
from cogvideo.model.masks import trained_frames
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre.batches import FRAMES, TheatreBatches
from cogvideo.theatre.dataset import pixels
from cogvideo.theatre.inheritance import frame_losses, image_model_of
from cogvideo.theatre.judge import Judge
from cogvideo.theatre.questions import Questions, draw_questions
from cogvideo.theatre.recipe import share_frame_vectors
from cogvideo.theatre.scene_tokens import SceneTokens
from cogvideo.theatre.scenes import DURATIONS, FPS
from cogvideo.theatre.scores import score_key_frames, score_whole_clips
from cogvideo.theatre.variants import FRAMES_AT_ONCE, Request, find_variant, in_parts
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.training.checkpoints import fingerprint
from cogvideo.training.loop import Job, fit, use_threads
from cogvideo.training.optimizer import OptimizerConfig

REAL_SEED = 1_000_000  # of the real clips that FVD compares with
FVD_SECONDS = 2.0  # FVD takes 16 frames: shorter clips rest in their last frame until then
AT_ONCE = 96  # prompts whose clips are made together
STAGE1_STEPS = 2 / 3  # of a variant with two stages, the part of its steps that its first stage gets
KEY_SCORES = ("order", "same", "actor", "object", "background")


def train_variant(
    name: str,
    base: Pipeline,
    folder: str | Path,
    *,
    steps: int,
    seed: int = 0,
    batch_size: int = 8,
    muon_lr: float | None = None,
    clips: int | None = None,
) -> tuple[Pipeline, dict[str, float]]:
    """Train a variant for `steps` in all -> a pipeline with its models, and test losses (nats) by stage.

    Of two stages, the first gets STAGE1_STEPS of the steps. base: a pipeline of the theatre, whose tokenizers
    and image model are used. muon_lr: of the linear weights, by default the variant's own; all others have a
    quarter of it. clips: how many different clips are shown (None: endless). Runs are kept under `folder` and
    resumed. Losses are on clips of the test split "seen", cut as those of training.
    """
    use_threads(None)
    variant = find_variant(name)
    if steps < 2:
        raise CogVideoError(
            f"steps is how long all models of a variant train and cannot be {steps}: give 2 or more."
        )
    image, rate = image_model_of(base.stage1), muon_lr or variant.muon_lr
    first = round(STAGE1_STEPS * steps) if len(variant.stages) > 1 else steps
    models, losses = {"stage1": base.stage1, "stage2": base.stage2}, {}
    for stage, shown in zip(models, variant.stages, strict=False):
        config = image.config.video(order="interpolation" if stage == "stage2" else "sequential")
        model, trained = variant.start(image, config, seed)
        share_frame_vectors(model)
        own_steps = first if stage == "stage1" else steps - first
        optimizer = OptimizerConfig(
            steps=own_steps, batch_size=batch_size, muon_lr=rate, lr=rate / 4, warmup=own_steps // 10
        )
        batches = TheatreBatches(
            shown, batch_size, text=base.text, frames=base.frames, seed=seed, clips=clips,
            scenes=_scenes(base.frames),
        )  # fmt: skip
        test = [batches(step, split="seen") for step in range(4)]
        settings = {"variant": name, "seed": seed, "clips": clips, "model": to_dict(config)}
        job = Job(
            model, trained, lambda step, model=model, batches=batches: model.loss(*batches(step).inputs),
            optimizer, Path(folder) / stage, settings | {"optimizer": to_dict(optimizer)},
            log_every=max(1, own_steps // 12), label=f"{name}, {stage}",
        )  # fmt: skip
        fit(job)
        models[stage] = model.eval()
        losses[stage] = float(frame_losses(model, test)[trained_frames(config)].mean())
    pipe = Pipeline(
        text=base.text, frames=base.frames, superres=base.superres, sampling=base.sampling,
        stage1=models["stage1"], stage2=models["stage2"],
    )  # fmt: skip
    return pipe, losses


@lru_cache(maxsize=1)
def _scenes(frames: FrameTokenizer) -> SceneTokens:
    return SceneTokens(frames)


def questions(n: int, seed: int = 0, group: str = "seen") -> Questions:
    """n prompts of a group of scenes.groups, balanced over actions and durations, about whole actions."""
    return draw_questions(n, seed, parts=False, group=group)


def image_model_digest(base: Pipeline) -> str:
    """A short hash that tells the image models of pipelines apart: the one that all variants begin from."""
    return fingerprint(image_model_of(base.stage1))


def make_clips(
    name: str,
    pipe: Pipeline,
    base: Pipeline,
    asked: Questions,
    *,
    whole: np.ndarray | None = None,
    from_truth: bool = False,
    progress: bool = False,
) -> list[np.ndarray]:
    """A clip for each question by a trained variant: uint8 [T,H,W,3] as long as its action, at FPS.

    base draws the first frames, the same for all variants. whole: bool, one a question; where it is false, a
    clip is only the frames that stage 1 makes, among them the five that `score_clips` looks at.
    from_truth: teacher forcing; the true frames stand before each that is drawn.
    """
    variant, clips = find_variant(name), [np.empty(0, np.uint8)] * len(asked)
    whole = np.ones(len(asked), bool) if whole is None else whole
    for rows in _rows_together(asked) if from_truth else in_parts(np.arange(len(asked)), AT_ONCE):
        some = asked[rows]
        prompts, seeds = some.prompts, some.seeds.tolist()
        truth = pipe.tokens(np.stack(real_clips(some))) if from_truth else None
        drawn = base.first_frame_tokens(prompts, seeds, progress=progress) if truth is None else truth[:, 0]
        request = Request(drawn, prompts, seeds, some.spans, whole[rows], truth)
        for row, tokens in zip(rows, variant.make(pipe, request), strict=True):
            clips[row] = pipe.pixels(tokens[None])[0]
    return clips


def real_clips(asked: Questions) -> list[np.ndarray]:
    """The clips themselves as the theatre draws them, like those of `make_clips`."""
    return [
        pixels(asked.clips[[i]], np.arange(round(span * FPS) + 1) / FPS) for i, span in enumerate(asked.spans)
    ]


def _rows_together(asked: Questions) -> list[np.ndarray]:
    """Questions of one length each, no more than fit into memory."""
    return [
        rows
        for span in np.unique(asked.spans)
        for rows in in_parts(np.flatnonzero(asked.spans == span), round(FRAMES_AT_ONCE / (span * FPS)))
    ]


def score_clips(clips: Sequence[np.ndarray], asked: Questions) -> dict[str, float]:
    """Parts (0..1) of clips whose five key moments are right: KEY_SCORES (scores.py).

    "order_1s" ... "order_8s" are of the actions that take so long.
    """
    keys = np.stack([clip[np.linspace(0, len(clip) - 1, FRAMES).round().astype(int)] for clip in clips])
    found = score_key_frames(keys, asked.clips, asked.spans)
    scores = {name: float(found[name].mean()) for name in KEY_SCORES}
    for duration in DURATIONS:
        rows = asked.clips.duration == duration
        if rows.any():
            scores[f"order_{duration:g}s"] = float(found["order"][rows].mean())
    return scores


def score_groups(clips: Sequence[np.ndarray], asked: Mapping[str, Questions]) -> dict[str, float]:
    """`score_clips` of the groups of scenes.groups, whose clips follow each other: {"order_unseen": ...}."""
    scores, begin = {}, 0
    for group, some in asked.items():
        suffix = "" if group == "seen" else f"_{group.replace('-', '_')}"
        found = score_clips(clips[begin : begin + len(some)], some)
        scores |= {f"{score}{suffix}": value for score, value in found.items()}
        begin += len(some)
    return scores


def whole_clips_right(clips: Sequence[np.ndarray], asked: Questions) -> float:
    """Part (0..1) of whole clips of which every frame is right."""
    return float(np.mean([right for _, right in _frames_right(clips, asked)]))


def right_by_time(clips: Sequence[np.ndarray], asked: Questions, parts: int = 8) -> np.ndarray:
    """Frames within one state of the truth [parts], as the action goes on: how clips drift with time."""
    curves = []
    for frames, _ in _frames_right(clips, asked):
        cut = np.array_split(frames[1:], parts)  # the first frame is given
        curves.append([part.mean() for part in cut])
    return np.mean(curves, 0)


def _frames_right(clips: Sequence[np.ndarray], asked: Questions) -> list[tuple[np.ndarray, bool]]:
    """Which frames of each clip are right [T], and whether the whole clip is."""
    judge, found = Judge(), [(np.empty(0), False)] * len(clips)
    for rows in _rows_together(asked):
        some, frames = asked[rows], np.stack([clips[row] for row in rows])
        scores = score_whole_clips(frames, some.clips, float(some.spans[0]), judge=judge)
        for i, row in enumerate(rows):
            found[row] = (scores["frames"][i], bool(scores["whole clip"][i]))
    return found


def frame_rate_control(pipe: Pipeline, n: int, seed: int = 0) -> float:
    """Part (0..1) of n key-frame clips, of 4, 2, 1 and 0.5 s, that show the part of the action that fits."""
    asked = draw_questions(n, seed, parts=True)
    shown = [
        pipe.key_frames(asked.prompts[some], asked.spans[some].tolist(), asked.seeds[some].tolist())
        for some in (slice(begin, begin + AT_ONCE) for begin in range(0, n, AT_ONCE))
    ]
    return float(score_key_frames(np.concatenate(shown), asked.clips, asked.spans)["part"].mean())


def fvd_of(
    clips: Sequence[np.ndarray], *, n_real: int, preset: str = "paper", progress: bool = True
) -> FVDResult:
    """FVD of clips [T,H,W,3] against n_real real ones, which are as long as their actions, too.

    Features of real clips are kept in the cache. Raises CogVideoError without I3D's weights.
    """
    recipe = find_recipe(preset)
    network = I3D.from_pretrained(batch_norm_eps=recipe.batch_norm_eps)
    real = real_clips(questions(n_real, REAL_SEED))
    sides, seconds = {}, {}
    for title, some in (("real", real), ("generated", clips)):
        begin = time.perf_counter()
        names = [str(i) for i in range(len(some))]
        side = Side(title, names, lambda i, some=some: _with_rest(some[int(i)]))
        sides[title] = features_of(side, recipe, network, title=title, progress=progress).values
        seconds[title] = time.perf_counter() - begin
    protocol = {
        "real": f"{n_real} clips of the theatre's test split, seed {REAL_SEED}",
        "generated": f"{len(clips)} clips as long as their actions; both rest until {FVD_SECONDS:g} s",
        "skipped": {"real": [], "generated": []},
        **versions(network),
        "seconds": seconds,
    }
    return fvd(sides["real"], sides["generated"], recipe=recipe, protocol=protocol)


def _with_rest(clip: np.ndarray) -> np.ndarray:
    """A clip, resting in its last frame until FVD_SECONDS."""
    missing = max(0, round(FVD_SECONDS * FPS) + 1 - len(clip))
    return np.concatenate([clip, np.repeat(clip[-1:], missing, 0)])
