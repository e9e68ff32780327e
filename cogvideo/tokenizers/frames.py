"""Frames to tokens and back: one interface over the demo's own network and the released icetk one."""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from cogvideo.errors import CogVideoError, first_sentence
from cogvideo.runtime.tensors import save_tensors
from cogvideo.tokenizers.hvqvae import HVQVAE
from cogvideo.tokenizers.patches import PatchVQVAE


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """[..., C], [K, C] -> index of the nearest row in squared distance, [...] int64."""
    codebook = codebook.float()
    flat = vectors.float().reshape(-1, codebook.shape[-1])
    # Ground, the bulk of the demo's patches, is all zeros: its nearest code is found once.
    ground = codebook.square().sum(-1).argmin()
    ids = ground.repeat(len(flat))
    rest = flat.any(-1).nonzero()[:, 0]
    # |v - e|^2 without |v|^2, which is the same for every code. In pieces: all pairs of a clip would fill memory.
    for some in rest.split(4096):
        ids[some] = (codebook.square().sum(-1) - 2 * flat[some] @ codebook.T).argmin(-1)
    return ids.view(vectors.shape[:-1])


class FrameTokenizer(nn.Module):
    """Turns frames [B,3,H,W] (float, 0..1) into token ids [B,H/compress,W/compress] and back.

    `network` is a PatchVQVAE (the demo's, compress 8) or an HVQVAE (icetk's, compress 4, 8 or 16; CogVideo uses 8).
    Token ids are rows of `codebook` [K, C].
    """

    def __init__(self, network: PatchVQVAE | HVQVAE):
        super().__init__()
        self.network = network

    @property
    def codebook(self) -> Tensor:
        """[K, C]: what each id stands for; neighbours in it look alike."""
        return self.network.codebook

    @property
    def num_codes(self) -> int:
        return len(self.codebook)

    @property
    def digest(self) -> str:
        """Short hash of the codebook: tokens of another codebook mean something else."""
        return hashlib.sha256(self.codebook.detach().cpu().numpy().tobytes()).hexdigest()[:16]

    @torch.no_grad()
    def encode(self, frames: Tensor, compress: int = 8) -> Tensor:
        """[B,3,H,W] in 0..1 -> ids [B,H/compress,W/compress] int64.

        Raises CogVideoError if H or W is no multiple of `compress` or the network has no such rate.
        """
        self._check_rate(compress)
        if (
            frames.ndim != 4
            or frames.shape[1] != 3
            or frames.shape[2] % compress
            or frames.shape[3] % compress
        ):
            raise CogVideoError(
                f"Frames to encode must be [B, 3, H, W] with H and W multiples of {compress}, not {list(frames.shape)}."
            )
        return nearest_codes(self.network.vectors(frames.to(self.codebook.dtype), compress), self.codebook)

    @torch.no_grad()
    def decode(self, ids: Tensor, compress: int = 8) -> Tensor:
        """ids [B,h,w] -> frames [B,3,h*compress,w*compress] in 0..1 units.

        Not clamped, as in the release: values a little outside 0..1 occur; clamp before making 8-bit pictures.
        Raises CogVideoError if ids are not [B,h,w], not of this codebook, or the network has no such rate.
        """
        self._check_rate(compress)
        if ids.ndim != 3:
            raise CogVideoError(
                f"Ids to decode must be [B, h, w], not {list(ids.shape)}: fold flat codes into rows first."
            )
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_codes:
            raise CogVideoError(
                f"Frame tokens must be 0..{self.num_codes - 1}, not {int(ids.min())}..{int(ids.max())}: "
                "decode with the tokenizer that the model was trained with."
            )
        return self.network.frames(self.codebook[ids], compress)

    def _check_rate(self, compress: int) -> None:
        if compress not in self.network.rates:
            rates = ", ".join(map(str, self.network.rates))
            raise CogVideoError(f"This frame tokenizer compresses by {rates}, not by {compress}.")

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write weights (as `dtype`, if given) and the description of the network into one safetensors file."""
        tensors = {
            key: value.to(dtype or value.dtype).contiguous()
            for key, value in self.network.state_dict().items()
        }
        save_tensors(tensors, path, metadata={"frame_tokenizer": json.dumps(self.network.architecture)})

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "FrameTokenizer":
        """Read what `save` wrote, as float32 and in eval mode.

        Raises CogVideoError if the file is missing, cut off, damaged, of another kind, or does not fit its description.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key).float() for key in file.keys()}
        except FileNotFoundError:
            raise CogVideoError(f"There is no frame tokenizer at {path}: check the path.") from None
        except (OSError, SafetensorError) as error:
            raise CogVideoError(
                f"The frame tokenizer {path} is damaged ({error}): copy the file again."
            ) from None
        if "frame_tokenizer" not in metadata:
            raise CogVideoError(
                f"{path} holds no frame tokenizer: give a file that FrameTokenizer.save wrote."
            )
        try:
            sizes = json.loads(metadata["frame_tokenizer"])
            network = {"patches": PatchVQVAE, "icetk": HVQVAE}[sizes.pop("kind")](**sizes)
        except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CogVideoError(
                f"The description inside the frame tokenizer {path} makes no sense ({error!r}): copy the file again."
            ) from None
        _fill(network, tensors, str(path))
        return cls(network).to(device).eval()

    @classmethod
    def from_icetk(
        cls,
        source: str | Path | Mapping[str, Tensor],
        *,
        channels: int = 128,
        encoder_mult: Sequence[int] = (1, 2, 4),
        decoder_mults: Sequence[Sequence[int]] = ((1, 1, 1, 2, 4), (1, 1, 2, 4), (1, 2, 4)),
    ) -> "FrameTokenizer":
        """icetk's image tokenizer (HVQVAE) as float32, from a torch file, a safetensors file or a state dict.

        Widths are `channels` times the multipliers; decoders come coarsest rate first (reference page, section 6). The
        number of codes and their dimension are read off the weights. Raises CogVideoError for a missing or damaged file
        and for weights that do not fit these sizes.
        """
        name = "the given state dict" if isinstance(source, Mapping) else str(source)
        weights: Mapping = source if isinstance(source, Mapping) else read_weights(Path(source))
        weights = weights.get("module", weights)
        if "quantize.embed.weight" not in weights:
            raise CogVideoError(
                f"There is no icetk image tokenizer in {name}: it has no quantize.embed.weight."
            )
        codes, dim = weights["quantize.embed.weight"].shape
        network = HVQVAE(codes, dim, channels, tuple(encoder_mult), tuple(map(tuple, decoder_mults)))
        # The release loads non-strictly: what lies beside the network (training statistics, losses) is not for us, but
        # an unknown name inside it means that the sizes given are wrong.
        ours = tuple(f"{part}." for part, _ in network.named_children())
        statistics = ("quantize.cluster_size", "quantize.embed_avg")
        inside = {
            key: value for key, value in weights.items() if key.startswith(ours) and key not in statistics
        }
        _fill(network, inside, name)
        return cls(network).eval()


def read_weights(path: Path) -> Mapping:
    """The table in a torch or safetensors file; raises CogVideoError when it is missing or damaged."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise CogVideoError(
            f"There is no file {path}: check the path of the icetk image tokenizer."
        ) from None
    except Exception as error:  # torch raises many kinds for a damaged file
        raise CogVideoError(
            f"The weights {path} cannot be read ({first_sentence(error)}): fetch the file again."
        ) from None


def _fill(network: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy tensors into the network; every one must be there, known and of the right shape."""
    wanted = network.state_dict()
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        problem = f"{missing[0]} is missing" if missing else f"{unknown[0]} is unknown"
        raise CogVideoError(
            f"The weights in {name} do not fit this frame tokenizer: {problem} "
            f"(missing {len(missing)}, unknown {len(unknown)}); check the channels and multipliers."
        )
    for key, value in wanted.items():
        if tensors[key].shape != value.shape:
            raise CogVideoError(
                f"The weights in {name} do not fit this frame tokenizer: {key} is {list(tensors[key].shape)} "
                f"where {list(value.shape)} belongs; check the channels and multipliers."
            )
    network.load_state_dict(dict(tensors))
