"""What there is to look at: the sequences that a generation passes through the models, with their text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cogvideo.data.reading import fit
from cogvideo.errors import CogVideoError
from cogvideo.explore.recording import Recording, record
from cogvideo.explore.silence import Silent, silenced
from cogvideo.model import masks
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.sampling.decode import generate_key_frames, interpolate_frames, places
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.tokenizers.text import frame_rate_text

Watch = Callable[[Tensor], object]


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
    pipe: Pipeline | None = None  # decodes its tokens and draws others; None: pictures of tokens are missing
    seed: int = 0
    stream: tuple[str, int, int] = ("key", 1, 0)  # which of the seed's random streams drew it: name, of, row
    round: int = 0  # of stage 2, from 1

    @property
    def span(self) -> float:
        """Seconds between the first and the last frame."""
        return self.seconds[-1] - self.seconds[0]

    def record(self, layers: Sequence[int] | None = None) -> Recording:
        """Run the model over this sequence and keep the inputs of `layers`."""
        clip = self.model, self.text_ids, self.frames
        return record(*clip, layers=layers, conditioning=self.conditioning)

    @property
    def conditioning(self) -> Tensor | None:
        """What stage 2 is told of where in the clip its frames [1,T,1,D] stand; None where it is not."""
        if not self.round:
            return None
        _, sequences, row = self.stream
        told = places(self.model, self.round, sequences)
        return None if told is None else told[row : row + 1]

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
    watch: Watch | None = None,
) -> list[Scene]:
    """Generate a clip and keep what the models saw: key frames, then all sequences of `rounds` of stage 2.

    rounds: None takes all that the clip's frame rate asks for. watch: called with the tokens [T,N] of the key
    frames after every step; 0 is what is not made yet.
    """
    settings = f"{seconds:g} s · seed {seed}"
    if watch is None:
        tokens = pipe.key_frame_tokens([prompt], seconds, seed, progress=progress)
        made = [_scene(pipe, "Key frames", prompt, settings, tokens[0], seconds, seed)]
    else:
        first = pipe.first_frame_tokens([prompt], seed)
        blank = first.repeat(pipe.stage1.config.num_frames, 1)
        scene = _scene(pipe, "Key frames", prompt, settings, blank, seconds, seed)
        made = [_with_frames(scene, drawn_anew(scene, watch=watch))]
        tokens = made[0].frames[None]
    most = pipe.rounds(tokens.shape[1], seconds)
    rounds = most if rounds is None else min(rounds, most)
    for number in range(1, rounds + 1):
        span, shown = (
            seconds / 2**number,
            {"title": f"frames between {number}/{rounds}", "progress": progress},
        )
        tokens = pipe.interpolate_once(tokens, [prompt], seconds, number, seed, **shown)
        pairs = (tokens.shape[1] - 1) // 4
        for row in range(pairs):
            begin, some = row * span, tokens[0, 4 * row : 4 * row + 5]
            name = f"Between, round {number}: {begin:g} to {begin + span:g} s"
            stream = f"fill {number}", pairs, row
            scene = _scene(pipe, name, prompt, settings, some, span, seed, begin, stream)
            made.append(replace(scene, round=number))
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
    return _scene(pipe, "The clip as key frames", prompt, f"{seconds:g} s", tokens, seconds, 0)


def seen_by(scene: Scene, pipe: Pipeline, name: str) -> Scene:
    """The same clip as another checkpoint sees it; name: of that checkpoint.

    Raises: CogVideoError where its words, tokens or sizes are others.
    """
    model = pipe.stage1 if scene.stage == "stage 1" else pipe.stage2
    ids = pipe._text([scene.prompt], [scene.span], pipe.sampling.key_frame_suffix)[0][0]
    if model.config != scene.model.config or ids.tolist() != scene.text_ids.tolist():
        raise CogVideoError(f"{name} has another geometry or other words: compare models of one kind.")
    return replace(scene, title=f"{scene.title}, seen by {name}", model=model, pipe=pipe)


@torch.inference_mode()
def drawn_anew(
    scene: Scene, *, parts: Sequence[Silent] = (), words: Sequence[int] = (), watch: Watch | None = None
) -> Tensor:
    """Decode what the model makes once more, by the same random numbers -> the clip's tokens [T,N].

    parts: silent heads and channels; words: text slots that no frame attends to. Without any, the clip is the
    same. watch: called with the clip's tokens [T,N] after every step; 0 is what is not made yet.
    """
    if scene.pipe is None:
        raise CogVideoError("This scene has no pipeline to draw with: make it by scenes().")
    pipe, s, model = scene.pipe, scene.pipe.sampling, silenced(scene.model, parts)
    key = scene.stage == "stage 1"
    scale = s.key_guidance if key else s.fill_guidance
    guide = pipe._guide([scene.span]) if scale != 1 else {}
    unseen = torch.zeros(len(scene.text_ids), dtype=torch.bool)
    unseen[list(words)] = True
    name, rows, row = scene.stream
    options: dict[str, Any] = guide | {
        "guidance_scale": scale,
        "strategy": pipe._strategy(s.temperature, s.top_k),
        "generator": pipe._generators(name, scene.seed, 1, rows)[row : row + 1],
        "unseen_text": unseen,
    }
    frames = scene.frames.clone()

    def fill(tokens: Tensor) -> Tensor:
        frames[scene.made] = tokens[0]
        return frames

    options["watch"] = None if watch is None else lambda tokens: watch(fill(tokens))
    if key:
        bonus = s.key_text_bonus if guide or s.unguided_text_bonus is None else s.unguided_text_bonus
        made = generate_key_frames(
            model, scene.text_ids[None], frames[None, :1], num_frames=len(frames), text_bonus=bonus, **options
        )
        return made[0]
    given = [time for time in range(len(frames)) if time not in scene.made]
    made = interpolate_frames(
        model, scene.text_ids[None], frames[None, given], text_bonus=s.fill_text_bonus,
        release_quirks=s.release_quirks, conditioning=scene.conditioning, **options,
    )  # fmt: skip
    return fill(made).clone()


def _with_frames(scene: Scene, frames: Tensor) -> Scene:
    assert scene.pipe is not None
    return replace(scene, frames=frames, pixels=scene.pipe.pixels(frames[None])[0])


def _scene(
    pipe: Pipeline, title: str, prompt: str, settings: str, tokens: Tensor, span: float, seed: int,
    begin: float = 0.0, stream: tuple[str, int, int] = ("key", 1, 0),
) -> Scene:  # fmt: skip
    """tokens [T,N] that span `span` seconds from `begin` on."""
    ids = pipe._text([prompt], [span], pipe.sampling.key_frame_suffix)[0][0]
    rate = frame_rate_text(span)
    pieces = pipe.text.pieces(pipe.text.encode(rate))
    hint = f"frame-rate text, {rate} to the model: the frames span {span:g} s"
    words = [(piece, hint) for piece in ([f"{span:g} s"] if len(pieces) == 1 else pieces)]
    words.append(("⏎", "new line: ends the frame-rate text"))
    words += [(piece, "piece of the prompt") for piece in pipe.text.pieces(ids[len(words) :].tolist())]
    key = stream[0] == "key"
    return Scene(
        title=title,
        stage="stage 1" if key else "stage 2",
        prompt=prompt,
        settings=settings,
        model=pipe.stage1 if key else pipe.stage2,
        text_ids=ids,
        words=tuple(words),
        frames=tokens,
        pixels=pipe.pixels(tokens[None])[0],
        seconds=tuple(begin + span * time / (len(tokens) - 1) for time in range(len(tokens))),
        pipe=pipe,
        seed=seed,
        stream=stream,
    )
