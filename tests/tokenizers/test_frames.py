"""The frame tokenizer against the released code's outputs (fixtures), damaged files, the shift property."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cogvideo.errors import CogVideoError
from cogvideo.tokenizers.frames import FrameTokenizer, nearest_codes
from cogvideo.tokenizers.hvqvae import HVQVAE
from cogvideo.tokenizers.patches import PatchVQVAE, to_frames, to_patches

FIXTURE = Path(__file__).parents[1] / "fixtures" / "vqvae"
META = json.loads((FIXTURE / "meta.json").read_text())
SIZES = {
    "channels": META["config"]["channels"],
    "encoder_mult": META["config"]["enc_mult"],
    "decoder_mults": META["config"]["dec_mults"],
}
RATES = {0: 4, 1: 8, 2: 16}


@pytest.fixture(scope="module")
def icetk() -> FrameTokenizer:
    return FrameTokenizer.from_icetk(FIXTURE / "checkpoint.safetensors", **SIZES)


@pytest.fixture(scope="module")
def io() -> dict[str, torch.Tensor]:
    return load_file(FIXTURE / "io.safetensors")


@pytest.fixture
def patches() -> FrameTokenizer:
    """A small tokenizer of random patches; code 0 is ground."""
    torch.manual_seed(0)
    network = PatchVQVAE(codes=64, widths=(16, 12, 8, 4))
    network.codebook[1:] = torch.rand(63, 192)
    torch.nn.init.normal_(network.get_parameter(f"mend.{len(network.mend) - 1}.weight"), std=0.1)
    return FrameTokenizer(network).eval()


@pytest.mark.parametrize("level", RATES)
def test_icetk_tokens_equal_the_release(icetk, io, level):
    vectors = icetk.network.vectors(io["image"], RATES[level])
    assert (vectors - io[f"proj.l{level}"]).abs().max() < 1e-4
    assert torch.equal(icetk.encode(io["image"], RATES[level]), io[f"ids.l{level}"])


@pytest.mark.parametrize("level", RATES)
def test_icetk_pictures_equal_the_release(icetk, io, level):
    decoded = icetk.decode(io[f"ids.l{level}"], RATES[level])
    assert (decoded - io[f"decoded.l{level}"]).abs().max() < 2e-5
    assert decoded.min() < 0 and decoded.max() > 1, "the release does not clamp"
    random_codes = icetk.decode(io[f"rand_codes.l{level}"], RATES[level])  # not square
    normalised = (random_codes - icetk.network.mean) / icetk.network.std
    assert (normalised - io[f"rand_decoded_normalised.l{level}"]).abs().max() < 2e-5 / 0.3


def test_full_size_structure_is_the_released_one():
    with torch.device("meta"):
        ours = {key: list(value.shape) for key, value in HVQVAE().state_dict().items()}
    statistics = {"quantize.cluster_size", "quantize.embed_avg"}
    released = {key: shape for key, shape in META["released_structure_keys"].items() if key not in statistics}
    assert ours == released


def test_icetk_from_a_torch_file_under_module(icetk, io, tmp_path):
    weights = load_file(FIXTURE / "checkpoint.safetensors")
    torch.save({"module": weights | {"perceptual_loss.weight": torch.zeros(1)}}, tmp_path / "icetk.pt")
    loaded = FrameTokenizer.from_icetk(tmp_path / "icetk.pt", **SIZES)
    assert loaded.num_codes == 256 and loaded.codebook.shape == (256, 32)
    assert torch.equal(loaded.encode(io["image"]), io["ids.l1"])


def test_icetk_weights_that_do_not_fit():
    weights = load_file(FIXTURE / "checkpoint.safetensors")
    with pytest.raises(CogVideoError, match="check the channels and multipliers"):
        FrameTokenizer.from_icetk(weights)
    shorter = dict(SIZES, decoder_mults=[[1, 1, 1, 1], *SIZES["decoder_mults"][1:]])
    with pytest.raises(CogVideoError, match="decs.0.up.* is unknown"):
        FrameTokenizer.from_icetk(weights, **shorter)
    without = {key: value for key, value in weights.items() if key != "enc.conv_in.bias"}
    with pytest.raises(CogVideoError, match="enc.conv_in.bias is missing"):
        FrameTokenizer.from_icetk(without, **SIZES)
    with pytest.raises(CogVideoError, match="no quantize.embed.weight"):
        FrameTokenizer.from_icetk({})


def test_icetk_damaged_files(tmp_path):
    with pytest.raises(CogVideoError, match="There is no file"):
        FrameTokenizer.from_icetk(tmp_path / "none.pt")
    for name in ("cut.pt", "cut.safetensors"):
        (tmp_path / name).write_bytes((FIXTURE / "checkpoint.safetensors").read_bytes()[:5000])
        with pytest.raises(CogVideoError, match="cannot be read"):
            FrameTokenizer.from_icetk(tmp_path / name)


def test_save_and_load_both_kinds(icetk, patches, tmp_path):
    frames = torch.rand(2, 3, 32, 48)
    for tokenizer in (icetk, patches):
        tokenizer.save(tmp_path / "frames.safetensors")
        loaded = FrameTokenizer.load(tmp_path / "frames.safetensors")
        ids = tokenizer.encode(frames)
        assert ids.shape == (2, 4, 6) and ids.dtype == torch.int64
        assert torch.equal(loaded.encode(frames), ids)
        assert torch.equal(loaded.decode(ids), tokenizer.decode(ids))
        assert loaded.decode(ids).shape == frames.shape


def test_half_precision_file_is_loaded_as_float32(patches, tmp_path):
    patches.save(tmp_path / "half.safetensors", dtype=torch.float16)
    patches.save(tmp_path / "full.safetensors")
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (
        tmp_path / "full.safetensors"
    ).stat().st_size
    loaded = FrameTokenizer.load(tmp_path / "half.safetensors")
    assert loaded.codebook.dtype == torch.float32
    assert torch.equal(loaded.codebook, patches.codebook.half().float())


def test_load_reports_bad_files(patches, tmp_path):
    path = tmp_path / "frames.safetensors"
    with pytest.raises(CogVideoError, match="no frame tokenizer at"):
        FrameTokenizer.load(path)
    with pytest.raises(CogVideoError, match="damaged"):
        FrameTokenizer.load(tmp_path)
    patches.save(path)
    whole = path.read_bytes()
    for cut in (0, 7, 100, len(whole) - 10):
        path.write_bytes(whole[:cut])
        with pytest.raises(CogVideoError, match="damaged"):
            FrameTokenizer.load(path)
    path.write_bytes(b"\xff" * 64 + whole[64:])
    with pytest.raises(CogVideoError, match="damaged"):
        FrameTokenizer.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CogVideoError, match="holds no frame tokenizer"):
        FrameTokenizer.load(path)


@pytest.mark.parametrize(
    "description",
    [
        "not json",
        "[]",
        "{}",
        '{"kind": "other"}',
        '{"kind": "patches", "size": 3}',
        '{"kind": "patches", "codes": -1}',
    ],
)
def test_load_reports_bad_descriptions(patches, tmp_path, description):
    path = tmp_path / "frames.safetensors"
    save_file(patches.network.state_dict(), path, metadata={"frame_tokenizer": description})
    with pytest.raises(CogVideoError, match="is invalid"):
        FrameTokenizer.load(path)


def test_load_reports_a_wrong_shape(patches, tmp_path):
    path = tmp_path / "frames.safetensors"
    patches.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(dict(patches.network.state_dict()) | {"codebook": torch.zeros(9, 192)}, path, metadata=metadata)
    with pytest.raises(CogVideoError, match=r"codebook is \[9, 192\] where \[64, 192\] belongs"):
        FrameTokenizer.load(path)


def test_wrong_inputs_are_named(patches):
    with pytest.raises(CogVideoError, match="multiples of 8"):
        patches.encode(torch.rand(1, 3, 20, 16))
    with pytest.raises(CogVideoError, match="compresses by 8, not by 4"):
        patches.encode(torch.rand(1, 3, 16, 16), compress=4)
    with pytest.raises(CogVideoError, match="fold flat codes"):
        patches.decode(torch.zeros(1, 64, dtype=torch.long))
    with pytest.raises(CogVideoError, match=r"must be 0..63, not 0..64"):
        patches.decode(torch.tensor([[[0, 64]]]))


def test_nearest_codes_against_all_distances():
    vectors, codebook = torch.randn(3, 5, 7, dtype=torch.float64), torch.randn(11, 7, dtype=torch.float64)
    assert torch.equal(nearest_codes(vectors, codebook), torch.cdist(vectors, codebook).argmin(-1))


def test_a_patch_is_one_token_wherever_it_stands(patches):
    """Moving an object by whole tokens moves its codes, at the border as well, and changes no other."""
    first, second = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    first[..., :24, 40:] = patch = torch.rand(1, 3, 24, 24)
    second[..., 40:, 16:40] = patch
    codes, moved = patches.encode(first), patches.encode(second)
    assert len(codes.unique()) > 4 and (codes == 0).sum() == 64 - 9
    assert torch.equal(codes.roll((5, -3), dims=(1, 2)), moved)


def test_every_code_of_the_codebook_is_its_own_token(patches):
    frames = to_frames(patches.codebook.view(1, 8, 8, 192))
    assert torch.equal(patches.encode(frames).flatten(), torch.arange(64))
    assert torch.equal(to_patches(frames).view(64, 192), patches.codebook)


def test_nearly_black_patches_are_ground(patches):
    frames = torch.full((1, 3, 16, 16), 0.02)
    assert not patches.encode(frames).any()


def test_an_untrained_decoder_shows_the_codebook():
    network = PatchVQVAE(codes=4, widths=(4, 4, 4, 4))
    network.codebook.copy_(torch.rand(4, 192))
    ids = torch.tensor([[[3, 1], [0, 2]]])
    assert torch.equal(FrameTokenizer(network).decode(ids), to_frames(network.codebook[ids]))
