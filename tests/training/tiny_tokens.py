"""A tiny tokenized folder and tiny weights to train from, for tests."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from cogvideo.checkpoints.native import inherit_image_model, save_model
from cogvideo.config import ModelConfig, from_dict, load_yaml
from cogvideo.data.tokenized import Sample, TokenFormat, finish, shard_name, write_shard
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.superres.direct import DirectSuperResolution, SuperResolutionConfig
from cogvideo.training import distributed
from cogvideo.training.run import Training, TrainingConfig

IMAGE = ModelConfig(
    num_layers=2, hidden_size=16, num_heads=2, frame_height=2, frame_width=3, num_frames=1, text_length=6,
    first_frame_position=6, image_tokens=10, vocab_size=30, begin_of_image=29, base_positions=12,
    temporal=False,
)  # fmt: skip
FORMAT = TokenFormat(
    kind="sequential", num_frames=5, frame_height=2, frame_width=3, image_tokens=10, begin_of_image=29,
    pad_id=10, text_length=6, frame_tokenizer="f", text_tokenizer="t",
)  # fmt: skip


def write_tokens(
    folder: Path, *, kind: str = "sequential", shards: int = 2, clips: int = 10, tokenizer="f"
) -> Path:
    """Clips that have one and the same token in all places of all frames: a rule that can be learned."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    frames = 1 if kind in ("image", "superres") else 5
    made = replace(FORMAT, kind=kind, num_frames=frames, frame_tokenizer=tokenizer)
    names = [shard_name(number) for number in range(shards)]
    for number, name in enumerate(names):
        samples = []
        for clip in range(number * clips, (number + 1) * clips):
            tokens = torch.full((frames, 6), int(rng.integers(10)))
            text = rng.integers(11, 28, size=rng.integers(2, 6)).tolist()
            large = tokens[0].repeat(9) if kind == "superres" else None
            samples.append(Sample(tokens, text, 4.0, clip, large))
        write_shard(folder / name, samples, made, {})
    finish(folder, names, made, unguided={"4.0": [11, 12], "0.0": [12]}, notes={})
    return folder


def write_weights(folder: Path, **video) -> Path:
    """A native folder of a stage 1 (or what `video` says) that inherits a random image model."""
    image = CogVideoTransformer(IMAGE).initialize(0)
    save_model(inherit_image_model(image, config=IMAGE.video(**video), seed=0), folder)
    return folder


def write_superres(folder: Path) -> Path:
    """A native folder of a super-resolution with as many text slots as the tokens have, as recipes do."""
    geometry = SuperResolutionConfig(
        num_layers=1, hidden_size=16, num_heads=2, vocab_size=30, image_tokens=10, begin_of_image=29,
        low_height=2, low_width=3, text_slots=FORMAT.text_length, low_position=7, base_positions=13,
    )  # fmt: skip
    DirectSuperResolution.from_config(geometry).save_pretrained(folder)
    return folder


def train_watched(path: str | Path) -> None:
    """Train, and compare all weights that are not trained with what they were before: bit for bit."""
    training = Training(from_dict(TrainingConfig, load_yaml(path), str(path)))
    weights = training.model.named_parameters()
    before = {name: weight.detach().clone() for name, weight in weights if name not in training.names}
    training.run()
    after = dict(training.model.named_parameters())
    for name, weight in before.items():
        assert torch.equal(distributed.whole(after[name].detach()), weight), name


def write_config(folder: Path, **changes) -> Path:
    """A YAML file of a training of a few steps in `folder`, which holds tokens/ and weights/."""
    values = {
        "stage": "stage1", "data": str(folder / "tokens"), "start": str(folder / "weights"),
        "run_dir": str(folder / "run"), "optimizer": {"steps": 6, "batch_size": 4, "warmup": 1},
        "log_every": 1, "evaluate_every": 3, "samples": 0, "tensorboard": False, "checkpoint_seconds": 0.0,
        "threads": 1,
    } | changes  # fmt: skip
    path = folder / f"{Path(values['run_dir']).name}.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


def losses(run_dir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
