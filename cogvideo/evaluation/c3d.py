"""C3D (Tran et al. 2015) on UCF-101: the classifier behind the Inception Score of videos.

As TGANv2 uses it (tgan2/models/c3d/c3d_ucf101.py), which TATS and StyleGAN-V took over: trained on Sports-1M, fine-tuned on
UCF-101, 16 frames of 112 x 112 pixels in the order blue, green, red, minus a mean clip.
"""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cogvideo.errors import CogVideoError, first_sentence
from cogvideo.runtime.device import choose_device
from cogvideo.runtime.tensors import without_memory

FRAMES, SIZE, CLASSES = 16, 112, 101
# Input and output channels of the convolutions; a pool follows those that end a group.
CONVOLUTIONS = {
    "conv1a": (3, 64), "conv2a": (64, 128), "conv3a": (128, 256), "conv3b": (256, 256),
    "conv4a": (256, 512), "conv4b": (512, 512), "conv5a": (512, 512), "conv5b": (512, 512),
}  # fmt: skip
POOLED = ("conv1a", "conv2a", "conv3b", "conv4b", "conv5b")
LINEARS = {"fc6": (512 * 4 * 4, 4096), "fc7": (4096, 4096), "fc8": (4096, CLASSES)}
SPORTS_1M = (90.25164795, 97.65701294, 101.4083252)  # mean blue, green, red; stands in for a mean clip
MEAN_SHAPE = (3, FRAMES, 128, 171)


class C3D(nn.Module):
    """Clips uint8 [B,16,H,W,3] -> [B,101] logits before the softmax, in float32.

    digest: of weights and mean. exact_mean: whether the mean clip was given; else a mean colour stands in for it.
    """

    digest: str = ""
    exact_mean: bool = False
    mean: Tensor

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleDict(
            {k: nn.Conv3d(i, o, 3, padding=1) for k, (i, o) in CONVOLUTIONS.items()}
        )
        self.linears = nn.ModuleDict({k: nn.Linear(i, o) for k, (i, o) in LINEARS.items()})
        self.register_buffer("mean", torch.tensor(SPORTS_1M).view(3, 1, 1, 1))

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, mean: str | Path | None = None, device: str = "auto"
    ) -> "C3D":
        """The network with weights, in eval mode.

        path: a PyTorch state dict, a safetensors file, or TGANv2's conv3d_deepnetA_ucf.npz. Layers are named conv1a (or
        conv1), conv2a (or conv2), conv3a, conv3b .. conv5b, fc6, fc7, fc8. mean: TGANv2's mean2.npz, or a .npy or .npz
        file with a mean clip [3,16,128,171] in blue, green, red; without it Sports-1M's mean colour is subtracted. Raises
        CogVideoError for missing or damaged files, other layers and other shapes.
        """
        state = _layers(read_table(Path(path), "of C3D on UCF-101"), str(path))
        with without_memory():
            model = cls()
        model.load_state_dict(state, strict=False, assign=True)
        model.mean = torch.tensor(SPORTS_1M).view(3, 1, 1, 1) if mean is None else _read_mean(Path(mean))
        model.exact_mean = mean is not None
        total = hashlib.sha256()
        for tensor in (*(state[name] for name in sorted(state)), model.mean):
            total.update(tensor.contiguous().numpy().tobytes())
        model.digest = total.hexdigest()
        return model.to(choose_device(device)).eval().requires_grad_(False)

    def forward(self, clips: Tensor) -> Tensor:
        """uint8 [B,16,H,W,3], red first -> logits [B,101]. Raises CogVideoError for another shape or type."""
        if clips.ndim != 5 or clips.dtype != torch.uint8 or clips.shape[1] != FRAMES or clips.shape[4] != 3:
            raise CogVideoError(
                f"C3D takes uint8 [B, {FRAMES}, H, W, 3]; got {clips.dtype} {list(clips.shape)}."
            )
        # On a GPU convolutions would otherwise round their inputs to 10 bits (TF32).
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            x = self._convolved(self.prepared(clips))
        x = F.relu(self.linears["fc6"](x.flatten(1)))
        x = F.relu(self.linears["fc7"](x))
        return self.linears["fc8"](x)

    def _convolved(self, x: Tensor) -> Tensor:
        """[B,3,16,112,112] -> [B,512,1,4,4]."""
        for name, convolution in self.convolutions.items():
            x = F.relu(convolution(x))
            if name in POOLED:
                window = (1, 2, 2) if name == "conv1a" else (2, 2, 2)
                # As in Caffe, the last window hangs out behind: 7 rows become 4. Padding in front would be another network.
                x = F.max_pool3d(x, window, window, ceil_mode=True)
        return x

    def prepared(self, clips: Tensor) -> Tensor:
        """uint8 [B,16,H,W,3] -> [B,3,16,112,112]: blue first, squeezed to 112 x 112 with corners aligned, minus the mean."""
        b = len(clips)
        # TGANv2 scales -1..1 by 128 and adds 128: bytes become 0..256.
        pixels = rearrange(clips.to(self.mean.device).float() * (256 / 255), "b t h w c -> (b t) c h w").flip(
            1
        )
        pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", align_corners=True)
        return rearrange(pixels, "(b t) c h w -> b c t h w", b=b) - self.mean


def read_table(path: Path, what: str) -> Mapping[str, Tensor]:
    """The weights `what` (for sentences) in a PyTorch, safetensors or npz file by name. Nothing in the file is run.

    Raises CogVideoError if it is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise CogVideoError(f"{path} is missing: give a file with the weights {what}.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return {name: torch.from_numpy(stored[name]) for name in stored.files}
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        while isinstance(state, Mapping) and isinstance(inner := state.get("state_dict"), Mapping):
            state = inner
        if not isinstance(state, Mapping):
            raise ValueError("it holds no table of weights")
        return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    except (OSError, SafetensorError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise CogVideoError(
            f"{path} cannot be read as weights {what} ({first_sentence(error)}): download it again."
        ) from None


def _layers(found: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The network's state out of a file's names; raises CogVideoError if a layer is missing or has another shape."""
    wanted = {f"convolutions.{k}.weight": (o, i, 3, 3, 3) for k, (i, o) in CONVOLUTIONS.items()}
    wanted |= {f"linears.{k}.weight": (o, i) for k, (i, o) in LINEARS.items()}
    wanted |= {name.replace("weight", "bias"): shape[:1] for name, shape in wanted.items()}
    named = {_short(name): tensor for name, tensor in found.items()}
    state = {}
    for name, shape in wanted.items():
        own = name.partition(".")[2]
        if own not in named:
            raise CogVideoError(f"{where} lacks {own}: give the weights of C3D with its eight convolutions.")
        if tuple(named[own].shape) != shape:
            raise CogVideoError(
                f"{where} has {own} {list(named[own].shape)} where {list(shape)} belongs: give C3D for UCF-101's {CLASSES} classes."
            )
        state[name] = named[own].float()
    return state


def _short(name: str) -> str:
    """ "module.conv1.weight" and Chainer's "conv1a/W" -> "conv1a.weight"."""
    *_, layer, kind = name.replace("/", ".").split(".") if re.search("[./]", name) else ("", name)
    return f"{ {'conv1': 'conv1a', 'conv2': 'conv2a'}.get(layer, layer) }.{ {'W': 'weight', 'b': 'bias'}.get(kind, kind) }"


def _read_mean(path: Path) -> Tensor:
    """A mean clip [3,16,128,171] -> [3,16,112,112], cut as TGANv2 cuts it: from row and column 8, not from the middle."""
    if not path.is_file():
        raise CogVideoError(f"{path} is missing: give the file with C3D's mean clip.")
    try:
        stored = np.load(path, allow_pickle=False)
        mean = np.asarray(stored["mean"] if isinstance(stored, np.lib.npyio.NpzFile) else stored, np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise CogVideoError(f"{path} cannot be read as a mean clip ({reason}): download it again.") from None
    if mean.size != np.prod(MEAN_SHAPE) or not np.isfinite(mean).all():
        raise CogVideoError(f"{path} holds {list(mean.shape)} where a mean clip {list(MEAN_SHAPE)} belongs.")
    return torch.from_numpy(mean.reshape(MEAN_SHAPE)[:, :, 8 : 8 + SIZE, 8 : 8 + SIZE].copy())
