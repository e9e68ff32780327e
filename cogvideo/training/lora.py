"""Fine-tuning on small cards: LoRA on the attention (Hu et al. 2021, by peft), 8-bit states of AdamW."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from cogvideo.config import to_dict
from cogvideo.errors import CogVideoError
from cogvideo.runtime.tensors import save_tensors

ATTENTION = r"blocks\.\d+\.(spatial|temporal|given|drawn)\.(qkv|dense)"  # the linear layers, in all models
FILE = "adapter.safetensors"


@dataclass(frozen=True)
class LoraConfig:
    """What is trained in place of the attention's own weights: two narrow matrices beside each."""

    rank: int = 16
    alpha: int = 32  # the product of both counts alpha / rank times
    merge: bool = True  # write a whole model, with the product added; else the adapter alone

    def __post_init__(self):
        if min(self.rank, self.alpha) < 1:
            raise CogVideoError(
                f"lora needs a rank of 1 or more and an alpha of 1 or more, not {to_dict(self)}."
            )


def add_adapters(model: nn.Module, config: LoraConfig, seed: int) -> list[str]:
    """Put adapters beside the attention's linear layers, in place -> the names of their weights.

    At first they change nothing. Raises CogVideoError where peft is missing.
    """
    try:
        peft = import_module("peft")  # an extra, which type checkers need not have
    except ImportError:
        raise CogVideoError('LoRA needs peft: pip install "cogvideo[small]", or leave lora away.') from None
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=ATTENTION)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, model)
    return [name for name, _ in model.named_parameters() if ".lora_" in name]


@torch.no_grad()
def merge(model: nn.Module, adapters: Mapping[str, Tensor], config: LoraConfig) -> None:
    """Add what trained adapters (names of add_adapters) do to the weights of a model without them."""
    for name, down in adapters.items():
        if ".lora_A." not in name:
            continue
        up = adapters[name.replace(".lora_A.", ".lora_B.")]
        weight = model.get_parameter(name.partition(".lora_A.")[0] + ".weight")
        weight.copy_(weight.float() + config.alpha / config.rank * (up.float() @ down.float()))


def save_adapters(adapters: Mapping[str, Tensor], config: LoraConfig, folder: Path) -> None:
    """Write adapter.safetensors; its metadata tells rank and alpha."""
    folder.mkdir(exist_ok=True)
    tensors = {name: tensor.contiguous() for name, tensor in adapters.items()}
    save_tensors(tensors, folder / FILE, metadata={"lora": json.dumps(to_dict(config))})


def adamw8(
    parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW whose two averages take a byte a weight (Dettmers et al. 2021, by bitsandbytes)."""
    try:
        adamw = import_module("bitsandbytes.optim.adamw")
    except ImportError:
        advice = 'pip install "cogvideo[small]", or set optimizer_bits to 32'
        raise CogVideoError(f"8-bit optimiser states need bitsandbytes: {advice}.") from None
    return adamw.AdamW8bit(parameters, lr, betas, weight_decay=weight_decay)
