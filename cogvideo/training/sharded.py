"""Checkpoint folders that many processes write, each its part, read without running what is in them.

torch unpickles a folder's .metadata and its small values freely, so that a foreign folder could run any code.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

METADATA = ".metadata"
PATHS = {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"}
ALLOWED = {
    "torch": {
        "Size", "device", "dtype", "layout", "memory_format",
        *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
    },
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "pathlib": PATHS,
    "pathlib._local": PATHS,  # of Python 3.13
}  # fmt: skip


def save(folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Every process must call it."""
    try:
        state_dict_saver.save(state_of(model, optimizers), checkpoint_id=folder)
    except CheckpointException as error:  # in every process, with what happened to each
        raise next(iter(error.failures.values()))[0] from None


def load(folder: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Every process must call it; there may be more or fewer than when the folder was written."""
    state = state_of(model, optimizers)
    state_dict_loader.load(state, storage_reader=_Reader(folder), planner=_Planner())
    set_state_dict(
        model, optimizers, model_state_dict=state["weights"], optim_state_dict=state["optimizers"],
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )  # fmt: skip


def state_of(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Any]:
    """The trained weights and the optimisers' states."""
    weights, states = get_state_dict(model, optimizers, options=StateDictOptions(ignore_frozen_params=True))
    return {"weights": weights, "optimizers": states}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in ALLOWED.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} does not belong into a checkpoint")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """Reads a folder's list of contents with only the classes of such lists, and no file outside of the folder."""

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        with open(Path(self.path) / METADATA, "rb") as file:
            metadata = _Unpickler(file).load()
        names = [entry.relative_path for entry in metadata.storage_data.values()]
        if any(Path(name).name != name for name in names):
            raise pickle.UnpicklingError("a file outside")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(DefaultLoadPlanner):
    """Reads values that are no tensors (steps, learning rates) as torch.load(weights_only=True) does."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        key = self.mappings[read_item.dest_index.fqn]
        set_element(self.original_state_dict, key, torch.load(value, weights_only=True))
