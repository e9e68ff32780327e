"""Training of frame tokenizers: learning, resuming bit for bit, the codebook's averages, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training.tiny_clips import write_clips

from cogvideo.config import from_dict, load_yaml
from cogvideo.data.pixels import FramePool, make_pool
from cogvideo.data.sources import open_dataset
from cogvideo.errors import CogVideoError
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.hvqvae import HVQVAE
from cogvideo.training.frame_tokenizer import (
    FrameLearner,
    FrameTokenizerConfig,
    NetworkConfig,
    train_frame_tokenizer,
)
from cogvideo.training.optimizer import OptimizerConfig


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("pixels") / "clips")


def config_of(clips: Path, run_dir: Path, **changes) -> FrameTokenizerConfig:
    network = NetworkConfig(
        codes=16, dim=4, channels=4, encoder_mult=(1, 2, 2, 2), decoder_mults=((1, 2, 2, 2),)
    )
    values = {
        "optimizer": OptimizerConfig(steps=12, batch_size=4, lr=5e-3, warmup=1), "network": network,
        "sides": (32,), "crop": 32, "per_clip": 4, "plain": 0.2, "checkpoint_seconds": 0.0, "log_every": 1,
        "evaluate_every": 100,
    } | changes  # fmt: skip
    return FrameTokenizerConfig(str(clips), str(run_dir), **values)


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "frames.safetensors")


def test_it_learns_and_says_how_well(clips, tmp_path):
    optimizer = OptimizerConfig(steps=40, batch_size=4, lr=1e-2, warmup=2)
    config = config_of(clips, tmp_path / "run", optimizer=optimizer)
    train_frame_tokenizer(config, open_dataset(str(clips)))
    report = json.loads((tmp_path / "run/report.json").read_text())["8x"]
    assert report["psnr"] > 14 and report["codes_used"] > 2  # grey alone gives 12
    tokenizer = FrameTokenizer.load(tmp_path / "run/frames.safetensors")
    ids = tokenizer.encode(torch.rand(2, 3, 32, 32))
    assert ids.shape == (2, 4, 4) and tokenizer.decode(ids).shape == (2, 3, 32, 32)
    assert (tmp_path / "run/reconstructions.png").stat().st_size > 0


def test_a_killed_training_gives_the_same_weights(clips, tmp_path, monkeypatch):
    """Stopped in the steps before codes, right before the first codebook, and after codes were revived."""
    train_frame_tokenizer(config_of(clips, tmp_path / "whole"), open_dataset(str(clips)))
    loss, stops = FrameLearner.loss, [1, 2, 5, 9]

    def killed(self, part):
        if stops and part == stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt
        return loss(self, part)

    monkeypatch.setattr(FrameLearner, "loss", killed)
    config = config_of(clips, tmp_path / "killed")
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            train_frame_tokenizer(config, open_dataset(str(clips)))
    train_frame_tokenizer(config, open_dataset(str(clips)))
    whole, killed_ = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert all(torch.equal(weight, killed_[name]) for name, weight in whole.items())
    with pytest.raises(CogVideoError, match="other"):
        train_frame_tokenizer(replace(config, gradient=2.0), open_dataset(str(clips)))


def learner_of(clips: Path, folder: Path, **changes) -> FrameLearner:
    config = config_of(clips, folder, **changes)
    make_pool(open_dataset(str(clips)), folder / "frames", config.sides, config.per_clip, progress=False)
    return FrameLearner(config, FramePool(folder / "frames", 0.05), torch.device("cpu"))


def test_the_codebook_follows_by_moving_averages(clips, tmp_path):
    learner = learner_of(clips, tmp_path)
    learner.counts.fill_(2.0)
    learner.sums.zero_()
    vectors = torch.tensor([[1.0, 0, 0, 0], [3.0, 0, 0, 0], [0, 5.0, 0, 0]])
    learner._move_codebook(vectors, torch.tensor([0, 0, 7]), part=1)
    learner.follow_codebook()
    counts = torch.full((16,), 0.99 * 2)
    counts[0] += 0.01 * 2
    counts[7] += 0.01
    torch.testing.assert_close(learner.counts, counts)
    torch.testing.assert_close(learner.network.codebook[0, 0], 0.01 * 4 / counts[0])
    torch.testing.assert_close(learner.network.codebook[7, 1], 0.01 * 5 / counts[7])


def test_unused_codes_are_given_to_vectors(clips, tmp_path):
    learner = learner_of(clips, tmp_path)
    learner.counts[3:] = 0.0
    vectors = torch.randn(40, 4)
    learner._move_codebook(vectors, torch.zeros(40, dtype=torch.int64), part=25)
    learner.follow_codebook()
    revived = learner.network.codebook[3:].detach()
    nearest = (revived[:, None] - vectors).abs().sum(-1).amin(1)
    assert nearest.max() < 1e-5 and len(revived.unique(dim=0)) == 13


def test_a_critic_moves_and_is_moved(clips, tmp_path):
    learner = learner_of(clips, tmp_path, adversarial=0.1, adversarial_from=0.5)
    assert learner.critic is not None
    learner.loss(5).backward()
    assert all(p.grad is None for p in learner.critic.parameters())
    learner.loss(6).backward()
    assert all(p.grad is not None for p in learner.critic.parameters())


def test_a_given_tokenizer_is_trained_on(clips, tmp_path):
    train_frame_tokenizer(config_of(clips, tmp_path / "first"), open_dataset(str(clips)))
    start = str(tmp_path / "first/frames.safetensors")
    learner = learner_of(clips, tmp_path / "second", start=start)
    learner.follow_codebook()
    for name, weight in weights_of(tmp_path / "first").items():
        torch.testing.assert_close(learner.network.state_dict()[name], weight)
    assert learner.begin == 0
    demo = Path(__file__).parents[2] / "cogvideo/weights/demo/tokenizers/frames.safetensors"
    with pytest.raises(CogVideoError, match="no encoder"):
        learner_of(clips, tmp_path / "third", start=str(demo))


def test_two_rates_share_a_codebook(clips, tmp_path):
    network = NetworkConfig(16, 4, 4, (1, 1, 2, 2), ((1, 1, 2, 2, 2), (1, 1, 2, 2)))
    learner = learner_of(clips, tmp_path, network=network)
    assert learner.rates == (8, 16)
    learner.loss(11).backward()
    assert all(p.grad is not None for p in learner.trained())
    exact = learner_of(clips, tmp_path, network=network).loss(11)
    half = learner_of(clips, tmp_path, network=network, dtype="bf16").loss(11)
    assert half.item() == pytest.approx(exact.item(), rel=0.03) and half.item() != exact.item()
    assert set(learner.report(torch.rand(2, 3, 32, 32))) == {"8x", "16x"}


def test_the_preset_can_be_read():
    path = Path(__file__).parents[2] / "configs/tokenizer.yaml"
    config = from_dict(FrameTokenizerConfig, load_yaml(path), str(path))
    with torch.device("meta"):
        assert HVQVAE(*vars(config.network).values()).rates == (8, 16)


def test_crops_must_fit(clips, tmp_path):
    with pytest.raises(CogVideoError, match="do not fit"):
        config_of(clips, tmp_path, crop=64)


def test_held_out_frames_are_no_training_frames(clips, tmp_path):
    learner = learner_of(clips, tmp_path)
    rows = learner.pool._rows
    assert len(rows["test"]) == 4 and not set(rows["test"]) & set(rows["train"])
