"""The paper's ablations at the scale of the demo world: other ways to train and to sample.

Paper section 5.3 and table 3: CogVideo against generation in one stage (the next frames after the last one or
two), against a fixed frame rate, against an image model without the dual channel, and against training from
nothing. All variants train on as many clips in all, draw the first frame with the same image model, and make
clips of the same length and frame rate. Where they inherit it, positions of later frames begin as copies of
frame 0's: none is conditioned on its moment, as the recipe's stage 1 is (theatre/moments.py).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from cogvideo.checkpoints.native import inherit_image_model
from cogvideo.config import ModelConfig, to_dict
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.features import features_of
from cogvideo.evaluation.fvd import FVDResult, fvd, versions
from cogvideo.evaluation.i3d import I3D
from cogvideo.evaluation.recipes import find_recipe
from cogvideo.evaluation.sources import Side
from cogvideo.model.masks import trained_frames
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.sampling import TopKStrategy, generate_key_frames
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre.alignment import Questions, draw_questions, score_key_frames
from cogvideo.theatre.batches import FIXED_SPAN, FRAMES, DigitsBatches
from cogvideo.theatre.digits import World
from cogvideo.theatre.inheritance import MUTED, frame_losses, image_model_of
from cogvideo.theatre.recipe import share_frame_vectors
from cogvideo.training.loop import Job, fit
from cogvideo.training.optimizer import OptimizerConfig

SECONDS = FIXED_SPAN  # of every clip that is made; at the fixed rate five frames span just this
REAL_SEED = 1_000_000  # of the real clips that FVD compares with: other looks than those asked for
AT_ONCE = 64  # prompts that are sampled together


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    title: str
    shown: str = "sequential"  # what the first model trains on (batches.clip_times)
    overlap: int = 0  # frames so far that the next ones are made from; 0: key frames, then frames between
    start: str = "inherited"  # the image model, frozen; "one channel": the same, all of it trained; "nothing"


VARIANTS = {
    "cogvideo": Variant("CogVideo: hierarchical, several frame rates, image model frozen, two channels"),
    "overlap-1": Variant("one stage, from the last frame", shown="one stage", overlap=1),
    "overlap-2": Variant("one stage, from the last two frames", shown="one stage", overlap=2),
    "fixed-rate": Variant("hierarchical, one fixed frame rate", shown="fixed rate"),
    "one-channel": Variant(
        "hierarchical, image model without the dual channel, all of it trained", start="one channel"
    ),
    "from-nothing": Variant("hierarchical, from random weights", start="nothing"),
}


def find_variant(name: str) -> Variant:
    """The variant of a name; raises CogVideoError that lists the names."""
    if name not in VARIANTS:
        raise CogVideoError(f"There is no variant {name!r}: choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]


def start_model(
    variant: Variant, image: CogVideoTransformer, config: ModelConfig, seed: int
) -> tuple[CogVideoTransformer, list[nn.Parameter]]:
    """The model before training, and the weights that training moves.

    "one channel": all frames attend to all frames through what was the image model's channel (here the
    temporal one, begun as a full copy, with a gate that mutes the other); text is read as before.
    """
    if variant.start == "nothing":
        model = CogVideoTransformer(config).initialize(seed)
        return model, list(model.parameters())
    model = inherit_image_model(image, config=config, seed=seed)
    if variant.start == "inherited":
        return model, list(model.temporal_parameters().values())
    with torch.no_grad():
        for block in model.blocks:
            block.temporal.load_state_dict(block.spatial.state_dict())  # type: ignore[union-attr]
            block.gate.fill_(-MUTED)  # type: ignore[union-attr]
    return model, [weight for name, weight in model.named_parameters() if not name.endswith(".gate")]


def train_variant(
    name: str,
    base: Pipeline,
    folder: str | Path,
    *,
    steps: int,
    seed: int = 0,
    batch_size: int = 8,
    muon_lr: float = 1e-2,
    lr: float = 2e-3,
    clips: int | None = None,
    world: World = World(),
) -> tuple[Pipeline, dict[str, float]]:
    """Train a variant for `steps` in all -> a pipeline with its models, and test losses (nats a token) by stage.

    Two stages get half of the steps each. base: a pipeline of the demo world, whose tokenizers and image
    model are used. muon_lr, lr: of the linear weights, and of all others. clips: how many different clips are
    shown (None: endless). Runs are kept under `folder` and resumed.
    """
    variant = find_variant(name)
    if steps < 2:
        raise CogVideoError(
            f"steps is how long all models of a variant train and cannot be {steps}: give 2 or more."
        )
    image = image_model_of(base.stage1)
    stages = (
        {"stage1": variant.shown} if variant.overlap else {"stage1": variant.shown, "stage2": "interpolation"}
    )
    models, losses = {"stage1": base.stage1, "stage2": base.stage2}, {}
    for stage, shown in stages.items():
        config = image.config.video(order="interpolation" if stage == "stage2" else "sequential")
        model, trained = start_model(variant, image, config, seed)
        share_frame_vectors(model)
        own_steps = steps // len(stages)
        optimizer = OptimizerConfig(
            steps=own_steps, batch_size=batch_size, muon_lr=muon_lr, lr=lr, warmup=min(100, own_steps // 10)
        )
        batches = DigitsBatches(
            shown, batch_size, text=base.text, frames=base.frames, world=world, seed=seed, clips=clips
        )
        test = [batches(step, split="test") for step in range(4)]
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
        text=base.text, frames=base.frames, superres=base.superres, sampling=base.sampling, **models
    )
    return pipe, losses


def make_clips(
    name: str,
    pipe: Pipeline,
    base: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    progress: bool = False,
) -> np.ndarray:
    """Clips of SECONDS by a trained variant -> uint8 [n,T,H,W,3] at the pipeline's frame rate, first frame included.

    base draws the first frames, the same for all variants.
    """
    variant, clips = find_variant(name), []
    for begin in range(0, len(prompts), AT_ONCE):
        texts, own = list(prompts[begin : begin + AT_ONCE]), list(seeds[begin : begin + AT_ONCE])
        first = base.first_frame_tokens(texts, own, progress=progress)
        if variant.overlap:
            tokens = _one_stage(variant.overlap, pipe, first, texts, own)
        else:
            tokens = pipe.later_key_frame_tokens(first, texts, SECONDS, own, progress=progress)
            tokens = pipe.fill(tokens, texts, SECONDS, own, progress=progress)
        clips.append(pipe.pixels(tokens))
    return np.concatenate(clips)


def _one_stage(
    overlap: int, pipe: Pipeline, first: torch.Tensor, prompts: list[str], seeds: list[int]
) -> torch.Tensor:
    """Window after window: five frames of which the first `overlap` are the last ones so far -> tokens [B,T,N]."""
    count, fps = round(SECONDS * pipe.sampling.fps) + 1, pipe.sampling.fps
    span = (FRAMES - 1) / fps
    ids, mask = pipe.text.left_pad([pipe.text.encode_prompt(prompt, span) for prompt in prompts])
    strategy = TopKStrategy(temperature=pipe.sampling.temperature, top_k=pipe.sampling.top_k)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    tokens = first[:, None]
    while tokens.shape[1] < count:
        given = tokens[:, -overlap:]
        made = generate_key_frames(
            pipe.stage1,
            ids,
            given,
            text_mask=mask,
            strategy=strategy,
            generator=generators,
            num_frames=FRAMES,
        )
        tokens = torch.cat([tokens, made[:, given.shape[1] :]], 1)
    return tokens[:, :count]


def questions(n: int, seed: int = 0) -> Questions:
    """n prompts of the test split, balanced over actions and durations, about clips of SECONDS."""
    asked = draw_questions(n, seed, parts=False)
    return replace(asked, spans=np.full(n, SECONDS))


def score_clips(clips: np.ndarray, asked: Questions) -> dict[str, float]:
    """Shares (0..1) that are right, read from five moments of every clip: see alignment.score_key_frames.

    "action" is asked only where a clip holds the whole of it; "part" (the share of the action that is shown)
    always.
    """
    five = clips[:, np.linspace(0, clips.shape[1] - 1, FRAMES).round().astype(int)]
    found = score_key_frames(five, asked.clips, asked.spans)
    whole = asked.clips.duration[:, 0] <= SECONDS
    return {name: float(found[name].mean()) for name in ("digit", "color", "same", "part")} | {
        "action": float(found["action"][whole].mean())
    }


def frame_rate_control(pipe: Pipeline, n: int, seed: int = 0) -> float:
    """Share (0..1) of n key-frame clips, under frame-rate texts of 4, 2, 1 and 0.5 s, that show the part which fits in."""
    asked = draw_questions(n, seed, parts=True)
    shown = [
        pipe.key_frames(asked.prompts[some], asked.spans[some].tolist(), asked.seeds[some].tolist())
        for some in (slice(begin, begin + AT_ONCE) for begin in range(0, n, AT_ONCE))
    ]
    return float(score_key_frames(np.concatenate(shown), asked.clips, asked.spans)["part"].mean())


def fvd_of(clips: np.ndarray, *, n_real: int, preset: str = "paper", progress: bool = True) -> FVDResult:
    """FVD of clips [n,T,H,W,3] against n_real real ones of the same length, whose prompts are balanced in the same way.

    Features of real clips are kept in the cache. Raises CogVideoError without I3D's weights.
    """
    recipe = find_recipe(preset)
    network = I3D.from_pretrained(batch_norm_eps=recipe.batch_norm_eps)
    real = (questions(n_real, REAL_SEED).real_frames(clips.shape[1]) * 255).round().byte().numpy()
    sides, seconds = {}, {}
    for title, some in (("real", real), ("generated", clips)):
        begin = time.perf_counter()
        side = Side(title, [str(i) for i in range(len(some))], lambda i, some=some: some[int(i)])
        sides[title] = features_of(side, recipe, network, title=title, progress=progress).values
        seconds[title] = time.perf_counter() - begin
    protocol = {
        "real": f"{n_real} clips of the demo world's test split, seed {REAL_SEED}",
        "generated": f"{len(clips)} clips of {SECONDS:g} s, {clips.shape[1]} frames",
        "skipped": {"real": [], "generated": []},
        **versions(network),
        "seconds": seconds,
    }
    return fvd(sides["real"], sides["generated"], recipe=recipe, protocol=protocol)
