"""Triton kernels for GPUs from 2020 on: what a decoding step spends its time with. They know no model."""

import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

import torch


@cache
def loaded(name: str, device: torch.device) -> ModuleType | None:
    """The module `name` of this room if its kernel runs on this GPU, else None; found out at the first call.

    Triton comes with torch's CUDA wheels for Linux. A kernel is compiled when it first runs, for which Triton
    needs a C compiler, too; and it needs the shared memory of compute capability 8.0.
    """
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        module = import_module(f"cogvideo.kernels.{name}")
        module.try_out(device)
    except ImportError:
        return None
    except Exception as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"The {name} kernel fails here ({reason}): decoding will be slower.", RuntimeWarning, stacklevel=2
        )
        return None
    return module
