"""I3D with its real weights against stored outputs of the JAX original; other files; bad input."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import DATA
from einops import rearrange, reduce
from safetensors.torch import load_file
from torch import nn

from cogvideo.checkpoints.i3d_weights import KINETICS_400, fold
from cogvideo.errors import CogVideoError
from cogvideo.evaluation import I3D
from cogvideo.evaluation.i3d import MaxPool

IO = load_file(DATA / "i3d" / "io.safetensors")
ENDPOINTS = {name.split(".")[1] for name in IO if name.endswith(".first")}


@pytest.fixture(scope="module")
def model(i3d_file) -> I3D:
    return I3D.from_pretrained(i3d_file, device="cpu")


def clips(batch: int, frames: int) -> torch.Tensor:
    """The reference's input, [B,3,T,224,224]."""
    b, c, t, h, w = np.ogrid[:batch, :3, :frames, :224, :224]
    waves = 0.6 * np.sin(2 * np.pi * (0.013 * h + 0.021 * w + 0.07 * t) + 1.3 * c + 0.9 * b)
    waves = waves + 0.4 * np.cos(2 * np.pi * (0.031 * h - 0.017 * w + 0.11 * t * (b + 1)) - 0.7 * c)
    return torch.from_numpy(waves.clip(-1, 1).astype(np.float32))


@pytest.mark.parametrize(("case", "batch"), [("T9", 1), ("T16", 2), ("T32", 1)])
def test_equals_the_original(model, case, batch):
    video = clips(batch, int(case[1:]))
    torch.testing.assert_close(
        rearrange(video[:, :, :2, :2, :3], "b c t h w -> b t h w c"), IO[f"{case}.input_head"]
    )
    torch.testing.assert_close(model(video), IO[f"{case}.logits"], atol=2e-4, rtol=0)  # they go up to 46
    found = model.endpoints(video)
    assert set(found) > ENDPOINTS and len(ENDPOINTS) == 9
    for name in ENDPOINTS:
        stored = {kind: IO[f"{case}.{name}.{kind}"] for kind in ("mean", "first", "last")}
        torch.testing.assert_close(
            reduce(found[name], "b c t h w -> b c", "mean"), stored["mean"], atol=1e-4, rtol=0
        )
        torch.testing.assert_close(found[name][:, :, 0, 0, 0], stored["first"], atol=2e-4, rtol=0)
        torch.testing.assert_close(found[name][:, :, -1, -1, -1], stored["last"], atol=2e-4, rtol=0)


def test_bfloat16_is_near(i3d_file):
    model = I3D.from_pretrained(i3d_file, device="cpu", dtype=torch.bfloat16)
    logits, exact = model(clips(1, 9)), IO["T9.logits"]
    assert logits.dtype == torch.float32
    assert 1e-4 < (logits - exact).std() / exact.std() < 0.02


def test_gradients_reach_the_video_but_no_weights(model):
    video = clips(1, 9).requires_grad_()
    model(video)[0, 31].backward()
    assert video.grad is not None and video.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_weights_in_the_pytorch_form_are_the_same(model, i3d_file, tmp_path):
    """As TATS and VideoGPT have them: with a scale of one, and PyTorch's counter."""
    state = load_file(i3d_file)
    for name in list(state):
        if name.endswith("bn.bias"):
            state[name.replace("bias", "weight")] = torch.ones_like(state[name])
            state[name.replace("bias", "num_batches_tracked")] = torch.tensor(0)
    torch.save(state, tmp_path / "i3d_pretrained_400.pt")
    other = I3D.from_pretrained(tmp_path / "i3d_pretrained_400.pt", device="cpu")
    assert other.known and model.known and other.digest == KINETICS_400
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_other_weights_are_not_the_known_ones(i3d_file, tmp_path):
    state = load_file(i3d_file)
    state["Mixed_5c.b0.bn.bias"][3] += 1e-3
    torch.save(state, tmp_path / "other.pt")
    assert not I3D.from_pretrained(tmp_path / "other.pt", device="cpu").known


def test_the_epsilon_of_tats_moves_logits_as_the_reference_measured(i3d_file):
    model = I3D.from_pretrained(i3d_file, device="cpu", batch_norm_eps=1e-5)
    assert (model(clips(1, 9)) - IO["T9.logits"]).abs().max() == pytest.approx(0.0667, abs=2e-4)


def test_folding_equals_batch_norm(i3d_file):
    state = load_file(i3d_file)
    generator = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm3d(192, eps=1e-3).eval()
    norm.weight.data = state["Conv3d_2c_3x3.bn.weight"] = torch.randn(192, generator=generator)
    norm.bias.data = state["Conv3d_2c_3x3.bn.bias"]
    norm.running_mean, norm.running_var = (
        state[f"Conv3d_2c_3x3.bn.running_{kind}"] for kind in ("mean", "var")
    )
    x = torch.randn(2, 64, 3, 5, 6, generator=generator)
    weight, bias = fold(state, 1e-3)["Conv3d_2c_3x3"]
    expected = norm(F.conv3d(x, state["Conv3d_2c_3x3.conv3d.weight"]))
    torch.testing.assert_close(F.conv3d(x, weight, bias), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize(
    ("kernel", "stride"), [((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((1, 3, 3), (1, 2, 2))]
)
def test_pooling_pads_as_tensorflow(size, kernel, stride):
    x = -torch.rand(
        1, 2, size, size, size + 1, generator=torch.Generator().manual_seed(size)
    )  # zeros would win
    pads = []
    for n, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max(k - s, 0) if n % s == 0 else max(k - n % s, 0)  # as TensorFlow's own guide has it
        pads = [total // 2, total - total // 2, *pads]
    expected = F.max_pool3d(F.pad(x, pads, value=-torch.inf), kernel, stride)
    assert torch.equal(MaxPool(kernel, stride)(x), expected)


class Detector(nn.Module):
    """Stands in for StyleGAN-V's TorchScript file, whose call it shares."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 400)

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ):
        logits = self.head(x.mean([2, 3, 4]))
        return logits if return_features and not rescale and not resize else logits.softmax(1)


def test_torchscript(tmp_path):
    detector = Detector()
    torch.jit.script(detector).save(tmp_path / "i3d_torchscript.pt")
    model = I3D.from_pretrained(tmp_path / "i3d_torchscript.pt", device="cpu")
    video = clips(2, 9)
    torch.testing.assert_close(model(video), detector.head(video.mean((2, 3, 4))))
    assert len(model.digest) == 64 and not model.known
    with pytest.raises(CogVideoError, match="no endpoints"):
        model.endpoints(video)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(1, 3, 8, 224, 224), "T >= 9"),
        (torch.zeros(1, 16, 3, 224, 224), r"got \[1, 16, 3"),
        (torch.zeros(1, 3, 9, 112, 224), "224"),
        (torch.zeros(3, 9, 224, 224), "takes clips"),
        (torch.zeros(0, 3, 9, 224, 224), "takes clips"),
        (torch.full((1, 3, 9, 224, 224), 255.0), "-1..1"),
        (torch.zeros(1, 3, 9, 224, 224, dtype=torch.uint8), "-1..1"),
        (torch.full((1, 3, 9, 224, 224), torch.nan), "NaN"),
    ],
)
def test_bad_videos(model, video, message):
    for call in (model, model.endpoints):
        with pytest.raises(CogVideoError, match=message):
            call(video)


def test_bad_files(i3d_file, tmp_path, monkeypatch):
    monkeypatch.setenv("COGVIDEO_CACHE", str(tmp_path / "empty"))
    with pytest.raises(CogVideoError, match="cogvideo weights get i3d"):
        I3D.from_pretrained()
    with pytest.raises(CogVideoError, match="missing"):
        I3D.from_pretrained(tmp_path / "none.pt")
    with pytest.raises(CogVideoError, match="float16 needs a GPU"):
        I3D.from_pretrained(i3d_file, device="cpu", dtype=torch.float16)
    content = i3d_file.read_bytes()
    state = load_file(i3d_file)
    files = {
        "short.safetensors": content[:1000],
        "cut.safetensors": content[:-1000],
        "text.pt": b"hello",
        "empty.pt": b"",
        "zip.pt": b"PK\x03\x04" + b"\0" * 100,
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")  # needs code to load
    torch.save(state | {"logits.conv3d.bias": torch.zeros(600)}, tmp_path / "600.pt")
    torch.save(state | {"logits.conv3d.bias": torch.full((400,), torch.nan)}, tmp_path / "nan.pt")
    for name in [*files, "linear.pt", "list.pt", "module.pt", "600.pt", "nan.pt"]:
        with pytest.raises(CogVideoError, match=name):
            I3D.from_pretrained(tmp_path / name)
