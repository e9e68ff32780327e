"""A distance of pictures in the eyes of VGG16, for who has its weights (Johnson et al. 2016)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cogvideo.checkpoints.c3d_weights import read_table
from cogvideo.errors import CogVideoError

# Widths of its convolutions; "M" halves, and what stands before one is compared. Up to relu4_3.
LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in 0..1


class PerceptualDistance(nn.Module):
    """Mean squared difference of VGG16's features, each position scaled to length 1; frozen.

    file: torchvision's weights (vgg16-397923af.pth) or a safetensors file with the same names.
    """

    def __init__(self, file: str | Path):
        super().__init__()
        table, layers, inside = read_table(Path(file), "of VGG16"), [], 3
        for number, width in enumerate(LAYERS):
            if isinstance(width, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layer = nn.Conv2d(inside, width, 3, 1, 1)
            at, inside = sum(1 if isinstance(w, str) else 2 for w in LAYERS[:number]), width
            try:
                layer.load_state_dict({kind: table[f"features.{at}.{kind}"] for kind in ("weight", "bias")})
            except (KeyError, RuntimeError):
                advice = "give torchvision's vgg16 file, or leave perceptual away"
                raise CogVideoError(f"{file} has no weights of VGG16 at features.{at}: {advice}.") from None
            layers += [layer, nn.ReLU()]
        self.layers = nn.ModuleList(layers).requires_grad_(False)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """[B,3,H,W] in 0..1, twice -> a scalar."""
        x, total = (torch.cat([a, b]) - self.mean) / self.std, a.new_zeros(())
        for layer in self.layers:
            if isinstance(layer, nn.MaxPool2d):
                of_a, of_b = F.normalize(x, dim=1).chunk(2)
                total = total + (of_a - of_b).square().sum(1).mean()
            x = layer(x)
        return total
