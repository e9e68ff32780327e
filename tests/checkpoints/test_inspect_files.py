"""What `inspect` tells of single files and zips, and of those that are damaged, wrong or hostile."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints.layout import SAT, numbers, released_weights, write_released
from conftest import DATA
from safetensors.torch import load_file, save_file

from cogvideo.checkpoints.inspect import DIRECT, IMAGE, ITERATIVE, STAGE1, STAGE2, inspect, report
from cogvideo.checkpoints.registry import PACKAGED
from cogvideo.errors import CogVideoError
from cogvideo.tokenizers.frames import FrameTokenizer


def test_image_tokenizers(tmp_path):
    meta = json.loads((DATA / "vqvae" / "meta.json").read_text())["config"]
    weights = load_file(DATA / "vqvae" / "checkpoint.safetensors")
    torch.save({"module": weights | {"loss.weight": torch.zeros(3)}}, tmp_path / "ice_image.pt")
    sizes = {
        "channels": meta["channels"],
        "encoder_mult": meta["enc_mult"],
        "decoder_mults": meta["dec_mults"],
    }
    tokenizer = FrameTokenizer.from_icetk(weights, **sizes)
    tokenizer.save(tmp_path / "frames.safetensors", torch.float16)
    expected = {"codes": meta["n_embed"], "dim": meta["embedding_dim"]} | {k: v for k, v in sizes.items()}
    for file, dtype in (("ice_image.pt", "float32"), ("frames.safetensors", "float16")):
        found = inspect(tmp_path / file)
        assert (found.kind, found.complete, found.dtypes) == ("image tokenizer", True, (dtype,))
        assert found.geometry == {k: v if isinstance(v, int) else str(v) for k, v in expected.items()}
        assert found.parameters == numbers(tokenizer)
    ignored = ("loss.weight", "quantize.cluster_size", "quantize.embed_avg")
    assert inspect(tmp_path / "ice_image.pt").ignored == ignored
    del weights["enc.mid.attn_1.q.weight"]
    torch.save(weights, tmp_path / "cut.pt")
    assert inspect(tmp_path / "cut.pt").missing == ("enc.mid.attn_1.q.weight",)
    del weights["enc.conv_in.weight"]
    torch.save(weights, tmp_path / "cut.pt")
    with pytest.raises(CogVideoError, match=r"no whole image tokenizer.*enc\.conv_in\.weight"):
        inspect(tmp_path / "cut.pt")


def test_the_text_tokenizer(tmp_path):
    file = PACKAGED / "demo" / "tokenizers" / "text.model"
    found = inspect(file)
    assert found.kind == "text tokenizer" and found.geometry["pieces"] == 155
    (tmp_path / "ice_text.model").write_bytes(file.read_bytes()[:-500])
    with pytest.raises(CogVideoError, match="no SentencePiece model or is damaged"):
        inspect(tmp_path / "ice_text.model")


def test_cluster_labels(tmp_path):
    labels = np.random.default_rng(0).integers(0, 500, 20000)
    labels[0] = 499
    file = tmp_path / "cluster_label2.npy"
    np.save(file, labels)
    found = inspect(file)
    assert found.kind == "clusters" and found.geometry == {"image tokens": 20000, "clusters": 500}
    content = file.read_bytes()
    for wrong in (labels.astype(float), labels.reshape(100, 200), -labels, labels[:0]):
        np.save(file, wrong)
        with pytest.raises(CogVideoError, match="holds no cluster labels"):
            inspect(file)
    np.save(file, np.array([Touch("x")], dtype=object), allow_pickle=True)
    for wrong in (file.read_bytes(), content[:-1000], content[:50], b""):
        file.write_bytes(wrong)
        with pytest.raises(CogVideoError, match="damaged or holds more than numbers"):
            inspect(file)


def test_i3d(tmp_path):
    from cogvideo.checkpoints.i3d_weights import unit_shapes

    shapes = {f"{unit}.conv3d.weight": (out, into, k, k, k) for unit, (out, into, k) in unit_shapes().items()}
    weights = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
    save_file(weights | {"logits.conv3d.bias": torch.zeros(400)}, tmp_path / "i3d.safetensors")
    found = inspect(tmp_path / "i3d.safetensors")
    assert found.kind == "i3d" and found.complete and found.parameters > 12e6
    del weights["Mixed_4d.b0.conv3d.weight"]
    save_file(weights, tmp_path / "i3d.safetensors")
    assert inspect(tmp_path / "i3d.safetensors").missing == ("Mixed_4d.b0.conv3d.weight",)


def zipped(path: Path, prefix: str, folder: Any = SAT / "interpolation", **replaced: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.name not in replaced and file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
        for name, content in replaced.items():
            archive.writestr(prefix + name, content)
    return path


def test_released_zips_are_not_unpacked(tmp_path):
    settings = released_weights("interpolation")[1]
    found = inspect(zipped(tmp_path / "a.zip", "sharefs/cogview-new/a/"))
    assert (found.kind, found.layout, found.files) == (STAGE2, "released zip", 1)
    assert found.geometry == {"layers": 3, "hidden": 64, "heads": 4, "vocabulary": 320}
    assert found.size == (SAT / "interpolation" / "1" / "mp_rank_00_model_states.pt").stat().st_size
    assert "unpack it" in report(found) and sorted(os.listdir(tmp_path)) == ["a.zip"]
    del settings["cogvideo_stage"]
    untold = {"model_config.json": json.dumps(settings)}
    for name, kind in {
        "coglm": IMAGE,
        "cogvideo-stage1": STAGE1,
        "cogview2-dsr": DIRECT,
        "cogview2-itersr": ITERATIVE,
    }.items():
        assert inspect(zipped(tmp_path / "a.zip", f"{name}/", **untold)).kind == kind
        assert inspect(zipped(tmp_path / f"{name}.zip", "", **untold)).kind == kind


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"num_layers": "many", "hidden_size": 1}', " " * 2_000_000]
)
def test_wrong_settings_in_a_zip(tmp_path, content):
    with pytest.raises(CogVideoError, match=r"model_config\.json|bomb"):
        inspect(zipped(tmp_path / "a.zip", "", **{"model_config.json": content}))


def test_half_and_hostile_zips(tmp_path):
    whole = zipped(tmp_path / "a.zip", "").read_bytes()
    (tmp_path / "a.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        CogVideoError, match=r"a\.zip is damaged or only half downloaded .*delete it and get it again"
    ):
        inspect(tmp_path / "a.zip")
    with pytest.raises(CogVideoError, match="leaves its folder"):
        inspect(zipped(tmp_path / "a.zip", "", **{"../evil": "x"}))
    with pytest.raises(CogVideoError, match="no zip of the release"):
        inspect(zipped(tmp_path / "a.zip", "", **{"mp_rank_00_model_states.pt": "x"}))


# Damaged and hostile weights


class Touch:
    """A pickle of it makes a file when it is loaded without care."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (Path(self.path),)


class Run(Touch):
    def __reduce__(self) -> tuple:
        return os.system, (f"touch '{self.path}'",)


def hostile(kind, marker) -> bytes:
    out = io.BytesIO()
    if kind == "legacy":
        pickle.dump({"module": {"a": Run(marker)}}, out, protocol=2)
    else:
        torch.save({"module": {"a": torch.zeros(2), "b": (Run if kind == "run" else Touch)(marker)}}, out)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["run", "touch", "legacy"])
def test_pickles_that_would_run_something(tmp_path, kind):
    marker = tmp_path / "ran"
    content = hostile(kind, marker)
    folder = write_released(tmp_path / "a", {"transformer.word_embeddings.weight": torch.zeros(2, 2)}, {})
    (folder / "7" / "mp_rank_00_model_states.pt").write_bytes(content)
    (tmp_path / "ice_image.pt").write_bytes(content)
    for path in (folder, tmp_path / "ice_image.pt"):
        with pytest.raises(CogVideoError, match="no tensor and was not run|more than tensors|damaged"):
            inspect(path)
    assert not marker.exists()
    torch.load(tmp_path / "ice_image.pt", weights_only=False) if kind != "legacy" else pickle.loads(content)
    assert marker.exists()  # the file was really hostile


def test_damaged_weights(tmp_path):
    whole = (SAT / "interpolation" / "1" / "mp_rank_00_model_states.pt").read_bytes()
    folder = write_released(tmp_path / "a", *released_weights())
    for content in (whole[: len(whole) // 2], whole[:100], b"", b"<!DOCTYPE html><title>404</title>"):
        (folder / "7" / "mp_rank_00_model_states.pt").write_bytes(content)
        (tmp_path / "ice_image.pt").write_bytes(content)
        (tmp_path / "i3d.safetensors").write_bytes(content)
        for path in (folder, tmp_path / "ice_image.pt", tmp_path / "i3d.safetensors"):
            with pytest.raises(CogVideoError, match=r"damaged.*(download|get) it again") as error:
                inspect(path)
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"num_attention_heads": "x"}',
        '{"layout": 3, "num_attention_heads": 4}',
        '{"num_layers": [], "hidden_size": 64}',
    ],
)
def test_wrong_settings_in_a_folder(tmp_path, content):
    folder = write_released(tmp_path / "a", *released_weights())
    (folder / "model_config.json").write_text(content)
    with pytest.raises(CogVideoError, match=rf"{folder}.*again|num_heads"):
        inspect(folder)


def test_weights_of_something_else(tmp_path):
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(CogVideoError, match="no table of weights"):
        inspect(tmp_path / "a.pt")
    save_file({"encoder.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CogVideoError, match=r"no model known here \(encoder.weight"):
        inspect(tmp_path / "a.safetensors")
