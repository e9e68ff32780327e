"""Cached decoding: the first frame, the key frames after it (stage 1), the frames between given ones (stage 2).

Every function takes texts [B,L] and returns tokens [B,frames,N]; guided rows are stacked under the unguided ones, so that
each step is one forward. Sources: paper sections 3.3 and 4, reference page "Sampling".
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model import masks
from cogvideo.model.attention import hidden_bias
from cogvideo.model.strategies import Generators, Strategy, draw, fork, keeps_no_order
from cogvideo.model.transformer import CogVideoTransformer, EncodedText, Wave
from cogvideo.sampling.fast import prepare_for_decoding
from cogvideo.sampling.static_step import StaticStep, static_step_pays

Progress = Callable[[int], object]  # told how many tokens of every row have just been made


class _Decoder:
    """Caches for the rows of one call, and the loop that fills one frame after another, token by token."""

    def __init__(
        self,
        model: CogVideoTransformer,
        text: EncodedText,
        *,
        both: bool,
        text_bonus: tuple[float, float],
        quirks: bool,
    ):
        self.model, self.text, self.both, self.quirks = model, text, both, quirks
        c = model.config
        self.order = masks.frame_order(c)
        self.length = text.bias.shape[-1]
        self.spatial_bonus, self.temporal_bonus = text_bonus
        for memory in text.layers:
            memory.spatial_cache = tuple(_room(t[:, None], c.frame_tokens) for t in memory.text_spatial)  # type: ignore[assignment]
            if both:
                assert memory.text_temporal is not None
                room = c.num_frames * c.frame_tokens
                memory.temporal_cache = tuple(_room(t, room) for t in memory.text_temporal)  # type: ignore[assignment]

        self.static: StaticStep | None = None
        if static_step_pays(model):
            order = self.order if both else [0]
            places, parities = len(order) * c.frame_tokens, 2 if c.window else 1
            visible = [self._visible(parity, order, places) for parity in range(parities)] if both else None
            biases = None if visible is None else [hidden_bias(mask, text.bias.dtype) for mask in visible]
            self.static = StaticStep(model, text, order, biases, text_bonus)

    def _visible(self, parity: int, times: list[int], upto: int) -> Tensor:
        """Rows of the temporal mask for the frames at `times`, columns in the order of computation, cut at `upto`."""
        c = self.model.config
        name = f"temporal_{parity}" + ("_quirks" if self.quirks else "")
        mask = self.model.mask(name, self.text.bias.device)
        mask = rearrange(mask, "(t n) (s m) -> t n s m", n=c.frame_tokens, m=c.frame_tokens)[times][
            :, :, self.order
        ]
        return rearrange(mask, "t n s m -> (t n) (s m)")[:, :upto]

    def _temporal_bias(
        self, times: list[int], first: int, last: int, upto: int, bonus: float
    ) -> list[Tensor]:
        """Biases of places first..last-1 of the frames at `times` against the text and `upto` frame places."""
        biases = []
        for parity in range(2 if self.model.config.window else 1):
            rows = self._visible(parity, times, upto)[first:last]
            frame = hidden_bias(rows, self.text.bias.dtype)[None, None].expand(
                len(self.text.bias), -1, -1, -1
            )
            text = (self.text.bias + bonus).expand(-1, -1, len(rows), -1)
            biases.append(torch.cat([text, frame], -1))
        return biases * (1 if len(biases) == 2 else 2)

    def prefill(self, frames: Tensor, times: list[int], *, temporal_bonus: float) -> None:
        """Put known frames [B,F,N], the first in the order of computation, into the temporal cache."""
        model, c = self.model, self.model.config
        begin = torch.full_like(frames[..., :1], c.begin_of_image)
        x = model.embed_places(torch.cat([begin, frames[..., :-1]], -1), times)
        visible = hidden_bias(model.mask("spatial", x.device)[times], x.dtype)[None, :, None]
        shape = (len(x), len(times), 1, c.frame_tokens)
        text = (self.text.bias + self.spatial_bonus)[:, None].expand(*shape, -1)
        spatial = torch.cat([text, visible.expand(*shape, -1)], -1)
        places = len(times) * c.frame_tokens
        temporal = self._temporal_bias(times, 0, places, places, temporal_bonus)
        caches = [memory.spatial_cache for memory in self.text.layers]
        for (
            memory
        ) in self.text.layers:  # nobody looks at known frames in the spatial channel later: no cache for it
            memory.spatial_cache, memory.temporal_end = None, self.length
        model.run(x, self.text, spatial, temporal)
        for memory, cache in zip(self.text.layers, caches, strict=True):
            memory.spatial_cache = cache

    def frame(
        self, time: int, choose: Callable[[Tensor, int], Tensor], *, progress: Progress | None
    ) -> Tensor:
        """Generate the frame at `time` -> tokens [rows,N]. choose(logits [rows,V], place) -> tokens [rows]."""
        model, c = self.model, self.model.config
        before = self.order.index(time) * c.frame_tokens
        if self.static is not None:
            return self._static_frame(self.static, before if self.both else 0, choose, progress)
        zeros = self.text.bias.new_zeros(len(self.text.bias), 1, 1, c.frame_tokens)
        spatial = torch.cat([self.text.bias + self.spatial_bonus, zeros], -1)[:, None]
        if self.both:
            full = self._temporal_bias(
                [time], 0, c.frame_tokens, before + c.frame_tokens, self.temporal_bonus
            )
        token = torch.full((len(self.text.bias),), c.begin_of_image, device=self.text.bias.device)
        tokens = []
        for place in range(c.frame_tokens):
            x = model.embed_places(token[:, None, None], [time], place)
            for memory in self.text.layers:
                memory.spatial_end = self.length + place
                memory.temporal_end = self.length + before + place
            live = self.length + before + place + 1
            temporal = [bias[:, :, place : place + 1, :live] for bias in full] if self.both else None
            x = model.run(x, self.text, spatial[..., : self.length + place + 1], temporal)
            token = choose(model.head(x[:, 0, 0]), place)
            tokens.append(token)
            if progress is not None:
                progress(1)
        return torch.stack(tokens, -1)

    def _static_frame(
        self,
        static: StaticStep,
        before: int,
        choose: Callable[[Tensor, int], Tensor],
        progress: Progress | None,
    ) -> Tensor:
        """The same as `frame`, the steps with static shapes."""
        static.begin(before)
        tokens = []
        for place in range(self.model.config.frame_tokens):
            tokens.append(choose(static.logits(before + place), place))
            static.token.copy_(tokens[-1])
            if progress is not None:
                progress(1)
        return torch.stack(tokens, -1)

    def wavefront(
        self, times: list[int], choose: Callable[[Tensor, int], Tensor], *, progress: Progress | None
    ) -> Tensor:
        """Generate the frames at `times` together, every token as early as the masks let it -> tokens [rows,F,N].

        choose(logits [rows,V], number) -> tokens [rows] of token `number`, counted through the frames.
        """
        model, c, length = self.model, self.model.config, self.length
        n, device = c.frame_tokens, self.text.bias.device
        text_rows = len(self.text.bias)
        for memory in self.text.layers:
            # Frames lie one after another in memory, so that the cache of those being decoded is one piece of it.
            room = (_room(t[None].expand(len(times), -1, -1, -1, -1), n) for t in memory.text_spatial)
            memory.spatial_cache = tuple(rearrange(t, "f b h p d -> b f h p d") for t in room)  # type: ignore[assignment]
        positions = torch.stack([model.position_vectors(time) for time in times])
        causal = hidden_bias(torch.ones(n, n, dtype=torch.bool, device=device).tril(), self.text.bias.dtype)
        everything = c.num_frames * n
        temporal_bias = [
            hidden_bias(self._visible(parity, times, everything), self.text.bias.dtype)
            for parity in range(2 if c.window else 1)
        ]
        steps = masks.decoding_steps(c, times)
        inputs = torch.full(
            (text_rows, len(times), n + 1), c.begin_of_image, device=device
        )  # place j holds token j - 1
        before = torch.tensor([self.order.index(time) * n for time in times])
        for step in range(1, int(steps.max()) + 1):
            frames, places = (steps == step).nonzero(as_tuple=True)
            numbers, temporal = (frames * n + places).tolist(), before[frames] + places
            live, upto = int(places.max()) + 1, int(temporal.max()) + 1
            rows = slice(int(frames[0]), int(frames[-1]) + 1)
            numbers_at, frames, places, temporal = (
                t.to(device) for t in (frames * n + places, frames, places, temporal)
            )
            wave = Wave(rows, length + places, length + temporal, length + live, length + upto)
            for memory in self.text.layers:
                memory.wave = wave
            x = model.word_embedding(inputs[:, frames, places]) + positions[frames, places]
            text = self.text.bias.expand(-1, -1, len(numbers), -1)  # [B,1,F,L]
            own = causal[places, :live][None, None].expand(text_rows, -1, -1, -1)
            spatial = rearrange(torch.cat([text + self.spatial_bonus, own], -1), "b one f k -> b f one 1 k")
            biases = [
                torch.cat(
                    [text + self.temporal_bonus, bias[numbers_at, :upto].expand(text_rows, 1, -1, -1)], -1
                )
                for bias in temporal_bias
            ]
            x = model.run(x[:, :, None], self.text, spatial, biases * (2 if len(biases) == 1 else 1))
            logits = model.head(x[:, :, 0])
            for row, number in enumerate(numbers):
                inputs[:, number // n, number % n + 1] = choose(logits[:, row], number)
            if progress is not None:
                progress(len(numbers))
        return inputs[..., 1:]


def _room(text: Tensor, places: int) -> Tensor:
    """A buffer [..,L+places,d] that begins with the text's keys or values."""
    buffer = text.new_zeros(*text.shape[:-2], text.shape[-2] + places, text.shape[-1])
    buffer[..., : text.shape[-2], :] = text
    return buffer


class _Rows:
    """Texts of guided and unguided rows in one batch, and the choice of tokens from their logits."""

    def __init__(
        self,
        clips: int,
        vocab_size: int,
        ids: Tensor,
        mask: Tensor | None,
        guidance_ids: Tensor | None,
        guidance_mask: Tensor | None,
        scale: float,
    ):
        self.clips, self.guided, self.scale = clips, guidance_ids is not None, scale
        ids, self.mask = _text_rows(ids, mask, clips)
        check_ids(ids, vocab_size, "The text")
        self.ids = ids
        if guidance_ids is not None:
            guidance_ids, other = _text_rows(guidance_ids, guidance_mask, clips)
            check_ids(guidance_ids, vocab_size, "The guidance text")
            length = max(ids.shape[1], guidance_ids.shape[1])
            self.ids = torch.cat([_pad(ids, length), _pad(guidance_ids, length)])
            self.mask = torch.cat([_pad(self.mask, length), _pad(other, length)])

    def double(self, frames: Tensor) -> Tensor:
        return torch.cat([frames, frames]) if self.guided else frames

    def chooser(
        self, strategy: Strategy, first_step: int, generator: Generators
    ) -> Callable[[Tensor, int], Tensor]:
        def choose(logits: Tensor, place: int) -> Tensor:
            return self.double(draw(strategy, self.mix(logits), first_step + place, generator))

        return choose

    def split_chooser(
        self, strategy: Strategy, generator: Generators, c: ModelConfig, frames: int
    ) -> Callable[[Tensor, int], Tensor]:
        """The chooser of a wavefront: every frame draws from its own part of the random streams."""
        parts = fork(generator, frames, c.frame_tokens, self.clips, self.ids.device)

        def choose(logits: Tensor, number: int) -> Tensor:
            return self.double(draw(strategy, self.mix(logits), number, parts[number // c.frame_tokens]))

        return choose

    def mix(self, logits: Tensor) -> Tensor:
        """Classifier-free guidance: g + (c - g) * scale."""
        if not self.guided:
            return logits
        conditional, guide = logits.chunk(2)
        return guide + (conditional - guide) * self.scale


def _use_wavefront(asked: bool | None, c: ModelConfig, strategy: Strategy) -> bool:
    return bool(c.window) and keeps_no_order(strategy) if asked is None else asked


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


@torch.inference_mode()
def generate_first_frame(
    model: CogVideoTransformer,
    text_ids: Tensor,
    *,
    text_mask: Tensor | None = None,
    guidance_ids: Tensor | None = None,
    guidance_mask: Tensor | None = None,
    guidance_scale: float = 3.0,
    text_bonus: float = 1.4,
    strategy: Strategy,
    generator: Generators = None,
    progress: Progress | None = None,
) -> Tensor:
    """The first frame by the image model alone (spatial channel): text_ids [B,L] -> tokens [B,N].

    text_bonus is added to every score towards text; the release draws the first frame without guidance.
    """
    clips = len(text_ids) if text_ids.ndim == 2 else 1
    rows = _Rows(
        clips, model.config.vocab_size, text_ids, text_mask, guidance_ids, guidance_mask, guidance_scale
    )
    model = prepare_for_decoding(model)
    text = model.encode_text(rows.ids, rows.mask)
    decoder = _Decoder(model, text, both=False, text_bonus=(text_bonus, 0.0), quirks=False)
    return decoder.frame(0, rows.chooser(strategy, 0, generator), progress=progress)[: rows.clips]


@torch.inference_mode()
def generate_key_frames(
    model: CogVideoTransformer,
    text_ids: Tensor,
    first_frames: Tensor,
    *,
    num_frames: int = 5,
    text_mask: Tensor | None = None,
    guidance_ids: Tensor | None = None,
    guidance_mask: Tensor | None = None,
    guidance_scale: float = 3.0,
    text_bonus: float = 0.0,
    strategy: Strategy,
    generator: Generators = None,
    progress: Progress | None = None,
    wavefront: bool | None = None,
) -> Tensor:
    """Stage 1: first_frames [B,N] or [B,F,N] -> clips [B,num_frames,N] that begin with them, one frame after another.

    guidance_ids [B,L'] hold the text of the unguided rows; without them there is no guidance (the release then uses a
    text bonus of 1.4). `step` of the strategy counts from 0 through all generated frames. wavefront: decode tokens of several frames
    in one step, as early as the masks allow (masks.decoding_steps); the tokens are those of one after the other. If not
    given, a windowed model does so with this package's strategies, others being shown their steps in order. Raises CogVideoError for a stage 2 model,
    more frames than the model has, ids or shapes that do not fit it.
    """
    c = model.config
    if c.order != "sequential" or not 2 <= num_frames <= c.num_frames:
        raise CogVideoError(
            f"Key frames need a stage 1 model of at least {num_frames} frames (2 or more); this is {c.order}, {c.num_frames}."
        )
    given = first_frames.shape[1] if first_frames.ndim == 3 else 1
    if first_frames.ndim == 2:
        first_frames = first_frames[:, None]
    if not 1 <= given < num_frames:
        raise CogVideoError(f"Key frames need 1 to {num_frames - 1} frames to begin with, not {given}.")
    _check_frames(c, first_frames, (given, c.frame_tokens), "first_frames")
    rows = _Rows(
        len(first_frames), c.vocab_size, text_ids, text_mask, guidance_ids, guidance_mask, guidance_scale
    )
    model = prepare_for_decoding(model)
    text = model.encode_text(rows.ids, rows.mask)
    decoder = _Decoder(model, text, both=True, text_bonus=(text_bonus, text_bonus), quirks=False)
    decoder.prefill(rows.double(first_frames), list(range(given)), temporal_bonus=text_bonus)
    if _use_wavefront(wavefront, c, strategy):
        choose = rows.split_chooser(strategy, generator, c, num_frames - given)
        made = decoder.wavefront(list(range(given, num_frames)), choose, progress=progress)[: rows.clips]
        return torch.cat([first_frames, made], 1)
    frames = list(first_frames.unbind(1))
    for time in range(given, num_frames):
        choose = rows.chooser(strategy, (time - given) * c.frame_tokens, generator)
        frames.append(decoder.frame(time, choose, progress=progress)[: rows.clips])
    return torch.stack(frames, 1)


@torch.inference_mode()
def interpolate_frames(
    model: CogVideoTransformer,
    text_ids: Tensor,
    given_frames: Tensor,
    *,
    text_mask: Tensor | None = None,
    guidance_ids: Tensor | None = None,
    guidance_mask: Tensor | None = None,
    guidance_scale: float = 3.0,
    text_bonus: float = 1.4,
    strategy: Strategy,
    release_quirks: bool = False,
    generator: Generators = None,
    progress: Progress | None = None,
    wavefront: bool | None = None,
) -> Tensor:
    """Stage 2: given_frames [B,3,N] at times 0, 2, 4 -> the frames [B,2,N] at times 1 and 3.

    release_quirks repeats where the released sampler departs from its own training: given frames use wrapped-around
    windows in odd layers, and the text bonus is left out of their temporal channel. wavefront: see generate_key_frames. Raises CogVideoError for a stage 1
    model, ids or shapes that do not fit it.
    """
    c = model.config
    given = [time for time, known in enumerate(masks.is_given(c)) if known]
    if c.order != "interpolation":
        raise CogVideoError(f"Interpolation needs a stage 2 model; this one is {c.order}.")
    _check_frames(c, given_frames, (len(given), c.frame_tokens), "given_frames")
    rows = _Rows(
        len(given_frames), c.vocab_size, text_ids, text_mask, guidance_ids, guidance_mask, guidance_scale
    )
    model = prepare_for_decoding(model)
    text = model.encode_text(rows.ids, rows.mask)
    decoder = _Decoder(model, text, both=True, text_bonus=(text_bonus, text_bonus), quirks=release_quirks)
    decoder.prefill(rows.double(given_frames), given, temporal_bonus=0.0 if release_quirks else text_bonus)
    if _use_wavefront(wavefront, c, strategy):
        times = decoder.order[len(given) :]
        choose = rows.split_chooser(strategy, generator, c, len(times))
        return decoder.wavefront(times, choose, progress=progress)[: rows.clips]
    frames = []
    for number, time in enumerate(decoder.order[len(given) :]):
        choose = rows.chooser(strategy, number * c.frame_tokens, generator)
        frames.append(decoder.frame(time, choose, progress=progress)[: rows.clips])
    return torch.stack(frames, 1)
