"""Two gloo processes against one: losses, checkpoints that the other reads, no states of frozen weights."""

import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_saver import save
from training.test_frame_tokenizer import config_of
from training.tiny_clips import write_clips
from training.tiny_tokens import losses, write_config, write_superres, write_tokens, write_weights

from cogvideo.checkpoints.native import load_model
from cogvideo.config import from_dict, to_dict
from cogvideo.data.sources import open_dataset
from cogvideo.errors import CogVideoError
from cogvideo.training import distributed
from cogvideo.training.checkpoints import Checkpoints
from cogvideo.training.frame_tokenizer import FrameTokenizerConfig, train_frame_tokenizer
from cogvideo.training.run import train
from cogvideo.training.sharded import state_of

SCRIPT = Path(__file__).with_name("two_processes.py")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """one: by one process; two, parts, bf16: by two; from-two: by two, then one; from-one: one, then two."""
    folder = tmp_path_factory.mktemp("runs")
    write_tokens(folder / "tokens")
    write_weights(folder / "weights")

    def config(name: str, **changes) -> str:
        return str(write_config(folder, run_dir=str(folder / name), **changes))

    train(config("one"))
    parts = {"optimizer": {"steps": 6, "batch_size": 4, "warmup": 1, "accumulate": 2}, "caption_dropout": 0.0}
    for end in ("", "-one"):
        config(f"parts{end}", recompute=True, **parts)
        config(f"bf16{end}", recompute=True, dtype="bf16")
    train(f"{folder}/parts-one.yaml")
    train(f"{folder}/bf16-one.yaml")
    write_tokens(folder / "large", kind="superres")
    write_superres(folder / "large-weights")
    large = {"stage": "superres", "data": str(folder / "large"), "start": str(folder / "large-weights")}
    config("superres", **large)
    train(config("superres-one", **large))
    muon = {"steps": 6, "batch_size": 4, "warmup": 1, "muon_lr": 1e-2}
    write_tokens(folder / "pictures", kind="image")
    write_tokens(folder / "between", kind="interpolation")
    own = {
        "image": {"stage": "image", "data": str(folder / "pictures")},
        "stage1": {},
        "stage2": {
            "stage": "stage2",
            "data": str(folder / "between"),
            "start": str(folder / "muon-image-one/model"),
        },
        "superres": large,
    }
    for name, changes in own.items():
        config(f"muon-{name}", optimizer=muon, **changes)
        train(config(f"muon-{name}-one", optimizer=muon, **changes))
    write_clips(folder / "clips")
    for name in ("tokenizer-one", "tokenizer"):
        settings = to_dict(config_of(folder / "clips", folder / name))
        (folder / f"{name}.json").write_text(json.dumps(settings))
    learned = from_dict(FrameTokenizerConfig, json.loads((folder / "tokenizer-one.json").read_text()), "")
    train_frame_tokenizer(learned, open_dataset(learned.data))
    (folder / "faults").mkdir()
    for name in ("two", "from-two", "from-one"):
        config(name)
    _one_process(f"{folder}/from-one.yaml:3")
    files = [
        "two.yaml",
        "from-two.yaml:3",
        "from-one.yaml",
        "parts.yaml",
        "bf16.yaml",
        "superres.yaml",
        *(f"muon-{name}.yaml" for name in own),
        "tokenizer.json",
        "faults",
    ]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(SCRIPT),
    ]
    subprocess.run([*command, *(f"{folder}/{file}" for file in files)], check=True, timeout=600)
    train(f"{folder}/from-two.yaml")
    return folder


def _one_process(argument: str) -> None:
    subprocess.run([sys.executable, str(SCRIPT), argument], check=True, timeout=600)


def test_two_processes_have_the_losses_of_one(runs):
    assert losses(runs / "two") == pytest.approx(losses(runs / "one"), abs=1e-5)
    one, two = (load_file(runs / name / "model/model.safetensors") for name in ("one", "two"))
    trained = load_model(runs / "one/model").temporal_parameters()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-4 if name in trained else 0, rtol=0)


def test_parts_and_recomputed_blocks_by_two_processes(runs):
    assert losses(runs / "parts") == pytest.approx(losses(runs / "parts-one"), abs=1e-5)


def test_bf16_by_two_processes(runs):
    """Frozen matrices are sharded in bf16, the rest in fp32; orders of sums differ by bf16's rounding."""
    assert losses(runs / "bf16") == pytest.approx(losses(runs / "bf16-one"), abs=0.03)
    assert losses(runs / "bf16")[0] == pytest.approx(losses(runs / "bf16-one")[0], abs=2e-3)


def test_super_resolution_by_two_processes(runs):
    assert losses(runs / "superres") == pytest.approx(losses(runs / "superres-one"), abs=1e-5)


@pytest.mark.parametrize("part", ["image", "stage1", "stage2", "superres"])
def test_every_part_by_two_processes_with_muon(runs, part):
    assert losses(runs / f"muon-{part}") == pytest.approx(losses(runs / f"muon-{part}-one"), abs=1e-5)
    one, two = (
        load_file(runs / name / "model/model.safetensors") for name in (f"muon-{part}-one", f"muon-{part}")
    )
    assert max(float((two[name] - weight).abs().max()) for name, weight in one.items()) < 1e-3


def test_a_frame_tokenizer_by_two_processes(runs):
    """Also its codebook, with codes that were given to others: a checkpoint of two holds what one's does."""
    assert losses(runs / "tokenizer") == pytest.approx(losses(runs / "tokenizer-one"), abs=1e-5)
    one, two = (load_file(runs / name / "frames.safetensors") for name in ("tokenizer-one", "tokenizer"))
    torch.testing.assert_close(two["quantize.embed.weight"], one["quantize.embed.weight"], atol=1e-3, rtol=0)
    assert len(list((runs / "tokenizer").glob("checkpoint-*"))) == 1


def test_a_fault_of_one_process_is_told_to_all(runs):
    first, second = (json.loads((runs / "faults" / f"told-{rank}.json").read_text()) for rank in (0, 1))
    assert first[0] == "disk gone" and "Process 0" in second[0]
    assert "all machines share" in first[1] and "all machines share" in second[1]


def test_processes_without_an_address_are_told_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in distributed.TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CogVideoError, match="torchrun"):
        distributed.join()


@pytest.mark.parametrize("name", ["from-two", "from-one"])
def test_another_number_of_processes_goes_on(runs, name):
    assert losses(runs / name) == pytest.approx(losses(runs / "one"), abs=1e-5)
    assert (runs / name / "checkpoint.pt").exists() == (name == "from-two")
    assert len(list((runs / name).glob("checkpoint-*"))) == (name == "from-one")  # what came before is gone


def test_frozen_weights_have_no_place_in_the_checkpoint(runs):
    (folder,) = (runs / "two").glob("checkpoint-*")
    assert folder.name == "checkpoint-000000006" and len(list(folder.glob("*.distcp"))) == 2
    held = FileSystemReader(folder).read_metadata().state_dict_metadata
    model = load_model(runs / "one/model")
    weights = {name.removeprefix("weights.") for name in held if name.startswith("weights.")}
    assert weights == set(model.temporal_parameters())
    averages = {
        name.split("state.")[1].removesuffix(".exp_avg") for name in held if name.endswith(".exp_avg")
    }
    assert averages == weights


def test_a_batch_that_cannot_be_shared_is_refused(runs, monkeypatch):
    monkeypatch.setattr("cogvideo.training.distributed.world_size", lambda: 3)
    monkeypatch.setattr("cogvideo.training.distributed.most", lambda *values: list(values))  # no group here
    with pytest.raises(CogVideoError, match="3 processes"):
        train(write_config(runs, run_dir=str(runs / "three")))


def test_a_full_disk_and_a_damaged_folder_are_told(tmp_path):
    """The checkpoint of many processes, written here by one: the last is kept, nothing half-written stays."""
    model = torch.nn.Linear(300, 300)
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(model.parameters())]
    checkpoints = Checkpoints(tmp_path, model, optimizers, {"seed": 0})
    checkpoints._save_folder(3, {"recent": []})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # no file may be longer: the disk is full
    try:
        with pytest.raises(CogVideoError, match="make room"):
            checkpoints._save_folder(4, {"recent": []})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-000000003"]
    assert checkpoints.load() == (3, {"recent": []})
    with pytest.raises(CogVideoError, match="other settings"):
        Checkpoints(tmp_path, model, optimizers, {"seed": 1}).load()
    for file in (tmp_path / "checkpoint-000000003").glob("*.distcp"):
        file.write_bytes(b"cut")
    with pytest.raises(CogVideoError, match="damaged"):
        checkpoints.load()


class Hostile:
    """What makes a folder where it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_nothing_in_a_foreign_folder_is_run(tmp_path):
    model, folder, made = torch.nn.Linear(3, 3), tmp_path / "checkpoint-000000003", tmp_path / "made"
    checkpoints = Checkpoints(tmp_path, model, [torch.optim.AdamW(model.parameters())], {"seed": 0})
    checkpoints._save_folder(3, {})
    listed = (folder / ".metadata").read_bytes()
    (folder / ".metadata").write_bytes(pickle.dumps(Hostile(made)))
    with pytest.raises(CogVideoError, match="damaged"):
        checkpoints.load()
    (folder / ".metadata").write_bytes(listed)
    assert checkpoints.load()[0] == 3
    state = state_of(model, checkpoints.optimizers)
    state["optimizers"]["param_groups"][0]["lr"] = Hostile(made)
    save(state, checkpoint_id=folder)
    with pytest.raises(CogVideoError, match="damaged"):
        checkpoints.load()
    assert not made.exists()
