"""C3D (Tran et al. 2015) on UCF-101: the classifier behind the Inception Score of videos.

As TGANv2 uses it (tgan2/models/c3d/c3d_ucf101.py), which TATS and StyleGAN-V took over: trained on Sports-1M,
fine-tuned on UCF-101, 16 frames of 112 x 112 pixels in the order blue, green, red, minus a mean clip.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cogvideo.checkpoints.c3d_weights import CONVOLUTIONS, FRAMES, LINEARS, SIZE, SPORTS_1M, read_c3d
from cogvideo.errors import CogVideoError
from cogvideo.runtime.device import choose_device, full_precision
from cogvideo.runtime.tensors import without_memory

POOLED = ("conv1a", "conv2a", "conv3b", "conv4b", "conv5b")  # convolutions that a pool follows


class C3D(nn.Module):
    """Clips uint8 [B,16,H,W,3] -> [B,101] logits before the softmax, in float32.

    digest: of weights and mean. exact_mean: whether the mean clip was given.
    """

    digest: str = ""
    exact_mean: bool = False
    mean: Tensor

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleDict(
            {k: nn.Conv3d(i, o, 3, padding=1) for k, (i, o) in CONVOLUTIONS.items()}
        )
        self.linears = nn.ModuleDict({k: nn.Linear(i, o) for k, (i, o) in LINEARS.items()})
        self.register_buffer("mean", torch.tensor(SPORTS_1M).view(3, 1, 1, 1))

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, mean: str | Path | None = None, device: str = "auto"
    ) -> "C3D":
        """The network with weights, in eval mode.

        path: a PyTorch state dict, a safetensors file, or TGANv2's conv3d_deepnetA_ucf.npz, with layers
        conv1a (or conv1) .. conv5b, fc6, fc7, fc8. mean: TGANv2's mean2.npz, or a .npy or .npz file with a
        mean clip [3,16,128,171] in blue, green, red; without it Sports-1M's mean colour is subtracted.
        """
        state, digest = read_c3d(Path(path), None if mean is None else Path(mean))
        with without_memory():
            model = cls()
        model.mean = state.pop("mean")
        model.load_state_dict(state, strict=False, assign=True)
        model.digest, model.exact_mean = digest, mean is not None
        return model.to(choose_device(device)).eval().requires_grad_(False)

    def forward(self, clips: Tensor) -> Tensor:
        """uint8 [B,16,H,W,3], red first -> logits [B,101]."""
        if clips.ndim != 5 or clips.dtype != torch.uint8 or clips.shape[1] != FRAMES or clips.shape[4] != 3:
            raise CogVideoError(f"C3D takes uint8 [B, 16, H, W, 3], not {clips.dtype} {list(clips.shape)}.")
        x = self.prepared(clips)
        with full_precision(self.convolutions["conv1a"].get_parameter("weight")):
            for name, convolution in self.convolutions.items():
                x = F.relu(convolution(x))
                if name in POOLED:
                    window = (1, 2, 2) if name == "conv1a" else (2, 2, 2)
                    # As in Caffe, the last window reaches beyond the edge: 7 rows become 4.
                    x = F.max_pool3d(x, window, window, ceil_mode=True)
        x = F.relu(self.linears["fc6"](x.flatten(1)))
        x = F.relu(self.linears["fc7"](x))
        return self.linears["fc8"](x)

    def prepared(self, clips: Tensor) -> Tensor:
        """uint8 [B,16,H,W,3] -> [B,3,16,112,112]: blue first, resized (corners aligned), minus the mean."""
        # TGANv2 scales -1..1 by 128 and adds 128: bytes become 0..256.
        pixels = clips.to(self.mean.device).float() * (256 / 255)
        pixels = rearrange(pixels, "b t h w c -> (b t) c h w").flip(1)
        pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", align_corners=True)
        return rearrange(pixels, "(b t) c h w -> b c t h w", b=len(clips)) - self.mean
