"""What there is to look at: the sequences that a generation passes through the models, with their text."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cogvideo.data.reading import fit
from cogvideo.errors import CogVideoError
from cogvideo.explore.recording import Recording, record
from cogvideo.model import masks
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.tokenizers.text import frame_rate_text


@dataclass(frozen=True)
class Scene:
    """One sequence of a generation: the key frames, or three frames and the two that stage 2 adds."""

    title: str
    stage: str  # "stage 1" or "stage 2"
    prompt: str
    settings: str  # of the clip, as text
    model: CogVideoTransformer
    text_ids: Tensor  # [L]
    words: tuple[tuple[str, str], ...]  # L labels, each with what it is
    frames: Tensor  # [T,N] tokens
    pixels: np.ndarray  # uint8 [T,H,W,3]
    seconds: tuple[float, ...]  # T timestamps in the clip

    def record(self, layers: Sequence[int] | None = None) -> Recording:
        """Run the model over this sequence and keep the inputs of `layers`."""
        return record(self.model, self.text_ids, self.frames, layers=layers)

    @property
    def made(self) -> list[int]:
        """Times of the frames that the model makes here; the others are given."""
        given = masks.is_given(self.model.config).tolist()
        return [time for time in range(1, len(self.frames)) if not given[time]]

    @property
    def brightest(self) -> int:
        """Number of the brightest patch of a frame in the middle of those made here."""
        c, time = self.model.config, self.made[len(self.made) // 2]
        grid = {"h": c.frame_height, "w": c.frame_width}
        light = rearrange(self.pixels[time].astype(float), "(h a) (w b) c -> (h w) (a b c)", **grid)
        return time * c.frame_tokens + int(light.mean(1).argmax())


def scenes(
    pipe: Pipeline,
    prompt: str,
    *,
    seconds: float = 4.0,
    seed: int = 0,
    rounds: int | None = 1,
    progress: bool = False,
) -> list[Scene]:
    """Generate a clip and keep what the models saw: key frames, then all sequences of `rounds` of stage 2.

    rounds: None takes all that the clip's frame rate asks for.
    """
    tokens = pipe.key_frame_tokens([prompt], seconds, seed, progress=progress)
    most = pipe.rounds(tokens.shape[1], seconds)
    settings = f"{seconds:g} s · seed {seed}"
    made = [_scene(pipe, "Key frames", prompt, settings, tokens[0], seconds)]
    for number in range(1, (most if rounds is None else min(rounds, most)) + 1):
        span, shown = seconds / 2**number, {"title": f"frames between {number}/{most}", "progress": progress}
        tokens = pipe.interpolate_once(tokens, [prompt], seconds, number, seed, **shown)
        for start in range(0, tokens.shape[1] - 4, 4):
            begin, some = start / 4 * span, tokens[0, start : start + 5]
            name = f"Between, round {number}: {begin:g} to {begin + span:g} s"
            made.append(_scene(pipe, name, prompt, settings, some, span, begin, stage=2))
    return made


def clip_scene(pipe: Pipeline, prompt: str, frames: np.ndarray, *, seconds: float = 4.0) -> Scene:
    """A clip that was not generated here, uint8 [T,H,W,3] of any size, as key frames of stage 1.

    Its frames are thinned out to as many as a sequence has, scaled and cropped as tokenizing does. seconds:
    how long the clip lasts.
    """
    c = pipe.stage1.config
    pipe._spans([prompt], seconds)
    black = torch.zeros(1, 1, c.frame_tokens, dtype=torch.int64, device=pipe.device)
    height, width = pipe.pixels(black).shape[2:4]
    if frames.ndim != 4 or frames.shape[3] != 3 or len(frames) < c.num_frames:
        raise CogVideoError(
            f"The clip is {list(frames.shape)}, but these weights look at {c.num_frames} or more frames: "
            "give a longer one."
        )
    chosen = np.linspace(0, len(frames) - 1, c.num_frames).round().astype(int)
    tokens = pipe.tokens(fit(frames[chosen], height, width)[None])[0]
    return _scene(pipe, "The clip as key frames", prompt, f"{seconds:g} s", tokens, seconds)


def _scene(
    pipe: Pipeline, title: str, prompt: str, settings: str, tokens: Tensor, span: float, begin: float = 0.0,
    stage: int = 1,
) -> Scene:  # fmt: skip
    """tokens [T,N] that span `span` seconds from `begin` on."""
    ids = pipe._text([prompt], [span], pipe.sampling.key_frame_suffix)[0][0]
    rate = frame_rate_text(span)
    pieces = pipe.text.pieces(pipe.text.encode(rate))
    hint = f"frame-rate text, {rate} to the model: the frames span {span:g} s"
    words = [(piece, hint) for piece in ([f"{span:g} s"] if len(pieces) == 1 else pieces)]
    words.append(("⏎", "new line: ends the frame-rate text"))
    words += [(piece, "piece of the prompt") for piece in pipe.text.pieces(ids[len(words) :].tolist())]
    return Scene(
        title=title,
        stage=f"stage {stage}",
        prompt=prompt,
        settings=settings,
        model=pipe.stage1 if stage == 1 else pipe.stage2,
        text_ids=ids,
        words=tuple(words),
        frames=tokens,
        pixels=pipe.pixels(tokens[None])[0],
        seconds=tuple(begin + span * time / (len(tokens) - 1) for time in range(len(tokens))),
    )
