"""The device that computes."""

import os

import torch

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
    """The type of all but the int8 matrices of an int8 model: bf16 on a GPU, fp32 on a CPU."""
    return torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
