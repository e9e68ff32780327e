"""Released folders: several ranks, both spellings of the settings, older files, and what is refused."""

import io
import json
import os
import pickle
import random
import shutil
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DATA
from safetensors.torch import load_file

from cogvideo.checkpoints.sat import (
    fill_model,
    load_sat_checkpoint,
    open_sat_checkpoint,
    our_name,
    rank_views,
    read_sat_folder,
    released_name,
)
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime import tensors
from cogvideo.superres import DirectSuperResolution, IterativeSuperResolution

FIXTURES = ("sequential_full", "sequential_window", "interpolation")
IDS: dict[str, Any] = {"image_tokens": 256, "begin_of_image": 310}


def rank_path(folder, rank=0):
    return folder / "1" / f"mp_rank_{rank:02d}_model_states.pt"


def fixture(name="sequential_full"):
    return torch.load(rank_path(DATA / "cogvideo" / name), weights_only=True)["module"]


def write(folder, *ranks, **settings):
    """A released folder of tables of weights, one for each rank, with a fixture's settings and others."""
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1\n")
    known = json.loads((DATA / "cogvideo" / "sequential_full" / "model_config.json").read_text())
    (folder / "model_config.json").write_text(json.dumps(known | settings))
    for rank, table in enumerate(ranks):
        torch.save({"module": table}, rank_path(folder, rank))
    return folder


def share_out(weights, ranks):
    """SwissArmyTransformer's rule, row by row: a rank's heads, its rows of the MLP, its words."""
    tables = [{} for _ in range(ranks)]
    for name, weight in weights.items():
        *_, module, kind = [part for part in name.split(".") if not part.isdigit()]
        for rank, table in enumerate(tables):
            mine = weight
            if module == "query_key_value":
                third = len(weight) // 3
                size = third // ranks
                rows = [part * third + rank * size + i for part in range(3) for i in range(size)]
                mine = weight[rows]
            elif module in ("word_embeddings", "dense_h_to_4h"):
                size = len(weight) // ranks
                mine = weight[rank * size : (rank + 1) * size]
            elif module in ("dense", "dense_4h_to_h") and kind == "weight":
                size = weight.shape[1] // ranks
                mine = weight[:, rank * size : (rank + 1) * size]
            table[name] = mine.clone()
    return tables


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_are_merged(name, ranks, tmp_path):
    settings = json.loads((DATA / "cogvideo" / name / "model_config.json").read_text())
    settings["model_parallel_size"] = ranks
    folder = write(tmp_path / "split", *share_out(fixture(name), ranks), **settings)
    whole, merged = load_sat_checkpoint(DATA / "cogvideo" / name, **IDS), load_sat_checkpoint(folder, **IDS)
    assert merged.config == whole.config
    for key, weight in whole.state_dict().items():
        assert torch.equal(merged.state_dict()[key], weight), key


@torch.no_grad()
def test_merged_ranks_give_the_logits_of_the_release(tmp_path):
    model = load_sat_checkpoint(write(tmp_path / "split", *share_out(fixture(), 4)), **IDS)
    data = load_file(DATA / "cogvideo" / "sequential_full.io.safetensors")
    logits = model(data["text_ids"], data["frames"], data["text_mask"])[:, data["logit_positions"].long()]
    torch.testing.assert_close(logits, data["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("model", "name"), [(DirectSuperResolution, "dsr"), (IterativeSuperResolution, "itersr")]
)
def test_ranks_of_super_resolution_are_merged(model, name, tmp_path):
    weights = load_file(DATA / name / "checkpoint.safetensors")
    ids = {"num_heads": 2, "image_tokens": 256, "begin_of_image": 290}
    merged = model.from_sat(write(tmp_path / "split", *share_out(weights, 2)), **ids)
    whole = model.from_sat(weights, **ids)
    for key, weight in whole.state_dict().items():
        assert torch.equal(merged.state_dict()[key], weight), key


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_what_a_rank_holds(ranks):
    weights = fixture()
    for rank, table in enumerate(share_out(weights, ranks)):
        for name, part in table.items():
            view = rank_views(name, weights[name], ranks)[rank]
            assert torch.equal(view.reshape(part.shape), part), name
            assert view.untyped_storage().data_ptr() == weights[name].untyped_storage().data_ptr()


def test_names_go_both_ways():
    for name in fixture():
        ours = our_name(name)
        assert ours and released_name(ours) == name


def test_weights_are_read_when_asked_for_and_mappings_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "MAPPED_BYTES", 10_000)  # so that nearly every weight renews them
    weights, _ = read_sat_folder(write(tmp_path / "split", *share_out(fixture(), 2)))
    assert all(weights.meta[name].shape == whole.shape for name, whole in fixture().items())
    for name, whole in fixture().items():
        first, second = weights[name], weights[name]
        assert torch.equal(first, whole)
        first.zero_()  # memory of its own: neither file nor later readings change
        assert torch.equal(second, whole) and torch.equal(weights[name], whole)
    with pytest.raises(KeyError):
        weights["nothing"]


def test_a_block_is_done_before_the_next_is_read():
    config, weights = open_sat_checkpoint(DATA / "cogvideo" / "sequential_full", **IDS)
    models, done = [], []

    def build():
        models.append(CogVideoTransformer(config))
        return models[0]

    def narrow(block):
        done.append(block)
        for index, other in enumerate(models[0].blocks):
            assert all(weight.is_meta == (index >= len(done)) for weight in other.parameters())
        block.mlp.half()

    model = fill_model(build, weights, where="the fixture", block_done=narrow)
    assert done == list(model.blocks)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32, torch.float16}


@pytest.mark.parametrize(
    "spelling", [{"sandwich_ln": True}, {"layernorm_order": "sandwich"}, {"layout": "64, 464, 2064"}]
)
def test_older_spellings(spelling, tmp_path):
    folder = write(tmp_path / "old", fixture())
    settings = json.loads((folder / "model_config.json").read_text())
    del settings["layernorm_order"]
    (folder / "model_config.json").write_text(json.dumps(settings | spelling))
    assert (
        load_sat_checkpoint(folder, **IDS).config
        == load_sat_checkpoint(DATA / "cogvideo" / FIXTURES[0], **IDS).config
    )


@pytest.mark.parametrize(
    "spelling", [{"sandwich_ln": False, "layernorm_order": "sandwich"}, {"layernorm_order": "pre"}]
)
def test_other_norms_are_refused(spelling, tmp_path):
    with pytest.raises(CogVideoError, match="sandwich"):
        load_sat_checkpoint(write(tmp_path / "pre", fixture(), **spelling), **IDS)


def deepspeed_state(numpy_core):
    """What DeepSpeed and the release's trainer put beside the weights, as numpy of then and now pickle it."""
    state = np.random.RandomState(0).get_state()
    buffer = io.BytesIO()
    torch.save(
        {
            "module": fixture(), "optimizer": None, "csr_tensor_module_names": set(), "skipped_steps": 3,
            "iteration": 27500,
            "client_lr_scheduler": {"start_lr": 2e-4, "decay_style": "cosine"},
            "random_rng_state": random.Random(0).getstate(),
            "np_rng_state": state, "torch_rng_state": torch.get_rng_state(),
        },
        buffer, _use_new_zipfile_serialization=False,
    )  # fmt: skip
    data = buffer.getvalue()
    assert b"cnumpy._core.multiarray\n" in data or b"cnumpy.core.multiarray\n" in data
    return data.replace(b"cnumpy._core.", b"cnumpy.core.").replace(
        b"cnumpy.core.", f"cnumpy.{numpy_core}.".encode()
    )


@pytest.mark.parametrize("numpy_core", ["core", "_core"])
def test_random_states_beside_the_weights_and_files_that_are_no_zips(numpy_core, tmp_path):
    folder = write(tmp_path / "old", {})
    rank_path(folder).write_bytes(deepspeed_state(numpy_core))
    weights, _ = read_sat_folder(folder)
    assert weights.keys() == fixture().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in fixture().items())


class Hostile:
    def __reduce__(self):
        return os.mkdir, (os.environ["HOSTILE"],)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_file_is_not_run(new_format, tmp_path, monkeypatch):
    monkeypatch.setenv("HOSTILE", str(tmp_path / "ran"))
    folder = write(tmp_path / "bad", fixture())
    table = {"module": fixture(), "np_rng_state": Hostile()}
    torch.save(table, rank_path(folder), _use_new_zipfile_serialization=new_format)
    with pytest.raises(CogVideoError, match="more than tensors"):
        load_sat_checkpoint(folder, **IDS)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Hostile()))  # it would have
    assert (tmp_path / "ran").exists()


def spoil(folder, how):
    """Spoil a checkpoint of two ranks; returns what the error should say."""
    path = rank_path(folder, 1)
    table = torch.load(path, weights_only=True)["module"]
    name = "transformer.layers.1.mlp.dense_h_to_4h.weight"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
        return "damaged"
    if how == "garbage":
        path.write_bytes(b"hello")
        return "damaged"
    if how == "no table":
        torch.save({"module": {"weight": 1}}, path)
        return "no table of weights"
    if how == "gone":
        path.unlink()
        return "should hold 2 rank.* not 1"
    if how == "gap":
        path.rename(rank_path(folder, 2))
        return "mp_rank_01_model_states.pt is missing"
    if how == "another's":
        table.pop(name)
    elif how == "wrong shape":
        table[name] = table[name][:-1]
    elif how in ("no thirds", "no axes"):
        shutil.rmtree(folder)
        name = "transformer.layers.1.attention.query_key_value.bias"
        write(folder, {**fixture(), name: torch.ones([] if how == "no axes" else 95)})
        return "cannot be put together"
    elif how == "wrong shape of all":
        shutil.rmtree(folder)
        ranks = share_out({**fixture(), name: fixture()[name][:-2]}, 2)
        write(folder, *ranks)
        return "needs \\[256, 64\\]"
    elif how == "missing key":
        shutil.rmtree(folder)
        weights = fixture()
        del weights[name]
        write(folder, *share_out(weights, 2))
        return "1 weights are missing from .*, blocks.1.mlp.up.weight"
    torch.save({"module": table}, path)
    return "do not belong together" if how == "another's" else "cannot be put together"


HOWS = (
    "truncated", "garbage", "no table", "gone", "gap", "another's", "wrong shape", "wrong shape of all",
    "missing key", "no thirds",
    "no axes",
)  # fmt: skip


@pytest.mark.parametrize("how", HOWS)
def test_spoilt_ranks_are_refused_in_one_sentence(how, tmp_path):
    folder = write(tmp_path / "split", *share_out(fixture(), 2))
    with pytest.raises(CogVideoError, match=spoil(folder, how)) as error:
        load_sat_checkpoint(folder, **IDS)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("latest", "../elsewhere", "folder beside it"),
        ("latest", "2", "mp_rank_00_model_states.pt is missing"),
        ("model_config.json", "[1]", "should hold an object"),
        ("model_config.json", "{", "is damaged"),
        ("model_config.json", '{"layout": [64]}', "is missing or invalid"),
        ("model_config.json", "{}", "num_attention_heads"),
        ("model_config.json", '{"num_attention_heads": 5}', "split is damaged .*multiple of num_heads 5"),
    ],
)
def test_spoilt_settings_are_refused(file, content, message, tmp_path):
    folder = write(tmp_path / "split", fixture())
    (folder / file).write_text(content)
    with pytest.raises(CogVideoError, match=message):
        load_sat_checkpoint(folder, **IDS)


def test_a_missing_last_layer_is_refused_though_the_others_fit(tmp_path):
    weights = {
        name: w for name, w in fixture().items() if ".2." not in name and not name.endswith("distribution.2")
    }
    with pytest.raises(CogVideoError, match="2 layers where model_config.json says 3"):
        load_sat_checkpoint(write(tmp_path / "short", weights, num_layers=3), **IDS)


@pytest.mark.parametrize("window, order", [(-1, "sequential"), (10, "interpolation")])
def test_without_a_stage_in_the_settings_windows_tell_it(tmp_path, window, order):
    folder = write(tmp_path / "untold", fixture("sequential_window"), window_size=window)
    path = folder / "model_config.json"
    settings = json.loads(path.read_text())
    settings.pop("cogvideo_stage", None)
    path.write_text(json.dumps(settings))
    assert load_sat_checkpoint(folder, **IDS).config.order == order
