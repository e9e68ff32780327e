"""From a folder of captioned clips to a pipeline: the parts of a model one after another, for any data.

What the settings leave open is chosen from how many clips there are and what computes: see `defaults`.
"""

import json
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cogvideo.checkpoints.assemble import assemble
from cogvideo.checkpoints.native import save_model
from cogvideo.checkpoints.tokenizers import Tokenizers
from cogvideo.config import ModelConfig, SamplingConfig, from_dict, load_yaml, to_dict
from cogvideo.data.frame_rates import FRAMES
from cogvideo.data.sources import Dataset, open_dataset
from cogvideo.data.tokenize import COMPRESS, ENLARGED, Settings, tokenize
from cogvideo.data.tokenized import Batch, TokenizedBatches, read_manifest
from cogvideo.data.views import with_views
from cogvideo.errors import CogVideoError
from cogvideo.io import make_writable, read_json, write_json, write_whole
from cogvideo.model.masks import trained_frames
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.hvqvae import HVQVAE
from cogvideo.tokenizers.text import TextTokenizer, train_text_tokenizer
from cogvideo.training import distributed
from cogvideo.training.cost import Cost, measure
from cogvideo.training.frame_tokenizer import FrameTokenizerConfig, train_frame_tokenizer
from cogvideo.training.lock import held
from cogvideo.training.loop import use_threads
from cogvideo.training.recipe_settings import PARTS, RecipeConfig, defaults, filled
from cogvideo.training.run import TEST_BATCHES, Training, TrainingConfig

KINDS = {"image": "image", "stage1": "sequential", "stage2": "interpolation", "superres": "superres"}
LONGEST = 64  # text slots, at most
COUNTED = 200  # batches of training that the unigram distribution is taken from


def train(path: str | Path, overrides: list[str] | None = None) -> None:
    """Run the parts of a recipe in order; finished parts are kept, a part that was cut off is resumed."""
    values = load_yaml(path, overrides or [])
    use_threads(values.get("threads"))
    try:
        _, _, device = distributed.join()
        dataset = open_dataset(str(values.get("data")))
        values = filled(values, defaults(len(dataset.clips), device.type == "cuda"))
        config = from_dict(RecipeConfig, values, str(path))
        make_writable("run_dir", Path(config.run_dir))
        with held(Path(config.run_dir)):
            Recipe(config, dataset).run()
    finally:
        distributed.leave()


class Recipe:
    """One method a part; each leaves its result under run_dir."""

    def __init__(self, config: RecipeConfig, dataset: Dataset):
        self.config, self.run_dir, self.dataset = config, Path(config.run_dir), dataset
        self.rank, _, self.device = distributed.join()
        make_writable("run_dir", self.run_dir)
        pictures = open_dataset(config.pictures) if config.pictures else Dataset("", [], [])
        self.pictures = Dataset(dataset.label, [*dataset.clips, *pictures.clips], dataset.missing)

    def run(self) -> None:
        parts = [part for part in PARTS if part in self.config.parts]
        if "text" in parts:
            distributed.first_only(self.text)
        self._say(self.announcement(parts))
        for part in parts:
            if part in KINDS:
                self._train(part)
            elif part != "text":
                getattr(self, part)()

    def text(self) -> None:
        path, c = self.run_dir / "text.model", self.config.text
        if not path.exists():
            captions = [clip.caption for clip in self.pictures.clips]
            given = Path(c.model).read_bytes() if c.model else None
            write_whole(path, given or train_text_tokenizer(captions, c.pieces))

    def frames(self) -> None:
        c, side = self.config, COMPRESS * self.config.frame_side
        own = {part.name: getattr(c.frames, part.name) for part in fields(c.frames)}
        shared = ("data", "test_share", "seed", "dtype", "threads", "checkpoint_seconds")
        own |= {name: getattr(c, name) for name in shared}
        folder, crop = self.run_dir / "frames", min(side, 128)
        config = FrameTokenizerConfig(run_dir=str(folder), sides=(side, ENLARGED * side), crop=crop, **own)
        train_frame_tokenizer(config, self.dataset)

    def assemble(self) -> None:
        """Put the finished parts into one pipeline folder, and what they score beside it."""
        made = {"text": self.run_dir / "text.model", **{part: self._result(part) for part in KINDS}}
        made |= {"frames": self._result("frames")}
        parts = {part: path for part, path in made.items() if part != "image" and path.exists()}
        output, sampling = self.run_dir / "pipeline", self.config.sampling or self._sampling()

        def put() -> None:
            assemble(output, parts, sampling=sampling, dtype=torch.float16, overwrite=True)
            write_json(output / "scores.json", self.scores())
            write_whole(output / "README.md", self._card())

        distributed.first_only(put)
        options = f"--weights {self.run_dir} --seconds {sampling.spans[0]:g}"
        self._say(f'Now: cogvideo generate "{self.dataset.clips[0].caption}" {options}')

    def _result(self, part: str) -> Path:
        """What a part leaves when it is finished."""
        return self.run_dir / part / ("frames.safetensors" if part == "frames" else "model")

    def scores(self) -> dict[str, Any]:
        """What the parts score on clips that were held out, as their own logs say."""
        found: dict[str, Any] = {"frames": read_json(self.run_dir / "frames/report.json", default={})}
        for part in KINDS:
            if (self.run_dir / part / "scores.json").exists():
                found[part] = read_json(self.run_dir / part / "scores.json")
        return found

    def announcement(self, parts: list[str]) -> str:
        """What each part that is not finished will cost on this machine, by a trial of a few steps."""
        lines, total = [f"{len(self.dataset.clips)} clips, {self.device}; runs in {self.run_dir}"], 0.0
        for part in parts:
            if part in ("text", "assemble"):
                continue
            if self._result(part).exists():
                lines.append(f"{part:>9}: finished")
                continue
            cost, done = self._cost(part), last_step(self.run_dir / part / "metrics.jsonl")
            lines.append(f"{part:>9}: {cost}" + (f"; {done} steps are done" if done else ""))
            total += cost.seconds * (1 - min(1, done / max(1, cost.steps)))
        return "\n".join([*lines, f"together about {total / 60:.0f} min, and reading the clips"])

    def _train(self, part: Any) -> None:
        folder = self.run_dir / part
        tokens = self._tokens(part)
        distributed.first_only(lambda: self._begin(part))
        c = self.config
        start = self.run_dir / "image/model" if part in ("stage1", "stage2") else folder / "start"
        shared = ("seed", "dtype", "threads", "checkpoint_seconds", "test_share")
        own = {name: getattr(c, name) for name in shared}
        steps = getattr(c, part).steps
        config = TrainingConfig(
            stage=part, data=str(tokens), start=str(start), run_dir=str(folder), optimizer=getattr(c, part),
            recompute=c.recompute and part != "superres", samples=0 if part == "superres" else 4,
            frame_tokenizer=str(self._result("frames")), tensorboard=False,
            evaluate_every=max(1, steps // 4), sample_every=max(1, steps // 2), **own,
        )  # fmt: skip
        training = Training(config)
        training.run()
        if not (folder / "scores.json").exists():
            loss = training.test_loss()["test_loss"]
            guessing = unigram_loss(training.batches, self._geometry(part))
            gain = {"test_loss": loss, "unigram_loss": guessing, "below_unigram": 1 - loss / guessing}
            distributed.first_only(partial(_note, folder / "scores.json", gain))
        scores = read_json(folder / "scores.json")
        gain = scores["below_unigram"]
        gained = f"{abs(gain):.0%} {'under' if gain > 0 else 'over'} guessing by the tokens' frequencies"
        self._say(f"{part}: {scores['test_loss']:.3f} nats a token on held-out clips, {gained}")

    def _tokens(self, part: str) -> Path:
        """The tokens that a part is trained on, made where they are missing."""
        c, out = self.config, self.run_dir / "tokens" / part
        dataset = self.pictures if part == "image" else self.dataset
        if part != "superres":  # whose few steps do not learn its pairs by heart
            dataset = with_views(dataset, c.views, c.test_share)
        load = partial(read_tokenizers, self.run_dir, c.frame_side, self._sizes()["text_length"])
        settings = Settings(KINDS[part], per_clip=c.per_clip)
        device = str(self.device)
        tokenize(dataset, out, load, settings, workers=c.workers, device=device, progress=self.rank == 0)
        distributed.most(0)  # until the others have done their shards
        return out

    def _begin(self, part: str) -> None:
        """The random model that a part starts from."""
        folder = self.run_dir / part / "start"
        if (folder / "config.json").exists() or part in ("stage1", "stage2"):
            return
        codebook = self._frame_tokenizer().codebook
        if part == "image":
            model = CogVideoTransformer(self._geometry(part)).initialize(self.config.seed, codebook)
            save_model(model, folder)
        else:
            large = DirectSuperResolution.from_config(self._large(), self.config.seed, codebook)
            large.save_pretrained(folder)

    def _frame_tokenizer(self) -> FrameTokenizer:
        return FrameTokenizer.load(self._need("frames/frames.safetensors"))

    def _need(self, name: str) -> Path:
        path = self.run_dir / name
        if not path.exists():
            first = Path(name).parts[0].removesuffix(".model")
            raise CogVideoError(f"{path} is not there yet: let the parts of the recipe begin with {first}.")
        return path

    def _sizes(self) -> dict[str, Any]:
        """What the models have in common; the frame tokenizer need not be there yet."""
        side, path = self.config.frame_side, self.run_dir / "frames/frames.safetensors"
        codes = self._frame_tokenizer().num_codes if path.exists() else self.config.frames.network.codes
        text = TextTokenizer(self._need("text.model"), codes)
        slots = text_slots(text, self.pictures)
        return to_dict(self.config.model) | {
            "vocab_size": text.vocab_size, "image_tokens": codes, "begin_of_image": text.begin_of_image,
            "base_positions": slots + side**2, "text_length": slots,
        }  # fmt: skip

    def _geometry(self, part: str) -> ModelConfig:
        side, sizes = self.config.frame_side, self._sizes()
        first = {"num_frames": 1, "temporal": False, "first_frame_position": sizes["text_length"]}
        image = ModelConfig(frame_height=side, frame_width=side, **first, **sizes)
        if part in ("stage1", "stage2"):
            return image.video(order="sequential" if part == "stage1" else "interpolation")
        return image

    def _large(self) -> SuperResolutionConfig:
        side, sizes = self.config.frame_side, self._sizes()
        slots = sizes.pop("text_length")
        return SuperResolutionConfig(
            low_height=side, low_width=side, scale=ENLARGED, text_slots=slots + 1, low_position=slots,
            **sizes | {"base_positions": slots + 1 + side**2},
        )  # fmt: skip

    def _cost(self, part: str) -> Cost:
        """By a trial on random frames or tokens."""
        c, device = self.config, self.device
        optimizer = c.frames.optimizer if part == "frames" else getattr(c, part)
        rows = max(1, optimizer.batch_size // optimizer.accumulate // distributed.world_size())
        trial = partial(measure, optimizer=optimizer, device=device, dtype=c.dtype)
        if part == "frames":
            n, crop = c.frames.network, min(COMPRESS * c.frame_side, 128)
            network = HVQVAE(n.codes, n.dim, n.channels, n.encoder_mult, n.decoder_mults)
            frames = torch.rand(rows, 3, crop, crop, device=device)

            def loss() -> Tensor:
                made = [network.frames(network.vectors(frames, rate), rate) for rate in network.rates]
                return torch.stack([(frames - one).abs().mean() for one in made]).mean()

            return trial(network, loss, rows * sum((crop // rate) ** 2 for rate in network.rates))

        def tokens(*shape: int, of: int = 0) -> Tensor:
            return torch.full((rows, *shape), of, device=device)

        if part == "superres":
            g = self._large()
            large, text = DirectSuperResolution.from_config(g), tokens(g.text_slots - 1, of=g.image_tokens)
            inputs = (text, tokens(g.low_tokens), tokens(g.high_tokens), text > 0)
            return trial(large, lambda: large.loss(*inputs), rows * g.high_tokens)
        g = self._geometry(part)
        video, text = CogVideoTransformer(g).initialize(0), tokens(g.text_length, of=g.image_tokens)
        inputs = (text, tokens(g.num_frames, g.frame_tokens), text > 0)
        trained = None if part == "image" else list(video.temporal_parameters())
        return trial(
            video, lambda: video.frame_losses(*inputs, recompute=c.recompute).mean(),
            rows * g.num_frames * g.frame_tokens, trained=trained,
        )  # fmt: skip

    def _sampling(self) -> SamplingConfig:
        """Draws at the spans that stage 1 was trained with, of its own captions for examples.

        At low temperatures: a small model is nearly certain, and what is left to chance spoils a frame of 64
        tokens (docs/training.md).
        """
        rates = read_manifest(self._need("tokens/stage1"))["rates"]
        spans = tuple(sorted((FRAMES - 1) / float(rate) for rate in rates))
        examples = tuple(dict.fromkeys(clip.caption for clip in self.dataset.clips[:200]))[:3]
        drawn = {"first_temperature": 0.7, "first_top_k": 8, "temperature": 0.2, "top_k": 5}
        return SamplingConfig(spans=spans, key_guidance=1.0, examples=examples, **drawn)

    def _card(self) -> str:
        count = len(self.dataset.clips)
        lines = ["# Weights of your own", "", f"Trained by `cogvideo train` on {count} clips.", ""]
        for part, scores in self.scores().items():
            rates = {"": scores} if part != "frames" else {k: v for k, v in scores.items() if k != "enlarged"}
            for rate, values in rates.items():
                written = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in values.items())
                lines.append(f"- {' '.join(filter(None, (part, rate)))}: {written}")
        lines += ["", "Scores are of clips that training never saw; losses in nats a token.", ""]
        return "\n".join(lines)

    def _say(self, text: str) -> None:
        if self.rank == 0:
            print(text, flush=True)


def last_step(metrics: Path) -> int:
    """The step of the last row of a training's log."""
    rows = metrics.read_text().splitlines() if metrics.exists() else []
    try:
        return int(json.loads(rows[-1])["step"])
    except (IndexError, ValueError):
        return 0


def _note(path: Path, values: dict[str, float]) -> None:
    write_json(path, values)


def read_tokenizers(run_dir: Path, frame_side: int, text_length: int) -> Tokenizers:
    """What a recipe has made so far of tokenizers."""
    frames = FrameTokenizer.load(run_dir / "frames/frames.safetensors")
    text = TextTokenizer(run_dir / "text.model", frames.num_codes)
    return Tokenizers(text, frames, frame_side, frame_side, text_length)


def text_slots(text: TextTokenizer, dataset: Dataset) -> int:
    """Slots for the longest caption with a frame-rate text, at most LONGEST."""
    captions = {clip.caption for clip in dataset.clips}
    return min(LONGEST, max(len(text.encode(caption)) for caption in captions) + 2)


def unigram_loss(batches: TokenizedBatches, config: ModelConfig) -> float:
    """Cross entropy (nats) of the test loss's tokens if guessed by their frequencies in training."""

    def tokens(batch: Batch) -> Tensor:
        shown = batch.frames[:, times] if batch.high_res is None else batch.high_res
        return shown.flatten()

    times = trained_frames(config)
    count = min(COUNTED, -(-batches.count() // batches.batch_size))
    seen = torch.cat([tokens(batches(step)) for step in range(count)])
    frequency = torch.bincount(seen, minlength=config.image_tokens).float() + 1
    test = torch.cat([tokens(batches(step, split="test")) for step in range(TEST_BATCHES)])
    return -(frequency / frequency.sum()).log()[test].mean().item()
