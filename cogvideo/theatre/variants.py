"""The variants of the ablation, each told from CogVideo by one function.

How a model begins: `frozen`, `unfrozen`, `one_channel`, `from_nothing`. How a clip is made: `hierarchical`,
`pieces`, `one_stage`. Sections are those of the paper; its table 3 compares them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
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

FRAMES_AT_ONCE = 500  # of whole clips that are made together

Start = Callable[[CogVideoTransformer, ModelConfig, int], tuple[CogVideoTransformer, list[nn.Parameter]]]


@dataclass(frozen=True)
class Request:
    """What clips are asked for: B first frames [B,N], prompts, seeds, and lengths in seconds.

    whole [B]: of which clips all frames are made; of the others only what stage 1 makes, if there are two.
    truth: true tokens [B,T,N] of clips of one length; where they are given, every frame is drawn after true
    frames, not drawn ones.
    """

    first: Tensor
    prompts: list[str]
    seeds: list[int]
    seconds: np.ndarray
    whole: np.ndarray
    truth: Tensor | None = None

    @property
    def frames(self) -> np.ndarray:
        """How many each clip has [B]."""
        return np.round(self.seconds * FPS).astype(int) + 1

    def __getitem__(self, rows: np.ndarray) -> "Request":
        """Some of the clips, by their indices."""
        return Request(
            self.first[rows], [self.prompts[i] for i in rows], [self.seeds[i] for i in rows],
            self.seconds[rows], self.whole[rows], None if self.truth is None else self.truth[rows],
        )  # fmt: skip


Make = Callable[[Pipeline, Request], list[Tensor]]  # -> tokens [T,N] of each clip


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
            block.temporal.load_state_dict(block.spatial.state_dict())  # type: ignore[union-attr]  # of a video model
            block.gate.fill_(-MUTED)  # type: ignore[union-attr]  # of a video model
    return model, [weight for name, weight in model.named_parameters() if not name.endswith(".gate")]


def from_nothing(image: CogVideoTransformer, config: ModelConfig, seed: int):
    """Random weights (section 5.3, "random initialization")."""
    model = CogVideoTransformer(config).initialize(seed)
    return model, list(model.parameters())


# How a clip is made.


def hierarchical(pipe: Pipeline, asked: Request) -> list[Tensor]:
    """Five key frames that span the action, then frames between (section 3.1)."""
    if asked.truth is not None:
        return list(_after_true_frames(pipe, asked, asked.truth, float(asked.seconds[0])))
    seconds = asked.seconds.tolist()
    clips = list(pipe.later_key_frame_tokens(asked.first, asked.prompts, seconds, asked.seeds))
    for span in np.unique(asked.seconds):
        same = np.flatnonzero(asked.whole & (asked.seconds == span))
        for rows in in_parts(same, round(FRAMES_AT_ONCE / (span * FPS))):
            some = asked[rows]
            keys = torch.stack([clips[i] for i in rows])
            made = pipe.interpolate(keys, some.prompts, float(span), some.seeds)
            for i, clip in zip(rows, made, strict=True):
                clips[i] = clip
    return clips


def pieces(pipe: Pipeline, asked: Request) -> list[Tensor]:
    """The same with one frame rate: pieces of FIXED_SPAN, each from the last frame of the one before, until
    the action is over (section 5.3, "w/o multi-frame-rate training").
    """
    made: list[list[Tensor]] = [[] for _ in asked.prompts]
    last, counts = list(asked.first), np.round(asked.seconds / FIXED_SPAN).astype(int)
    step = round(FIXED_SPAN * FPS)
    for number in range(counts.max()):
        rows = np.flatnonzero(counts > number)
        some, truth = asked[rows], None
        if asked.truth is not None:
            truth = asked.truth[rows, number * step : (number + 1) * step + 1]
        piece = Request(
            torch.stack([last[i] for i in rows]) if truth is None else truth[:, 0], some.prompts,
            [1000 * seed + number for seed in some.seeds],  # other random numbers in every piece
            np.full(len(rows), FIXED_SPAN), some.whole, truth,
        )  # fmt: skip
        for i, tokens in zip(rows, hierarchical(pipe, piece), strict=True):
            made[i].append(tokens if not made[i] else tokens[1:])
            last[i] = tokens[-1]
    return [torch.cat(parts) for parts in made]


def one_stage(pipe: Pipeline, asked: Request, overlap: int) -> list[Tensor]:
    """Window after window of five neighbouring frames, of which the first `overlap` are the last so far
    (section 5.3, "1-stage generation").
    """
    span = (FRAMES - 1) / FPS
    ids, mask = pipe.text.left_pad([pipe.text.encode_prompt(prompt, span) for prompt in asked.prompts])
    strategy = TopKStrategy(temperature=pipe.sampling.temperature, top_k=pipe.sampling.top_k)
    generators = [torch.Generator().manual_seed(seed) for seed in asked.seeds]
    tokens = asked.first[:, None]
    while tokens.shape[1] < asked.frames.max():
        rows = np.flatnonzero(asked.frames > tokens.shape[1])  # of which there is something to come
        known = tokens if asked.truth is None else asked.truth[:, : tokens.shape[1]]
        given = known[rows, -overlap:]
        made = generate_key_frames(
            pipe.stage1, ids[rows], given, text_mask=mask[rows], strategy=strategy, num_frames=FRAMES,
            generator=[generators[i] for i in rows],
        )  # fmt: skip
        new = tokens.new_zeros(len(tokens), FRAMES - given.shape[1], tokens.shape[2])
        new[rows] = made[:, given.shape[1] :]
        tokens = torch.cat([tokens, new], 1)
    return [clip[:frames] for clip, frames in zip(tokens, asked.frames, strict=True)]


def _after_true_frames(pipe: Pipeline, asked: Request, truth: Tensor, seconds: float) -> Tensor:
    """Key frames, and frames between, each drawn after the true ones before it -> tokens [B,T,N]."""
    stride = (truth.shape[1] - 1) // (FRAMES - 1)
    made = truth.clone()
    for number in range(1, FRAMES):
        given = truth[:, : number * stride : stride]
        keys = pipe.later_key_frame_tokens(given, asked.prompts, seconds, asked.seeds)
        made[:, number * stride] = keys[:, number]
    for round_ in range(1, pipe.rounds(FRAMES, seconds) + 1):
        between = pipe.interpolate_once(truth[:, ::stride], asked.prompts, seconds, round_, asked.seeds)
        made[:, stride // 2 :: stride] = between[:, 1::2]
        stride //= 2
    return made


def in_parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Rows in parts of at most `size`."""
    return [rows[at : at + size] for at in range(0, len(rows), max(1, size))]


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    title: str
    paper: str  # the section that describes it
    start: Start = frozen
    make: Make = hierarchical
    # What the models are trained on (batches.clip_times); the second makes the frames between.
    stages: tuple[str, ...] = ("several rates", "interpolation")
    muon_lr: float = 2e-2  # of the linear weights, chosen by a pilot; all others have a quarter of it


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
    "one-channel": Variant(
        "image model tuned whole, without a second channel", "5.3", start=one_channel, muon_lr=1e-2
    ),
    "unfrozen": Variant(
        "second channel, nothing frozen", "not in the paper", start=unfrozen, muon_lr=1e-2
    ),
    "from-nothing": Variant("from random weights", "5.3", start=from_nothing),
}  # fmt: skip


def find_variant(name: str) -> Variant:
    """The variant of a name; raises CogVideoError that lists the names."""
    if name not in VARIANTS:
        raise CogVideoError(f"There is no variant {name!r}: choose one of {', '.join(VARIANTS)}.")
    return VARIANTS[name]
