"""Batches of the theatre, made on the fly: the same (seed, step) gives the same batch on any run."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cogvideo.data.tokenized import Batch
from cogvideo.errors import CogVideoError
from cogvideo.theatre.drawing import FRAME_SIZE, LARGE_SIZE
from cogvideo.theatre.scene_tokens import SceneTokens
from cogvideo.theatre.scenes import FPS, LAST_STATE, SPANS, Clips, sample_clips, states
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.text import UNGUIDED_PROMPT, TextTokenizer

ENGLISH = 0.5  # part of the captions that are English; the others are Chinese
CAPTION_DROPOUT = 0.05  # captions replaced by the unguided prompt, for classifier-free guidance
FRAMES = 5
# Of stage 1's clips: those that span the whole action, those that span less; the others have any span.
WHOLE, SHORTER = 0.4, 0.45
PAPER_WHOLE = 0.8  # the same of the ablation's clips; its others span less (ablation.py)
# Of the image model's pictures: first frames under the bare caption; any phase under any span and without a
# number (so that stage 2 finds no state impossible). The others are the four frames that stage 1 generates,
# with a number.
OPENING, ANY_PHASE = 0.15, 0.25
FIXED_SPAN = 1.0  # seconds of five frames where all pieces of video are equally long (ablation.py)
UNSURE = 0.07  # octaves of noise in the given part, for stage 1 will not be exact; key frames are 0.4 apart


@dataclass(kw_only=True)
class PhaseBatch(Batch):
    """octaves [B]: log2(span / duration), which says what part of the action the frames span."""

    octaves: Tensor


@dataclass(kw_only=True)
class PictureBatch(PhaseBatch):
    """The image model's. numbers [B]: of its pictures among five key frames, 0 where no phase is given."""

    numbers: Tensor


def key_frame_spans(
    clips: Clips, rng: np.random.Generator, whole: float = WHOLE, shorter: float = SHORTER
) -> np.ndarray:
    """Spans [n] of stage 1's clips: the multi-frame-rate rule for `whole` of them, less for `shorter`,
    any for the others.
    """
    n = len(clips)
    rule = np.array([clips.span(i) for i in range(n)])
    less = np.array(SPANS)[np.floor(rng.random(n) * np.searchsorted(SPANS, clips.duration)).astype(int)]
    kind = rng.random(n)
    return np.select([kind < whole, kind < whole + shorter], [rule, less], rng.choice(SPANS, n))


def clip_times(stage: str, clips: Clips, rng: np.random.Generator) -> tuple[np.ndarray, list[float | None]]:
    """Timestamps [n,T] (s) of a stage's frames, and the span that its frame-rate text names (None: no text).

    sequential: five frames from the beginning that span `key_frame_spans`. interpolation: five neighbouring
    frames as the rounds of stage 2 meet them. superres: one frame at any time. For ablation.py, several
    rates: five frames that span the action, or a part of it (PAPER_WHOLE); fixed rate: the action cut into
    pieces of FIXED_SPAN, five frames each; fixed interpolation: what stage 2 meets in these; one stage: five
    frames that follow each other at the final frame rate, from any time.
    """
    n, steps = len(clips), np.linspace(0, 1, FRAMES)
    if stage == "sequential":
        span = key_frame_spans(clips, rng)
        return span[:, None] * steps, list(span)
    if stage == "several rates":
        span = key_frame_spans(clips, rng, PAPER_WHOLE, 1 - PAPER_WHOLE)
        return span[:, None] * steps, list(span)
    if stage == "interpolation":
        whole = rng.choice(SPANS[1:], n)  # seconds of the clip that is being interpolated
        rounds = rng.integers(1, 5, n)  # spans whole/2, whole/4, ... down to half a second
        part = np.maximum(whole / 2.0**rounds, SPANS[0])
        within = np.minimum(whole, clips.duration + part)  # the action, and a little of the rest after it
        start = part * np.floor(rng.random(n) * within / part)
        return start[:, None] + part[:, None] * steps, list(part)
    if stage in ("fixed rate", "fixed interpolation"):
        part = FIXED_SPAN if stage == "fixed rate" else FIXED_SPAN / 2
        start = part * np.floor(rng.random(n) * clips.duration / part)
        return start[:, None] + part * steps, [part] * n
    if stage == "one stage":
        start = np.floor(rng.random(n) * (clips.duration * FPS + 1)) / FPS
        return start[:, None] + np.arange(FRAMES) / FPS, [(FRAMES - 1) / FPS] * n
    if stage == "superres":
        return rng.random((n, 1)) * (1 + 1 / LAST_STATE) * clips.duration[:, None], [None] * n
    raise CogVideoError(f"There are no timestamps for a stage {stage!r}.")


class TheatreBatches:
    """Batches for one stage: "image", or one of `clip_times`."""

    def __init__(
        self,
        stage: str,
        batch_size: int,
        *,
        text: TextTokenizer,
        frames: FrameTokenizer,
        seed: int,
        clips: int | None = None,
        scenes: SceneTokens | None = None,
    ):
        """clips: the train split is so many clips, drawn again and again; None: it is endless."""
        if clips is not None and clips < 1:
            raise CogVideoError(
                f"A model cannot learn from {clips} clips: give 1 or more, or None for no limit."
            )
        self.stage, self.batch_size, self.seed, self.text = stage, batch_size, seed, text
        self.scenes = scenes or SceneTokens(frames)
        self.split = "pictures" if stage in ("image", "superres") else "train"
        self.finite = None if clips is None else sample_clips(clips, np.random.default_rng([seed, clips]))

    def __call__(self, step: int, device: str | torch.device = "cpu", split: str | None = None) -> Batch:
        """The batch of a step; another split than that of training draws other clips."""
        rng = np.random.default_rng([self.seed, step, split is not None])
        if self.finite is not None and split is None:
            clips = self.finite[rng.integers(len(self.finite), size=self.batch_size)]
        else:
            clips = sample_clips(self.batch_size, rng, split=split or self.split)
        if self.stage == "image":
            return self._pictures(clips, rng, device)
        times, spans = clip_times(self.stage, clips, rng)
        shown = states(clips, times)
        ids, mask = self._texts(clips, spans, rng, device)
        small = self.scenes(clips, shown, FRAME_SIZE).to(device)
        large = self.scenes(clips, shown, LARGE_SIZE)[:, 0].to(device) if self.stage == "superres" else None
        if self.stage == "sequential":
            octaves = torch.from_numpy(np.log2(np.array(spans, float) / clips.duration)).float()
            return PhaseBatch(ids, mask, small, octaves=octaves.to(device))
        return Batch(ids, mask, small, large)

    def _pictures(self, clips: Clips, rng: np.random.Generator, device: str | torch.device) -> PictureBatch:
        """The image model's batch; see OPENING, ANY_PHASE."""
        n = len(clips)
        kind = rng.random(n)
        opening, given = kind < OPENING, kind >= OPENING + ANY_PHASE
        span = np.where(given, key_frame_spans(clips, rng), rng.choice(SPANS, n))
        number = np.where(given, rng.integers(1, FRAMES, n), 0)
        anywhere = clips.duration * rng.integers(0, LAST_STATE + 1, n) / LAST_STATE
        times = np.where(given, span * number / (FRAMES - 1), anywhere)
        shown = states(clips, np.where(opening, 0.0, times)[:, None])
        spans = [None if bare else float(s) for bare, s in zip(opening, span, strict=True)]
        ids, mask = self._texts(clips, spans, rng, device)
        octaves = np.log2(span / clips.duration) + rng.normal(0, UNSURE, n)
        return PictureBatch(
            ids, mask, self.scenes(clips, shown, FRAME_SIZE).to(device),
            numbers=torch.from_numpy(number).to(device), octaves=torch.from_numpy(octaves).float().to(device),
        )  # fmt: skip

    def _texts(
        self, clips: Clips, spans: list[float | None], rng: np.random.Generator, device: str | torch.device
    ) -> tuple[Tensor, Tensor]:
        """Ids and mask [n,L] of captions in both languages, a few of them the unguided prompt."""
        languages, dropped = rng.random(len(clips)) < ENGLISH, rng.random(len(clips)) < CAPTION_DROPOUT
        prompts = [
            UNGUIDED_PROMPT if dropped[i] else clips.caption(i, "en" if languages[i] else "zh")
            for i in range(len(clips))
        ]
        ids = [self.text.encode_prompt(prompt, span) for prompt, span in zip(prompts, spans, strict=True)]
        text_ids, text_mask = (t.to(device) for t in self.text.left_pad(ids))
        return text_ids, text_mask
