"""Training on a tokenized folder, from a YAML file: stage 1, stage 2, an image model or super-resolution, from given weights.

`cogvideo train CONFIG.yaml` on one process, `torchrun --nproc-per-node=8 -m cogvideo train CONFIG.yaml` on many.
"""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from cogvideo.checkpoints.native import inherit_image_model, load_model, save_model
from cogvideo.checkpoints.released import FRAMES, STAGE1, STAGE2, is_released
from cogvideo.checkpoints.sat import fill_model, load_sat_checkpoint
from cogvideo.checkpoints.tokenizers import load_tokenizers
from cogvideo.config import from_dict, load_yaml, to_dict
from cogvideo.data.tokenized import Batch, TokenizedBatches
from cogvideo.errors import CogVideoError
from cogvideo.model import masks
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.tensors import DTYPES
from cogvideo.sampling import TopKStrategy, generate_first_frame, generate_key_frames, interpolate_frames
from cogvideo.checkpoints.registry import DEMO
from cogvideo.superres.direct import DirectSuperResolution
from cogvideo.theatre import recipe
from cogvideo.theatre.inheritance import image_model_of
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.training import distributed
from cogvideo.training.checkpoints import fingerprint, write_whole, writing
from cogvideo.training.flops import peak_flops, step_flops
from cogvideo.training.loop import OptimizerConfig, fit, use_threads
from cogvideo.training.metrics import Work

TEST_BATCHES = 4  # over which the test loss is a mean
Model = CogVideoTransformer | DirectSuperResolution


@dataclass(frozen=True)
class TrainingConfig:
    """All settings of a training on a tokenized folder; see configs/stage1.yaml."""

    stage: Literal["stage1", "stage2", "image", "superres"]
    data: str  # a folder that `cogvideo data tokenize` made
    start: str  # demo, a pipeline folder, or the folder of one model: native, or as released
    run_dir: str  # checkpoints, metrics, pictures; the trained model goes to run_dir/model
    optimizer: OptimizerConfig
    seed: int = 0
    dtype: Literal["fp32", "bf16"] = (
        "fp32"  # of products; trained weights, sums and the stream between layers stay fp32
    )
    recompute: bool = False  # blocks are computed again for their gradients: less memory, a third more time
    compile: bool = False  # blocks by torch.compile; meant for GPUs
    window: int | None = (
        None  # of the temporal channel, where `start` is an image model that stage 1 or 2 inherits
    )
    caption_dropout: float = 0.1
    threads: int | None = None  # CPU threads; None: torch's choice
    checkpoint_seconds: float = 600.0
    log_every: int = 10
    evaluate_every: int = 500
    sample_every: int = 500
    samples: int = 4  # clips of a picture of samples; 0: none. One process draws them, of all but superres
    frame_tokenizer: str | None = (
        None  # frames.safetensors or ice_image.pt for samples; None: that of `start`
    )
    tensorboard: bool = True

    def __post_init__(self):
        for name in ("log_every", "evaluate_every", "sample_every"):
            if getattr(self, name) < 1:
                raise CogVideoError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.seed < 0 or self.samples < 0 or not 0 <= self.caption_dropout <= 1:
            raise CogVideoError("seed and samples must be at least 0, and caption_dropout from 0 to 1.")
        if self.recompute and self.stage == "superres":
            raise CogVideoError("Super-resolution cannot recompute its blocks: leave recompute away.")


def train(path: str | Path, overrides: list[str] | None = None) -> None:
    """Train by a YAML file: a training on a tokenized folder (it names a `stage`), or a recipe (training/recipe.py).

    overrides are "key=value" or "group.key=value". The same command goes on where a killed one stopped, on any number of
    processes. Raises CogVideoError for settings, weights and data that cannot be used.
    """
    values = load_yaml(path, overrides or [])
    if "stage" not in values:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise CogVideoError("A recipe runs in one process: leave torchrun away.")
        return recipe.train(path, overrides)
    config = from_dict(TrainingConfig, values, str(path))
    use_threads(config.threads)
    try:
        Training(config).run()
    finally:
        distributed.leave()


class Training:
    """One training: what is trained, on what, and what comes out."""

    def __init__(self, config: TrainingConfig):
        self.config, c = config, config
        self.source = DEMO if c.start == "demo" else Path(c.start)
        recipe.make_writable("run_dir", Path(c.run_dir))
        self.rank, self.processes, self.device = distributed.join()
        rows = c.optimizer.batch_size // c.optimizer.accumulate
        if c.optimizer.batch_size % (c.optimizer.accumulate * self.processes):
            raise CogVideoError(
                f"A batch of {c.optimizer.batch_size} clips in {c.optimizer.accumulate} part(s) cannot be shared by "
                f"{self.processes} processes: give a multiple of {c.optimizer.accumulate * self.processes}."
            )
        # A part of a step is a batch of its own; the parts of a step hold the sequences of its whole batch.
        self.batches = TokenizedBatches(
            c.data, rows, seed=c.seed, caption_dropout=c.caption_dropout, rank=self.rank, world_size=self.processes,
        )  # fmt: skip
        self.batches.text_length = self.batches.format.text_length
        if (self.batches.format.kind in ("image", "superres")) != (c.stage in ("image", "superres")):
            raise CogVideoError(
                f"The tokens in {c.data} are of kind {self.batches.format.kind}, not for {c.stage}."
            )
        self.model = self._start()
        if isinstance(self.model, CogVideoTransformer):
            self.batches.check(self.model.config, **self._digests())
        elif self.batches.format.kind != "superres":
            raise CogVideoError(
                f"The tokens in {c.data} have no large frames: tokenize with --kind superres."
            )
        self.names = list(_trained(self.model, c.stage))
        set_types(self.model, self.names, DTYPES[c.dtype])

    def run(self) -> None:
        """Train to the end and write the model; a finished run does nothing."""
        c, folder = self.config, Path(self.config.run_dir)
        model: nn.Module = self.model.to(self.device)
        if c.compile:
            entry = "both" if isinstance(self.model, CogVideoTransformer) else "forward"
            for block in self.model.blocks:
                setattr(block, entry, torch.compile(getattr(block, entry)))
        test = partial(self.batches, device=self.device, split="test")
        picture = self._samples(test(0)) if c.samples else None
        if self.processes > 1:
            distributed.shard(self.model)
        trained = dict(model.named_parameters())
        fit(
            model,
            [trained[name] for name in self.names],
            lambda part: self.losses(self.batches(part, self.device)),
            c.optimizer,
            folder,
            settings=self.settings(),
            evaluate=lambda: self.test_loss([test(step) for step in range(TEST_BATCHES)]),
            sample=picture,
            checkpoint_seconds=c.checkpoint_seconds,
            log_every=c.log_every,
            evaluate_every=c.evaluate_every,
            sample_every=c.sample_every,
            work=self.work(),
            tensorboard=c.tensorboard,
            label=c.stage,
        )
        (saved,) = distributed.most((folder / "model" / "config.json").exists())  # all must go the same way
        if not saved:
            weights = {}
            for name in self.names:
                weight = distributed.whole(trained[name].detach())
                if self.rank == 0:
                    weights[name] = weight.cpu()
            distributed.first_only(lambda: self._save(weights, folder / "model"))

    def losses(self, batch: Batch) -> Tensor:
        """By frame, under autocast if asked for."""
        with self._precision():
            if isinstance(self.model, CogVideoTransformer):
                return self.model.frame_losses(
                    batch.text_ids, batch.frames, batch.text_mask, recompute=self.config.recompute
                )
            assert batch.high_res is not None
            ids, mask = shorten(batch.text_ids, batch.text_mask, self.model.config.text_slots - 1)
            return self.model.loss(ids, batch.frames[:, 0], batch.high_res, text_mask=mask)

    @torch.no_grad()
    def test_loss(self, batches: list[Batch]) -> dict[str, float]:
        losses = torch.stack([self.losses(batch).mean() for batch in batches]).mean()
        return {"test_loss": float(distributed.mean(losses))}

    def work(self) -> Work | None:
        """What a step is, for its pace; None for super-resolution."""
        if not isinstance(self.model, CogVideoTransformer):
            return None
        c, clips, length = (
            self.model.config,
            self.config.optimizer.batch_size,
            self.batches.format.text_length,
        )
        return Work(
            tokens=clips * (length + c.num_frames * c.frame_tokens),
            flops=step_flops(c, clips, length, everything=self.config.stage == "image"),
            peak=self.processes * peak_flops(self.device, DTYPES[self.config.dtype]),
        )

    def settings(self) -> dict:
        """What a checkpoint must agree with; how many processes there are is not part of it."""
        c = self.config
        own = ("stage", "seed", "dtype", "window", "caption_dropout")
        return {name: getattr(c, name) for name in own} | {
            "start": self.given,
            "optimizer": {k: list(v) if isinstance(v, tuple) else v for k, v in to_dict(c.optimizer).items()},
            "model": to_dict(self.model.config),
            "data": {name: facts["sha256"] for name, facts in self.batches.manifest["files"].items()},
        }

    def _precision(self) -> AbstractContextManager:
        return (
            torch.autocast(self.device.type, torch.bfloat16) if self.config.dtype == "bf16" else nullcontext()
        )

    def _start(self) -> Model:
        """The model before training, with weights in the types of its files; `given` tells what it was made from."""
        c, folder = self.config, self.source
        if not folder.exists():
            raise CogVideoError(f"There are no weights at {folder}: give demo or a folder to start from.")
        pipeline = (folder / "pipeline.json").exists()
        if c.stage == "superres":
            if not pipeline and not (folder / "config.json").exists():
                raise CogVideoError(
                    f"{folder} is not a native folder: run `cogvideo weights convert` on it first."
                )
            large = DirectSuperResolution.from_pretrained(folder / "superres" if pipeline else folder)
            self.given = fingerprint(large)
            return large
        stage = "stage2" if c.stage == "stage2" else "stage1"
        if pipeline:
            folder = folder / stage
        elif is_released(folder):
            folder = folder / (STAGE2 if stage == "stage2" else STAGE1)
        model = (
            load_model(folder, dtype=None) if (folder / "config.json").exists() else self._released(folder)
        )
        self.given = fingerprint(model)
        if c.stage == "image":
            return image_model_of(model) if model.config.temporal else model
        order = "interpolation" if stage == "stage2" else "sequential"
        if model.config.temporal:
            if model.config.order != order:
                raise CogVideoError(
                    f"{folder} holds a {model.config.order} model, and {stage} is {order}: give weights of {stage}, or of an "
                    "image model to inherit."
                )
            if c.window not in (None, model.config.window):
                raise CogVideoError(
                    f"{folder} was trained with window {model.config.window}, not {c.window}: leave window away, or inherit "
                    "an image model."
                )
            return model
        config = model.config.video(order=order, window=c.window)
        return inherit_image_model(model, config=config, seed=c.seed)

    def _digests(self) -> dict[str, str]:
        """Of the tokenizers beside a pipeline's models; a model alone does not tell what it was trained with."""
        if not (self.source / "tokenizers").is_dir():
            return {}
        parts = load_tokenizers(self.source)
        return {"frame_tokenizer": parts.frames.digest, "text_tokenizer": parts.text.digest}

    def _released(self, folder: Path) -> CogVideoTransformer:
        f = self.batches.format
        return load_sat_checkpoint(folder, image_tokens=f.image_tokens, begin_of_image=f.begin_of_image)

    def _save(self, weights: dict[str, Tensor], folder: Path) -> None:
        """The start's own frozen weights, bit for bit, with what was trained."""
        given, model = self.given, self._start()
        if self.given != given:
            raise CogVideoError(
                f"The weights at {self.config.start} are others than when the training began: put them back and run the same "
                "command."
            )
        own = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in weights.items():
                own[name].data = weight
        part = folder.with_name(folder.name + ".part")
        with writing(folder):
            save_model(model, part)
            os.replace(part, folder)

    def _samples(self, batch: Batch) -> Callable[[int], np.ndarray] | None:
        """Draws pictures: above each other, test clips and what the model makes of their texts and given frames."""
        from PIL import Image

        c, frames, why = self.config, None, ""
        if not isinstance(self.model, CogVideoTransformer):
            why = "of super-resolution there are none"
        elif self.processes > 1:
            why = "only a training by one process draws them"
        elif (frames := self._frame_tokenizer()) is None:
            why = f"{c.start} has no frame tokenizer, so name one by frame_tokenizer"
        if frames is None:
            if self.rank == 0:
                print(f"No samples will be drawn: {why} (samples: 0 asks for none).", file=sys.stderr)
            return None
        if frames.digest != self.batches.format.frame_tokenizer:
            raise CogVideoError(
                f"The tokens in {c.data} are of another frame tokenizer than the one for samples: name theirs by "
                "frame_tokenizer."
            )
        real = batch.frames[: c.samples]
        folder = Path(c.run_dir) / "samples"
        folder.mkdir(exist_ok=True)

        def draw(step: int) -> np.ndarray:
            made = sample_frames(
                self._decodable(), batch.text_ids[: c.samples], batch.text_mask[: c.samples], real
            )
            rows = rearrange(torch.stack([real, made], 1), "b two t n -> (b two t) n")
            side = self.batches.format.frame_height, self.batches.format.frame_width
            with torch.no_grad():
                pictures = frames.decode(rearrange(rows, "k (h w) -> k h w", h=side[0], w=side[1]))
            pixels = nn.functional.pad(
                (pictures.float().clamp(0, 1) * 255).round(), (0, 2, 0, 2), value=255
            ).byte()
            sheet = rearrange(pixels.cpu().numpy(), "(row t) c h w -> (row h) (t w) c", t=real.shape[1])
            path = folder / f"step-{step:09}.png"
            write_whole(path, lambda file: Image.fromarray(sheet).save(file, "PNG"))
            return sheet

        return draw

    def _decodable(self) -> CogVideoTransformer:
        """The model as the sampler takes it: in one type throughout."""
        assert isinstance(self.model, CogVideoTransformer)
        if self.config.dtype == "fp32":
            return self.model
        make = partial(CogVideoTransformer, self.model.config)
        weights = {name: weight.detach() for name, weight in self.model.named_parameters()}
        return fill_model(make, weights, where="The model", device=self.device, dtype=torch.bfloat16)

    def _frame_tokenizer(self) -> FrameTokenizer | None:
        c, folder = self.config, self.source
        known = [folder / "tokenizers" / "frames.safetensors", folder / FRAMES]
        path = Path(c.frame_tokenizer) if c.frame_tokenizer else next(filter(Path.exists, known), None)
        if path is None:
            return None
        made = FrameTokenizer.load(path) if path.suffix == ".safetensors" else FrameTokenizer.from_icetk(path)
        return made.to(self.device)


def set_types(model: nn.Module, trained: list[str], products: torch.dtype) -> None:
    """Trained weights in fp32; frozen matrices of blocks in the type of products, which changes no product; the rest fp32."""
    for name, weight in model.named_parameters():
        frozen = name not in trained and weight.ndim == 2 and name.startswith("blocks.")
        weight.data = weight.data.to(products if frozen else torch.float32)


def shorten(text_ids: Tensor, text_mask: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Texts [B,L], padded on the left, in at most `slots` slots: longer ones lose their end."""
    slots = min(slots, text_ids.shape[1])
    first = text_ids.shape[1] - text_mask.sum(1).clamp(min=slots)
    places = first[:, None] + torch.arange(slots, device=text_ids.device)
    return text_ids.gather(1, places), text_mask.gather(1, places)


def sample_frames(model: CogVideoTransformer, text_ids: Tensor, text_mask: Tensor, frames: Tensor) -> Tensor:
    """Frames [B,T,N] with those that a stage is given kept and the others drawn (seed 0): a look at what was learned."""
    c, strategy, generator = (
        model.config,
        TopKStrategy(top_k=5, temperature=1.0),
        torch.Generator(frames.device),
    )
    options = {"text_mask": text_mask, "strategy": strategy, "generator": generator.manual_seed(0)}
    if c.num_frames == 1:
        return generate_first_frame(model, text_ids, text_bonus=0.0, **options)[:, None]
    if c.order == "sequential":
        return generate_key_frames(model, text_ids, frames[:, 0], num_frames=c.num_frames, **options)
    made, given = frames.clone(), masks.is_given(c).to(frames.device)
    made[:, ~given] = interpolate_frames(model, text_ids, frames[:, given], text_bonus=0.0, **options)
    return made


def _trained(model: Model, stage: str) -> dict[str, nn.Parameter]:
    if stage in ("stage1", "stage2"):
        assert isinstance(model, CogVideoTransformer)
        return model.temporal_parameters()
    return dict(model.named_parameters())
