"""The demo pipeline from prompts to pixels: what it returns, that seeds repeat, what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cogvideo import CogVideoError, Pipeline
from cogvideo.checkpoints.pipeline_folder import read_labels
from cogvideo.checkpoints.registry import DEMO
from cogvideo.config import load_yaml

PROMPT = "a lion drinks milk"


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained("demo", device="cpu")


def test_a_clip_has_the_frames_its_seconds_ask_for(pipe):
    clip = pipe(PROMPT, seconds=1, progress=False)
    assert clip.frames.shape == (9, 192, 192, 3) and clip.frames.dtype == np.uint8 and clip.fps == 8
    small = pipe(PROMPT, seconds=0.5, enlarge=False, progress=False)
    assert small.frames.shape == (5, 64, 64, 3) and small.fps == 8
    assert clip.settings["prompt"] == PROMPT and clip.settings["seconds"] == 1


def test_the_same_seed_gives_the_same_clip_and_another_seed_another(pipe):
    one, again, *others = (
        pipe(PROMPT, seconds=1, seed=seed, progress=False).frames for seed in (3, 3, 4, 5, 6)
    )
    assert np.array_equal(one, again)
    assert not all(
        np.array_equal(one, other) for other in others
    )  # two seeds may well draw the same few tokens


def test_a_clip_does_not_depend_on_the_others_in_its_batch(pipe):
    alone = pipe.key_frame_tokens([PROMPT], 1.0, 5)
    beside = pipe.key_frame_tokens(["一只猫非常缓慢地喝茶", PROMPT], [4.0, 1.0], [1, 5])
    assert torch.equal(alone[0], beside[1])


def test_interpolation_keeps_the_frames_it_was_given(pipe):
    keys = pipe.key_frame_tokens([PROMPT], 2.0, 0)
    filled = pipe.interpolate(keys, [PROMPT], 2.0, 0)
    assert filled.shape[1] == 17 and torch.equal(filled[:, ::4], keys)


def test_progress_bars_name_every_stage(pipe, capsys):
    pipe(PROMPT, seconds=1, progress=True)
    shown = capsys.readouterr().err
    for stage in ("first frame", "key frames", "frames between", "enlarging"):
        assert stage in shown


def test_guidance_changes_the_clip(pipe):
    prompt = ["a bear eats an apple"]
    plain, strong = (pipe.key_frame_tokens(prompt, 2.0, 1, guidance_scale=g) for g in (1.0, 6.0))
    assert torch.equal(plain[:, 0], strong[:, 0])  # the first frame is the image model's
    assert not torch.equal(plain, strong)


@pytest.mark.parametrize(
    "prompt, seconds, message",
    [
        ("", 4, "empty"),
        ("  \n", 4, "empty"),
        ("a lion drinks milk " * 20, 4, "slots"),
        (PROMPT, 3, "0.5, 1, 2, 4, 8"),
        (PROMPT, -1, "trained"),
    ],
)
def test_bad_requests_are_one_sentence(pipe, prompt, seconds, message):
    with pytest.raises(CogVideoError, match=message) as error:
        pipe(prompt, seconds=seconds, progress=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_guidance_that_is_not_finite_is_refused(pipe, scale):
    with pytest.raises(CogVideoError, match="Guidance cannot be"):
        pipe("a lion drinks milk", seconds=0.5, guidance_scale=scale, progress=False)


def test_unknown_words_are_named(pipe):
    with pytest.warns(UserWarning, match="dragon"):
        pipe("a dragon drinks milk", seconds=0.5, enlarge=False, progress=False)


def test_beside_unknown_words_stand_sentences_that_would_work(pipe):
    """They come from the weights' folder; weights without them name none."""
    examples = ("a lion drinks milk slowly", "a rabbit puts on a hat", "一只熊猫推开一列小火车")
    knowing = pipe.with_sampling(examples=examples)
    with pytest.warns(UserWarning, match="words flies and .* example: a lion drinks milk slowly; .*火车\\.$"):
        knowing("a lion flies", seconds=0.5, enlarge=False, progress=False)
    with pytest.warns(UserWarning, match="will not obey them\\.$"):
        pipe.with_sampling(examples=())("a lion flies", seconds=0.5, enlarge=False, progress=False)


def test_the_demos_recipe_names_sentences_that_the_demo_knows(pipe):
    path = Path(__file__).parents[2] / "configs" / "demo.yaml"
    examples = load_yaml(path)["sampling"]["examples"]
    assert len(examples) == 3 and not any(pipe.text.unknown_words(example) for example in examples)


def test_unknown_weights_and_devices_are_refused():
    with pytest.raises(CogVideoError, match="nowhere"):
        Pipeline.from_pretrained("nowhere")
    with pytest.raises(CogVideoError, match="gpu9"):
        Pipeline.from_pretrained("demo", device="gpu9")
    if not torch.cuda.is_available():
        with pytest.raises(CogVideoError, match="--device cpu"):
            Pipeline.from_pretrained("demo", device="cuda")


@pytest.mark.parametrize(
    "file",
    ["stage1/model.safetensors", "stage2/config.json", "superres/model.safetensors",
     "tokenizers/frames.safetensors", "tokenizers/text.model", "pipeline.json"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["truncated", "corrupt", "missing"])
def test_damaged_weights_are_named(tmp_path, file, how):
    folder = tmp_path / "weights"
    shutil.copytree(DEMO, folder)
    path = folder / file
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "corrupt":
        path.write_bytes(b"\x00" + bytes(range(256)) * 4)
    else:
        path.unlink()
    with pytest.raises(CogVideoError) as error:
        Pipeline.from_pretrained(folder)
    assert "\n" not in str(error.value) and path.name in str(error.value)


def test_a_foreign_stage_is_refused(tmp_path):
    """Stage 1 in the place of stage 2: fits file by file, but not together."""
    folder = tmp_path / "weights"
    shutil.copytree(DEMO, folder)
    shutil.rmtree(folder / "stage2")
    shutil.copytree(folder / "stage1", folder / "stage2")
    with pytest.raises(CogVideoError, match="stage 2"):
        Pipeline.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [None, "bf16", "int8"])
def test_memory_is_compared_before_anything_is_read(monkeypatch, dtype):
    monkeypatch.setattr("cogvideo.runtime.memory.free_memory", lambda device: 1000)
    monkeypatch.setattr(
        "cogvideo.checkpoints.pipeline_folder.load_model", lambda *_, **__: pytest.fail("a model was read")
    )
    with pytest.raises(CogVideoError, match="needs .* GB on cpu and 0.00 GB are free"):
        Pipeline.from_pretrained("demo", device="cpu", dtype=dtype)


@pytest.mark.parametrize("labels", [np.arange(4.0), np.array([0, 2**62]), np.array([[0]]), np.array([-1, 0])])
def test_labels_that_are_none(tmp_path, labels):
    np.save(tmp_path / "clusters.npy", labels)
    with pytest.raises(CogVideoError, match="holds no cluster labels"):
        read_labels(tmp_path / "clusters.npy")
