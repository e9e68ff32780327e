"""Cached decoding: the first frame, the key frames after it (stage 1), the frames between (stage 2).

Every function takes texts [B,L] and returns tokens [B,frames,N]. One loop makes them all: a schedule says
which positions are decoded together, a backend computes their logits, a strategy draws their tokens. With
guidance, unguided rows stand under the guided ones, so that each step is one forward. Sources: paper sections
3.3 and 4, reference page "Sampling".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor

from cogvideo.config import ModelConfig, check_guidance
from cogvideo.errors import CogVideoError
from cogvideo.model import masks
from cogvideo.model.attention import without_cudnn_attention
from cogvideo.model.strategies import Generators, Strategy, draw, fork, keeps_no_order
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.sampling import backends
from cogvideo.sampling.steps import Decoding, prefill, schedule, seen_in_order

if TYPE_CHECKING:
    from typing_extensions import Unpack

# On CUDA texts have so many tokens or a multiple: captured steps serve prompts of other lengths, and rows of
# biases are aligned as its kernels want them.
TEXT_MULTIPLE = 32
Progress = Callable[[int], object]  # called with how many tokens of every row have just been made


class Options(TypedDict, total=False):
    """What all three functions take besides their own arguments.

    text_mask, guidance_mask: true at real tokens (padding stands on the left). generator: the random stream
    of the strategies of this package, or one for each clip. wavefront: decode tokens of several frames in one
    step, as early as the masks allow (masks.decoding_steps); the tokens are those of one frame after another.
    By default a windowed model does so with this package's strategies; others see their steps in order.
    unseen_text: bool [L], words of the prompts that no frame attends to; they still read each other. watch:
    called after every step with the tokens [B,F,N] of the frames being made; 0 is what is not made yet.
    conditioning [B or 1,T,1 or N,D]: added to the inputs of all frames, known ones too, in the order of time.
    """

    text_mask: Tensor | None
    guidance_mask: Tensor | None
    generator: Generators
    progress: Progress | None
    wavefront: bool | None
    unseen_text: Tensor | None
    watch: Callable[[Tensor], object] | None
    conditioning: Tensor | None


@torch.inference_mode()
def generate_first_frame(
    model: CogVideoTransformer,
    text_ids: Tensor,
    *,
    guidance_ids: Tensor | None = None,
    guidance_scale: float = 3.0,
    text_bonus: float = 1.4,
    strategy: Strategy,
    **options: "Unpack[Options]",
) -> Tensor:
    """The first frame by the image model alone (spatial channel): text_ids [B,L] -> tokens [B,N].

    text_bonus is added to every score towards text; the release draws the first frame without guidance.
    """
    clips = len(text_ids) if text_ids.ndim == 2 else 1
    texts = Texts.of(model.config, clips, (text_ids, guidance_ids), guidance_scale, options)
    return _decode(model, texts, None, [0], text_bonus=text_bonus, strategy=strategy, options=options)[:, 0]


@torch.inference_mode()
def generate_key_frames(
    model: CogVideoTransformer,
    text_ids: Tensor,
    first_frames: Tensor,
    *,
    num_frames: int = 5,
    guidance_ids: Tensor | None = None,
    guidance_scale: float = 3.0,
    text_bonus: float = 0.0,
    strategy: Strategy,
    **options: "Unpack[Options]",
) -> Tensor:
    """Stage 1: first_frames [B,N] or [B,F,N] -> clips [B,num_frames,N] that begin with them.

    guidance_ids [B,L'] hold the text of the unguided rows; without them there is no guidance (the release
    then uses a text bonus of 1.4). `step` of the strategy counts from 0 through all generated frames.
    """
    c = model.config
    if c.order != "sequential" or not 2 <= num_frames <= c.num_frames:
        raise CogVideoError(
            f"Key frames need a stage 1 model of at least {num_frames} frames (2 or more); "
            f"this is {c.order}, {c.num_frames}."
        )
    if first_frames.ndim == 2:
        first_frames = first_frames[:, None]
    given = first_frames.shape[1] if first_frames.ndim == 3 else 1
    if not 1 <= given < num_frames:
        raise CogVideoError(f"Key frames need 1 to {num_frames - 1} frames to begin with, not {given}.")
    _check_frames(c, first_frames, (given, c.frame_tokens), "first_frames")
    texts = Texts.of(c, len(first_frames), (text_ids, guidance_ids), guidance_scale, options)
    order = list(range(num_frames))
    made = _decode(
        model, texts, first_frames, order, text_bonus=text_bonus, strategy=strategy, options=options
    )
    return torch.cat([first_frames, made], 1)


@torch.inference_mode()
def interpolate_frames(
    model: CogVideoTransformer,
    text_ids: Tensor,
    given_frames: Tensor,
    *,
    guidance_ids: Tensor | None = None,
    guidance_scale: float = 3.0,
    text_bonus: float = 1.4,
    strategy: Strategy,
    release_quirks: bool = False,
    **options: "Unpack[Options]",
) -> Tensor:
    """Stage 2: given_frames [B,3,N] at times 0, 2, 4 -> the frames [B,2,N] at times 1 and 3.

    release_quirks repeats where the released sampler departs from its own training: given frames use
    wrapped-around windows in odd layers, and the text bonus is left out of their temporal channel.
    """
    c = model.config
    if c.order != "interpolation":
        raise CogVideoError(f"Interpolation needs a stage 2 model; this one is {c.order}.")
    _check_frames(c, given_frames, (int(masks.is_given(c).sum()), c.frame_tokens), "given_frames")
    texts = Texts.of(c, len(given_frames), (text_ids, guidance_ids), guidance_scale, options)
    return _decode(
        model, texts, given_frames, masks.frame_order(c), text_bonus=text_bonus, quirks=release_quirks,
        strategy=strategy, options=options,
    )  # fmt: skip


@torch.inference_mode()
def places(model: CogVideoTransformer, round_: int, sequences: int) -> Tensor | None:
    """What stage 2 is told in a round (1, 2, ..) of where each of its sequences stands in the clip: the
    `conditioning` [sequences,T,1,D]; None if it is not told.

    Raises: CogVideoError for rounds and clips that it has not been trained for.
    """
    c, device = model.config, model.word_embedding.weight.device
    if not c.placed_rounds:
        return None
    if round_ > c.placed_rounds or sequences != 2**round_:
        raise CogVideoError(
            f"These weights fill clips of {c.num_frames} key frames in up to {c.placed_rounds} rounds; round "
            f"{round_} of {sequences} sequences is none of them: begin with {c.num_frames} frames."
        )
    windows = torch.arange(sequences, device=device)[:, None] * (c.num_frames - 1)
    return model.place_vectors(round_, windows + torch.arange(c.num_frames, device=device))


@dataclass(frozen=True)
class Texts:
    """One text a clip, and with guidance (scale) the unguided rows' texts under them."""

    ids: Tensor
    mask: Tensor
    clips: int
    scale: float | None

    @classmethod
    def of(
        cls, c: ModelConfig, clips: int, ids: tuple[Tensor, Tensor | None], scale: float, options: Options
    ) -> "Texts":
        """ids: of the prompts and, for guidance, of the unguided rows."""
        if unknown := sorted(options.keys() - Options.__annotations__.keys()):
            raise TypeError(f"unexpected keyword argument {unknown[0]!r}")
        text, mask = _text_rows(ids[0], options.get("text_mask"), clips)
        check_ids(text, c.vocab_size, "The text")
        multiple = TEXT_MULTIPLE if text.is_cuda else 1
        if ids[1] is None:
            length = -(-text.shape[1] // multiple) * multiple
            return cls(_pad(text, length), _pad(mask, length), clips, None)
        check_guidance(scale)
        guide, other = _text_rows(ids[1], options.get("guidance_mask"), clips)
        check_ids(guide, c.vocab_size, "The guidance text")
        length = -(-max(text.shape[1], guide.shape[1]) // multiple) * multiple
        rows, real = (
            torch.cat([_pad(above, length), _pad(below, length)])
            for above, below in ((text, guide), (mask, other))
        )
        return cls(rows, real, clips, scale)

    def double(self, rows: Tensor) -> Tensor:
        """The same tokens for guided and unguided rows."""
        return rows if self.scale is None else torch.cat([rows, rows])

    def mix(self, logits: Tensor) -> Tensor:
        """Classifier-free guidance: g + (c - g) * scale."""
        if self.scale is None:
            return logits
        conditional, guide = logits.chunk(2)
        return guide + (conditional - guide) * self.scale


@without_cudnn_attention()
def _decode(
    model: CogVideoTransformer,
    texts: Texts,
    given: Tensor | None,
    order: list[int],
    *,
    text_bonus: float,
    quirks: bool = False,
    strategy: Strategy,
    options: Options,
) -> Tensor:
    """The loop: given frames [B,K,N] (None: the image model's first) -> the others of `order` [B,F,N]."""
    c, n = model.config, model.config.frame_tokens
    known, times = ([], order) if given is None else (order[: given.shape[1]], order[given.shape[1] :])
    wavefront = options.get("wavefront")
    if wavefront is None:
        wavefront = given is not None and bool(c.window) and keeps_no_order(strategy)

    backend = backends.backend_of(model)
    view = backends.view_for(model, backend)
    text = view.encode_text(texts.ids, texts.mask)
    device, length = text.bias.device, text.bias.shape[-1]
    if (
        unseen := options.get("unseen_text")
    ) is not None:  # of the prompts' rows, which are padded on the left
        text.bias[: texts.clips, ..., length - len(unseen) :].masked_fill_(unseen.to(device), float("-inf"))
    seen = None if given is None else seen_in_order(model, times, order, device, quirks=quirks)
    condition = options.get("conditioning")
    if condition is not None and len(condition) > 1:
        condition = texts.double(condition)
    told = [None if condition is None else condition[:, some] for some in (known, times)]
    decoding = Decoding.begin(view, text, times, seen, text_bonus, told[1])
    rooms = len(times) if wavefront else 1, len(order) * n
    decoding, logits_of = backends.steps_for(model, backend, view, decoding, *rooms)
    if given is not None:
        seen = seen_in_order(model, known, known, device, quirks=quirks)
        bonus = (text_bonus, 0.0 if quirks else text_bonus)
        prefill(view, decoding.text, texts.double(given), known, seen, bonus, told[0])

    generator, progress = options.get("generator"), options.get("progress")
    steps, streams = masks.one_by_one_steps(len(times), n), [generator] * len(times)
    if wavefront:  # every frame draws from its own part of the random streams
        steps = masks.decoding_steps(c, times)
        streams = fork(generator, len(times), n, texts.clips, device)
    tokens = decoding.tokens.view(-1, len(times), n + 1)
    where = {"length": length, "known": len(known) * n, "device": device}
    for step in schedule(steps, wavefront=wavefront, fixed=backend == "cuda", **where):
        logits = logits_of(step)
        for i, (frame, position) in enumerate(zip(step.frames, step.positions, strict=True)):
            drawn = draw(strategy, texts.mix(logits[:, i]), frame * n + position, streams[frame])
            tokens[:, frame, position + 1] = texts.double(drawn)
        if progress is not None:
            progress(len(step.frames))
        if (watch := options.get("watch")) is not None:
            watch(tokens[: texts.clips, :, 1:].where(tokens[: texts.clips, :, 1:] != c.begin_of_image, 0))
    return tokens[: texts.clips, :, 1:].clone()  # what is kept for the next call may be written again


def check_ids(ids: Tensor, end: int, what: str) -> None:
    """Refuse ids outside 0..end-1; `what` begins the sentence."""
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= end):
        raise CogVideoError(
            f"{what} holds ids outside 0..{end - 1}: it comes from another tokenizer than the model's."
        )


def _check_frames(c: ModelConfig, frames: Tensor, shape: tuple[int, ...], what: str) -> None:
    if frames.shape[1:] != shape or not len(frames):
        raise CogVideoError(f"{what} should have the shape {['B', *shape]}, not {list(frames.shape)}.")
    check_ids(frames, c.image_tokens, what)


def _text_rows(ids: Tensor, mask: Tensor | None, clips: int) -> tuple[Tensor, Tensor]:
    """Ids and mask with one row a clip; one text [L] or [1,L] serves all clips."""
    if ids.ndim not in (1, 2) or (ids.ndim == 2 and len(ids) not in (1, clips)) or ids.shape[-1] == 0:
        raise CogVideoError(f"Texts should have the shape [L] or [{clips}, L], not {list(ids.shape)}.")
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    return ids.expand(clips, -1), mask.expand(clips, -1)


def _pad(ids: Tensor, length: int) -> Tensor:
    """Zeros on the left up to `length`; the mask keeps them out of everything."""
    return torch.nn.functional.pad(ids, (length - ids.shape[1], 0))
