"""`inspect` on folders: the fixtures of the release, super-resolution, the demo; memory, and what is read."""

import json
import re
import subprocess
import sys

import pytest
import torch
from checkpoints.layout import SAT, numbers, released_weights, write_released
from conftest import DATA
from safetensors.torch import load_file

from cogvideo import load_sat_checkpoint
from cogvideo.checkpoints import native
from cogvideo.checkpoints.inspect import DIRECT, IMAGE, ITERATIVE, STAGE1, STAGE2, inspect, report
from cogvideo.checkpoints.native import save_model
from cogvideo.checkpoints.registry import PACKAGED
from cogvideo.config import COGVIDEO_9B, ModelConfig
from cogvideo.errors import CogVideoError
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.runtime.memory import CUDA_BYTES
from cogvideo.runtime.quantize import quantize_int8
from cogvideo.superres import DirectSuperResolution, IterativeSuperResolution

IDS = {"image_tokens": 256, "begin_of_image": 310}
EXTRA = "mixins.extra_position_embedding.position_embeddings.weight"


@pytest.mark.parametrize(
    "name, kind, window",
    [("sequential_full", STAGE1, "none"), ("sequential_window", STAGE1, 10), ("interpolation", STAGE2, 10)],
)
def test_released_folders(name, kind, window):
    found = inspect(SAT / name)
    assert (found.kind, found.layout, found.files, found.dtypes) == (kind, "released folder", 1, ("float32",))
    assert found.geometry == {
        "layers": 3, "hidden": 64, "heads": 4, "vocabulary": 320, "frames": 5, "frame": "20 x 20",
        "window": window,
        "text slots": 64,
    }  # fmt: skip
    assert found.complete and not (
        found.missing or found.unexpected or found.ignored or found.misshapen or found.note
    )
    assert found.parameters == numbers(load_sat_checkpoint(SAT / name, **IDS))
    assert found.keys == len(released_weights(name)[0])
    assert found.size == (SAT / name / "1" / "mp_rank_00_model_states.pt").stat().st_size
    assert inspect(SAT / name / "1" / "mp_rank_00_model_states.pt") == found


def test_the_image_model(tmp_path):
    weights, settings = released_weights()
    weights = {name: tensor.half() for name, tensor in weights.items() if name.startswith("transformer.")}
    old = {
        k: v
        for k, v in settings.items()
        if k not in ("layernorm_order", "cogvideo_stage", "window_size", "layout")
    }
    found = inspect(write_released(tmp_path / "coglm", weights, old | {"sandwich_ln": True}))
    assert (found.kind, found.dtypes, found.complete) == (IMAGE, ("float16",), True)
    assert found.geometry["frames"] == 1 and "window" not in found.geometry
    assert found.parameters == sum(tensor.numel() for tensor in weights.values())


@pytest.mark.parametrize("spelling", [{"sandwich_ln": True}, {"layernorm_order": "sandwich"}, {}])
def test_spellings_of_model_config(tmp_path, spelling):
    weights, settings = released_weights()
    settings = {key: value for key, value in settings.items() if key != "layernorm_order"}
    assert inspect(write_released(tmp_path / "a", weights, settings | spelling)).complete


@pytest.mark.parametrize(
    "spelling", [{"sandwich_ln": False}, {"layernorm_order": "pre"}, {"layernorm_order": "post"}]
)
def test_models_without_sandwich_norm_are_refused(tmp_path, spelling):
    weights, settings = released_weights()
    settings = {key: value for key, value in settings.items() if key != "layernorm_order"}
    with pytest.raises(CogVideoError, match=r"without sandwich LayerNorm.*choose another"):
        inspect(write_released(tmp_path / "a", weights, settings | spelling))


def test_the_stage_is_not_guessed_in_silence(tmp_path):
    weights, settings = released_weights("interpolation")
    del settings["cogvideo_stage"]
    found = inspect(write_released(tmp_path / "a", weights, settings))
    assert found.kind == STAGE2 and "does not name the stage" in report(found)
    settings["window_size"] = -1
    found = inspect(write_released(tmp_path / "b", weights, settings))
    assert found.kind == STAGE1 and "does not name the stage" in report(found)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_are_counted_once(tmp_path, ranks):
    weights, settings = released_weights()
    found, one = (
        inspect(write_released(tmp_path / "a", weights, settings, ranks)),
        inspect(SAT / "sequential_window"),
    )
    assert found.files == ranks and found.parameters == one.parameters
    assert (found.geometry, found.matrices, found.complete) == (one.geometry, one.matrices, True)
    (tmp_path / "a" / "7" / "mp_rank_01_model_states.pt").unlink()
    with pytest.raises(CogVideoError, match="should hold 2 rank file|mp_rank_01_model_states.pt is missing"):
        inspect(tmp_path / "a")


def damaged(weights: dict, how: str) -> tuple[str, ...]:
    """Spoil the weights; returns the names that should be told."""
    last = tuple(sorted(name for name in weights if ".2." in name or name.endswith(".2")))
    tables = ("transformer.word_embeddings.weight", "transformer.position_embeddings.weight", EXTRA)
    chosen = {
        "a weight": ("transformer.layers.1.mlp.dense_h_to_4h.bias",),
        "a gate": ("mixins.attention_plus.attn_distribution.1",),
        "the last layer": last,
        "tables": tuple(sorted(tables)),
    }[how]
    for name in chosen:
        del weights[name]
    return chosen


@pytest.mark.parametrize("how", ["a weight", "a gate", "the last layer", "tables"])
def test_missing_weights(tmp_path, how):
    weights, settings = released_weights()
    names = damaged(weights, how)
    found = inspect(write_released(tmp_path / "a", weights, settings))
    assert found.missing == names and not found.complete and not found.unexpected and found.kind == STAGE1
    assert f"missing     {len(names)}: {names[0]}" in report(found) and "not as the loader" in report(found)
    if how != "the last layer":  # the loader takes the layers that it finds
        with pytest.raises(CogVideoError):
            load_sat_checkpoint(tmp_path / "a", **IDS)


def test_surplus_and_misshapen_weights(tmp_path):
    weights, settings = released_weights()
    bias = "transformer.layers.1.mlp.dense_h_to_4h.bias"
    weights |= {"optimizer.state": torch.zeros(7), bias: torch.zeros(255)}
    weights["transformer.layers.1.mlp.extra.bias"] = torch.zeros(7)
    weights["transformer.word_embeddings.bias"] = torch.zeros(7)
    found = inspect(write_released(tmp_path / "a", weights, settings))
    assert found.ignored == ("optimizer.state", "transformer.layers.1.mlp.extra.bias")
    assert found.unexpected == ("transformer.word_embeddings.bias",)
    assert found.misshapen == (f"{bias} [255] instead of [256]",) and not found.missing and not found.complete
    with pytest.raises(CogVideoError):
        load_sat_checkpoint(tmp_path / "a", **IDS)


@pytest.mark.parametrize(
    "model, kind", [(DirectSuperResolution, DIRECT), (IterativeSuperResolution, ITERATIVE)]
)
def test_super_resolution(tmp_path, model, kind):
    file = DATA / {DIRECT: "dsr", ITERATIVE: "itersr"}[kind] / "checkpoint.safetensors"
    weights = load_file(file)
    settings = {"num_layers": 3, "hidden_size": 32, "num_attention_heads": 2, "sandwich_ln": True}
    folder = write_released(tmp_path / "sr", weights, settings)
    loaded = model.from_sat(folder, num_heads=2, image_tokens=256, begin_of_image=290)
    loaded.save_pretrained(tmp_path / "native")
    frame = "20 x 20 -> 60 x 60" if kind == DIRECT else "60 x 60"
    for path in (folder, file, tmp_path / "native"):
        found = inspect(path)
        assert (found.kind, found.complete, found.parameters) == (kind, True, numbers(loaded))
        assert (found.geometry["layers"], found.geometry["vocabulary"], found.geometry["frame"]) == (
            3,
            300,
            frame,
        )
        assert found.geometry["heads"] == ("not told" if path == file else 2)
    del weights["transformer.layers.2.input_layernorm.weight"]
    found = inspect(write_released(tmp_path / "cut", weights, settings))
    assert found.kind == kind and found.missing == ("transformer.layers.2.input_layernorm.weight",)


# Native folders and pipelines


def test_the_demo():
    found = inspect(PACKAGED / "demo")
    assert [part.kind for part in found.parts] == [
        STAGE1,
        STAGE2,
        DIRECT,
        "text tokenizer",
        "image tokenizer",
    ]
    assert found.complete and found.size == sum(
        f.stat().st_size for f in (PACKAGED / "demo").rglob("*") if f.is_file()
    )
    assert found.memory("cpu", "fp32") == sum(part.memory("cpu", "fp32") for part in found.parts)
    text = report(found)
    assert "stage1: stage 1" in text and "frames.safetensors: image tokenizer" in text
    stage1 = found.parts[0]
    assert stage1.layout == "native folder" and stage1.geometry["frame"] == "8 x 8"
    assert inspect(PACKAGED / "demo" / "stage1" / "model.safetensors") == stage1


def test_a_pipeline_without_a_part(tmp_path):
    for name in ("stage1", "stage2", "tokenizers", "pipeline.json"):
        (tmp_path / name).symlink_to(PACKAGED / "demo" / name)
    found = inspect(tmp_path)
    assert found.missing == ("superres",) and not found.complete and "superres" in report(found)


def test_files_of_the_release_side_by_side(tmp_path):
    (tmp_path / "cogvideo-stage1").symlink_to(SAT / "sequential_full")
    (tmp_path / "cogvideo-stage2").symlink_to(SAT / "interpolation")
    (tmp_path / "ice_text.model").symlink_to(PACKAGED / "demo" / "tokenizers" / "text.model")
    found = inspect(tmp_path)
    assert found.kind == "files of the release" and [p.kind for p in found.parts] == [
        STAGE1,
        STAGE2,
        "text tokenizer",
    ]
    assert "to generate videos from here, cogview2-dsr, ice_image.pt are still needed" in report(found)
    (tmp_path / "cogview2-dsr.zip").touch()  # would be unpacked
    assert "from here, ice_image.pt are still needed" in report(inspect(tmp_path))


def small_model(**changes) -> CogVideoTransformer:
    config = ModelConfig(**({
        "num_layers": 2, "hidden_size": 256, "num_heads": 4, "frame_height": 4, "frame_width": 4,
        "num_frames": 5,
        "text_length": 8, "first_frame_position": 8, "image_tokens": 64, "vocab_size": 99,
        "begin_of_image": 80,
        "base_positions": 24, "extra_positions": 64,
    } | changes))  # fmt: skip
    return CogVideoTransformer(config)


def test_shards(tmp_path, monkeypatch):
    save_model(small_model(), tmp_path / "one", dtype=torch.bfloat16)
    monkeypatch.setattr(native, "SINGLE_FILE_BYTES", 10**6)
    monkeypatch.setattr(native, "SHARD_BYTES", 10**6)
    save_model(small_model(), tmp_path / "many", dtype=torch.bfloat16)
    one, many = inspect(tmp_path / "one"), inspect(tmp_path / "many")
    assert one.files == 1 and many.files == len(list((tmp_path / "many").glob("*.safetensors"))) > 3
    assert one.parameters == many.parameters == numbers(small_model()) and many.dtypes == ("bfloat16",)
    assert many.complete and many.geometry == one.geometry


def test_native_weights_that_do_not_fit_their_configuration(tmp_path):
    save_model(small_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_layers": 3, "vocab_size": 100}))
    found = inspect(tmp_path)
    assert all(name.startswith("blocks.2.") for name in found.missing) and found.missing
    assert found.misshapen == ("word_embedding.weight [99, 256] instead of [100, 256]",)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CogVideoError, match=r"needs the config\.json"):
        inspect(tmp_path / "model.safetensors")
    with pytest.raises(CogVideoError, match="holds no weights"):
        inspect(tmp_path)


# Memory


def test_memory_is_what_the_weights_take(tmp_path):
    model = small_model()
    save_model(model, tmp_path)
    found = inspect(tmp_path)
    assert found.memory("cpu", "fp32") == sum(p.nbytes for p in model.parameters())
    assert found.memory("cuda", "bf16/fp16") == sum(p.nbytes for p in model.to(torch.bfloat16).parameters())

    def int8_bytes(dtype):
        quantized = quantize_int8(small_model().to(dtype))
        names = {name for name, _ in quantized.named_parameters()}
        buffers = {
            n: b for n, b in quantized.named_buffers() if n.endswith((".weight_int8", ".scale", ".bias"))
        }
        tensors = [*(dict(quantized.named_parameters())[n] for n in names), *buffers.values()]
        return sum(tensor.nbytes for tensor in tensors)

    assert found.memory("cuda", "int8") == pytest.approx(
        int8_bytes(torch.bfloat16), rel=0.02
    )  # but for the scales
    assert found.memory("cpu", "int8") == pytest.approx(int8_bytes(torch.float32), rel=0.03)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """The release's stage 1 with 8 of its 48 layers: 3.4 GB in fp16, all holes."""
    weights, settings = released_weights("sequential_full")
    hidden = COGVIDEO_9B.hidden_size
    sizes = {64: hidden, 192: 3 * hidden, 256: 4 * hidden, 320: COGVIDEO_9B.vocab_size}
    shapes = {name: [sizes.get(n, n) for n in tensor.shape] for name, tensor in weights.items()}
    for name in list(shapes):
        if re.search(r"\.0(\.|$)", name):
            shapes |= {re.sub(r"\.0(?=\.|$)", f".{layer}", name): shapes[name] for layer in range(8)}
    folder = tmp_path_factory.mktemp("large") / "cogvideo-stage1"
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1")
    own = {
        "num_layers": 8,
        "hidden_size": hidden,
        "num_attention_heads": 48,
        "vocab_size": COGVIDEO_9B.vocab_size,
    }
    (folder / "model_config.json").write_text(json.dumps(settings | own))
    with torch.serialization.skip_data():
        table = {name: torch.empty(shape, dtype=torch.float16) for name, shape in shapes.items()}
        torch.save({"module": table}, folder / "1" / "mp_rank_00_model_states.pt")
    return folder


TELL_PEAK = """
import atexit, re, sys  # ru_maxrss would count the parent before exec
peak = lambda: re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]
atexit.register(lambda: print(peak(), file=sys.stderr))
from cogvideo.cli.app import main
main()
"""


def test_only_headers_are_read(large):
    file = large / "1" / "mp_rank_00_model_states.pt"
    assert file.stat().st_size > 3e9 and file.stat().st_blocks * 512 < 1e6
    command = [sys.executable, "-c", TELL_PEAK, "weights", "inspect", str(large)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    told = ended.stdout
    assert int(ended.stderr.split()[-1]) * 1024 < 1.2e9
    assert (
        "stage 1 (released folder)" in told and "layers 8, hidden 3072, heads 48, vocabulary 150010" in told
    )
    found = inspect(large)
    layers, tables = 8 * 16 * 3072**2, (150010 + 1024 + 2000) * 3072
    assert found.matrices == layers and found.parameters == pytest.approx(layers + tables, rel=0.001)
    gigabytes = (2 * found.parameters + CUDA_BYTES) / 1e9
    row = next(line for line in told.splitlines() if re.match(r"  (one GPU|cuda:0)", line))
    assert f" {gigabytes:.1f} GB " in row
    # Keys and values of the text and one frame, and of the text and five frames, in every layer.
    assert found.caches("cuda", "bf16/fp16") == 2 * 2 * 8 * 3072 * (64 + 400 + 64 + 2000)
    assert re.search(r"cpu .* free$", told, re.MULTILINE) and "missing" not in told
