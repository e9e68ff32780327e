"""The recipe for any data, tiny: from clips to a pipeline that generates, also when killed; its defaults."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from training.test_lock import HOLD
from training.tiny_clips import write_clips

from cogvideo.config import from_dict, load_yaml
from cogvideo.data.tokenized import TokenizedBatches
from cogvideo.data.video import Video
from cogvideo.errors import CogVideoError
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.training import loop
from cogvideo.training.recipe import train, unigram_loss
from cogvideo.training.recipe_settings import PARTS, RecipeConfig, defaults, filled

STEPS = 3


def write_recipe(folder: Path, run_dir: str = "run", **changes) -> Path:
    optimizer = {"steps": STEPS, "batch_size": 2, "warmup": 1}
    network = {
        "codes": 8,
        "dim": 4,
        "channels": 4,
        "encoder_mult": [1, 1, 1, 1],
        "decoder_mults": [[1, 1, 1, 1]],
    }
    values = {
        "data": str(folder / "clips"), "run_dir": str(folder / run_dir), "frame_side": 2, "per_clip": 2,
        "views": 2,
        "frames": {"network": network, "optimizer": optimizer, "per_clip": 2, "plain": 0.4},
        "model": {"num_layers": 1, "hidden_size": 16, "num_heads": 2},
        "checkpoint_seconds": 0.0, "threads": 1,
        **dict.fromkeys(("image", "stage1", "stage2", "superres"), optimizer),
    } | changes  # fmt: skip
    path = folder / f"{run_dir}.yaml"
    path.write_text(json.dumps(values))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """clips/, pictures/, and run/, a finished recipe."""
    folder = tmp_path_factory.mktemp("recipe")
    write_clips(folder / "clips")
    (folder / "pictures").mkdir()
    Image.new("RGB", (40, 30), "orange").save(folder / "pictures/orange.png")
    (folder / "pictures/captions.csv").write_text("path,caption\norange.png,an orange wall\n")
    train(write_recipe(folder, pictures=str(folder / "pictures")))
    return folder


def test_what_is_trained_generates(made, capsys):
    pipe = Pipeline.from_pretrained(made / "run", device="cpu")
    assert pipe.sampling.spans == (1.0,)
    video = pipe("a red square goes to the right", seconds=1, progress=False)
    assert isinstance(video, Video)
    assert video.frames.shape == (9, 48, 48, 3) and video.fps == 8
    scores = json.loads((made / "run/pipeline/scores.json").read_text())
    assert set(scores) == {"frames", "image", "stage1", "stage2", "superres"}
    assert scores["frames"]["8x"]["psnr"] > 0 and scores["stage1"]["unigram_loss"] > 0
    assert "psnr" in (made / "run/pipeline/README.md").read_text()


def test_pictures_are_shown_to_the_image_model(made):
    batches = TokenizedBatches(made / "run/tokens/image", 1, seed=0)
    assert batches.manifest["clips"] == 9  # four of five are trained on, in two views
    # Two moments of each clip, the picture, all but the clip that is held out seen twice.
    assert (batches.count(), batches.count("test")) == (3 * 2 * 2 + 2, 2)
    pipe = Pipeline.from_pretrained(made / "run/pipeline", device="cpu")
    assert not pipe.text.unknown_words("an orange wall")


def test_killed_in_every_part_it_gives_the_same_weights(made, monkeypatch, capsys):
    """Killed once in every training, after its first or second step; the same command resumes each time."""
    step, killed = loop._Run.step, set()

    def step_or_die(self, number):
        where = str(self.job.folder)
        if number == 1 + len(killed) % 2 and where not in killed:
            killed.add(where)
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(loop._Run, "step", step_or_die)
    path = write_recipe(made, "killed", pictures=str(made / "pictures"))
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            train(path)
    train(path)
    said = capsys.readouterr().out
    assert "3 steps" in said and "together about" in said
    for file in sorted((made / "run/pipeline").rglob("*.safetensors")):
        one, two = load_file(file), load_file(made / "killed" / file.relative_to(made / "run"))
        assert all(torch.equal(weight, two[name]) for name, weight in one.items()), file


def test_a_second_train_on_one_folder_is_refused(made):
    run = made / "run"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE)
    try:
        assert first.stdout is not None and first.stdout.readline() == b"held\n"
        with pytest.raises(CogVideoError, match=f"{run} is being trained by process {first.pid} on "):
            train(made / "run.yaml")
        with pytest.raises(CogVideoError, match=f"is being trained by process {first.pid} on "):
            train(made / "run.yaml", ["parts=[stage1]"])
    finally:
        first.kill()
        first.communicate()


def test_parts_that_are_missing_are_named(made):
    with pytest.raises(CogVideoError, match=r"text.*not there"):
        train(write_recipe(made, "parts", parts=["image"]))
    with pytest.raises(CogVideoError, match="unknown"):
        train(write_recipe(made, "parts", parts=["stage3"]))


@pytest.mark.parametrize("clips, gpu", [(5, False), (60, False), (5000, False), (60, True), (5000, True)])
def test_defaults_fit_clips_and_device(clips, gpu):
    config = from_dict(RecipeConfig, filled({"data": "d", "run_dir": "r"}, defaults(clips, gpu)), "")
    smaller = from_dict(RecipeConfig, filled({"data": "d", "run_dir": "r"}, defaults(3, gpu)), "")
    assert config.parts == PARTS and config.stage1.steps >= smaller.stage1.steps
    assert config.dtype == ("bf16" if gpu else "fp32")
    assert config.views == (12 if clips <= 60 else 1)  # few clips are looked at in more ways


def test_what_is_written_counts_before_defaults():
    own = load_yaml(Path(__file__).parents[2] / "configs/own.yaml")
    assert from_dict(RecipeConfig, filled(own, defaults(60, True)), "").frame_side == 16
    values = filled({"stage1": {"steps": 7}, "model": None}, defaults(60, False))
    assert values["stage1"]["steps"] == 7 and values["stage1"]["batch_size"] == 8
    assert values["model"]["num_layers"] == 4


def test_the_loss_of_guessing_by_frequencies(made):
    batches = TokenizedBatches(made / "run/tokens/stage1", 2, seed=0, test_share=0.1)
    config = Pipeline.from_pretrained(made / "run/pipeline", device="cpu").stage1.config
    counts = torch.ones(8)
    for step in range(-(-batches.count() // 2)):
        counts += torch.bincount(batches(step).frames[:, 1:].flatten(), minlength=8)
    test = torch.cat([batches(step, split="test").frames[:, 1:].flatten() for step in range(4)])
    wanted = -(counts / counts.sum()).log()[test].mean().item()
    assert unigram_loss(batches, config) == pytest.approx(wanted, rel=1e-5)
