"""Training of a frame tokenizer on any clips: a VQ-VAE at one or several rates over one codebook.

The codebook follows what the encoder says by moving averages, and codes that nobody uses are put where
somebody would (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937; Dhariwal et al. 2020,
https://arxiv.org/abs/2005.00341). What a step sees is a function of seed and step alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from cogvideo.checkpoints.frames import read_any
from cogvideo.config import from_dict, load_yaml, to_dict
from cogvideo.data.pixels import FramePool, make_pool
from cogvideo.data.sources import Dataset, open_dataset
from cogvideo.errors import CogVideoError
from cogvideo.io import make_writable, replacing, write_json
from cogvideo.runtime.tensors import DTYPES
from cogvideo.tokenizers.frames import FrameTokenizer, nearest_codes
from cogvideo.tokenizers.hvqvae import HVQVAE
from cogvideo.tokenizers.quality import quality
from cogvideo.training import distributed
from cogvideo.training.checkpoints import disk_advice, fingerprint
from cogvideo.training.loop import Job, fit, use_threads
from cogvideo.training.optimizer import OptimizerConfig
from cogvideo.training.perceptual import PerceptualDistance

DECAY = 0.99  # of the codebook's moving averages, a step
UNUSED = 0.05  # of the mean use of a code: below it the code is given to another vector
REVIVED_EVERY = 25  # steps
BEGIN_BATCHES, BEGIN_ROUNDS = 8, 8  # batches that the first codebook is made of, and rounds of k-means
SHOWN = 8  # frames in the picture of the report
TESTED = 64  # held-out frames that the report is about


@dataclass(frozen=True)
class NetworkConfig:
    """Geometry of an HVQVAE; rates come from the multipliers: (1,2,8,16) has three halvings, so 8."""

    codes: int = 1024
    dim: int = 32
    channels: int = 8
    encoder_mult: tuple[int, ...] = (1, 2, 8, 16)
    decoder_mults: tuple[tuple[int, ...], ...] = ((1, 2, 8, 16),)  # one for each rate, the coarsest first


@dataclass(frozen=True)
class FrameTokenizerConfig:
    """All settings of a frame tokenizer's training; see configs/tokenizer.yaml."""

    data: str  # captioned clips, see data.sources.open_dataset
    run_dir: str  # checkpoints, frames, report; the result is run_dir/frames.safetensors
    optimizer: OptimizerConfig  # batch_size: crops of a step, over all processes
    stage: Literal["tokenizer"] = "tokenizer"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    start: str | None = (
        None  # frames.safetensors or ice_image.pt; it has its own geometry. None: from nothing
    )
    sides: tuple[int, ...] = (64, 192)  # pixels of the frames, those of stages 1 and 2 first
    first_share: float = 0.75  # of crops that are from frames of the first side
    crop: int = 64  # pixels along a side
    per_clip: int = 16  # frames of each clip, spread over it
    test_share: float = 0.05  # of the groups of clips
    seed: int = 0
    dtype: Literal["fp32", "bf16"] = "fp32"
    plain: float = 0.1  # part of the steps before anything is quantised, if from nothing
    gradient: float = 1.0  # weights of losses beside L1 ..
    squared: float = 1.0
    commitment: float = 0.25
    perceptual: str | None = None  # file of VGG16's weights
    perceptual_weight: float = 0.1
    adversarial: float = 0.0  # above 0: a critic of patches, ..
    adversarial_from: float = 0.75  # .. from this part of the steps on
    threads: int | None = None
    checkpoint_seconds: float = 300.0
    log_every: int = 50
    evaluate_every: int = 500

    def __post_init__(self):
        if not self.sides or min(self.sides) < self.crop:
            raise CogVideoError(
                f"Crops of {self.crop} pixels do not fit frames of {min(self.sides, default=0)}."
            )
        if len(self.sides) > 2:
            raise CogVideoError("sides should be one or two numbers: those of the frames, and enlarged.")
        for name in ("first_share", "plain", "adversarial_from"):
            if not 0 <= getattr(self, name) <= 1:
                raise CogVideoError(f"{name} must be from 0 to 1, not {getattr(self, name)}.")


def train(path: str | Path, overrides: list[str] | None = None) -> None:
    """Train by a YAML file and overrides "group.key=value"; the same call resumes a stopped run."""
    config = from_dict(FrameTokenizerConfig, load_yaml(path, overrides or []), str(path))
    use_threads(config.threads)
    try:
        train_frame_tokenizer(config, open_dataset(config.data))
    finally:
        distributed.leave()


def train_frame_tokenizer(config: FrameTokenizerConfig, dataset: Dataset) -> FrameTokenizer:
    """Train to the end, write frames.safetensors, report.json and reconstructions.png -> the tokenizer."""
    c, folder = config, Path(config.run_dir)
    make_writable("run_dir", folder)
    rank, processes, device = distributed.join()
    if c.optimizer.batch_size % (processes * c.optimizer.accumulate):
        raise CogVideoError(f"{c.optimizer.batch_size} crops cannot be shared by {processes} processes.")
    distributed.first_only(
        lambda: make_pool(dataset, folder / "frames", c.sides, c.per_clip, progress=rank == 0)
    )
    pool = FramePool(folder / "frames", c.test_share)
    learner = FrameLearner(c, pool, device)
    settings = to_dict(c) | {"frames": pool.digest, "start": learner.given}
    for name in ("run_dir", "data", "threads", "checkpoint_seconds", "log_every", "evaluate_every"):
        del settings[name]
    settings["optimizer"] |= {"betas": list(c.optimizer.betas)}
    test = pool.test(c.sides[0], TESTED)

    def evaluate() -> dict[str, float]:
        return {f"test_{k}": v for k, v in learner.report(test)[learner.name(learner.rates[0])].items()}

    job = Job(
        learner, learner.trained(), learner.loss, c.optimizer, folder, settings, evaluate,
        checkpoint_seconds=c.checkpoint_seconds, log_every=c.log_every, evaluate_every=c.evaluate_every,
        label="frame tokenizer",
    )  # fmt: skip
    fit(job)
    learner.follow_codebook()
    if not (folder / "frames.safetensors").exists():
        distributed.first_only(lambda: learner.write(folder, test))
    return FrameTokenizer(learner.network).eval().cpu()


class FrameLearner(nn.Module):
    """The network, the moving averages of its codebook, and a critic where one is asked for."""

    def __init__(self, config: FrameTokenizerConfig, pool: FramePool, device: torch.device):
        super().__init__()
        c = self.config = config
        self.pool, self.device, self.given = pool, device, None
        torch.manual_seed(c.seed)
        if c.start:
            network = read_any(Path(c.start)).network
            if not isinstance(network, HVQVAE):
                raise CogVideoError(f"{c.start} has no encoder to train: give one of kind icetk, or none.")
            self.given = fingerprint(network)
        else:
            n = c.network
            network = HVQVAE(n.codes, n.dim, n.channels, n.encoder_mult, n.decoder_mults)
        self.network = network
        self.begin = 0 if c.start else round(c.plain * c.optimizer.steps)
        codes, _ = network.codebook.shape
        self.counts: Tensor
        self.sums: Tensor
        self.register_buffer("counts", torch.ones(codes))
        self.register_buffer("sums", network.codebook.detach().clone())
        self.critic = Critic() if c.adversarial else None
        self.perceptual = PerceptualDistance(c.perceptual).to(device) if c.perceptual else None
        self.to(device)

    @property
    def rates(self) -> tuple[int, ...]:
        return self.network.rates

    @staticmethod
    def name(rate: int) -> str:
        return f"{rate}x"

    def trained(self) -> list[nn.Parameter]:
        critic = list(self.critic.parameters()) if self.critic else []
        own = dict(self.network.named_parameters())
        del own["quantize.embed.weight"]
        return [*own.values(), *critic]

    def loss(self, part: int) -> Tensor:
        """Of the crops of a part of a step; moves the codebook's averages along."""
        step, frames = part // self.config.optimizer.accumulate, self._crops(part)
        if step == self.begin and not self.config.start:
            self._first_codebook(part)
        quantised = step >= self.begin
        self.follow_codebook()
        total, vectors, ids = torch.zeros((), device=self.device), [], []
        for rate in self.rates:
            with self._products():
                found = self.network.vectors(frames, rate)
            found = found.float()
            if quantised:
                vectors.append(found.detach().flatten(0, 2))
                ids.append(nearest_codes(vectors[-1], self.network.codebook))
                codes = self.network.codebook[ids[-1]].view(found.shape)
                total = total + self.config.commitment * (found - codes).square().mean()
                found = found + (codes - found).detach()
            with self._products():
                made = self.network.frames(found, rate)
            total = total + self._distance(made.float(), frames, step)
        if quantised:
            self._move_codebook(torch.cat(vectors), torch.cat(ids), part)
        return total / len(self.rates)

    @torch.no_grad()
    def follow_codebook(self) -> None:
        self.network.codebook.copy_(self.sums / self.counts[:, None].clamp(min=1e-12))

    def report(self, frames: Tensor) -> dict[str, dict[str, float]]:
        """Scores of held-out frames [B,3,H,W] by rate."""
        self.follow_codebook()
        tokenizer = FrameTokenizer(self.network)
        return {self.name(rate): quality(tokenizer, frames.to(self.device), rate)[0] for rate in self.rates}

    def write(self, folder: Path, test: Tensor) -> None:
        """The report on held-out frames, a picture of them, and the tokenizer, last."""
        report: dict[str, object] = dict(self.report(test))
        if len(self.config.sides) > 1:
            large = self.pool.test(self.config.sides[1], TESTED // 4)
            report["enlarged"] = self.report(large)
        write_json(folder / "report.json", report)
        shown = test[torch.linspace(0, len(test) - 1, min(SHOWN, len(test))).long()].to(self.device)
        tokenizer = FrameTokenizer(self.network)
        rows = [shown, *(quality(tokenizer, shown, rate)[1] for rate in self.rates)]
        sheet = (rearrange(rows, "r n c h w -> (r h) (n w) c").cpu() * 255).round().byte().numpy()
        with replacing(folder / "reconstructions.png", advice=disk_advice(folder)) as part:
            Image.fromarray(sheet).save(part, "PNG")
        tokenizer.save(folder / "frames.safetensors")

    def _products(self) -> torch.autocast:
        bf16 = DTYPES[self.config.dtype] == torch.bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def _crops(self, part: int, *, own: bool = True) -> Tensor:
        """Crops [n,3,h,w] in 0..1 of a part of a step: this process's, or of all."""
        c = self.config
        rng = np.random.default_rng([c.seed, part])
        count, world = c.optimizer.batch_size // c.optimizer.accumulate, distributed.world_size()
        drawn = [self.pool.draw(rng, c.sides, c.first_share, c.crop) for _ in range(count)]
        if own:
            drawn = drawn[count * distributed.rank() // world : count * (distributed.rank() + 1) // world]
        return torch.stack([self.pool.crop(*one) for one in drawn]).to(self.device)

    def _distance(self, made: Tensor, frames: Tensor, step: int) -> Tensor:
        c, error = self.config, made - frames
        distance = error.abs().mean() + c.squared * error.square().mean()
        slopes = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        distance = distance + c.gradient * slopes
        if self.perceptual:
            distance = distance + c.perceptual_weight * self.perceptual(made, frames)
        if self.critic and step >= c.adversarial_from * c.optimizer.steps:
            distance = distance + c.adversarial * self._adversarial(self.critic, made, frames)
        return distance

    def _adversarial(self, critic: nn.Module, made: Tensor, frames: Tensor) -> Tensor:
        """Hinge losses of both sides in one: the critic's moves it alone, the network's the network alone."""
        fixed = {name: p.detach() for name, p in critic.named_parameters()}
        convinced = -functional_call(critic, fixed, (made,)).mean()
        told_apart = F.relu(1 - critic(frames)).mean() + F.relu(1 + critic(made.detach())).mean()
        return convinced + told_apart

    @torch.no_grad()
    def _first_codebook(self, part: int) -> None:
        """Codes by k-means over what the encoder says, the same in all processes."""
        generator = torch.Generator().manual_seed(self.config.seed)
        vectors = torch.cat([
            self.network.vectors(self._crops(part + number, own=False), rate).float().flatten(0, 2)
            for number in range(BEGIN_BATCHES)
            for rate in self.rates
        ])  # fmt: skip
        chosen = torch.randint(len(vectors), (len(self.counts),), generator=generator)
        codes = vectors[chosen.to(self.device)]
        for _ in range(BEGIN_ROUNDS):
            counts, sums = self._sums(vectors, nearest_codes(vectors, codes))
            codes = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], codes)
        self.counts.fill_(len(vectors) / BEGIN_BATCHES / len(codes))  # as many as a step uses of each
        self.sums.copy_(codes * self.counts[:, None])

    def _sums(self, vectors: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """How many vectors [M,C] have each code [K], and their sums [K,C]."""
        counts = torch.bincount(ids, minlength=len(self.counts)).float()
        return counts, torch.zeros_like(self.sums).index_add_(0, ids, vectors)

    @torch.no_grad()
    def _move_codebook(self, vectors: Tensor, ids: Tensor, part: int) -> None:
        world = distributed.world_size()
        for average, new in zip((self.counts, self.sums), self._sums(vectors, ids), strict=True):
            average.lerp_(distributed.mean(new) * world, 1 - DECAY)
        if part % REVIVED_EVERY:
            return
        used = len(vectors) * world / len(self.counts)
        dead = (self.counts < UNUSED * used).nonzero()[:, 0]
        everywhere = distributed.gathered(vectors)
        rng = np.random.default_rng([self.config.seed, part, 1])
        chosen = torch.from_numpy(rng.permutation(len(everywhere))[: len(dead)]).to(self.device)
        dead = dead[: len(chosen)]
        self.counts[dead] = used / 2
        self.sums[dead] = everywhere[chosen] * used / 2


class Critic(nn.Sequential):
    """Frames [B,3,H,W] in 0..1 -> how real every patch of 46 pixels looks [B,1,H/8,W/8]."""

    def __init__(self, width: int = 32):
        def halve(inside: int, outside: int) -> nn.Conv2d:
            return nn.Conv2d(inside, outside, 4, 2, 1)

        act: Callable[[], nn.Module] = partial(nn.LeakyReLU, 0.2)
        super().__init__(
            halve(3, width), act(), halve(width, 2 * width), act(), halve(2 * width, 4 * width), act(),
            nn.Conv2d(4 * width, 1, 3, 1, 1),
        )  # fmt: skip
