"""Frame tokenizers in files: our own, with a description of the network inside, and icetk's."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cogvideo.checkpoints.c3d_weights import read_table
from cogvideo.checkpoints.sat import check_finite
from cogvideo.errors import CogVideoError, explained
from cogvideo.runtime.tensors import open_safetensors, save_tensors
from cogvideo.tokenizers.frames import FrameTokenizer
from cogvideo.tokenizers.hvqvae import HVQVAE
from cogvideo.tokenizers.patches import PatchVQVAE

NETWORKS = {"patches": PatchVQVAE, "icetk": HVQVAE}
ICETK = "of icetk's image tokenizer"
ICETK_PARTS = ("enc.", "down_samplers.", "quantize.", "decs.")  # of HVQVAE
TRAINING_STATISTICS = ("quantize.cluster_size", "quantize.embed_avg")  # of icetk's file; nobody loads them


def save_frames(tokenizer: FrameTokenizer, path: str | Path, dtype: torch.dtype | None) -> None:
    """Write weights (as `dtype`, if given) and the description of the network into one safetensors file."""
    weights = tokenizer.network.state_dict()
    tensors = {name: tensor.to(dtype or tensor.dtype).contiguous() for name, tensor in weights.items()}
    save_tensors(tensors, path, metadata={"frame_tokenizer": json.dumps(tokenizer.network.architecture)})


def load_frames(path: str | Path, device: str | torch.device) -> FrameTokenizer:
    """Read what save_frames wrote, as float32 and in eval mode."""
    if not Path(path).exists():
        raise CogVideoError(f"There is no frame tokenizer at {path}: check the path.")
    tensors, metadata = open_safetensors(Path(path))
    if "frame_tokenizer" not in metadata:
        raise CogVideoError(f"{path} holds no frame tokenizer: give a file that FrameTokenizer.save wrote.")
    with explained(f"The description inside the frame tokenizer {path} is invalid (REASON): copy it again."):
        sizes = json.loads(metadata["frame_tokenizer"])
        network = NETWORKS[sizes.pop("kind")](**sizes)
    _fill(network, {name: tensor.float() for name, tensor in tensors.items()}, str(path))
    return FrameTokenizer(network).to(device).eval()


def load_icetk(
    source: str | Path | Mapping[str, Tensor],
    *,
    channels: int,
    encoder_mult: Sequence[int],
    decoder_mults: Sequence[Sequence[int]],
) -> FrameTokenizer:
    """See FrameTokenizer.from_icetk."""
    name = "the given state dict" if isinstance(source, Mapping) else str(source)
    table: Mapping[str, Any] = source if isinstance(source, Mapping) else read_table(Path(source), ICETK)
    weights = table.get("module", table)
    if "quantize.embed.weight" not in weights:
        raise CogVideoError(f"There is no icetk image tokenizer in {name}: it has no quantize.embed.weight.")
    codes, dim = weights["quantize.embed.weight"].shape
    network = HVQVAE(codes, dim, channels, tuple(encoder_mult), tuple(map(tuple, decoder_mults)))
    _fill(network, {key: weights[key] for key in loaded_names(weights)}, name)
    return FrameTokenizer(network).eval()


def read_frame_tokenizer(path: Path) -> FrameTokenizer:
    """icetk's image tokenizer with its widths read off the weights' shapes."""
    weights = read_table(path, ICETK)
    with explained(f"{path} is no icetk image tokenizer (REASON is missing or invalid): download it again."):
        sizes = icetk_sizes(weights)
    del sizes["codes"], sizes["dim"]
    return load_icetk(weights, **sizes)


def read_any(path: Path) -> FrameTokenizer:
    """A frame tokenizer of our own (.safetensors with a description inside) or icetk's file."""
    return load_frames(path, "cpu") if path.suffix == ".safetensors" else read_frame_tokenizer(path)


def loaded_names(weights: Mapping[str, Tensor]) -> set[str]:
    """The names in icetk's file that belong to the network.

    The release loads non-strictly: losses and training statistics lie beside the network. An unknown name
    inside the network, however, means that its sizes are wrong.
    """
    return {name for name in weights if name.startswith(ICETK_PARTS)} - set(TRAINING_STATISTICS)


def icetk_sizes(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """HVQVAE's arguments, read off the shapes of icetk's weights; KeyError without its outermost layers."""

    def widths(prefix: str) -> list[int]:
        found = []
        while (name := f"{prefix}.{len(found)}.block.0.conv1.weight") in weights:
            found.append(len(weights[name]) // channels)
        return found

    codes, dim = weights["quantize.embed.weight"].shape
    channels = len(weights["enc.conv_in.weight"])
    decoders = []
    while decoder := widths(f"decs.{len(decoders)}.up"):
        decoders.append(decoder)
    mults = {"encoder_mult": widths("enc.down"), "decoder_mults": decoders}
    return {"codes": codes, "dim": dim, "channels": channels, **mults}


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy tensors into the network; every one must be there, known and of the right shape."""
    wanted = network.state_dict()
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    problem = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown" if unknown else ""
    for key, value in wanted.items():
        if not problem and tensors[key].shape != value.shape:
            problem = f"{key} is {list(tensors[key].shape)} where {list(value.shape)} belongs"
    if problem:
        raise CogVideoError(
            f"The weights in {name} do not fit this frame tokenizer: {problem} (missing {len(missing)}, "
            f"unknown {len(unknown)}); check the channels and multipliers."
        )
    for key in wanted:
        check_finite(tensors[key], key, name)
    network.load_state_dict(dict(tensors))
