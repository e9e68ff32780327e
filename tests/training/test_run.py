"""Training on tokenized folders: what each stage moves, parts of a batch, the log, what is refused."""

import json
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import start_held
from PIL import Image
from safetensors.torch import load_file, save_file
from training.tiny_tokens import (
    IMAGE,
    losses,
    train_watched,
    write_config,
    write_superres,
    write_tokens,
    write_weights,
)

from cogvideo.checkpoints.native import load_model
from cogvideo.checkpoints.registry import DEMO
from cogvideo.checkpoints.tokenizers import load_tokenizers
from cogvideo.config import from_dict, load_yaml
from cogvideo.data.tokenized import Sample, TokenFormat, TokenizedBatches, finish, write_shard
from cogvideo.errors import CogVideoError
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.superres.direct import DirectSuperResolution
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.patches import PatchVQVAE
from cogvideo.training.optimizer import OptimizerConfig
from cogvideo.training.run import TrainingConfig, shorten, train, usual_window

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """tokens/, weights/ and run/, a finished training of stage 1."""
    folder = tmp_path_factory.mktemp("base")
    write_tokens(folder / "tokens")
    write_weights(folder / "weights")
    train(write_config(folder))
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "kind, video", [("sequential", {}), ("interpolation", {"order": "interpolation", "window": 2})]
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_stages_1_and_2_move_the_temporal_channel_alone(tmp_path, kind, video, dtype):
    write_tokens(tmp_path / "tokens", kind=kind)
    write_weights(tmp_path / "weights", **video)
    stage = "stage2" if video else "stage1"
    train_watched(write_config(tmp_path, stage=stage, dtype=dtype, recompute=dtype == "bf16"))
    before, after = weights_of(tmp_path / "weights"), weights_of(tmp_path / "run/model")
    trained = load_model(tmp_path / "run/model").temporal_parameters().keys()
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert moved <= set(trained)
    assert {name.split(".", 2)[-1] for name in moved} >= {
        "temporal.qkv.weight",
        "temporal.dense.weight",
        "gate",
    }
    assert all(weight.dtype == torch.float32 for weight in after.values())


def test_stage_1_learns_the_rule_of_the_tokens(tmp_path):
    """Every token of a clip is the same one: the temporal channel sees it in the frames before."""
    write_tokens(tmp_path / "tokens", clips=200)
    write_weights(tmp_path / "weights")
    optimizer = {"steps": 80, "batch_size": 16, "lr": 0.02, "warmup": 10}
    changes = {"log_every": 80, "evaluate_every": 80, "checkpoint_seconds": 1e9, "caption_dropout": 0.0}
    train(write_config(tmp_path, optimizer=optimizer, **changes))
    row = json.loads((tmp_path / "run/metrics.jsonl").read_text())
    assert row["test_loss"] < 1.6 < 2.3  # of log 10 for guessing


def test_an_inherited_image_model_becomes_a_stage(base, tmp_path):
    from cogvideo.checkpoints.native import save_model
    from cogvideo.model.transformer import CogVideoTransformer

    image = CogVideoTransformer(IMAGE).initialize(0)
    save_model(image, tmp_path / "image")
    train(write_config(base, run_dir=str(tmp_path / "run"), start=str(tmp_path / "image")))
    assert losses(tmp_path / "run") == losses(base / "run")  # weights/ was inherited from it in the same way


def test_image_model_and_super_resolution(tmp_path, capsys):
    write_tokens(tmp_path / "tokens", kind="image")
    write_weights(tmp_path / "weights")
    train(write_config(tmp_path, stage="image"))
    after = load_model(tmp_path / "run/model")
    before = weights_of(tmp_path / "weights")
    assert after.config.num_frames == 1
    assert not torch.equal(after.blocks[0].mlp.up.weight, before["blocks.0.mlp.up.weight"])
    write_tokens(tmp_path / "large", kind="superres")
    write_superres(tmp_path / "superres")
    changes = {
        "data": str(tmp_path / "large"),
        "start": str(tmp_path / "superres"),
        "run_dir": str(tmp_path / "sr"),
    }
    train(write_config(tmp_path, stage="superres", samples=1, **changes))
    assert "No samples will be drawn" in capsys.readouterr().err
    assert losses(tmp_path / "sr")[-1] < losses(tmp_path / "sr")[0]
    DirectSuperResolution.from_pretrained(tmp_path / "sr/model")


def test_texts_that_are_too_long_lose_their_end():
    ids = torch.tensor([[0, 0, 0, 1, 2], [1, 2, 3, 4, 5], [0, 1, 2, 3, 4]])
    short, mask = shorten(ids, ids > 0, 3)
    assert short.tolist() == [[0, 1, 2], [1, 2, 3], [1, 2, 3]] and torch.equal(mask, short > 0)
    assert torch.equal(shorten(ids, ids > 0, 9)[0], ids)


def test_parts_of_a_batch_add_up_to_it(base, tmp_path):
    optimizer = {"steps": 6, "batch_size": 4, "warmup": 1, "accumulate": 2}
    changes = {"caption_dropout": 0.0, "evaluate_every": 10}
    train(write_config(base, run_dir=str(tmp_path / "parts"), optimizer=optimizer, **changes))
    train(write_config(base, run_dir=str(tmp_path / "whole"), **changes))
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), abs=1e-5)


def test_recomputed_blocks_and_bf16_give_the_same_losses(base, tmp_path):
    train(write_config(base, run_dir=str(tmp_path / "again"), recompute=True))
    assert losses(tmp_path / "again") == pytest.approx(losses(base / "run"), abs=1e-6)
    train(write_config(base, run_dir=str(tmp_path / "bf16"), dtype="bf16"))
    assert losses(tmp_path / "bf16") == pytest.approx(losses(base / "run"), abs=0.02)
    assert losses(tmp_path / "bf16") != losses(base / "run")


def test_the_log_and_the_pictures(base, tmp_path):
    """metrics.jsonl, TensorBoard's curves, and pictures of samples: real clips above what the model made."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    torch.manual_seed(0)
    tokenizer = FrameTokenizer(PatchVQVAE(10, (8, 8, 4, 4)))
    tokenizer.save(tmp_path / "frames.safetensors")
    tokens = write_tokens(tmp_path / "tokens", tokenizer=tokenizer.digest)
    changes = {
        "samples": 2,
        "data": str(tokens),
        "sample_every": 3,
        "frame_tokenizer": str(tmp_path / "frames.safetensors"),
    }
    train(write_config(base, run_dir=str(tmp_path / "run"), tensorboard=True, dtype="bf16", **changes))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert row["loss"] == pytest.approx(sum(row["frame_losses"]) / 4) and len(row["gates"]) == 2
        assert (
            row["gradient_norm"] > 0
            and row["tokens_per_second"] > 0
            and 0 < row["mfu"] < 1
            and row["peak_gb"] > 0
        )
    tested = [row for row in rows if "test_loss" in row]
    assert [row["step"] for row in tested] == [3, 6] and len(tested[0]["test_frame_losses"]) == 4
    assert np.mean(tested[0]["test_frame_losses"]) == pytest.approx(tested[0]["test_loss"])
    board = EventAccumulator(str(tmp_path / "run/tensorboard"))
    board.Reload()
    assert {"loss", "frame_losses/3", "gates/1", "gradient_norm", "mfu", "test_loss"} <= set(
        board.Tags()["scalars"]
    )
    assert [event.value for event in board.Scalars("loss")] == pytest.approx([row["loss"] for row in rows])
    assert [event.step for event in board.Images("samples")] == [0, 3, 6]
    picture = Image.open(tmp_path / "run/samples/step-000000006.png")
    assert picture.size == (
        5 * 26,
        2 * 2 * 18,
    )  # five frames of 24 x 16 pixels and margins, two clips, real and made
    real = TokenizedBatches(tokens, 4, seed=0)(0, split="test").frames[0, 0]
    shown = torch.from_numpy(np.array(picture.crop((0, 0, 24, 16)), dtype=np.float32))
    decoded = FrameTokenizer.load(tmp_path / "frames.safetensors").decode(real.view(1, 2, 3))[0]
    assert (shown.permute(2, 0, 1) - 255 * decoded.clamp(0, 1)).abs().max() <= 1
    assert (
        picture.crop((0, 0, 24, 16)).tobytes() == picture.crop((0, 18, 24, 34)).tobytes()
    )  # the given frame


def test_samples_by_another_frame_tokenizer_are_refused(base, tmp_path):
    FrameTokenizer(PatchVQVAE(10, (8, 8, 4, 4))).save(tmp_path / "frames.safetensors")
    changes = {"samples": 2, "frame_tokenizer": str(tmp_path / "frames.safetensors")}
    with pytest.raises(CogVideoError, match="another frame tokenizer"):
        train(write_config(base, run_dir=str(tmp_path / "run"), **changes))


def test_tokens_of_other_tokenizers_than_the_start_s_are_refused(base, tmp_path):
    write_weights(tmp_path / "pipe/stage1")
    shutil.copytree(DEMO / "tokenizers", tmp_path / "pipe/tokenizers")
    (tmp_path / "pipe/pipeline.json").touch()
    with pytest.raises(CogVideoError, match="another frame tokenizer than the model's"):
        train(write_config(base, run_dir=str(tmp_path / "run"), start=str(tmp_path / "pipe")))


def test_weights_that_were_replaced_are_refused(tmp_path, monkeypatch):
    write_tokens(tmp_path / "tokens")
    write_weights(tmp_path / "weights")
    path = stopped(tmp_path, tmp_path / "run", monkeypatch)
    weights = weights_of(tmp_path / "weights")
    weights["blocks.0.mlp.up.weight"] += 1
    save_file(weights, tmp_path / "weights/model.safetensors")
    with pytest.raises(CogVideoError, match="other settings"):
        train(path)


def test_a_finished_run_is_lengthened_and_the_log_says_so(base, tmp_path, capsys):
    short = {"steps": 6, "batch_size": 4, "warmup": 1}
    train(write_config(base, run_dir=str(tmp_path / "run"), optimizer=short))
    first = weights_of(tmp_path / "run/model")["blocks.0.gate"]
    train(write_config(base, run_dir=str(tmp_path / "run"), optimizer=short | {"steps": 9}))
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert "optimizer.steps raised from 6 to 9" in rows[6]["note"] and "note" not in rows[7]
    longer = OptimizerConfig(steps=9, batch_size=4, warmup=1)
    assert rows[6]["lr"] == pytest.approx(longer.lr * longer.rate_at(6))
    assert "resumes at step 6" in capsys.readouterr().err
    assert not torch.equal(weights_of(tmp_path / "run/model")["blocks.0.gate"], first)
    with pytest.raises(CogVideoError, match="optimizer.steps was 9 and is 6"):
        train(write_config(base, run_dir=str(tmp_path / "run"), optimizer=short))


def test_added_clips_are_appended_and_other_ones_are_named(base, tmp_path, monkeypatch, capsys):
    tokens = write_tokens(tmp_path / "tokens")
    path = stopped(base, tmp_path / "run", monkeypatch, data=str(tokens))
    shutil.rmtree(tokens)
    write_tokens(tokens, shards=3)
    train(path)
    assert "clips were added: 3 shards of tokens, where there were 2" in capsys.readouterr().err
    path = stopped(base, tmp_path / "other", monkeypatch, data=str(tokens))
    shutil.rmtree(tokens)
    write_tokens(tokens, shards=3, clips=9)
    with pytest.raises(CogVideoError, match="other settings: the content of shard-00000.safetensors was '"):
        train(path)


def test_a_run_from_a_pipeline_ends_with_a_pipeline(tmp_path, capsys):
    """Of the demo's stage 2: `generate --weights run` takes the trained one and the demo's other parts."""
    demo = load_tokenizers("demo")
    config = load_model(DEMO / "stage2").config
    made = TokenFormat(
        kind="interpolation", num_frames=5, frame_height=8, frame_width=8, image_tokens=config.image_tokens,
        begin_of_image=config.begin_of_image, pad_id=demo.text.pad_id, text_length=8,
        frame_tokenizer=demo.frames.digest, text_tokenizer=demo.text.digest,
    )  # fmt: skip
    tokens, text = tmp_path / "tokens", demo.text.encode_prompt("a lion drinks milk", 1.0)[:8]
    tokens.mkdir()
    samples = [Sample(torch.full((5, 64), clip), text, 1.0, clip) for clip in range(4)]
    write_shard(tokens / "shard-00000.safetensors", samples, made, {})
    finish(tokens, ["shard-00000.safetensors"], made, unguided={"1.0": text}, notes={"rates": {"4": 4}})
    settings = {"stage": "stage2", "start": "demo", "optimizer": {"steps": 1, "batch_size": 1}}
    train(write_config(tmp_path, **settings))
    assert f"--weights {tmp_path / 'run'}" in capsys.readouterr().err
    pipe, demo_pipe = (Pipeline.from_pretrained(place, device="cpu") for place in (tmp_path / "run", "demo"))
    assert pipe.sampling == demo_pipe.sampling  # the spans are stage 1's
    name = "blocks.0.temporal.dense.weight"
    assert torch.equal(pipe.stage2.get_parameter(name), weights_of(tmp_path / "run/model")[name])
    assert torch.equal(pipe.stage1.get_parameter(name), demo_pipe.stage1.get_parameter(name))
    assert json.loads((tmp_path / "run/model/training.json").read_text())["spans"] == [1.0]


def test_a_finished_run_is_not_run_again(base):
    def times() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in (base / "run").rglob("*") if p.name != "lock"}

    before = times()
    train(write_config(base))
    assert before == times()


@pytest.mark.slow
def test_kills_change_nothing(base, tmp_path):
    """kill -9 anywhere in the run, and the same command again: bitwise the losses of the undisturbed run."""
    optimizer = {"steps": 60, "batch_size": 4, "warmup": 1}
    train(write_config(base, run_dir=str(tmp_path / "straight"), optimizer=optimizer, log_every=7))
    path = write_config(base, run_dir=str(tmp_path / "killed"), optimizer=optimizer, log_every=7)
    checkpoint, reached, kills = tmp_path / "killed/checkpoint.pt", -1, 0
    while kills < 2:
        process = start_held("checkpoint.pt", 25, "train", path)
        while process.poll() is None and step_of(checkpoint) <= reached:
            time.sleep(0.01)
        time.sleep(0.05 * kills)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        kills, reached = kills + 1, step_of(checkpoint)
    assert reached < 60
    train(path)
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    one, other = (weights_of(tmp_path / name / "model") for name in ("straight", "killed"))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def step_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else -1


def stopped(base: Path, run_dir: Path, monkeypatch, **changes) -> Path:
    """A run that met a missing batch at step 3."""
    path = write_config(base, run_dir=str(run_dir), **changes)
    read = TokenizedBatches.__call__

    def cut_off(self, step, device="cpu", split="train"):
        if step == 3 and split == "train":
            raise CogVideoError("shard-00001.safetensors is missing")
        return read(self, step, device, split)

    with monkeypatch.context() as patch:
        patch.setattr(TokenizedBatches, "__call__", cut_off)
        with pytest.raises(CogVideoError, match="shard-00001"):
            train(path)
    assert step_of(run_dir / "checkpoint.pt") == 3
    return path


def test_after_a_stop_the_run_ends_as_if_undisturbed(base, tmp_path, monkeypatch):
    train(stopped(base, tmp_path / "run", monkeypatch))
    assert losses(tmp_path / "run") == losses(base / "run")


def test_a_full_disk_stops_with_a_sentence_and_keeps_the_checkpoint(base, tmp_path, monkeypatch):
    path = stopped(base, tmp_path / "run", monkeypatch)
    kept = (tmp_path / "run/checkpoint.pt").read_bytes()
    monkeypatch.setattr("cogvideo.io._probe", lambda folder: None)  # the disk fills up after the start's check
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (len(kept) // 2, hard)
    )  # no file may be longer: the disk is full
    try:
        with pytest.raises(CogVideoError, match=r"checkpoint\.pt cannot be written \(.*\): make room"):
            train(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "run/checkpoint.pt").read_bytes() == kept and not list(
        (tmp_path / "run").glob("*.part")
    )
    train(path)
    assert losses(tmp_path / "run") == losses(base / "run")


def test_a_shard_that_is_missing_or_damaged_is_named(tmp_path):
    tokens, _ = write_tokens(tmp_path / "tokens"), write_weights(tmp_path / "weights")
    shard = tokens / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    shard.unlink()
    with pytest.raises(CogVideoError, match="shard-00001"):
        train(write_config(tmp_path))
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CogVideoError, match="shard-00001"):
        train(write_config(tmp_path))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"stage": "stage3"}, "stage3"),
        ({"stage": "stage2"}, "interpolation|stage2"),
        ({"stage": "image"}, "image"),
        ({"start": "/nowhere"}, "/nowhere"),
        ({"data": "/nowhere"}, "/nowhere"),
        ({"dtype": "fp8"}, "fp8"),
        ({"log_every": 0}, "log_every"),
        ({"window": 3}, "window None, not 3"),
        ({"stage": "superres", "recompute": True}, "recompute"),
        ({"run_dir": "/proc/nowhere"}, "run_dir"),
        ({"optimizer": {"steps": 6, "batch_size": 4, "accumulate": 3}}, "parts"),
        ({"seed": 1, "run_dir": "finished"}, "other settings"),
    ],
)
def test_settings_that_cannot_be_used_are_named(base, tmp_path, change, message):
    if change.get("run_dir") == "finished":
        change |= {"run_dir": str(base / "run")}
    path = write_config(base, **{"run_dir": str(tmp_path / "new")} | change)
    with pytest.raises(CogVideoError, match=message) as error:
        train(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_the_presets_of_stages_are_the_release_s_optimiser(name):
    config = from_dict(TrainingConfig, load_yaml(ROOT / "configs" / f"{name}.yaml"), name)
    optimizer = config.optimizer
    assert config.stage == name and config.window is None
    assert (optimizer.lr, list(optimizer.betas), optimizer.clip) == (2e-4, [0.9, 0.95], 0.1)
    assert optimizer.weight_decay == 0 and optimizer.muon_lr == 0  # Adam


@pytest.mark.parametrize("name", ["image", "superres"])
def test_other_presets_can_be_read(name):
    assert from_dict(TrainingConfig, load_yaml(ROOT / "configs" / f"{name}.yaml"), name).stage == name


def test_only_a_large_stage_2_has_windows():
    large = replace(IMAGE, frame_height=20, frame_width=20, base_positions=406)
    assert usual_window(large, "interpolation") == 10 and usual_window(large, "sequential") is None
    assert usual_window(IMAGE, "interpolation") is None
