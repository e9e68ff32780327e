"""C3D with random weights against plain functions, its file formats, and what it refuses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from cogvideo.checkpoints.c3d_weights import CONVOLUTIONS, LINEARS, SPORTS_1M
from cogvideo.errors import CogVideoError
from cogvideo.evaluation.c3d import C3D


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """conv1a.weight, ... of a network whose outputs neither vanish nor explode."""
    rng, state = torch.Generator().manual_seed(0), {}
    for name, (i, o) in (CONVOLUTIONS | LINEARS).items():
        shape = (o, i, 3, 3, 3) if name in CONVOLUTIONS else (o, i)
        fan = int(np.prod(shape[1:]))
        # Rows of one random block are repeated: drawing 78 million numbers takes longer than the network.
        block = torch.randn(1 << 16, generator=rng).mul_((2 / fan) ** 0.5)
        state[f"{name}.weight"] = block.repeat(-(-o * fan // len(block)))[: o * fan].view(shape).contiguous()
        state[f"{name}.bias"] = torch.randn(o, generator=rng) * 0.01
    return state


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("c3d") / "c3d.safetensors"
    save_file(weights, path)
    return path


def clips(n: int = 2, height: int = 20, width: int = 26) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(256, size=(n, 16, height, width, 3), dtype=np.uint8)
    )


def plain_c3d(w: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Prepared pixels [B,3,16,112,112] -> logits; an odd map is made even by a row that never wins."""

    def conv(x, name):
        return torch.relu(F.conv3d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1))

    x = F.max_pool3d(conv(x, "conv1a"), (1, 2, 2))
    x = F.max_pool3d(conv(x, "conv2a"), 2)
    x = F.max_pool3d(conv(conv(x, "conv3a"), "conv3b"), 2)
    x = F.max_pool3d(conv(conv(x, "conv4a"), "conv4b"), 2)
    x = F.pad(conv(conv(x, "conv5a"), "conv5b"), (0, 1, 0, 1), value=-torch.inf)
    x = F.max_pool3d(x, 2).reshape(len(x), 512 * 4 * 4)
    for name in ("fc6", "fc7"):
        x = torch.relu(x @ w[f"{name}.weight"].T + w[f"{name}.bias"])
    return x @ w["fc8.weight"].T + w["fc8.bias"]


def test_the_network_equals_plain_functions(weights, file):
    model = C3D.from_pretrained(file, device="cpu")
    video = clips()
    with torch.inference_mode():
        logits = model(video)
        expected = plain_c3d(weights, model.prepared(video))
    assert logits.shape == (2, 101) and logits.dtype == torch.float32 and logits.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(logits[0], logits[1])


def test_pixels_are_blue_first_squeezed_and_without_the_mean(file):
    model = C3D.from_pretrained(file, device="cpu")
    video = clips()
    prepared = model.prepared(video)
    assert prepared.shape == (2, 3, 16, 112, 112) and not model.exact_mean
    # With corners aligned, the corners are the pixels themselves: red is byte 0 and comes last.
    for channel, mean in enumerate(SPORTS_1M):
        corners = prepared[:, channel, :, ::111, ::111]
        bytes_ = video[:, :, ::19, ::25, 2 - channel]
        torch.testing.assert_close(corners, bytes_.float() * 256 / 255 - mean)
    y, x = 50, 77
    v, u = y * 19 / 111, x * 25 / 111
    top, left = int(v), int(u)
    part = video[0, 3, top : top + 2, left : left + 2, 0].double().numpy()
    byte = np.array([1 - (v - top), v - top]) @ part @ np.array([1 - (u - left), u - left])
    assert prepared[0, 2, 3, y, x].item() == pytest.approx(byte * 256 / 255 - SPORTS_1M[2], abs=1e-3)


def test_a_mean_clip_is_cut_from_row_and_column_8(file, tmp_path):
    mean = np.random.default_rng(1).random((3, 16, 128, 171)).astype(np.float32)
    np.savez(tmp_path / "mean2.npz", mean=mean[None])
    model = C3D.from_pretrained(file, mean=tmp_path / "mean2.npz", device="cpu")
    black = model.prepared(torch.zeros(1, 16, 8, 8, 3, dtype=torch.uint8))
    assert model.exact_mean and np.array_equal(black[0].numpy(), -mean[:, :, 8:120, 8:120])
    assert model.digest != C3D.from_pretrained(file, device="cpu").digest
    np.save(tmp_path / "wrong.npy", mean[:, :8])
    with pytest.raises(CogVideoError, match="where a mean clip"):
        C3D.from_pretrained(file, mean=tmp_path / "wrong.npy")
    with pytest.raises(CogVideoError, match="cannot be read as a mean clip"):
        C3D.from_pretrained(file, mean=file)
    with pytest.raises(CogVideoError, match="missing"):
        C3D.from_pretrained(file, mean=tmp_path / "none.npz")


@pytest.mark.parametrize("kind", ["state dict", "chainer"])
def test_other_formats_and_names_are_the_same_network(weights, file, tmp_path, kind):
    if kind == "state dict":
        path, short = tmp_path / "c3d.pth", {"conv1a": "conv1", "conv2a": "conv2"}
        renamed = {
            f"module.{short.get(k.partition('.')[0], k.partition('.')[0])}.{k.partition('.')[2]}": v
            for k, v in weights.items()
        }
        torch.save({"epoch": 3, "state_dict": renamed}, path)
    else:
        path = tmp_path / "conv3d_deepnetA_ucf.npz"
        np.savez(
            path, **{k.replace(".weight", "/W").replace(".bias", "/b"): v.numpy() for k, v in weights.items()}
        )
    model = C3D.from_pretrained(path, device="cpu")
    assert model.digest == C3D.from_pretrained(file, device="cpu").digest
    assert torch.equal(model.state_dict()["linears.fc7.weight"], weights["fc7.weight"])


def test_bad_files_are_one_sentence(weights, tmp_path):
    small = {name: tensor for name, tensor in weights.items() if not name.startswith("fc")}
    save_file(small, tmp_path / "lacks.safetensors")
    other = small | {
        "fc6.weight": torch.zeros(4, 8192),
        "fc6.bias": torch.zeros(4),
        "fc7.weight": torch.zeros(4096, 4096),
    }
    other |= {
        "fc7.bias": torch.zeros(4096),
        "fc8.weight": torch.zeros(487, 4096),
        "fc8.bias": torch.zeros(487),
    }
    save_file(other, tmp_path / "other.safetensors")
    (tmp_path / "damaged.pth").write_bytes(b"\x80\x02not a pickle")
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 no zip")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, words in {
        "none.pth": "missing", "lacks.safetensors": "has no fc6",
        "other.safetensors": "has fc6.weight",
        "damaged.pth": "cannot be read", "damaged.npz": "cannot be read", "list.pth": "holds no table",
    }.items():  # fmt: skip
        with pytest.raises(CogVideoError, match=words) as error:
            C3D.from_pretrained(tmp_path / name)
        assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_other_clips_are_refused(file):
    model = C3D.from_pretrained(file, device="cpu")
    for wrong in (clips()[:, :15], clips().float(), clips()[..., :1]):
        with pytest.raises(CogVideoError, match="C3D takes uint8"):
            model(wrong)
