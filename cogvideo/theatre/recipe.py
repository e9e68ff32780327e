"""The recipe of the demo weights: tokenizers, image model, stages 1 and 2, super-resolution."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import reduce, repeat
from torch import Tensor, nn

from cogvideo.checkpoints.native import (
    inherit_image_model,
    load_model,
    read_weights,
    save_model,
    write_weights,
)
from cogvideo.config import ModelConfig, Order, SamplingConfig, check_seed, from_dict, load_yaml, to_dict
from cogvideo.errors import CogVideoError
from cogvideo.io import commit, make_writable, write_json, write_whole
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.theatre.batches import (
    ANY_PHASE,
    FILLED_WHOLE,
    FINER,
    OPENING,
    PLACED,
    ROUNDS,
    SHORTER,
    UNSURE,
    UNSURE_PLACED,
    WHOLE,
    PhaseBatch,
    TheatreBatches,
)
from cogvideo.theatre.conditioning import PhaseConditioning, placed_inputs
from cogvideo.theatre.drawing import random_frames
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.text import TextTokenizer
from cogvideo.training.checkpoints import fingerprint, read_checkpoint
from cogvideo.training.loop import Job, fit, use_threads
from cogvideo.training.optimizer import OptimizerConfig

FRAME_SIDE = 8  # tokens of the demo world's small frame
# The parts of a step do not need each other.
STEPS = (("text",), ("frames",), ("image", "superres"), ("stage1", "stage2"), ("assemble",))
PARTS = tuple(part for step in STEPS for part in step)


@dataclass(frozen=True)
class FramesConfig:
    codes: int
    decoder: OptimizerConfig
    pool_frames: tuple[int, ...] = (
        4000,
        1000,
    )  # small and large frames that the decoder's crops are cut from


@dataclass(frozen=True)
class TransformerConfig:
    num_layers: int
    hidden_size: int
    num_heads: int
    text_length: int


@dataclass(frozen=True)
class RecipeConfig:
    """All settings of a recipe; see configs/demo.yaml."""

    run_dir: str
    output: str
    log_dir: str  # where the losses of the parts and their curves are kept
    parts: tuple[str, ...]
    seed: int
    threads: int  # of each part
    frames: FramesConfig
    model: TransformerConfig
    image: OptimizerConfig
    first_layer: OptimizerConfig
    stage1: OptimizerConfig
    stage2: OptimizerConfig
    superres: OptimizerConfig
    sampling: SamplingConfig
    checkpoint_seconds: float = 60.0  # between two checkpoints
    jobs: int = 1  # 2: parts that do not need each other run side by side

    def __post_init__(self):
        check_seed(self.seed)
        for name in ("threads", "jobs"):
            if getattr(self, name) < 1:
                raise CogVideoError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if unknown := set(self.parts) - set(PARTS):
            raise CogVideoError(
                f"Unknown part {sorted(unknown)[0]!r} of the recipe; known are {', '.join(PARTS)}."
            )


def train(path: str | Path, overrides: list[str] | None = None) -> None:
    """Run the parts of a recipe in order; finished parts are skipped, a part that was cut off is resumed.

    overrides are "key=value" or "part.key=value".
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise CogVideoError("A recipe runs in one process: leave torchrun away.")
    config = from_dict(RecipeConfig, load_yaml(path, overrides or []), str(path))
    use_threads(config.threads)
    recipe = Recipe(config)
    for step in STEPS:
        parts = [part for part in step if part in config.parts]
        if config.jobs > 1 and len(parts) > 1:
            _side_by_side(path, overrides or [], parts)
            continue
        for part in parts:
            getattr(recipe, part)()


def _side_by_side(path: str | Path, overrides: list[str], parts: list[str]) -> None:
    """Run parts as commands of their own; when one fails, the others are stopped, to be resumed later."""
    running: dict[str, subprocess.Popen] = {}
    try:
        for line, part in enumerate(parts):
            settings = [f"--set={one}" for one in (*overrides, f"parts=[{part}]", "jobs=1")]
            command = [sys.executable, "-m", "cogvideo", "train", str(path), *settings]
            running[part] = subprocess.Popen(command, env=os.environ | {"TQDM_POSITION": str(line)})
        while None in (codes := [process.poll() for process in running.values()]) and not any(codes):
            time.sleep(0.5)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()
    stopped = [part for part, process in running.items() if process.returncode not in (0, -signal.SIGTERM)]
    if stopped:
        raise CogVideoError(f"The part {stopped[0]!r} was not finished: the same command goes on with it.")


class Recipe:
    """One method a part; each leaves its result under run_dir and is skipped once that is there."""

    def __init__(self, config: RecipeConfig):
        self.config, self.run_dir = config, Path(config.run_dir)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        make_writable("run_dir", self.run_dir)
        if "assemble" in config.parts:
            make_writable("output", Path(config.output))  # now, not after hours of training

    def text(self) -> None:
        from cogvideo.theatre.captions import train_demo_text_model

        path = self.run_dir / "text.model"
        if not path.exists():
            write_whole(path, train_demo_text_model())

    def frames(self) -> None:
        from cogvideo.theatre.frame_tokenizer import codebook_report, train_frame_tokenizer

        path, c = self.run_dir / "frames.safetensors", self.config.frames
        tokenizer = train_frame_tokenizer(
            codes=c.codes,
            decoder=c.decoder,
            pool_frames=c.pool_frames,
            checkpoint_seconds=self.config.checkpoint_seconds,
            seed=self.config.seed,
            run_dir=self.run_dir / "frames",
        )
        if not path.exists():
            tokenizer.save(path, dtype=torch.float16)
            for size in (64, 192):
                held_out = random_frames(10**6, 128, size, split="pictures")
                report = codebook_report(FrameTokenizer.load(path), held_out)
                values = ", ".join(f"{key} {value:.4g}" for key, value in report.items())
                print(f"frame tokenizer, {size} px: {values}")

    def image(self) -> None:
        _, frames = self._tokenizers()
        model = CogVideoTransformer(self._image_config()).initialize(self.config.seed, frames.codebook)
        phase = PhaseConditioning(model.config.hidden_size, self.config.seed)
        both = nn.ModuleDict({"image": model, "phase": phase})

        def save(folder: Path) -> None:
            (folder / "phase").mkdir(exist_ok=True)
            write_weights(folder / "phase", phase.state_dict())
            save_model(model, folder)

        shown = [OPENING, ANY_PHASE, PLACED, WHOLE, SHORTER, FILLED_WHOLE, FINER, UNSURE, UNSURE_PLACED]
        own = {"model": to_dict(model.config), "shown": shown}
        self._fit("image", both, both.parameters(), lambda batch: phase.loss(model, batch), save, own)

    def stage1(self) -> None:
        self._video_stage("stage1", "sequential")

    def stage2(self) -> None:
        """Inherits the image model as stage 1 does, so that both may be trained side by side."""
        self._video_stage("stage2", "interpolation")

    def _video_stage(self, part: str, order: Order) -> None:
        image = load_model(self._need("image"))
        config = image.config.video(order=order, placed_rounds=ROUNDS if order == "interpolation" else 0)
        model = inherit_image_model(image, config=config, seed=self.config.seed)
        phase = PhaseConditioning(config.hidden_size)
        phase.load_state_dict(read_weights(self.run_dir / "image" / "phase"))
        phase.start_stage(model)
        self._first_layer(part, model, phase)
        share_frame_vectors(model)

        # Another image model makes another stage.
        own = {"model": to_dict(model.config), "start": fingerprint(model)}
        trained, save = model.temporal_parameters().values(), partial(save_model, model)

        def loss(batch: PhaseBatch) -> Tensor:
            return model.frame_losses(*batch.inputs, conditioning=placed_inputs(model, batch)).mean()

        self._fit(part, model, trained, loss, save, own, stage=order)

    def _first_layer(self, part: str, model: CogVideoTransformer, phase: PhaseConditioning) -> None:
        """Train what a stage's first layer adds for span and duration, see `conditioning`."""
        text, frames = self._tokenizers()
        optimizer, folder = self.config.first_layer, self.run_dir / f"{part}_first_layer"
        sizes = {"text": text, "frames": frames, "seed": self.config.seed + 1}
        batches = TheatreBatches(model.config.order, optimizer.batch_size, **sizes)
        phase.requires_grad_(False)
        trained = [p for name, p in model.temporal_parameters().items() if name.startswith("blocks.0.")]
        settings = {"optimizer": to_dict(optimizer), "seed": self.config.seed, "start": fingerprint(model)}

        def loss(step: int) -> Tensor:
            batch = batches(step, self.device)
            assert isinstance(batch, PhaseBatch)
            return phase.first_layer_error(model, batch)

        model.to(self.device)
        fit(Job(model, trained, loss, optimizer, folder, settings, label=f"{part}, first layer"))
        model.to("cpu")

    def superres(self) -> None:
        text, frames = self._tokenizers()
        c = self.config.model
        geometry = SuperResolutionConfig(
            low_height=FRAME_SIDE, low_width=FRAME_SIDE, text_slots=c.text_length, low_position=c.text_length,
            **self._sizes(text, frames),
        )  # fmt: skip
        model = DirectSuperResolution.from_config(geometry, self.config.seed, frames.codebook)

        def loss(batch) -> Tensor:
            return model.loss(batch.text_ids, batch.frames[:, 0], batch.high_res, text_mask=batch.text_mask)

        own = {"model": to_dict(geometry)}
        self._fit("superres", model, model.parameters(), loss, model.save_pretrained, own)

    def assemble(self) -> None:
        """Put the finished parts into one pipeline folder, in half precision, and their log into another."""
        from cogvideo.theatre.training_log import keep_log

        made_at, output = commit(), Path(self.config.output)  # the commit, before its weights are replaced
        (output / "tokenizers").mkdir(parents=True, exist_ok=True)
        for name in ("text.model", "frames.safetensors"):
            shutil.copyfile(self._need(name), output / "tokenizers" / name)
        for stage in ("stage1", "stage2"):
            save_model(load_model(self._need(stage)), output / stage, dtype=torch.float16)
        superres = DirectSuperResolution.from_pretrained(self._need("superres"))
        superres.save_pretrained(output / "superres", dtype=torch.float16)
        write_json(output / "pipeline.json", to_dict(self.config.sampling))
        keep_log(self.run_dir, Path(self.config.log_dir), made_at, to_dict(self.config))

    def _image_config(self) -> ModelConfig:
        text, frames = self._tokenizers()
        c = self.config.model
        return ModelConfig(
            frame_height=FRAME_SIDE, frame_width=FRAME_SIDE, num_frames=1, text_length=c.text_length,
            first_frame_position=c.text_length, temporal=False, **self._sizes(text, frames),
        )  # fmt: skip

    def _sizes(self, text: TextTokenizer, frames: FrameTokenizer) -> dict[str, Any]:
        """What the image model and super-resolution have in common."""
        c = self.config.model
        return {
            "num_layers": c.num_layers,
            "hidden_size": c.hidden_size,
            "num_heads": c.num_heads,
            "vocab_size": text.vocab_size,
            "image_tokens": frames.num_codes,
            "begin_of_image": text.begin_of_image,
            "base_positions": c.text_length + FRAME_SIDE**2,
        }

    def _fit(
        self,
        part: str,
        model: nn.Module,
        trained: Iterable[nn.Parameter],
        loss: Callable[[Any], Tensor],
        save: Callable[[Path], None],
        own: dict,
        *,
        stage: str | None = None,
    ) -> None:
        """Train one part to its end and save it in its folder.

        own: what its weights depend on besides the recipe's settings; stage: whose batches it is shown, if
        not its own.
        """
        folder = self.run_dir / part
        text, frames = self._tokenizers()
        optimizer: OptimizerConfig = getattr(self.config, part)
        settings = {"part": part, "optimizer": to_dict(optimizer), "seed": self.config.seed} | own
        settings |= {"tokens": frames.digest}
        if (folder / "model.safetensors").exists():
            read_checkpoint(folder / "checkpoint.pt", settings)  # refuses what other settings trained
            return
        model.to(self.device)
        frames.to(self.device)
        batches = TheatreBatches(
            stage or part, optimizer.batch_size, text=text, frames=frames, seed=self.config.seed
        )
        kinds = ("seen", "unseen", "picture-only") if batches.split == "train" else ("pictures",)
        held_out = {kind: [batches(step, self.device, split=kind) for step in range(4)] for kind in kinds}

        @torch.no_grad()
        def evaluate() -> dict[str, float]:
            return {
                f"test_loss {kind}": sum(float(loss(batch)) for batch in found) / len(found)
                for kind, found in held_out.items()
            }

        def loss_of_step(step: int) -> Tensor:
            return loss(batches(step, self.device))

        job = Job(model, trained, loss_of_step, optimizer, folder, settings, evaluate, label=part)
        job.checkpoint_seconds = self.config.checkpoint_seconds
        fit(job)
        model.to("cpu")
        save(folder)

    def _tokenizers(self) -> tuple[TextTokenizer, FrameTokenizer]:
        frames = FrameTokenizer.load(self._need("frames.safetensors"))
        return TextTokenizer(self._need("text.model"), frames.num_codes), frames

    def _need(self, name: str) -> Path:
        path = self.run_dir / name
        if not (path / "model.safetensors" if path.suffix == "" else path).exists():
            raise CogVideoError(f"{path} is not there yet: run the part {path.stem!r} of the recipe first.")
        return path


def share_frame_vectors(model: CogVideoTransformer) -> None:
    """Let all tokens of a later frame learn one vector: their positions are frame 0's plus that vector.

    Learned token by token, as in the release, a small model gets noise instead (rows wander by half their
    length), and does not know which frame it is drawing. The shapes of the weights are the release's.
    """
    assert model.extra_position_embedding is not None
    table, n = model.extra_position_embedding.weight.requires_grad_(), model.config.frame_tokens
    table.register_hook(lambda g: repeat(reduce(g, "(t n) d -> t d", "mean", n=n), "t d -> (t n) d", n=n))


if __name__ == "__main__":
    import sys

    train(sys.argv[1], sys.argv[2:])
