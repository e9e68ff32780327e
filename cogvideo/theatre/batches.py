"""Batches of the demo world, made on the fly: the same (seed, step) gives the same batch on any run."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor

from cogvideo.data.tokenized import Batch
from cogvideo.errors import CogVideoError
from cogvideo.theatre.digits import (
    ACTION_NAMES,
    FPS,
    FRAME_SIZE,
    SPANS,
    SUPERSAMPLING,
    Clips,
    World,
    is_held_out,
    object_states,
    render,
    sample_clips,
)
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.text import UNGUIDED_PROMPT, TextTokenizer

ENGLISH_SHARE = 0.5  # of the captions; the others are Chinese
CAPTION_DROPOUT = 0.1  # captions replaced by the unguided prompt, for classifier-free guidance
FRAMES = 5
LOOKS = ("scale", "degrees", "brightness", "x", "y")  # of an object's state: all that its picture depends on
PATCH = 8  # pixels of a token's side in small frames
REMEMBERED = 100_000  # scenes; one clean digit makes some thousands, two make more than memory holds
# How often a stage is shown an action beside one that moves, whose few shifted patches are soon learned.
SHARES = {
    "image": {"turns": 4, "grows": 2, "shrinks": 2, "fades in": 2},
    "sequential": {"turns": 2, "grows": 1.5, "shrinks": 2, "fades in": 2.5, "bounces": 1.5},
}
SHARES["fixed rate"] = SHARES["one stage"] = SHARES["sequential"]
FIXED_SPAN = 2.0  # seconds of five frames of the ablation with a fixed frame rate: an action's usual time
WHOLE, PARTS = 0.3, 0.45  # of stage 1's clips; half of an action is then nearly as frequent as all of it
# Shares of the image model's pictures: without an action's name, first frames of clips, frames from any
# moment of an action. The others are the key frames of stage 1, with their moment told (training.moments).
PICTURES, OPENING, STRAYS = 0.36, 0.1, 0.12
UNTOLD = 4  # how often, beside others, pictures show a combination whose action is never told
UNSURE = 0.07  # octaves by which told moments are off, for stage 1 will not be exact; moments are 0.4 apart


@dataclass(kw_only=True)
class PictureBatch(Batch):
    """The image model's: numbers [B] of its pictures among five key frames (0: no moment is given), and
    octaves [B], log2 of what the frames span by the time that the action takes (of two, the longer one).
    """

    numbers: Tensor
    octaves: Tensor


def clip_times(stage: str, clips: Clips, rng: np.random.Generator) -> tuple[np.ndarray, list[float | None]]:
    """Timestamps [n,T] (seconds) that a stage is shown, and the span of its frame-rate text (None: none).

    sequential: five frames from the beginning; WHOLE of the clips span the whole action (the multi-frame-rate
    rule), PARTS any shorter span, and the rest any span, so that the frame-rate text means something.
    interpolation: five neighbouring frames as the rounds of stage 2 meet them. superres: any moment. For
    ablations (training/ablation.py), fixed rate: the whole action cut into pieces of FIXED_SPAN, five frames
    each; one stage: five frames that follow each other at the final frame rate, from any moment.
    """
    n = len(clips)
    steps = np.linspace(0, 1, FRAMES)
    if stage == "sequential":
        span = _key_frame_spans(clips, rng)
        return span[:, None] * steps, list(span)
    if stage == "interpolation":
        whole = rng.choice(SPANS[1:], n)  # seconds of the clip that is being filled
        rounds = rng.integers(1, 5, n)  # spans whole/2, whole/4, ... down to half a second
        part = np.maximum(whole / 2.0**rounds, SPANS[0])
        start = part * np.floor(rng.random(n) * whole / part)
        return start[:, None] + part[:, None] * steps, list(part)
    if stage == "fixed rate":
        pieces = np.maximum(1, clips.duration.max(1) // FIXED_SPAN)
        start = FIXED_SPAN * np.floor(rng.random(n) * pieces)
        return start[:, None] + FIXED_SPAN * steps, [FIXED_SPAN] * n
    if stage == "one stage":
        start = np.floor(rng.random(n) * (clips.duration.max(1) * FPS + 1)) / FPS
        return start[:, None] + np.arange(FRAMES) / FPS, [(FRAMES - 1) / FPS] * n
    if stage == "superres":
        rule = np.array([clips.span(i) for i in range(n)])
        return rng.random((n, 1)) * rule[:, None], [None] * n
    raise CogVideoError(f"There are no moments for a stage {stage!r}.")


def _key_frame_spans(clips: Clips, rng: np.random.Generator) -> np.ndarray:
    """Spans [n] of stage 1's clips: WHOLE hold the whole action (paper section 3.1), PARTS less, some any."""
    n = len(clips)
    rule = np.array([clips.span(i) for i in range(n)])
    shorter = np.array(SPANS)[
        np.floor(rng.random(n) * np.searchsorted(SPANS, clips.duration.max(1))).astype(int)
    ]
    kind = rng.random(n)
    return np.select([kind < WHOLE, kind < WHOLE + PARTS], [rule, shorter], rng.choice(SPANS, n))


def _arrays(clips: Clips) -> dict[str, np.ndarray]:
    return {f.name: getattr(clips, f.name) for f in fields(clips) if f.name not in ("world", "split")}


def _rows(clips: Clips, chosen: np.ndarray) -> Clips:
    """Some of the clips, by number."""
    return replace(clips, **{name: array[chosen] for name, array in _arrays(clips).items()})


def _mixed(clips: Clips, others: Clips, taken: np.ndarray) -> Clips:
    """Clips with the rows `taken` [n] from others."""
    other = _arrays(others)
    return replace(
        clips,
        **{name: np.where(taken[:, None], other[name], array) for name, array in _arrays(clips).items()},
    )


class DigitsBatches:
    """Batches for one stage ("image", "sequential", "interpolation" or "superres") of the demo world."""

    def __init__(
        self,
        stage: str,
        batch_size: int,
        *,
        text: TextTokenizer,
        frames: FrameTokenizer,
        world: World,
        seed: int,
        clips: int | None = None,
    ):
        """clips: the train split is so many clips, drawn again and again; None: it is endless."""
        if clips is not None and clips < 1:
            raise CogVideoError(
                f"A model cannot learn from {clips} clips: give 1 or more, or None for endless ones."
            )
        self.stage, self.batch_size, self.world, self.seed = stage, batch_size, world, seed
        self.text, self.frames = text, frames
        self.finite = (
            None if clips is None else sample_clips(clips, np.random.default_rng([seed, clips]), world=world)
        )
        # Tokens [h,w] of scenes, with object 0 in the first cell.
        self._known: dict[tuple[str, bytes], Tensor] = {}

    @torch.no_grad()
    def __call__(self, step: int, device: str | torch.device = "cpu", split: str = "train") -> Batch:
        """The batch of a step; split "test" draws other clips, held-out combinations among them."""
        rng = np.random.default_rng([self.seed, step, split == "test"])
        clips = self._clips(rng, split)
        if self.stage == "image":
            return self._pictures(clips, self._clips(rng, split, all_combinations=True), rng, device)
        times, spans = clip_times(self.stage, clips, rng)
        text_ids, text_mask = self._texts(clips, spans, rng, device)
        if self.stage == "superres":
            large = render(clips, times, FRAME_SIZE * SUPERSAMPLING)
            small = torch.nn.functional.avg_pool2d(large[:, 0], SUPERSAMPLING)[:, None]
            return Batch(text_ids, text_mask, self._tokens(small, device), self._tokens(large, device)[:, 0])
        return Batch(text_ids, text_mask, self._scenes(clips, times, device))

    def _pictures(
        self, clips: Clips, others: Clips, rng: np.random.Generator, device: str | torch.device
    ) -> PictureBatch:
        """The image model's batch.

        PICTURES are of the others and tell no action, as CogView2 has seen the looks of more
        things than the videos show; OPENING are first frames under the bare caption; STRAYS any moment under
        any span, so that stage 2 finds no state impossible; the rest one of the four frames that stage 1
        generates. These and half of PICTURES come with their moment.
        """
        n = len(clips)
        kind = rng.random(n)
        ends = np.cumsum([PICTURES, OPENING, STRAYS])
        picture, opening = kind < ends[0], (kind >= ends[0]) & (kind < ends[1])
        told = (kind < PICTURES / 2) | (kind >= ends[2])
        clips = _mixed(clips, others, picture)
        duration = clips.duration.max(1)
        span = np.where(told, _key_frame_spans(clips, rng), rng.choice(SPANS, n))
        number = np.where(told, rng.integers(1, FRAMES, n), 0)
        anywhere = np.where(opening, 0.0, duration * rng.integers(0, 9, n) / 8)
        times = np.where(told, span * number / (FRAMES - 1), anywhere)[:, None]
        spans = [None if bare else float(s) for bare, s in zip(picture | opening, span, strict=True)]
        text_ids, text_mask = self._texts(clips, spans, rng, device, told=~picture)
        octaves = np.log2(span / duration) + rng.normal(0, UNSURE, n)
        moments = {"numbers": torch.from_numpy(number), "octaves": torch.from_numpy(octaves).float()}
        moments = {name: values.to(device) for name, values in moments.items()}
        return PictureBatch(text_ids, text_mask, self._scenes(clips, times, device), **moments)

    def _texts(
        self,
        clips: Clips,
        spans: list[float | None],
        rng: np.random.Generator,
        device: str | torch.device,
        told: np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Ids, mask [n,L] of captions in both languages, some the unguided prompt; told [n]: with action."""
        prompts = [
            UNGUIDED_PROMPT
            if rng.random() < CAPTION_DROPOUT
            else clips.caption(
                i, "en" if rng.random() < ENGLISH_SHARE else "zh", told=told is None or bool(told[i])
            )
            for i in range(len(clips))
        ]
        ids = [self.text.encode_prompt(prompt, span) for prompt, span in zip(prompts, spans, strict=True)]
        text_ids, text_mask = (t.to(device) for t in self.text.left_pad(ids))
        return text_ids, text_mask

    def _clips(self, rng: np.random.Generator, split: str, all_combinations: bool = False) -> Clips:
        weighted = self.stage in SHARES
        count = self.batch_size * (4 if weighted else 1)
        if self.finite is not None and split == "train":
            pool = _rows(self.finite, rng.integers(len(self.finite), size=count))
        else:
            pool = sample_clips(count, rng, split=split, world=self.world, all_combinations=all_combinations)
        if not weighted:
            return pool
        shares = np.array([SHARES[self.stage].get(name, 1) for name in ACTION_NAMES], float)[
            pool.action[:, 0]
        ]
        if all_combinations:
            shares[is_held_out(pool.kind, pool.color, pool.action).any(1)] *= UNTOLD
        return _rows(pool, rng.choice(len(pool), self.batch_size, p=shares / shares.sum()))

    def _scenes(self, clips: Clips, times: np.ndarray, device: str | torch.device) -> Tensor:
        """Tokens [n,T,N] of small frames. A scene that comes again, moved by whole tokens, is drawn once."""
        states, steps = object_states(clips, times), times.shape[1]
        looks = [repeat(field, "n o -> (n t) o", t=steps) for field in (clips.kind, clips.color, clips.scan)]
        looks += [rearrange(states[key], "n t o -> (n t) o") for key in LOOKS]
        places = np.stack(looks[-2:], -1)  # [n T,O,2] of columns and rows in pixels
        shift = (places[:, 0] // PATCH).astype(int)
        looks[-2:] = np.moveaxis(places - PATCH * shift[:, None], -1, 0)
        keys = [(clips.split, look.tobytes()) for look in np.stack(looks, -1)]
        rows = np.array(list({key: i for i, key in enumerate(keys) if key not in self._known}.values()), int)
        side = np.arange(FRAME_SIZE // PATCH)

        def rolled(tokens: Tensor, by: np.ndarray) -> Tensor:
            """[m,h,w] moved by [m,2] columns and rows; what leaves on one side comes back on the other."""
            x, y = ((side - by[:, axis, None]) % len(side) for axis in (0, 1))
            return tokens[np.arange(len(tokens))[:, None, None], y[:, :, None], x[:, None]]

        if len(rows):
            if len(self._known) > REMEMBERED:
                self._known = {key: self._known[key] for key in keys if key in self._known}
            fresh = self._tokens(render(_rows(clips, rows // steps), times.reshape(-1, 1)[rows]), device)
            fresh = rolled(rearrange(fresh.cpu(), "m 1 (h w) -> m h w", h=len(side)), -shift[rows])
            self._known |= {keys[i]: tokens for i, tokens in zip(rows, fresh, strict=True)}
        found = rolled(torch.stack([self._known[key] for key in keys]), shift)
        return rearrange(found, "(n t) h w -> n t (h w)", t=steps).to(device)

    def _tokens(self, clips: Tensor, device: str | torch.device) -> Tensor:
        ids = self.frames.encode(rearrange(clips, "b t c h w -> (b t) c h w").to(device))
        return rearrange(ids, "(b t) h w -> b t (h w)", b=len(clips))
