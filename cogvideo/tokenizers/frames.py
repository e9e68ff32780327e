"""Frames to tokens and back: one interface over the demo's own network and the released icetk one."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from cogvideo.errors import CogVideoError
from cogvideo.runtime.device import full_precision
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
    # |v - e|^2 without |v|^2, the same for every code. In parts: all pairs of a clip would fill memory.
    for some in rest.split(4096):
        ids[some] = (codebook.square().sum(-1) - 2 * flat[some] @ codebook.T).argmin(-1)
    return ids.view(vectors.shape[:-1])


class FrameTokenizer(nn.Module):
    """Turns frames [B,3,H,W] (float, 0..1) into token ids [B,H/compress,W/compress] and back.

    `network` is a PatchVQVAE (the demo's, compress 8) or an HVQVAE (icetk's, compress 4, 8 or 16; CogVideo
    uses 8). Token ids are rows of `codebook` [K, C].
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
        """[B,3,H,W] in 0..1 -> ids [B,H/compress,W/compress] int64."""
        self._check_rate(compress)
        if frames.ndim != 4 or frames.shape[1] != 3 or any(side % compress for side in frames.shape[2:]):
            raise CogVideoError(
                f"Frames to encode must be [B, 3, H, W] with H and W multiples of {compress}, "
                f"not {list(frames.shape)}."
            )
        # Codes may lie near each other, and every machine should choose the same.
        with full_precision(self.codebook):
            vectors = self.network.vectors(frames.to(self.codebook.dtype), compress)
        return nearest_codes(vectors, self.codebook)

    @torch.no_grad()
    def decode(self, ids: Tensor, compress: int = 8) -> Tensor:
        """ids [B,h,w] -> frames [B,3,h*compress,w*compress] in 0..1 units.

        Not clamped, as in the release: values a little outside 0..1 occur.
        """
        self._check_rate(compress)
        if ids.ndim != 3:
            raise CogVideoError(
                f"Ids must be [B, h, w], not {list(ids.shape)}: fold flat codes into rows first."
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
        """Write one safetensors file: weights (as `dtype`, if given) and a description of the network."""
        from cogvideo.checkpoints.frames import save_frames

        save_frames(self, path, dtype)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> "FrameTokenizer":
        """Read what `save` wrote, as float32 and in eval mode."""
        from cogvideo.checkpoints.frames import load_frames

        return load_frames(path, device)

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

        Widths are `channels` times the multipliers; decoders come coarsest rate first (reference page,
        section 6). The number of codes and their dimension are read off the weights.
        """
        from cogvideo.checkpoints.frames import load_icetk

        return load_icetk(source, channels=channels, encoder_mult=encoder_mult, decoder_mults=decoder_mults)
