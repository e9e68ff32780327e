"""From sentences to videos: key frames, interpolation, upsampling, pixels (paper section 3)."""

import hashlib
import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from tqdm import tqdm

from cogvideo.checkpoints.pipeline_folder import Loader, check_offload, check_parts, read_native
from cogvideo.checkpoints.registry import weights_folder
from cogvideo.checkpoints.released import is_released, read_released
from cogvideo.config import SamplingConfig, check_guidance, check_seed
from cogvideo.data.video import Video
from cogvideo.errors import CogVideoError
from cogvideo.model.strategies import ClusterStrategy, Strategy, TopKStrategy
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.device import choose_device
from cogvideo.runtime.offload import Offload
from cogvideo.sampling.cuda import release
from cogvideo.sampling.decode import generate_first_frame, generate_key_frames, interpolate_frames, places
from cogvideo.sampling.halving import halving
from cogvideo.superres.direct import DirectSuperResolution
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.text import TextTokenizer

Seeds = int | Sequence[int]  # one for all clips, or one for each
Seconds = float | Sequence[float]  # the same
# How many stage 2 sequences are decoded at once (None: all) and how many frames are upsampled at once, as in
# the release or fewer where memory is short. A clip's last round has 8 sequences, each with 1.5 GB of caches
# at full size in 16 bit.
AT_ONCE: dict[str, tuple[int | None, int]] = {"none": (None, 12), "stages": (4, 4), "layers": (4, 2)}


class Pipeline:
    """All models of one set of weights, and the way through them; see `from_pretrained` and `__call__`."""

    def __init__(
        self,
        *,
        text: TextTokenizer,
        frames: FrameTokenizer,
        stage1: CogVideoTransformer,
        stage2: CogVideoTransformer,
        superres: DirectSuperResolution,
        sampling: SamplingConfig,
        cluster_labels: np.ndarray | None = None,
        device: str | torch.device = "cpu",
        offload: str = "none",
    ):
        """Parts of one set of weights: on `device`, or with offloading on the CPU (see offload.py)."""
        self.text, self.frames, self.sampling = text, frames, sampling
        self.stage1, self.stage2, self.superres = stage1, stage2, superres
        self.cluster_labels, self.device = cluster_labels, torch.device(device)
        check_parts(text, frames, stage1.config, stage2.config, superres.config, cluster_labels)
        self.sequences_at_once, self.frames_at_once = AT_ONCE[check_offload(offload)]
        parts = (stage1, stage2, superres, frames)
        self._offload = None if offload == "none" else Offload(parts, self.device, layers=offload == "layers")

    @classmethod
    def from_pretrained(
        cls,
        weights: str | Path = "demo",
        *,
        device: str = "auto",
        dtype: str | None = None,
        offload: str = "none",
    ) -> "Pipeline":
        """Load "demo", a pipeline folder (it holds pipeline.json), the run_dir of a training that
        ended with one, or the folder of the released files.

        The released files lie in one folder under their own names (checkpoints/released.py). device "auto"
        takes CUDA where there is one. dtype: fp32, bf16, fp16 or int8 (large matrices in int8, the rest in
        bf16 on CUDA, in fp32 on CPU); None takes fp32 for pipeline folders and the files' own for the
        release. offload: "none" keeps everything on the device, "stages" only the part that works, "layers"
        two of its blocks (`cogvideo bench full-size --plan` shows what each needs).
        """
        device = choose_device(device)
        home = device if check_offload(offload) == "none" else "cpu"
        folder = weights_folder(weights)
        if is_released(folder):
            parts = read_released(folder, Loader(dtype, device, home, None, offload))
        else:
            parts = read_native(folder, Loader(dtype, device, home, torch.float32, offload))
        return cls(**parts, device=device, offload=offload)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        seconds: float = 4.0,
        seed: Seeds = 0,
        enlarge: bool = True,
        guidance_scale: float | None = None,
        progress: bool = True,
    ) -> "Video | list[Video]":
        """Make a video of a sentence, or a list of videos of several.

        seconds: how long the clip lasts; one of `sampling.spans`. Five key frames span it, then rounds of
        interpolation double the frame rate up to `sampling.fps`. enlarge: upsample the frames. The same seed
        on the same device gives the same video, whatever else is in the batch; prompts that share a seed
        share their random numbers, so their clips tend to begin alike. guidance_scale overrides the key
        frames' guidance. Where memory does not suffice for all prompts at once, they are made in halves, with
        a warning.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        self._spans(prompts, seconds)
        seeds = _seeds(seed, len(prompts))
        self.warn_of_unknown_words(prompts)
        scale = self.sampling.key_guidance if check_guidance(guidance_scale) is None else guidance_scale

        def make(part: slice) -> list[Video]:
            texts, own = prompts[part], seeds[part]
            tokens = self.key_frame_tokens(texts, seconds, own, guidance_scale=scale, progress=progress)
            tokens = self.interpolate(tokens, texts, seconds, own, progress=progress)
            pixels = self.pixels(self.upsample(tokens, texts, own, progress=progress) if enlarge else tokens)
            settings = {"seconds": float(seconds), "guidance_scale": scale}
            fps = (tokens.shape[1] - 1) / seconds
            return [
                Video(clip, fps=fps, settings={"prompt": text, "seed": number} | settings)
                for clip, text, number in zip(pixels, texts, own, strict=True)
            ]

        videos = halving(make, len(prompts), release=release)
        return videos[0] if isinstance(prompt, str) else videos

    def warn_of_unknown_words(self, prompts: Sequence[str]) -> None:
        """Name the words that the text model has no piece for, and prompts that the weights understand."""
        if unknown := sorted(self.text.count_unknown(prompts)):
            words = f"These weights have never seen the words {', '.join(unknown)} and will not obey them."
            if self.sampling.examples:
                words += f" They understand, for example: {'; '.join(self.sampling.examples)}."
            warnings.warn(words, stacklevel=3)

    def key_frames(
        self, prompts: Sequence[str], seconds: Seconds = 4.0, seed: Seeds = 0, *, progress: bool = False
    ) -> np.ndarray:
        """Only stage 1's five frames of every prompt, small: uint8 [B,5,H,W,3]."""
        return self.pixels(self.key_frame_tokens(prompts, seconds, seed, progress=progress))

    @torch.inference_mode()
    def key_frame_tokens(
        self,
        prompts: Sequence[str],
        seconds: Seconds,
        seed: Seeds = 0,
        *,
        guidance_scale: float | None = None,
        progress: bool = False,
    ) -> Tensor:
        """First frame by the image model, the others by stage 1 -> tokens [B,5,N]."""
        self._spans(prompts, seconds)  # now, not after the first frame
        first = self.first_frame_tokens(prompts, seed, progress=progress)
        return self.later_key_frame_tokens(
            first, prompts, seconds, seed, guidance_scale=guidance_scale, progress=progress
        )

    @torch.inference_mode()
    def first_frame_tokens(
        self, prompts: Sequence[str], seed: Seeds = 0, *, progress: bool = False
    ) -> Tensor:
        """The first frame by the image model inside stage 1 -> tokens [B,N]."""
        s, c = self.sampling, self.stage1.config
        self._use(self.stage1)
        ids, mask = self._text(prompts, [None] * len(prompts), s.first_frame_suffix)
        guide = self._guide([None] * len(prompts)) if s.first_guidance != 1 else {}
        with _bar("first frame", c.frame_tokens, progress) as bar:
            return generate_first_frame(
                self.stage1, ids, text_mask=mask, text_bonus=s.first_text_bonus,
                guidance_scale=s.first_guidance, progress=bar.update,
                strategy=self._strategy(s.first_temperature, s.first_top_k),
                generator=self._generators("first", seed, len(prompts)), **guide,
            )  # fmt: skip

    @torch.inference_mode()
    def later_key_frame_tokens(
        self,
        first: Tensor,
        prompts: Sequence[str],
        seconds: Seconds,
        seed: Seeds = 0,
        *,
        guidance_scale: float | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Stage 1: the first frames [B,N] or [B,F,N] and the key frames after them -> tokens [B,5,N]."""
        s, c = self.sampling, self.stage1.config
        self._use(self.stage1)
        scale = s.key_guidance if guidance_scale is None else guidance_scale
        spans = self._spans(prompts, seconds)
        ids, mask = self._text(prompts, spans, s.key_frame_suffix)
        guide = self._guide(spans) if scale != 1 else {}
        unguided = s.key_text_bonus if s.unguided_text_bonus is None else s.unguided_text_bonus
        given = 1 if first.ndim == 2 else first.shape[1]
        with _bar("key frames", (c.num_frames - given) * c.frame_tokens, progress) as bar:
            return generate_key_frames(
                self.stage1, ids, first, text_mask=mask, num_frames=c.num_frames, guidance_scale=scale,
                text_bonus=s.key_text_bonus if guide else unguided, progress=bar.update,
                strategy=self._strategy(s.temperature, s.top_k),
                generator=self._generators("key", seed, len(prompts)), **guide,
            )  # fmt: skip

    @torch.inference_mode()
    def interpolate(
        self,
        tokens: Tensor,
        prompts: Sequence[str],
        seconds: float,
        seed: Seeds = 0,
        *,
        progress: bool = False,
    ) -> Tensor:
        """Stage 2, round after round: [B,5,N] that span `seconds` -> [B,9,N] -> ... up to sampling.fps."""
        rounds = self.rounds(tokens.shape[1], seconds)
        for number in range(1, rounds + 1):
            title = f"frames between {number}/{rounds}"
            tokens = self.interpolate_once(
                tokens, prompts, seconds, number, seed, title=title, progress=progress
            )
        return tokens

    def rounds(self, frames: int, seconds: float) -> int:
        """How many rounds of stage 2 bring `frames` that span `seconds` to sampling.fps."""
        return max(0, round(math.log2(seconds * self.sampling.fps / (frames - 1))))

    @torch.inference_mode()
    def interpolate_once(
        self,
        tokens: Tensor,
        prompts: Sequence[str],
        seconds: float,
        number: int,
        seed: Seeds = 0,
        *,
        title: str = "frames between",
        progress: bool = False,
    ) -> Tensor:
        """Round `number` (1, 2, ..) of stage 2: a frame between every two, [B,T,N] -> [B,2T-1,N]."""
        s, c = self.sampling, self.stage2.config
        self._use(self.stage2)
        b, t = tokens.shape[:2]
        pairs = (t - 1) // 2  # every pair of neighbouring intervals is one sequence
        given = torch.stack([tokens[:, 2 * i : 2 * i + 3] for i in range(pairs)], 1)
        given = rearrange(given, "b p f n -> (b p) f n")
        texts = [prompt for prompt in prompts for _ in range(pairs)]
        spans = [seconds / 2**number] * len(texts)
        ids, mask = self._text(texts, spans, s.key_frame_suffix)
        told = places(self.stage2, number, pairs)
        told = None if told is None else repeat(told, "p f one d -> (b p) f one d", b=b)
        generators = self._generators(f"fill {number}", seed, b, pairs)
        size = self.sequences_at_once or len(texts)
        between = []
        with _bar(title, -(-len(texts) // size) * 2 * c.frame_tokens, progress) as bar:
            for some in (slice(first, first + size) for first in range(0, len(texts), size)):
                guide = self._guide(spans[some]) if s.fill_guidance != 1 else {}
                between.append(
                    interpolate_frames(
                        self.stage2, ids[some], given[some], text_mask=mask[some],
                        guidance_scale=s.fill_guidance, text_bonus=s.fill_text_bonus,
                        release_quirks=s.release_quirks, strategy=self._strategy(s.temperature, s.top_k),
                        generator=generators[some], progress=bar.update,
                        conditioning=None if told is None else told[some], **guide,
                    )
                )  # fmt: skip
        denser = tokens.new_empty(b, 2 * t - 1, tokens.shape[2])
        denser[:, 0::2] = tokens
        denser[:, 1::2] = rearrange(torch.cat(between), "(b p) f n -> b (p f) n", b=b)
        return denser

    @torch.inference_mode()
    def upsample(
        self, tokens: Tensor, prompts: Sequence[str], seed: Seeds = 0, *, progress: bool = False
    ) -> Tensor:
        """Direct super-resolution of every frame: [B,T,N] -> [B,T,9N]."""
        s = self.sampling
        self._use(self.superres)
        strategy = self._strategy(s.large_temperature, s.large_top_k, s.large_inner_temperature)
        ids, mask = self._text(prompts, [None] * len(prompts), "")
        clips = []
        with _bar("enlarging", tokens.shape[0] * tokens.shape[1], progress) as bar:
            generators = self._generators("large", seed, len(tokens))
            for clip, row, real, generator in zip(tokens, ids, mask, generators, strict=True):
                parts = []
                for part in clip.split(self.frames_at_once):
                    text, text_mask = (t.expand(len(part), -1) for t in (row, real))
                    options = {"text_mask": text_mask, "strategy": strategy, "generator": generator}
                    parts.append(self.superres(text, part, **options))
                    bar.update(len(part))
                clips.append(torch.cat(parts))
        return torch.stack(clips)

    @torch.inference_mode()
    def tokens(self, frames: np.ndarray) -> Tensor:
        """Frames uint8 [B,T,H,W,3] of the models' size -> tokens [B,T,N]: the way back from `pixels`."""
        self._use(self.frames)
        grids = rearrange(torch.from_numpy(frames).to(self.device) / 255, "b t h w c -> (b t) c h w")
        ids = torch.cat([self.frames.encode(part) for part in grids.split(self.frames_at_once)])
        return rearrange(ids, "(b t) h w -> b t (h w)", b=len(frames))

    @torch.inference_mode()
    def pixels(self, tokens: Tensor) -> np.ndarray:
        """Tokens [B,T,n] -> uint8 [B,T,H,W,3]; frames of the models' size, or upsampled."""
        c = self.stage1.config
        self._use(self.frames)
        scale = math.isqrt(tokens.shape[-1] // c.frame_tokens)
        grids = rearrange(tokens, "b t (h w) -> (b t) h w", h=scale * c.frame_height)
        frames = torch.cat([self.frames.decode(part) for part in grids.split(self.frames_at_once)])
        pixels = (frames.clamp(0, 1) * 255).round().byte().cpu().numpy()
        return rearrange(pixels, "(b t) c h w -> b t h w c", b=len(tokens))

    def with_sampling(self, **changes: Any) -> "Pipeline":
        """The same models with other sampling settings."""
        other = object.__new__(Pipeline)
        other.__dict__ = self.__dict__ | {"sampling": replace(self.sampling, **changes)}
        return other

    def _use(self, part: nn.Module) -> None:
        """Have a part's weights on the device."""
        if self._offload is not None:
            if part is not self._offload.present:  # what others keep there has to leave with them
                release()
            self._offload.use(part)

    def _spans(self, prompts: Sequence[str], seconds: Seconds) -> list[float]:
        """The seconds of every prompt; refuses none at all and what was not trained."""
        if not prompts:
            raise CogVideoError("There is no prompt: give at least one.")
        spans = [float(v) for v in np.broadcast_to(np.asarray(seconds, float), len(prompts))]
        for span in spans:
            self.sampling.check_span(span)
        return spans

    def _text(
        self, prompts: Sequence[str], spans: Sequence[float | None], suffix: str
    ) -> tuple[Tensor, Tensor]:
        ids = [
            self.text.encode_prompt(prompt + suffix if prompt.strip() else prompt, span)
            for prompt, span in zip(prompts, spans, strict=True)
        ]
        longest = max(len(row) for row in ids)
        if longest > self.stage1.config.text_length:
            raise CogVideoError(
                f"The prompt has {longest} tokens with its frame-rate text, but there are "
                f"{self.stage1.config.text_length} text slots: shorten it."
            )
        padded, mask = self.text.left_pad(ids)
        return padded.to(self.device), mask.to(self.device)

    def _guide(self, spans: Sequence[float | None]) -> dict[str, Any]:
        ids, mask = self._text([self.sampling.guidance_prompt] * len(spans), spans, "")
        return {"guidance_ids": ids, "guidance_mask": mask}

    def _strategy(self, temperature: float, top_k: int, inner: float | None = None) -> Strategy:
        if not self.sampling.clusters:
            return TopKStrategy(temperature=temperature, top_k=top_k)
        if self.cluster_labels is None:
            raise CogVideoError(
                "This pipeline draws by clusters: put clusters.npy into its tokenizers folder."
            )
        inner = self.sampling.inner_temperature if inner is None else inner
        return ClusterStrategy(self.cluster_labels, temperature=temperature, top_k=top_k, temperature2=inner)

    def _generators(self, stage: str, seed: Seeds, clips: int, rows: int = 1) -> list[torch.Generator]:
        """One random stream a row, from the seed, the stage and the row's number in its clip alone."""
        made = []
        for clip_seed in [seed] * clips if isinstance(seed, int) else seed:
            for row in range(rows):
                digest = hashlib.sha256(f"{clip_seed} {stage} {row}".encode()).digest()
                made.append(torch.Generator(self.device).manual_seed(int.from_bytes(digest[:8], "big") >> 1))
        return made


def _seeds(seed: Seeds, clips: int) -> list[int]:
    seeds = [seed] if isinstance(seed, int) else [int(one) for one in seed]
    if len(seeds) not in (1, clips):
        raise CogVideoError(
            f"There are {len(seeds)} seeds for {clips} clips: give one seed, or one for each clip."
        )
    return [check_seed(one) for one in seeds] * (clips if len(seeds) == 1 else 1)


def _bar(title: str, total: int, progress: bool) -> tqdm:
    unit = "token" if title != "enlarging" else "frame"
    return tqdm(total=total, desc=f"{title:>14}", disable=not progress, unit=unit)
