"""Native folders of one file and of several, read tensor by tensor."""

import json

import pytest
import torch

from cogvideo.checkpoints import native
from cogvideo.checkpoints.native import inherit_image_model, load_model, new_folder, read_weights, save_model
from cogvideo.config import ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer

TINY = ModelConfig(
    num_layers=2, hidden_size=16, num_heads=2, frame_height=3, frame_width=4, num_frames=1, text_length=6,
    first_frame_position=6, image_tokens=10, vocab_size=20, begin_of_image=19, base_positions=18,
    temporal=False,
)  # fmt: skip


@pytest.fixture
def sharded(monkeypatch):
    """Folders above 20 KB are split into files of at most 8 KB, if no single weight is larger."""
    monkeypatch.setattr(native, "SINGLE_FILE_BYTES", 20_000)
    monkeypatch.setattr(native, "SHARD_BYTES", 8_000)


@pytest.fixture
def model():
    return CogVideoTransformer(TINY.video()).initialize(1)


def equal(a, b):
    return a.config == b.config and all(
        torch.equal(weight, b.state_dict()[n]) for n, weight in a.state_dict().items()
    )


def test_large_models_lie_in_several_files(tmp_path, sharded, model):
    save_model(model, tmp_path)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    count = len(shards)
    assert count > 3 and shards == [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    largest = max(weight.nbytes for weight in model.parameters())
    assert all(
        sum(t.nbytes for t in read.values()) <= max(8_000, largest)
        for read in map(load_file, tmp_path.glob("*-of-*"))
    )
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in model.parameters())
    assert index["weight_map"].keys() == model.state_dict().keys()
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}  # nothing half-written
    assert equal(load_model(tmp_path), model)


def load_file(path):
    from safetensors.torch import load_file

    return load_file(path)


def test_files_of_an_earlier_saving_go(tmp_path, sharded, model):
    save_model(model, tmp_path)
    small = CogVideoTransformer(TINY).initialize(2)
    (tmp_path / "model_of_mine.safetensors").write_bytes(b"")
    save_model(small, tmp_path, dtype=torch.float16)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", "model_of_mine.safetensors"}
    assert equal(load_model(tmp_path, dtype=None), small.half())
    save_model(model, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert equal(load_model(tmp_path), model)


def spoil(folder, how):
    index = folder / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    shard = folder / sorted(set(values["weight_map"].values()))[1]
    if how == "a shard is missing":
        shard.unlink()
    elif how == "a shard is cut off":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif how == "another's shard":
        shard.write_bytes((folder / shard.name.replace("00002", "00001", 1)).read_bytes())
    elif how == "index leaves the folder":
        values["weight_map"]["final_norm.weight"] = "../model.safetensors"
        index.write_text(json.dumps(values))
    elif how == "index has no map":
        index.write_text("{}")
    else:
        del values["weight_map"]["final_norm.weight"]
        index.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "how",
    [
        "a shard is missing", "a shard is cut off", "another's shard", "index leaves the folder",
        "index has no map",
        "index lacks a weight",
    ],
)  # fmt: skip
def test_spoilt_shards_are_refused_in_one_sentence(tmp_path, sharded, model, how):
    save_model(model, tmp_path)
    spoil(tmp_path, how)
    with pytest.raises(CogVideoError) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, model, value):
    model.blocks[1].mlp.up.weight.data[3, 5] = value
    save_model(model, tmp_path, dtype=torch.float16)
    with pytest.raises(CogVideoError, match="blocks.1.mlp.up.weight in .* not finite"):
        load_model(tmp_path)


def test_what_was_read_is_not_the_file(tmp_path, model):
    """Weights are in memory of their own: saving into the folder later, or training, changes nothing."""
    save_model(model, tmp_path)
    read, again = load_model(tmp_path), load_model(tmp_path)
    with torch.no_grad():
        for weight in read.parameters():
            weight.zero_()
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))  # in place, as a copying program does
    assert equal(again, model)


def test_types_and_devices(tmp_path, model):
    save_model(model, tmp_path, dtype=torch.bfloat16)
    assert {weight.dtype for weight in load_model(tmp_path, dtype=None).parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in load_model(tmp_path, dtype=torch.float16).parameters()} == {
        torch.float16
    }
    meta = load_model(tmp_path, device="meta")
    assert all(weight.is_meta and weight.dtype == torch.float32 for weight in meta.parameters())
    assert all(tensor.is_meta for tensor in read_weights(tmp_path).meta.values())


@torch.no_grad()
def test_an_inheriting_model_shares_no_weights_with_one_that_was_given(tmp_path):
    image = CogVideoTransformer(TINY).initialize(3)
    save_model(image, tmp_path)
    video, other = inherit_image_model(image), inherit_image_model(tmp_path)
    assert equal(video, other)
    for weight in video.parameters():
        weight.zero_()
    assert equal(image, load_model(tmp_path))


def test_a_new_folder_is_whole_or_not_there(tmp_path):
    target = tmp_path / "deep" / "new"
    with pytest.raises(RuntimeError), new_folder(target, 10) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(target.parent.iterdir()) == []
    (tmp_path / "deep" / "new.part").mkdir()  # of a run that was killed
    (tmp_path / "deep" / "new.part" / "half").touch()
    target.mkdir()  # an empty one is no hindrance
    with new_folder(target, 10) as folder:
        (folder / "whole").write_text("x")
    assert [path.name for path in target.iterdir()] == ["whole"] and not folder.exists()
    with pytest.raises(CogVideoError, match="there already"), new_folder(target, 10):
        pass
    with pytest.raises(CogVideoError, match="GB free"), new_folder(tmp_path / "large", 10**18):
        pass
    assert not (tmp_path / "large.part").exists()
