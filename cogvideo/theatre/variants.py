"""The variants of the ablation, each told from CogVideo by one function.

How a model begins: `frozen`, `unfrozen`, `one_channel`, `from_nothing`. How a clip is made: `hierarchical`,
`pieces`, `one_stage`. Sections are those of the paper; its table 3 compares them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cogvideo.checkpoints.native import inherit_image_model
from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.sampling import TopKStrategy, generate_key_frames
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre.batches import FIXED_SPAN, FRAMES
from cogvideo.theatre.inheritance import MUTED
from cogvideo.theatre.scenes import FPS

Start = Callable[[CogVideoTransformer, ModelConfig, int], tuple[CogVideoTransformer, list[nn.Parameter]]]


@dataclass(frozen=True)
class Request:
    """What clips are asked for: B first frames [B,N], as many prompts and seeds, and one length in seconds.

    truth: true tokens [B,T,N]; where they are given, every frame is drawn after true frames, not drawn ones.
    """

    first: Tensor
    prompts: list[str]
    seeds: list[int]
    seconds: float
    truth: Tensor | None = None

    @property
    def frames(self) -> int:
        return round(self.seconds * FPS) + 1


Make = Callable[[Pipeline, Request], Tensor]  # -> tokens [B,T,N]


# How a model begins: the model before training, and the weights that training moves.


def frozen(image: CogVideoTransformer, config: ModelConfig, seed: int):
    """The image model as it is beside a second, temporal channel, which is trained (section 3.2)."""
    model = inherit_image_model(image, config=config, seed=seed)
    return model, list(model.temporal_parameters().values())


def unfrozen(image: CogVideoTransformer, config: ModelConfig, seed: int):
    """Both channels, and all weights are trained (not in the paper: is it the channel, or the freezing?)."""
    model = inherit_image_model(image, config=config, seed=seed)
    return model, list(model.parameters())


def one_channel(image: CogVideoTransformer, config: ModelConfig, seed: int):
    """The image model tuned whole, without a second channel (section 5.3, "w/o dual-channel attention").

    All frames attend to all frames through what was the image model's channel: here the temporal one, which
    begins as a full copy, with a gate that mutes the other; text is read as before.
    """
    model = inherit_image_model(image, config=config, seed=seed)
    with torch.no_grad():
        for block in model.blocks:
            block.temporal.load_state_dict(block.spatial.state_dict())  # type: ignore[union-attr]
            block.gate.fill_(-MUTED)  # type: ignore[union-attr]
    return model, [weight for name, weight in model.named_parameters() if not name.endswith(".gate")]


def from_nothing(image: CogVideoTransformer, config: ModelConfig, seed: int):
    """Random weights (section 5.3, "random initialization")."""
    model = CogVideoTransformer(config).initialize(seed)
    return model, list(model.parameters())


# How a clip is made.


def hierarchical(pipe: Pipeline, asked: Request) -> Tensor:
    """Five key frames that span the action, then frames between (section 3.1)."""
    return _hierarchy(pipe, asked, asked.first, asked.seconds, asked.seeds, asked.truth)


def pieces(pipe: Pipeline, asked: Request) -> Tensor:
    """The same with one frame rate: pieces of FIXED_SPAN, each from the last frame of the one before, until
    the action is over (section 5.3, "w/o multi-frame-rate training").
    """
    tokens, step = asked.first[:, None], round(FIXED_SPAN * FPS)
    for number in range(round(asked.seconds / FIXED_SPAN)):
        truth, first = None, tokens[:, -1]
        if asked.truth is not None:
            truth = asked.truth[:, number * step : (number + 1) * step + 1]
            first = truth[:, 0]
        seeds = [1000 * seed + number for seed in asked.seeds]  # other random numbers in every piece
        made = _hierarchy(pipe, asked, first, FIXED_SPAN, seeds, truth)
        tokens = torch.cat([tokens, made[:, 1:]], 1)
    return tokens


def one_stage(pipe: Pipeline, asked: Request, overlap: int) -> Tensor:
    """Window after window of five neighbouring frames, of which the first `overlap` are the last so far
    (section 5.3, "1-stage generation").
    """
    span = (FRAMES - 1) / FPS
    ids, mask = pipe.text.left_pad([pipe.text.encode_prompt(prompt, span) for prompt in asked.prompts])
    strategy = TopKStrategy(temperature=pipe.sampling.temperature, top_k=pipe.sampling.top_k)
    generators = [torch.Generator().manual_seed(seed) for seed in asked.seeds]
    tokens = asked.first[:, None]
    while tokens.shape[1] < asked.frames:
        known = tokens if asked.truth is None else asked.truth[:, : tokens.shape[1]]
        given = known[:, -overlap:]
        made = generate_key_frames(
            pipe.stage1, ids, given, text_mask=mask, strategy=strategy, generator=generators,
            num_frames=FRAMES,
        )  # fmt: skip
        tokens = torch.cat([tokens, made[:, given.shape[1] :]], 1)
    return tokens[:, : asked.frames]


def _hierarchy(
    pipe: Pipeline, asked: Request, first: Tensor, seconds: float, seeds: list[int], truth: Tensor | None
) -> Tensor:
    """Key frames that span `seconds`, and the frames between them at the pipeline's frame rate."""
    if truth is None:
        keys = pipe.later_key_frame_tokens(first, asked.prompts, seconds, seeds)
        return pipe.interpolate(keys, asked.prompts, seconds, seeds)
    stride = (truth.shape[1] - 1) // (FRAMES - 1)
    made = truth.clone()
    for number in range(1, FRAMES):
        given = truth[:, : number * stride : stride]
        keys = pipe.later_key_frame_tokens(given, asked.prompts, seconds, seeds)
        made[:, number * stride] = keys[:, number]
    for round_ in range(1, pipe.rounds(FRAMES, seconds) + 1):
        between = pipe.interpolate_once(truth[:, ::stride], asked.prompts, seconds, round_, seeds)[:, 1::2]
        made[:, stride // 2 :: stride] = between
        stride //= 2
    return made


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    title: str
    paper: str  # the section that describes it
    start: Start = frozen
    make: Make = hierarchical
    # What the models are trained on (batches.clip_times); the second makes the frames between.
    stages: tuple[str, ...] = ("sequential", "interpolation")


WINDOWS = ("one stage",)
VARIANTS = {
    "cogvideo": Variant(
        "CogVideo: hierarchical, several frame rates, image model frozen, second channel", "3.1, 3.2"
    ),
    "fixed-rate": Variant(
        "hierarchical, one fixed frame rate, piece after piece", "5.3",
        make=pieces, stages=("fixed rate", "fixed interpolation"),
    ),
    "overlap-1": Variant(
        "one stage, from the last frame", "5.3", make=partial(one_stage, overlap=1), stages=WINDOWS
    ),
    "overlap-2": Variant(
        "one stage, from the last two frames", "5.3", make=partial(one_stage, overlap=2), stages=WINDOWS
    ),
    "one-channel": Variant("image model tuned whole, without a second channel", "5.3", start=one_channel),
    "unfrozen": Variant("second channel, nothing frozen", "not in the paper", start=unfrozen),
    "from-nothing": Variant("from random weights", "5.3", start=from_nothing),
}  # fmt: skip


def find_variant(name: str) -> Variant:
    """The variant of a name; raises CogVideoError that lists the names."""
    if name not in VARIANTS:
        raise CogVideoError(f"There is no variant {name!r}: choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]
