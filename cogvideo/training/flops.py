"""How many operations a training step needs, and how many the device could do: their ratio is the MFU."""

import re

import torch

from cogvideo.config import ModelConfig
from cogvideo.model import masks
from cogvideo.runtime.machine import matmul_rate

# Dense products in bf16 or fp16 with fp32 sums, operations a second, from the vendor's data sheets.
PEAKS = dict.fromkeys(("H100", "H200", "H800"), 989e12) | dict.fromkeys(("A100", "A800"), 312e12)
PEAKS |= {"L40S": 362e12, "L4": 121e12}


def step_flops(c: ModelConfig, clips: int, text_length: int, *, everything: bool = False) -> float:
    """Operations (a product and a sum are two) that a step over `clips` clips needs at least.

    Counted: products of linear layers, attention over what the masks let through, the head at positions in
    the loss. Gradients of activations are needed wherever frames go, gradients of weights for the temporal
    channel alone, and none for the text's own stream; with `everything` trained, each product is followed by
    two. Blocks that are recomputed to save memory are not counted again.
    """
    d, layers, n = c.hidden_size, c.num_layers, c.frame_tokens
    positions, channels = c.num_frames * n, 1 + c.temporal
    seen = int(masks.spatial_visible(c).sum()) + positions * text_length  # pairs of query and key
    if c.temporal:
        parities = [int(masks.temporal_visible(c, parity).sum()) for parity in range(2)]
        seen += sum(parities) // 2 + positions * text_length
    text = 2 * text_length * 12 * d**2 + 4 * text_length**2 * d
    text_memory = 2 * text_length * 2 * d**2 if c.temporal else 0  # keys and values of the temporal channel
    linear = 2 * positions * (8 + 4 * channels) * d**2
    attention = 4 * seen * d
    head = 2 * len(masks.trained_frames(c)) * n * d * c.image_tokens
    if everything:
        return clips * 3 * (layers * (text + text_memory + linear + attention) + head)
    trained = 2 * positions * 4 * d**2
    frozen = layers * (text + 2 * text_memory + 2 * linear + trained + 3 * attention) + 2 * head
    return float(clips * frozen)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the device: the data sheet's in 16 bits, else measured with a large product."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    if dtype in (torch.bfloat16, torch.float16):
        for known, peak in PEAKS.items():
            if re.search(rf"\b{known}\b", name):
                return peak
    return matmul_rate(device, dtype)
