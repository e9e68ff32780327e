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
ROUNDS = 4  # of stage 2 at most: 8 seconds at FPS
FILLED_WHOLE = 0.7  # of the clips that stage 2 fills: those whose key frames span the whole action
FINER = 0.6  # below 1 its later rounds, which make more frames, are shown more often
# Of the image model's pictures: first frames under the bare caption; any phase under any span, without a
# number; frames of the clips that stage 2 fills, with their place. The others are the four frames that stage
# 1 generates, with a number.
OPENING, ANY_PHASE, PLACED = 0.12, 0.18, 0.4
FIXED_SPAN = 1.0  # seconds of five frames where all pieces of video are equally long (ablation.py)
# Octaves of noise in the given part, for stages 1 and 2 will not be exact. Key frames are 0.4 apart; beside a
# place only whole octaves are given.
UNSURE, UNSURE_PLACED = 0.07, 0.2


@dataclass(kw_only=True)
class PhaseBatch(Batch):
    """octaves [B]: log2(span / duration), which says what part of the action the frames span.

    rounds [B], places [B,T]: in which round of stage 2 the frames are, and where in the clip (masks.place);
    None for stage 1.
    """

    octaves: Tensor
    rounds: Tensor | None = None
    places: Tensor | None = None


@dataclass(kw_only=True)
class PictureBatch(PhaseBatch):
    """The image model's. numbers [B]: of its pictures among five key frames, 0 where they have none; rounds
    are 0 where they have no place."""

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


@dataclass(frozen=True)
class Sequences:
    """n sequences of five frames as stage 2 meets them: spans [n] (s), rounds [n], and their numbers [n]
    among those of their round."""

    spans: np.ndarray
    rounds: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, clips: Clips, rng: np.random.Generator) -> "Sequences":
        """The key frames span the whole action (FILLED_WHOLE), or anything; little of the rest after it."""
        n = len(clips)
        whole = np.where(rng.random(n) < FILLED_WHOLE, clips.duration, rng.choice(SPANS[1:], n))
        most = np.log2(whole * FPS / (FRAMES - 1))  # rounds of such a clip
        rounds = 1 + np.floor(rng.random(n) ** FINER * most).astype(int)
        spans = whole / 2.0**rounds
        within = np.minimum(whole, clips.duration + spans)
        return cls(spans, rounds, np.floor(rng.random(n) * within / spans).astype(int))

    @property
    def places(self) -> np.ndarray:
        """Numbers [n,T] of the frames in their clip."""
        return (FRAMES - 1) * self.numbers[:, None] + np.arange(FRAMES)

    @property
    def times(self) -> np.ndarray:
        """Seconds [n,T]."""
        return self.spans[:, None] * self.places / (FRAMES - 1)


def clip_times(stage: str, clips: Clips, rng: np.random.Generator) -> tuple[np.ndarray, list[float | None]]:
    """Timestamps [n,T] (s) of a stage's frames, and the span that its frame-rate text names (None: no text).

    sequential: five frames from the beginning that span `key_frame_spans`. superres: one frame at any time.
    For ablation.py, several rates: five frames that span the action, or a part of it (PAPER_WHOLE); fixed
    rate: the action cut into pieces of FIXED_SPAN, five frames each; fixed interpolation: what stage 2 meets
    in these; one stage: five frames that follow each other at the final frame rate, from any time.
    """
    n, steps = len(clips), np.linspace(0, 1, FRAMES)
    if stage == "sequential":
        span = key_frame_spans(clips, rng)
        return span[:, None] * steps, list(span)
    if stage == "several rates":
        span = key_frame_spans(clips, rng, PAPER_WHOLE, 1 - PAPER_WHOLE)
        return span[:, None] * steps, list(span)
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
    """Batches for one stage: "image", "interpolation", or one of `clip_times`."""

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
        sequences = Sequences.of(clips, rng) if self.stage == "interpolation" else None
        if sequences is not None:
            times, spans = sequences.times, list(sequences.spans)
        else:
            times, spans = clip_times(self.stage, clips, rng)
        shown = states(clips, times)
        ids, mask = self._texts(clips, spans, rng, device)
        small = self.scenes(clips, shown, FRAME_SIZE).to(device)
        large = self.scenes(clips, shown, LARGE_SIZE)[:, 0].to(device) if self.stage == "superres" else None
        if self.stage in ("sequential", "interpolation"):
            octaves = torch.from_numpy(np.log2(np.array(spans, float) / clips.duration)).float()
            batch = PhaseBatch(ids, mask, small, octaves=octaves.to(device))
            if sequences is not None:
                batch.rounds = torch.from_numpy(sequences.rounds).to(device)
                batch.places = torch.from_numpy(sequences.places).to(device)
            return batch
        return Batch(ids, mask, small, large)

    def _pictures(self, clips: Clips, rng: np.random.Generator, device: str | torch.device) -> PictureBatch:
        """The image model's batch; see OPENING, ANY_PHASE, PLACED."""
        n = len(clips)
        bounds = np.cumsum([OPENING, ANY_PHASE, PLACED])
        opening, anywhere, placed, numbered = np.searchsorted(bounds, rng.random(n), "right") == np.c_[:4]
        filled, frame = Sequences.of(clips, rng), rng.integers(FRAMES, size=n)
        chosen = [filled.spans, key_frame_spans(clips, rng)]
        span = np.select([placed, numbered], chosen, rng.choice(SPANS, n))
        number = np.where(numbered, rng.integers(1, FRAMES, n), 0)
        at_random = clips.duration * rng.integers(0, LAST_STATE + 1, n) / LAST_STATE
        moments = [filled.times[np.arange(n), frame], span * number / (FRAMES - 1), at_random]
        shown = states(clips, np.select([placed, numbered, anywhere], moments, 0.0)[:, None])
        spans = [None if bare else float(s) for bare, s in zip(opening, span, strict=True)]
        ids, mask = self._texts(clips, spans, rng, device)
        octaves = np.log2(span / clips.duration) + rng.normal(0, np.where(placed, UNSURE_PLACED, UNSURE), n)
        told = number, np.where(placed, filled.rounds, 0), filled.places[np.arange(n), frame][:, None]
        numbers, rounds, places = (torch.from_numpy(one).to(device) for one in told)
        return PictureBatch(
            ids, mask, self.scenes(clips, shown, FRAME_SIZE).to(device), numbers=numbers, rounds=rounds,
            places=places, octaves=torch.from_numpy(octaves).float().to(device),
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
