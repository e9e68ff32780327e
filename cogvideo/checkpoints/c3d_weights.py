"""The weights of C3D on UCF-101 in the files that others use, and tables of weights in general."""

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cogvideo.errors import CogVideoError, explained

FRAMES, SIZE, CLASSES = 16, 112, 101
# Input and output channels of the convolutions and of the linear layers.
CONVOLUTIONS = {
    "conv1a": (3, 64), "conv2a": (64, 128), "conv3a": (128, 256), "conv3b": (256, 256),
    "conv4a": (256, 512), "conv4b": (512, 512), "conv5a": (512, 512), "conv5b": (512, 512),
}  # fmt: skip
LINEARS = {"fc6": (512 * 4 * 4, 4096), "fc7": (4096, 4096), "fc8": (4096, CLASSES)}
SPORTS_1M = (90.25164795, 97.65701294, 101.4083252)  # mean blue, green, red; stands in for a mean clip
MEAN_SHAPE = (3, FRAMES, 128, 171)


def read_c3d(path: Path, mean: Path | None) -> tuple[dict[str, Tensor], str]:
    """The state of evaluation.c3d.C3D with its mean clip, and a digest; files as in C3D.from_pretrained."""
    found = {_short(name): tensor for name, tensor in read_table(path, "of C3D on UCF-101").items()}
    wanted = {f"convolutions.{k}.weight": (o, i, 3, 3, 3) for k, (i, o) in CONVOLUTIONS.items()}
    wanted |= {f"linears.{k}.weight": (o, i) for k, (i, o) in LINEARS.items()}
    wanted |= {name.replace("weight", "bias"): shape[:1] for name, shape in wanted.items()}
    state = {}
    for name, shape in wanted.items():
        own = name.partition(".")[2]
        if own not in found:
            raise CogVideoError(f"{path} has no {own}: give the weights of C3D with its eight convolutions.")
        if tuple(found[own].shape) != shape:
            raise CogVideoError(
                f"{path} has {own} {list(found[own].shape)} where {list(shape)} belongs: give C3D for "
                f"UCF-101's {CLASSES} classes."
            )
        state[name] = found[own].float()
    tensors = [state[name] for name in sorted(state)]
    state["mean"] = torch.tensor(SPORTS_1M).view(3, 1, 1, 1) if mean is None else _read_mean(mean)
    digest = hashlib.sha256()
    for tensor in (*tensors, state["mean"]):
        digest.update(tensor.contiguous().numpy().tobytes())
    return state, digest.hexdigest()


def read_table(path: Path, what: str) -> Mapping[str, Tensor]:
    """The weights `what` (for messages) in a PyTorch, safetensors or npz file by name; runs no code in it."""
    if not path.is_file():
        raise CogVideoError(f"There is no file: {path} is missing, check the path of the weights {what}.")
    wrong = f"{path} cannot be read as weights {what}: it is damaged or holds more than tensors"
    with explained(f"{wrong} (REASON); download it again."):
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                return {name: torch.from_numpy(stored[name]) for name in stored.files}
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        for key in ("state_dict", "state_dict", "module"):
            state = state.get(key, state) if isinstance(state, Mapping) else state
        if not isinstance(state, Mapping):
            raise ValueError("it holds no table of weights")
        return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}


def _short(name: str) -> str:
    """ "module.conv1.weight" and Chainer's "conv1a/W" -> "conv1a.weight"."""
    *_, layer, kind = name.replace("/", ".").split(".") if re.search("[./]", name) else ("", name)
    layer = {"conv1": "conv1a", "conv2": "conv2a"}.get(layer, layer)
    return f"{layer}.{ {'W': 'weight', 'b': 'bias'}.get(kind, kind) }"


def _read_mean(path: Path) -> Tensor:
    """A mean clip [3,16,128,171] -> [3,16,112,112], cut like TGANv2 from row and column 8, not the middle."""
    if not path.is_file():
        raise CogVideoError(f"{path} is missing: give the file with C3D's mean clip.")
    with explained(f"{path} cannot be read as a mean clip (REASON): download it again."):
        stored = np.load(path, allow_pickle=False)
        mean = np.asarray(stored["mean"] if isinstance(stored, np.lib.npyio.NpzFile) else stored, np.float32)
    if mean.size != np.prod(MEAN_SHAPE) or not np.isfinite(mean).all():
        raise CogVideoError(f"{path} holds {list(mean.shape)} where a mean clip {list(MEAN_SHAPE)} belongs.")
    return torch.from_numpy(mean.reshape(MEAN_SHAPE)[:, :, 8 : 8 + SIZE, 8 : 8 + SIZE].copy())
