"""The device that computes."""

import contextlib
import os

import torch
from torch import Tensor

from cogvideo.errors import CogVideoError, explained


def choose_device(name: str) -> str:
    """A device by its torch name; "auto" is CUDA where there is one, and otherwise the CPU.

    Of several GPUs each process of torchrun takes its own (LOCAL_RANK).
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    with explained(f"Device {name!r} is unknown: choose auto, cpu or cuda.", RuntimeError):
        device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise CogVideoError(
                f"Device {name} is not on this machine: choose --device cpu, or a CUDA build of torch."
            )
        if device.index is not None:
            torch.cuda.set_device(device)  # graphs are captured, and streams made, on the current one
    return name


def wide_type(device: str | torch.device) -> torch.dtype:
    """The type of all but the int8 matrices of an int8 model: 16 bit on a GPU, fp32 on a CPU.

    bf16 has the range of fp32; GPUs before 2020 (compute capability 8.0) only know fp16.
    """
    if torch.device(device).type != "cuda":
        return torch.float32
    known = torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0)
    return torch.float16 if known else torch.bfloat16


def full_precision(weight: Tensor) -> contextlib.AbstractContextManager:
    """For convolutions with weights like this one: on CUDA they would round fp32 to 10 bits (TF32)."""
    cudnn = torch.backends.cudnn
    if not weight.is_cuda or not cudnn.is_available():
        return contextlib.nullcontext()
    return cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False)
