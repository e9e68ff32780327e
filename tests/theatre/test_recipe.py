"""The whole recipe at toy size: every part, a kill -9 in the middle, and a pipeline at the end."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from cogvideo import CogVideoError, Pipeline, Video
from cogvideo.checkpoints.native import load_model
from cogvideo.theatre.conditioning import PhaseConditioning
from cogvideo.theatre.recipe import share_frame_vectors, train

ROOT = Path(__file__).parents[2]
TINY = """
run_dir: {folder}/run
output: {folder}/weights
log_dir: {folder}/log
parts: [text, frames, image, stage1, stage2, superres, assemble]
seed: 0
threads: 1
frames: {{codes: 48, decoder: {{steps: 3, batch_size: 4}}, pool_frames: [64, 64]}}
model: {{num_layers: 2, hidden_size: 16, num_heads: 2, text_length: 24}}
image: {{steps: {steps}, batch_size: 2, warmup: 2}}
first_layer: {{steps: 2, batch_size: 2}}
stage1: {{steps: 3, batch_size: 2}}
stage2: {{steps: 3, batch_size: 2}}
superres: {{steps: 2, batch_size: 2}}
sampling: {{spans: [0.5, 1.0], key_guidance: 2.0, examples: [a lion drinks milk, 一只猫喝茶]}}
"""


def recipe(folder: Path, steps: int = 4) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(TINY.format(folder=folder.as_posix(), steps=steps))
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    train(recipe(folder))
    return folder


def test_the_recipe_ends_in_a_pipeline(trained):
    pipe = Pipeline.from_pretrained(trained / "weights", device="cpu")
    clip = pipe("a lion drinks milk", seconds=1, progress=False)
    assert isinstance(clip, Video) and clip.frames.shape == (9, 192, 192, 3)
    assert pipe.sampling.examples == ("a lion drinks milk", "一只猫喝茶")


def test_stages_keep_the_image_model_bit_for_bit(trained):
    image = load_file(trained / "run/image/model.safetensors")
    for stage in ("stage1", "stage2"):
        weights = load_file(trained / f"run/{stage}/model.safetensors")
        assert all(torch.equal(weights[name], value) for name, value in image.items())
        assert weights.keys() > image.keys()


def test_later_frames_learn_one_vector_each_for_all_their_places(trained):
    model = load_model(trained / "run/stage1")
    places, table = model.config.frame_tokens, model.get_parameter("extra_position_embedding.weight")
    target = torch.randn(table.shape, generator=torch.Generator().manual_seed(0))
    (table * target).sum().backward()
    assert table.grad is not None
    free = rearrange(table.grad, "(t n) d -> t n d", n=places)
    table.grad = None
    share_frame_vectors(model)
    (table * target).sum().backward()
    assert table.grad is not None
    shared = rearrange(table.grad, "(t n) d -> t n d", n=places)
    assert torch.allclose(shared, free.mean(1, keepdim=True).expand_as(free), atol=1e-6)
    weights = load_file(trained / "run/stage1/model.safetensors")
    first = weights["base_position_embedding.weight"][model.config.first_frame_position :][:places]
    vectors = rearrange(weights["extra_position_embedding.weight"], "(t n) d -> t n d", n=places) - first
    assert (
        torch.allclose(vectors, vectors[:, :1].expand_as(vectors), atol=1e-5)
        and vectors[:4].abs().amin(0).any()
    )


def test_stages_begin_with_what_the_image_model_was_given(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run", ignore=shutil.ignore_patterns("stage?"))
    still = ["parts=[stage1, stage2]", "stage1.lr=0", "stage2.lr=0"]
    train(recipe(tmp_path), still)
    phase = PhaseConditioning(16)
    phase.load_state_dict(load_file(tmp_path / "run/image/phase/model.safetensors"))
    assert not torch.allclose(phase.vectors, PhaseConditioning(16, seed=0).vectors, atol=1e-4)  # trained
    keys = phase.of_places(torch.zeros(4, dtype=torch.long), torch.arange(1, 5))
    for stage, added in (("stage1", keys), ("stage2", torch.zeros(4, 16))):
        model = load_model(tmp_path / "run" / stage)
        vectors = torch.stack([model.position_vectors(k) - model.position_vectors(0) for k in range(1, 5)])
        assert torch.allclose(vectors, added[:, None].expand_as(vectors), atol=1e-6)
    places = load_model(tmp_path / "run/stage2").place_vectors(2, torch.arange(17))
    assert places is not None
    wanted = phase.of_places(torch.full((17,), 2), torch.arange(17))
    assert torch.allclose(places[:, 0], wanted, atol=1e-6)


def test_parts_side_by_side_make_the_same_weights(trained, tmp_path):
    """And a part that fails is told in a sentence, after its own."""
    train(recipe(tmp_path), ["jobs=2"])
    for part in ("image", "superres", "stage1", "stage2"):
        one, other = (load_file(folder / f"run/{part}/model.safetensors") for folder in (trained, tmp_path))
        assert all(torch.equal(one[name], other[name]) for name in one)
    shutil.rmtree(tmp_path / "run/stage2")
    shutil.rmtree(tmp_path / "run/image")
    with pytest.raises(CogVideoError, match=r"part 'stage\d' was not finished"):
        train(tmp_path / "tiny.yaml", ["jobs=2", "parts=[stage1, stage2]"])


def test_stages_of_another_image_model_are_refused(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run", ignore=shutil.ignore_patterns("image"))
    train(recipe(tmp_path, steps=5), ["parts=[image]"])
    for stage in ("stage1", "stage2"):
        with pytest.raises(CogVideoError, match="other settings"):
            train(tmp_path / "tiny.yaml", [f"parts=[{stage}]"])


def test_finished_parts_are_not_run_again(trained):
    def times() -> dict[Path, int]:  # of files alone: a lock comes into a folder and leaves it
        return {path: path.stat().st_mtime_ns for path in (trained / "run").rglob("*") if path.is_file()}

    before = times()
    train(trained / "tiny.yaml")
    assert before == times()


@pytest.mark.parametrize(
    "change", ["image.lr=1e-3", "stage2.steps=4", "frames.codes=49", "frames.decoder.steps=4"]
)
def test_finished_parts_of_other_settings_are_refused(trained, change):
    with pytest.raises(CogVideoError, match="other settings"):
        train(trained / "tiny.yaml", [change])


def test_kill_9_and_the_same_command_again_give_the_same_weights(trained, tmp_path):
    """The image model of 60 steps, killed hard after a checkpoint, against one that ran through."""
    for name in ("straight", "killed"):
        recipe(tmp_path / name, steps=60)
        for part in ("text.model", "frames.safetensors"):
            target = tmp_path / name / "run" / part
            target.parent.mkdir(exist_ok=True)
            target.write_bytes((trained / "run" / part).read_bytes())
    train(tmp_path / "straight/tiny.yaml", ["parts=[image]"])
    command = [
        sys.executable,
        "-m",
        "cogvideo",
        "train",
        str(tmp_path / "killed/tiny.yaml"),
        "--set",
        "parts=[image]",
    ]
    arguments = [*command, "--set", "checkpoint_seconds=0"]
    process = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "killed/run/image/checkpoint.pt"
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 0 < torch.load(checkpoint, weights_only=True)["step"] < 60
    subprocess.run(arguments, cwd=ROOT, stderr=subprocess.DEVNULL, check=True)
    for file in ("model.safetensors", "phase/model.safetensors"):
        one, other = (load_file(tmp_path / name / "run/image" / file) for name in ("straight", "killed"))
        assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "change, message",
    [
        ("parts=[imagination]", "imagination"),
        ("image.stepz=3", "stepz"),
        ("run_dir=/proc/nowhere", "run_dir"),
        ("parts=[stage1]", "image"),
        ("output=/proc/nowhere", "output"),
        ("threads=0", "threads"),
        ("image.batch_size=0", "batch_size"),
    ],
)
def test_settings_that_cannot_be_used_are_named(tmp_path, change, message):
    with pytest.raises(CogVideoError, match=message) as error:
        train(recipe(tmp_path), [change])
    assert "\n" not in str(error.value)
