"""The whole pipeline on a folder of released files: steps, settings, precision, offloading, mistakes."""

import json
import shutil

import numpy as np
import pytest
import torch
from checkpoints.released_files import BEGIN_OF_IMAGE, IMAGE_TOKENS, write_released_files

from cogvideo import CogVideoError, Pipeline, generate_first_frame, generate_key_frames, interpolate_frames
from cogvideo.checkpoints.convert import convert
from cogvideo.checkpoints.registry import DEMO
from cogvideo.checkpoints.sat import load_sat_checkpoint
from cogvideo.sampling import ClusterStrategy
from cogvideo.sampling import pipeline as pipeline_module

PROMPT = "a red dog runs in the snow"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_released_files(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def pipe(folder) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu", dtype="fp32")


def test_four_seconds_are_33_frames(pipe):
    clip = pipe(PROMPT, progress=False)
    assert clip.frames.shape == (33, 96, 96, 3) and clip.frames.dtype == np.uint8 and clip.fps == 8
    assert len({frame.tobytes() for frame in clip.frames}) > 16


def test_the_release_s_size_is_480_pixels(tmp_path):
    pipe = Pipeline.from_pretrained(write_released_files(tmp_path, side=20), device="cpu", dtype="fp32")
    tokens = torch.randint(IMAGE_TOKENS, (1, 1, 400), generator=torch.Generator().manual_seed(0))
    assert pipe.pixels(pipe.upsample(tokens, [PROMPT])).shape == (1, 1, 480, 480, 3)


def test_the_same_seed_gives_the_same_clip_and_another_seed_another(pipe):
    one, again, other = (pipe(PROMPT, seconds=0.5, seed=seed, progress=False).frames for seed in (3, 3, 4))
    assert np.array_equal(one, again) and not np.array_equal(one, other)


@pytest.mark.parametrize("guidance", [None, 1.0])
def test_every_step_is_the_release_s(folder, pipe, monkeypatch, guidance):
    """The arguments of decode.py's three functions, against reference page "Sampling", and their tokens."""
    calls = []

    def watched(function):
        def call(*arguments, **settings):
            calls.append((function.__name__, arguments, settings))
            return function(*arguments, **settings)

        return call

    for function in (generate_first_frame, generate_key_frames, interpolate_frames):
        monkeypatch.setattr(pipeline_module, function.__name__, watched(function))
    pipe(PROMPT, seconds=4, enlarge=False, guidance_scale=guidance, progress=False)
    assert [name for name, *_ in calls] == ["generate_first_frame", "generate_key_frames"] + 3 * [
        "interpolate_frames"
    ]

    def ids(text, rate=None):
        front = [*pipe.text.encode(rate), pipe.text.newline_id] if rate else []
        return front + pipe.text.encode(text)

    (_, (_, text), first), (_, (_, key_text, _), key), *rounds = calls
    assert text.tolist() == [ids(PROMPT + " 高清摄影")] and first["text_bonus"] == 1.4
    assert "guidance_ids" not in first
    assert key_text.tolist() == [ids(PROMPT + " 视频", "4.0秒")] and key["num_frames"] == 5
    if guidance is None:
        assert key["guidance_scale"] == 3 and key["text_bonus"] == 0
        assert key["guidance_ids"].tolist() == [ids("视频", "4.0秒")]
    else:
        assert "guidance_ids" not in key and key["text_bonus"] == 1.4
    for seconds, sequences, (_, (_, text, given), settings) in zip(
        (2.0, 1.0, 0.5), (2, 4, 8), rounds, strict=True
    ):
        assert text.tolist() == [ids(PROMPT + " 视频", f"{seconds}秒")] * sequences and given.shape[:2] == (
            sequences,
            3,
        )
        assert settings["text_bonus"] == 1.4 and settings["release_quirks"] and "guidance_ids" not in settings

    def drawn(strategy):
        return strategy.temperature, strategy.top_k, strategy.temperature2

    assert drawn(first["strategy"]) == (1.0, 16, 0.89)
    assert {drawn(call[2]["strategy"]) for call in calls[1:]} == {(1.05, 12, 0.89)}
    stage1 = load_sat_checkpoint(
        folder / "cogvideo-stage1",
        dtype=torch.float32,
        image_tokens=IMAGE_TOKENS,
        begin_of_image=BEGIN_OF_IMAGE,
    )
    labels = np.load(folder / "cluster_label2.npy")
    strategy = ClusterStrategy(labels, temperature=1.0, top_k=16, temperature2=0.89)
    again = generate_first_frame(
        stage1,
        torch.tensor([ids(PROMPT + " 高清摄影")]),
        strategy=strategy,
        generator=pipe._generators("first", 0, 1),
    )
    assert torch.equal(again, pipe.first_frame_tokens([PROMPT]))


def test_super_resolution_has_the_bare_prompt_and_the_release_s_strategy(pipe, monkeypatch):
    seen, forward = [], pipe.superres.forward
    monkeypatch.setattr(pipe.superres, "forward", lambda *a, **s: seen.append((a, s)) or forward(*a, **s))
    tokens = torch.zeros(1, 14, 16, dtype=torch.long)
    assert pipe.upsample(tokens, [PROMPT]).shape == (1, 14, 144)
    assert [len(arguments[1]) for arguments, _ in seen] == [12, 2]
    assert seen[0][0][0][0].tolist() == pipe.text.encode(PROMPT)
    strategy = seen[0][1]["strategy"]
    assert (strategy.temperature, strategy.top_k, strategy.temperature2) == (1.0, 6, 0.6)


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8", None])
def test_precision(folder, pipe, dtype):
    narrow = Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)
    frame = narrow.first_frame_tokens([PROMPT])
    assert frame.shape == (1, 16)
    expected = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32, None: torch.float16}[
        dtype
    ]
    for model in (narrow.stage1, narrow.stage2, narrow.superres):
        assert model.word_embedding.weight.dtype == expected
        stored = model.blocks[0].mlp.up.weight_int8 if dtype == "int8" else model.blocks[0].mlp.up.weight
        assert stored.dtype == (torch.int8 if dtype == "int8" else expected)
    assert narrow.frames.codebook.dtype == torch.float32


@pytest.mark.parametrize("dtype, offload", [("fp32", "stages"), ("int8", "layers")])
def test_offloading_changes_no_pixel(folder, dtype, offload):
    here = Pipeline.from_pretrained(folder, device="cpu", dtype=dtype)
    away = Pipeline.from_pretrained(folder, device="cpu", dtype=dtype, offload=offload)
    # The batches are smaller with offloading, and sums of another batch size may round differently.
    here.sequences_at_once, here.frames_at_once = away.sequences_at_once, away.frames_at_once
    prompts = [PROMPT, "a red dog"]
    for _ in range(2):  # the weights are still there the second time
        keys = here.key_frame_tokens(prompts, 1.0, [1, 2])
        assert torch.equal(keys, away.key_frame_tokens(prompts, 1.0, [1, 2]))
        assert torch.equal(here.interpolate(keys, prompts, 1.0), away.interpolate(keys, prompts, 1.0))
        large = here.upsample(keys[:, :2], prompts)
        assert torch.equal(large, away.upsample(keys[:, :2], prompts))
    assert np.array_equal(here.pixels(large), away.pixels(large))


def test_sequences_in_parts_are_those_of_one_batch(pipe):
    keys = pipe.key_frame_tokens([PROMPT], 4.0)
    whole = pipe.interpolate(keys, [PROMPT], 4.0)
    parts = pipe.with_sampling()
    parts.sequences_at_once = 3
    assert torch.equal(parts.interpolate(keys, [PROMPT], 4.0), whole)


def test_without_the_cluster_file_k_means_stands_in(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "release")
    (tmp_path / "release" / "cluster_label2.npy").unlink()
    with pytest.warns(UserWarning, match="cluster_label2.npy"):
        pipe = Pipeline.from_pretrained(tmp_path / "release", device="cpu", dtype="fp32")
    assert pipe.cluster_labels is not None and pipe.cluster_labels.shape == (IMAGE_TOKENS,)
    assert pipe.first_frame_tokens([PROMPT]).shape == (1, 16)


@pytest.mark.parametrize(
    "name", ["cogvideo-stage1", "cogvideo-stage2", "cogview2-dsr", "ice_text.model", "ice_image.pt"]
)
def test_what_is_missing_is_named(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "release")
    path = tmp_path / "release" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(CogVideoError, match=f"{name} of the release is missing") as error:
        Pipeline.from_pretrained(tmp_path / "release", device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("ice_text.model", b"\x00" * 99, "ice_text.model"),
        ("ice_image.pt", b"PK\x03\x04 cut off", "ice_image.pt"),
        ("cluster_label2.npy", b"\x93NUMPY", "cluster_label2.npy"),
        ("cogview2-dsr/model_config.json", b"{}", "num_attention_heads"),
        ("cogvideo-stage2/latest", b"7", "mp_rank_00"),
    ],
)
def test_what_is_damaged_is_named(folder, tmp_path, name, content, message):
    shutil.copytree(folder, tmp_path / "release")
    (tmp_path / "release" / name).write_bytes(content)
    with pytest.raises(CogVideoError, match=message) as error:
        Pipeline.from_pretrained(tmp_path / "release", device="cpu")
    assert "\n" not in str(error.value)


def test_labels_of_another_codebook_are_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "release")
    np.save(tmp_path / "release" / "cluster_label2.npy", np.zeros(77, int))
    with pytest.raises(CogVideoError, match="77 image tokens"):
        Pipeline.from_pretrained(tmp_path / "release", device="cpu")


@pytest.mark.parametrize("settings, message", [({"dtype": "int4"}, "int4"), ({"offload": "disk"}, "disk")])
def test_unknown_choices_are_refused(folder, settings, message):
    with pytest.raises(CogVideoError, match=message):
        Pipeline.from_pretrained(folder, device="cpu", **settings)


def test_a_single_model_is_no_pipeline(folder):
    with pytest.raises(CogVideoError, match="holds a single model: give the folder of the whole pipeline"):
        Pipeline.from_pretrained(folder / "cogvideo-stage1", device="cpu")


def test_a_pipeline_folder_may_draw_by_clusters(tmp_path):
    """clusters.npy beside the demo's tokenizers: with one cluster kept, only its tokens are drawn."""
    shutil.copytree(DEMO, tmp_path / "weights")
    settings = tmp_path / "weights" / "pipeline.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"clusters": True, "top_k": 1}))
    with pytest.raises(CogVideoError, match="clusters.npy"):
        Pipeline.from_pretrained(tmp_path / "weights", device="cpu").key_frame_tokens(["a cat"], 2.0)
    codes = Pipeline.from_pretrained("demo", device="cpu").frames.num_codes
    labels = np.arange(codes) % 2
    np.save(tmp_path / "weights" / "tokenizers" / "clusters.npy", labels)
    pipe = Pipeline.from_pretrained(tmp_path / "weights", device="cpu")
    seen, made = [], pipe._strategy

    def watched(*settings):
        strategy = made(*settings)

        def draw(logits, step):
            seen.append((logits, token := strategy(logits, step)))
            return token

        return draw

    pipe._strategy = watched
    pipe.key_frame_tokens(["a lion eats an apple"], 0.5)
    assert len(seen) == 5 * 64
    for logits, token in seen[64:]:  # key frames keep one cluster of the two: the heavier
        odd = (logits / pipe.sampling.temperature).softmax(-1)[0, labels == 1].sum()
        assert labels[token] == (odd > 0.5)


def test_zips_stand_in_for_folders_and_all_becomes_one_pipeline_folder(folder, pipe, tmp_path):
    zipped = tmp_path / "release"
    shutil.copytree(folder, zipped)
    for name in ("cogvideo-stage1", "cogvideo-stage2", "cogview2-dsr"):
        shutil.make_archive(str(zipped / name), "zip", zipped, name)
        shutil.rmtree(zipped / name)
    told = convert(zipped, tmp_path / "pipeline", dtype="keep")
    assert "pipeline" in told and sorted(path.name for path in (tmp_path / "pipeline").iterdir()) == [
        "pipeline.json", "stage1", "stage2", "superres", "tokenizers",
    ]  # fmt: skip
    ours = Pipeline.from_pretrained(tmp_path / "pipeline", device="cpu", dtype="fp32")
    clips = [p(PROMPT, seconds=0.5, seed=3, progress=False).frames for p in (pipe, ours)]
    assert np.array_equal(*clips)


def test_one_zip_is_a_released_checkpoint(folder, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "cogvideo-stage1"), "zip", folder, "cogvideo-stage1")
    ids = {"image_tokens": IMAGE_TOKENS, "begin_of_image": BEGIN_OF_IMAGE}
    model, same = (load_sat_checkpoint(path, **ids) for path in (archive, folder / "cogvideo-stage1"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert (tmp_path / "cogvideo-stage1" / "latest").exists()
