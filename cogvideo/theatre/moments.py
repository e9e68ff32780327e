"""How the demo's image model is conditioned on the moment it draws, so that a temporal channel passes on one number.

Stages 1 and 2 cannot change the image model they inherit. How much of an action a key frame shows depends on
the frame's number, on the span and on the adverb, together; a small image model that must find this out from
its text does not (it draws any moment of the action), and neither does a temporal channel above it.
Conditioned on the part of the action outright, as a logarithm along one direction of its residual stream, the
image model learns to draw it. In that direction the number of the frame, the span and the adverb add up:
frame k of five that span S seconds of an action of D shows k / 4 * S / D of it. The first factor stands in
the frame's positions, as it does in stage 1; the second joins the stream with the attention output of the
first layer, where stage 1's temporal channel, which reads the two words, can add it (through a layer norm, so
nearly). Frame 0 is not conditioned: pictures, first frames, and the frames that stage 2 interpolates come
from any moment.
"""

import torch
from torch import Tensor, nn

from cogvideo.model.initialization import EMBEDDING_SCALE
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.theatre.batches import PictureBatch

LAST = 4  # number of a clip's last key frame


class Moments(nn.Module):
    """Two vectors [2,D] of the stream: that a moment is given, and what two octaves of the action's part are."""

    def __init__(self, hidden_size: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.vectors = nn.Parameter(2 * EMBEDDING_SCALE * torch.randn(2, hidden_size, generator=generator))

    def of_frames(self, numbers: Tensor) -> Tensor:
        """Frame numbers [B] in 0..4 -> what is added to these frames' positions [B,D]: nothing for frame 0."""
        octaves = torch.log2(numbers.clamp(min=1) / LAST)
        told = self.vectors[0] + (octaves[:, None] + 1) / 2 * self.vectors[1]
        return told * (numbers > 0)[:, None]

    def of_texts(self, octaves: Tensor) -> Tensor:
        """log2(span / duration) [B] -> what joins the stream after the first layer's attention [B,D]."""
        return octaves[:, None] / 2 * self.vectors[1]

    def loss(self, model: CogVideoTransformer, batch: PictureBatch) -> Tensor:
        """Mean cross entropy (nats) of an image model whose pictures [B,1,N] have the moments of the batch."""
        told = self.of_frames(batch.numbers)[:, None, None]
        written = (self.of_texts(batch.octaves) * (batch.numbers > 0)[:, None])[:, None, None]

        def write(_module: nn.Module, _inputs: object, out: Tensor) -> Tensor:
            return out + written if out.ndim == written.ndim else out  # the text's has fewer dimensions

        with model.blocks[0].get_submodule("attention_out_norm").register_forward_hook(write):
            return model.frame_losses(*batch.inputs, shift=told).mean()

    @torch.no_grad()
    def tell_frames(self, model: CogVideoTransformer) -> None:
        """Start a stage 1 that knows its frames: their positions get what the image model was told."""
        assert model.extra_position_embedding is not None
        table, n = model.extra_position_embedding.weight, model.config.frame_tokens
        for row, vector in enumerate(self.of_frames(torch.arange(1, model.config.num_frames))):
            table[row * n : (row + 1) * n] += vector
