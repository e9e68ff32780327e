"""Training on a tokenized folder, from a YAML file: stage 1, stage 2, an image model or super-resolution.

`cogvideo train CONFIG.yaml` on one process, `torchrun --nproc-per-node=8 -m cogvideo train CONFIG.yaml` on
many.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cogvideo.checkpoints.assemble import TRAINED, assemble, find_parts
from cogvideo.checkpoints.frames import read_any
from cogvideo.checkpoints.native import image_model_of, inherit_image_model, load_model, save_model
from cogvideo.checkpoints.registry import weights_folder
from cogvideo.checkpoints.released import FRAMES, STAGE1, STAGE2, is_released
from cogvideo.checkpoints.sat import load_sat_checkpoint
from cogvideo.checkpoints.tokenizers import load_tokenizers
from cogvideo.config import ModelConfig, Order, check_seed, from_dict, load_yaml, to_dict
from cogvideo.data.tokenized import Batch, TokenizedBatches
from cogvideo.errors import CogVideoError
from cogvideo.io import make_writable, read_json, replacing, write_json
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.tensors import DTYPES
from cogvideo.superres.direct import DirectSuperResolution
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.training import distributed
from cogvideo.training.checkpoints import disk_advice, fingerprint
from cogvideo.training.flops import peak_flops, step_flops
from cogvideo.training.lock import held
from cogvideo.training.loop import Job, fit, use_threads
from cogvideo.training.lora import LoraConfig, add_adapters, merge, save_adapters
from cogvideo.training.metrics import Pace
from cogvideo.training.optimizer import OptimizerConfig
from cogvideo.training.samples import draw

TEST_BATCHES = 4  # over which the test loss is a mean
WINDOW = 10  # tokens along a side, with which the release trained stage 2
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
    dtype: Literal["fp32", "bf16"] = "fp32"  # of products; trained weights, sums and the residuals stay fp32
    recompute: bool = False  # blocks are computed again for their gradients: less memory, a third more time
    compile: bool = False  # blocks by torch.compile; meant for GPUs
    lora: LoraConfig | None = None  # train adapters of the attention in place of the weights
    optimizer_bits: Literal[32, 8] = 32  # of AdamW's states; 8 by bitsandbytes
    window: int | None = None  # of the temporal channel; None: as usual_window says, or as `start` has it
    test_share: float = 0.05  # of the video files, or of the groups that captions name
    caption_dropout: float = 0.1
    threads: int | None = None  # CPU threads; None: torch's choice
    checkpoint_seconds: float = 600.0
    log_every: int = 10
    evaluate_every: int = 500
    sample_every: int = 500
    samples: int = 4  # clips in a picture of samples; 0: no pictures. By one process, of all but superres
    frame_tokenizer: str | None = None  # frames.safetensors or ice_image.pt for samples; None: of `start`
    tensorboard: bool = True

    def __post_init__(self):
        for name in ("log_every", "evaluate_every", "sample_every"):
            if getattr(self, name) < 1:
                raise CogVideoError(f"{name} must be at least 1, not {getattr(self, name)}.")
        check_seed(self.seed)
        if self.samples < 0 or not 0 <= self.caption_dropout <= 1:
            raise CogVideoError("samples must be at least 0, and caption_dropout from 0 to 1.")
        if self.recompute and self.stage == "superres":
            raise CogVideoError("Super-resolution cannot recompute its blocks: leave recompute away.")


def train(path: str | Path, overrides: list[str] | None = None) -> None:
    """Train by a YAML file and overrides "group.key=value"; the same call resumes a stopped run."""
    config = from_dict(TrainingConfig, load_yaml(path, overrides or []), str(path))
    use_threads(config.threads)
    make_writable("run_dir", Path(config.run_dir))
    try:
        distributed.join()
        with held(Path(config.run_dir)):  # now, not after the weights were read for minutes
            training = Training(config)
            training.run()
            if config.stage != "image":
                distributed.first_only(training.assemble)
    finally:
        distributed.leave()


class Training:
    """One training: what is trained, on what, and what comes out."""

    def __init__(self, config: TrainingConfig):
        self.config, c = config, config
        self.source = weights_folder(c.start)
        self.rank, self.processes, self.device = distributed.join()
        rows = c.optimizer.batch_size // c.optimizer.accumulate
        if c.optimizer.batch_size % (c.optimizer.accumulate * self.processes):
            multiple = f"{self.processes} processes and {c.optimizer.accumulate} part(s) of a step"
            raise CogVideoError(f"{c.optimizer.batch_size} clips are no multiple of {multiple}.")
        # A part of a step is a batch of its own; the parts of a step hold the sequences of its whole batch.
        self.batches = TokenizedBatches(
            c.data, rows, seed=c.seed, caption_dropout=c.caption_dropout, test_share=c.test_share,
            rank=self.rank, world_size=self.processes,
        )  # fmt: skip
        self.format = self.batches.format
        self.batches.text_length = self.format.text_length
        if (self.format.kind in ("image", "superres")) != (c.stage in ("image", "superres")):
            raise CogVideoError(f"The tokens in {c.data} are of kind {self.format.kind}, not for {c.stage}.")
        self.model = self._start()
        trained = dict(self.model.named_parameters())
        if isinstance(self.model, CogVideoTransformer):
            self.batches.check(self.model.config, **self._digests())
            if c.stage != "image":
                trained = self.model.temporal_parameters()
        elif self.format.kind != "superres":
            raise CogVideoError(f"{c.data} has no large frames: tokenize with --kind superres.")
        self.names = list(trained)
        if c.lora:
            self.names = add_adapters(self.model, c.lora, c.seed)
        set_types(self.model, self.names, DTYPES[c.dtype])

    def run(self) -> None:
        """Train to the end and write the model; a finished run does nothing."""
        c, folder = self.config, Path(self.config.run_dir)
        model: nn.Module = self.model.to(self.device)
        if c.compile:
            compile_blocks(self.model)
        sample = self._samples(self._test(0)) if c.samples else None
        if self.processes > 1:
            distributed.shard(self.model)
        trained = dict(model.named_parameters())
        job = Job(
            model, [trained[name] for name in self.names],
            lambda part: self.losses(self.batches(part, self.device)),
            c.optimizer, folder, self.settings(),
            evaluate=self.test_loss, sample=sample,
            checkpoint_seconds=c.checkpoint_seconds, log_every=c.log_every, evaluate_every=c.evaluate_every,
            sample_every=c.sample_every, pace=self.pace(), tensorboard=c.tensorboard, bits=c.optimizer_bits,
            label=c.stage,
        )  # fmt: skip
        fit(job)
        made = folder / ("model" if c.lora is None or c.lora.merge else "adapter")
        steps = read_json(made / TRAINED, default={}).get("steps")
        (saved,) = distributed.most(steps == c.optimizer.steps)  # in all or in none
        if not saved:
            weights = {}
            for name in self.names:
                weight = distributed.whole(trained[name].detach())
                if self.rank == 0:
                    weights[name] = weight.cpu()
            distributed.first_only(lambda: self._save(weights, made))

    def losses(self, batch: Batch) -> Tensor:
        """By frame [T], or of super-resolution one; in the type of products that is asked for."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.dtype == "bf16"):
            if isinstance(self.model, CogVideoTransformer):
                return self.model.frame_losses(*batch.inputs, recompute=self.config.recompute)
            assert batch.high_res is not None  # the tokens' kind was checked
            ids, mask = shorten(batch.text_ids, batch.text_mask, self.model.config.text_slots - 1)
            return self.model.loss(ids, batch.frames[:, 0], batch.high_res, text_mask=mask)

    def _test(self, step: int) -> Batch:
        return self.batches(step, self.device, split="test")

    @torch.no_grad()
    def test_loss(self) -> dict[str, Any]:
        """The mean over TEST_BATCHES batches of what is held out, and of several trained frames that of each.

        All with the true tokens before them.
        """
        found = [self.losses(self._test(step)).flatten() for step in range(TEST_BATCHES)]
        losses = distributed.mean(torch.stack(found).mean(0))
        by_frame = {"test_frame_losses": losses.tolist()} if len(losses) > 1 else {}
        return {"test_loss": float(losses.mean())} | by_frame

    def pace(self) -> Pace | None:
        """None for super-resolution, whose operations are not counted."""
        if not isinstance(self.model, CogVideoTransformer):
            return None
        c, clips, length = self.model.config, self.config.optimizer.batch_size, self.format.text_length
        flops = step_flops(c, clips, length, everything=self.config.stage == "image")
        peak = self.processes * peak_flops(self.device, DTYPES[self.config.dtype])
        return Pace(clips * (length + c.num_frames * c.frame_tokens), flops, peak)

    def settings(self) -> dict:
        """What a checkpoint must agree with; how many processes there are is not part of it."""
        c = self.config
        own = ("stage", "seed", "dtype", "window", "caption_dropout", "test_share")
        small: dict[str, Any] = {"lora": [c.lora.rank, c.lora.alpha]} if c.lora else {}
        small |= {"optimizer_bits": c.optimizer_bits} if c.optimizer_bits != 32 else {}
        return {name: getattr(c, name) for name in own} | {
            "start": self.given,
            "optimizer": to_dict(c.optimizer) | {"betas": list(c.optimizer.betas)},  # as JSON has it
            "model": to_dict(self.model.config),
            "data": {name: facts["sha256"] for name, facts in self.batches.manifest["files"].items()},
            **small,
        }

    def _start(self) -> Model:
        """The model before training, in the types of its files; sets `given`, its fingerprint."""
        c, model = self.config, self._read()
        self.given = fingerprint(model)
        if isinstance(model, DirectSuperResolution):
            return model
        if c.stage == "image":
            return image_model_of(model) if model.config.temporal else model
        order: Order = "interpolation" if c.stage == "stage2" else "sequential"
        if not model.config.temporal:
            video = model.config.video(order=order, window=c.window or usual_window(model.config, order))
            return inherit_image_model(model, config=video, seed=c.seed)
        if model.config.order != order:
            advice = f"give weights of {c.stage}, or an image model to inherit"
            raise CogVideoError(f"{c.start} is {model.config.order} and {c.stage} is {order}: {advice}.")
        if c.window not in (None, model.config.window):
            said = f"{c.start} was trained with window {model.config.window}, not {c.window}"
            raise CogVideoError(f"{said}: leave window away, or inherit an image model.")
        return model

    def _read(self) -> Model:
        """The model that `start` names: of a pipeline, of a released folder, or alone in its folder."""
        c, folder = self.config, self.source
        pipeline = (folder / "pipeline.json").exists()
        if c.stage == "superres":
            if not pipeline and not (folder / "config.json").exists():
                raise CogVideoError(f"{folder} is no native folder: run `cogvideo weights convert` first.")
            return DirectSuperResolution.from_pretrained(folder / "superres" if pipeline else folder)
        if pipeline:
            folder = folder / ("stage2" if c.stage == "stage2" else "stage1")
        elif is_released(folder):
            folder = folder / (STAGE2 if c.stage == "stage2" else STAGE1)
        if (folder / "config.json").exists():
            return load_model(folder, dtype=None)
        f = self.format
        return load_sat_checkpoint(folder, image_tokens=f.image_tokens, begin_of_image=f.begin_of_image)

    def _digests(self) -> dict[str, str]:
        """Of the tokenizers in a pipeline's folder; none for a model alone."""
        if not (self.source / "tokenizers").is_dir():
            return {}
        parts = load_tokenizers(self.source)
        return {"frame_tokenizer": parts.frames.digest, "text_tokenizer": parts.text.digest}

    def _save(self, weights: dict[str, Tensor], folder: Path) -> None:
        """The start's own frozen weights, bit for bit, with what was trained."""
        given, model = self.given, self._start()
        if self.given != given:
            advice = "put them back and run the same command"
            raise CogVideoError(f"The weights at {self.config.start} have changed meanwhile: {advice}.")
        lora = self.config.lora
        if lora is None:
            for name, weight in weights.items():
                model.get_parameter(name).data = weight
        else:
            merge(model, weights, lora)
        with replacing(folder, one_writer=True, advice=disk_advice(folder.parent)) as part:
            if lora:
                save_adapters(weights, lora, part)
            if lora is None or lora.merge:
                save_model(model, part)
            write_json(part / TRAINED, self._notes())
            shutil.rmtree(folder, ignore_errors=True)  # of fewer steps

    def _notes(self) -> dict[str, Any]:
        """What checkpoints.assemble and people want to know of a trained model."""
        f, rates = self.format, self.batches.manifest.get("rates", {})
        return {
            "stage": self.config.stage,
            "steps": self.config.optimizer.steps,
            "start": self.config.start,
            "spans": sorted((f.num_frames - 1) / rate for rate in map(float, rates) if rate),
            "frame_tokenizer": f.frame_tokenizer,
            "text_tokenizer": f.text_tokenizer,
        }

    def assemble(self) -> None:
        """Make a pipeline of the trained model and the other parts of its start, or say what is missing."""
        folder = Path(self.config.run_dir)
        places = (folder / "model", folder / "pipeline")
        times = [path.stat().st_mtime_ns for path in places if path.exists()]
        if not places[0].exists() or (len(times) == 2 and times[0] <= times[1]):
            return  # adapters alone, or nothing new
        try:
            made = assemble(places[1], find_parts([folder, self.source]), overwrite=True)
            print(f'{made} is ready: cogvideo generate "PROMPT" --weights {folder}', file=sys.stderr)
        except CogVideoError as error:  # the model itself is there
            print(f"{folder}/model is trained. {error}", file=sys.stderr)

    def _samples(self, batch: Batch) -> Callable[[int], np.ndarray] | None:
        """What draws pictures of the first clips of a test batch; see samples.draw()."""
        c, model, frames, why = self.config, self.model, None, ""
        if not isinstance(model, CogVideoTransformer):
            why = "of super-resolution there are none"
        elif c.lora:
            why = "adapters cannot draw before they are merged"
        elif self.processes > 1:
            why = "only a training by one process draws them"
        elif (frames := self._frame_tokenizer()) is None:
            why = f"{c.start} has no frame tokenizer, so name one by frame_tokenizer"
        else:
            if frames.digest != self.format.frame_tokenizer:
                advice = "name theirs by frame_tokenizer"
                raise CogVideoError(f"The tokens in {c.data} are of another frame tokenizer: {advice}.")
            first = Batch(*(t[: c.samples] for t in (batch.text_ids, batch.text_mask, batch.frames)))
            return partial(draw, model, frames, first, Path(c.run_dir) / "samples", DTYPES[c.dtype])
        if self.rank == 0:
            print(f"No samples will be drawn: {why} (samples: 0 asks for none).", file=sys.stderr)
        return None

    def _frame_tokenizer(self) -> FrameTokenizer | None:
        c, folder = self.config, self.source
        known = [folder / "tokenizers" / "frames.safetensors", folder / FRAMES]
        path = Path(c.frame_tokenizer) if c.frame_tokenizer else next(filter(Path.exists, known), None)
        if path is None:
            return None
        return read_any(path).to(self.device)


def usual_window(image: ModelConfig, order: Order) -> int | None:
    """The window of a stage that inherits an image model: the release's for stage 2, if frames are larger."""
    side = min(image.frame_height, image.frame_width)
    return WINDOW if order == "interpolation" and side >= 2 * WINDOW else None


def set_types(model: nn.Module, trained: list[str], products: torch.dtype) -> None:
    """Frozen matrices of blocks in the type of products, which changes none of these; all else in fp32."""
    for name, weight in model.named_parameters():
        frozen = name not in trained and weight.ndim == 2 and name.startswith("blocks.")
        weight.data = weight.data.to(products if frozen else torch.float32)


def compile_blocks(model: Model) -> None:
    """Run every block by torch.compile: the method of it that training calls."""
    entry = "with_text" if isinstance(model, CogVideoTransformer) else "forward"
    for block in model.blocks:
        setattr(block, entry, torch.compile(getattr(block, entry)))


def shorten(text_ids: Tensor, text_mask: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Texts [B,L], padded on the left, in at most `slots` slots: longer ones lose their end."""
    slots = min(slots, text_ids.shape[1])
    first = text_ids.shape[1] - text_mask.sum(1).clamp(min=slots)
    kept = first[:, None] + torch.arange(slots, device=text_ids.device)
    return text_ids.gather(1, kept), text_mask.gather(1, kept)
