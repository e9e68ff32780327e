"""Random weights to train from, and tables that say something before training."""

import torch
from einops import rearrange
from torch import Tensor, nn

EMBEDDING_SCALE = 0.06  # of embeddings in training from nothing


def initialize_weights(model: nn.Module, num_layers: int, seed: int) -> None:
    """Random weights for a sandwich-LN transformer.

    Embeddings normal(0, 0.06) and branches that enter the stream at 0.4 of unit scale: with 0.02 and 1, as in
    the release, the first branches drown the tokens, and the demo's image model needs about twice the steps.
    Linear weights normal(0, 0.02), those that end a branch scaled by 1/sqrt(2 layers).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data.fill_(
                0.4 if name.endswith("out_norm.weight") else float(name.endswith("norm.weight"))
            )
        else:
            std = EMBEDDING_SCALE if "embedding" in name else 0.02
            if name.endswith(("dense.weight", "down.weight")):
                std /= (2 * num_layers) ** 0.5
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)


def grid_positions(height: int, width: int, size: int, *, step: float = 1) -> Tensor:
    """[height*width, size] of unit scale: sines and cosines of the row, then of the column.

    "The same position, one to the left" is then one linear map for all positions, not one to be learned for
    each. With `step` s, cells stand at the centres of s x s cells of a finer grid, and get positions between
    those of its rows.
    """
    waves = size // 4
    frequencies = (torch.arange(waves) + 0.5) * torch.pi / waves

    def along(length: int) -> Tensor:
        angles = (step * torch.arange(length) + (step - 1) / 2)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], -1) * 2**0.5

    rows, columns = along(height), along(width)
    grid = torch.zeros(height, width, size)
    grid[..., : 2 * waves] = rows[:, None]
    grid[..., 2 * waves : 4 * waves] = columns[None]
    return rearrange(grid, "h w d -> (h w) d")


def codebook_embedding(codebook: Tensor, size: int, seed: int = 0) -> Tensor:
    """[K,C] codes -> [K,size] a random projection: similar codes start with similar embeddings."""
    generator = torch.Generator().manual_seed(seed)
    centred = codebook.float().cpu() - codebook.float().cpu().mean(0)
    projected = centred @ torch.randn(centred.shape[1], size, generator=generator)
    return EMBEDDING_SCALE * projected / projected.std()
