"""Weights that lie in files: what they are is known at once, each tensor is read when it is asked for.

Nothing is held twice and no file is held whole, whatever its size: this is how all weights are loaded and
converted.
"""

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from cogvideo.errors import explained
from cogvideo.io import replacing

# Pages of mapped files that were read count as memory of the process; after so many bytes the mappings are
# renewed.
MAPPED_BYTES = 512 * 2**20
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHOWN_BYTES = 10**9  # work on more than this shows its progress


class Weights(Mapping[str, Tensor]):
    """Names -> tensors in files; `read` and `weights[name]` read one into memory of its own, each time anew.

    meta: the same names with tensors on the meta device, for shapes and types without reading. fill(name,
    out) copies a weight from its file into the tensor `out`, whatever its type and device.
    """

    def __init__(self, meta: Mapping[str, Tensor], fill: Callable[[str, Tensor], None]):
        self.meta, self._fill = dict(meta), fill

    def read(
        self, name: str, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Tensor:
        """A weight on the device in `dtype` (None: the file's); there is no other copy of it on the way."""
        meta = self.meta[name]
        out = torch.empty(meta.shape, dtype=dtype or meta.dtype, device=device)
        self._fill(name, out)
        return out

    def __getitem__(self, name: str) -> Tensor:
        return self.read(name)

    def __contains__(self, name: object) -> bool:  # Mapping's own would read the tensor
        return name in self.meta

    def __iter__(self) -> Iterator[str]:
        return iter(self.meta)

    def __len__(self) -> int:
        return len(self.meta)

    def renamed(self, rename: Callable[[str], str | None]) -> "Weights":
        """The same weights under other names, without those whose new name is None."""
        old = {new: name for name in self.meta if (new := rename(name)) is not None}
        meta = {new: self.meta[name] for new, name in old.items()}
        return Weights(meta, lambda new, out: self._fill(old[new], out))


def meta_of(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Tensors that have the shapes and types of `weights`, without reading any."""
    return weights.meta if isinstance(weights, Weights) else weights


def tensor_bytes(tensor: Tensor, dtype: torch.dtype | None = None) -> int:
    """Bytes that a tensor takes, in `dtype` if given."""
    return tensor.numel() * (dtype or tensor.dtype).itemsize


@contextlib.contextmanager
def without_memory() -> Iterator[None]:
    """Modules made inside are on the meta device: shapes and types, to be filled later or only looked at."""
    with torch.device("meta"), _NoDraws():
        yield


class _NoDraws(TorchFunctionMode):
    """Skips random initialisation, for which torch imports its compiler on the meta device: two seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]  # torch.nn.init's or a tensor's own
        return func(*args, **kwargs)


def save_tensors(
    tensors: dict[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all, with the permissions of any new file; raises OSError."""
    with replacing(path, advice=None) as part:
        save_file(tensors, part, metadata=metadata)
        part.chmod(0o666 & ~_umask())  # safetensors makes files that nobody else may read


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, mapped, and its metadata."""
    wrong = f"{path} is missing, damaged or half downloaded (REASON): copy or download it again."
    with explained(wrong, OSError, SafetensorError), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}


def _umask() -> int:
    """What the user takes from the permissions of new files; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def byte_bar(label: str, total: int) -> Any:
    """A tqdm bar over `total` bytes, as a context; silent for what is quickly done."""
    silent = total <= SHOWN_BYTES
    return tqdm(total=total, desc=label, unit="B", unit_scale=True, mininterval=1, disable=silent)


class TensorFile:
    """The tensors of one file. `open_file(path)` maps it, or reads it if the format allows no mapping."""

    def __init__(self, path: Path, open_file: Callable[[Path], Mapping[str, Tensor]], *, mapped: bool = True):
        self.path, self._open, self._mapped = path, open_file, mapped
        self._tensors, self.viewed = open_file(path), 0
        self.meta = {name: tensor.to("meta") for name, tensor in self._tensors.items()}

    def view(self, name: str) -> Tensor:
        """The tensor as it lies in the file, to copy from or to; call `release_pages` afterwards."""
        self.viewed += tensor_bytes(self._tensors[name])
        return self._tensors[name]

    def renew(self) -> None:
        """Map the file anew: its pages that were read go back to the system."""
        if self._mapped and self.viewed:
            self._tensors = {}  # the old mapping ends before the new one begins
            self._tensors, self.viewed = self._open(self.path), 0


def release_pages(files: Collection[TensorFile]) -> None:
    """Return the memory of pages read to the system, once those of all `files` together are many."""
    if sum(file.viewed for file in files) > MAPPED_BYTES:
        for file in files:
            file.renew()
