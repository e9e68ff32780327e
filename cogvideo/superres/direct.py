"""Direct super-resolution: all tokens of the enlarged frame in one pass (reference SR_VQ_I3D, section 3).

The sequence is text, low-resolution tokens, then begin-of-image at every position of the enlarged map. Text
sees text, the low-resolution image sees both, and the enlarged map sees two windows: around the same spot of
the low-resolution map and around itself. The logits at a position are those of its own token. Frames are
independent of each other.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from typing_extensions import Self

from cogvideo.errors import CogVideoError
from cogvideo.model.attention import without_cudnn_attention
from cogvideo.model.initialization import EMBEDDING_SCALE, codebook_embedding, grid_positions
from cogvideo.model.strategies import Generators, Strategy
from cogvideo.superres.layers import MapConfig, SuperResolution, check_shape, given_bias, text_visible
from cogvideo.superres.local_attention import Window, tiles_on


@dataclass(frozen=True)
class SuperResolutionConfig(MapConfig):
    """Geometry of a DirectSuperResolution; the defaults are the release's (20x20 -> 60x60 tokens)."""

    low_height: int = 20  # tokens of the given frame
    low_width: int = 20
    scale: int = 3  # how much taller and wider the enlarged map is
    text_slots: int = 96  # one of them is always padding, so that text has at most text_slots - 1 tokens
    low_position: int = 513  # position id of the first low-resolution token; text has 0, 1, 2, ...
    base_positions: int = 1024  # rows of the position table of text and low-resolution image
    low_window: int = 5  # side of the window on the low-resolution map
    high_window_rows: int = 9  # of the window on the enlarged map
    high_window_columns: int = 5

    def __post_init__(self):
        self.check(max(self.low_position + self.low_tokens, self.text_slots - 1), self.base_positions)

    @property
    def low_tokens(self) -> int:
        return self.low_height * self.low_width

    @property
    def high_tokens(self) -> int:
        return self.scale**2 * self.low_tokens


class DirectSuperResolution(SuperResolution):
    """Low-resolution tokens [B,n] and text [B,L] -> enlarged tokens [B,scale^2*n], row-major.

    text_mask [B,L] is true at real tokens; padding is hidden wherever it stands.
    """

    config: SuperResolutionConfig
    config_class = SuperResolutionConfig
    separate = True

    @classmethod
    def from_config(
        cls, config: SuperResolutionConfig, seed: int = 0, codebook: Tensor | None = None
    ) -> Self:
        """A new model to train: positions of both maps from one grid, tokens from `codebook` [K,C]."""
        c, model = config, super().from_config(config, seed)
        low = grid_positions(c.low_height, c.low_width, c.hidden_size, step=c.scale)
        high = grid_positions(c.scale * c.low_height, c.scale * c.low_width, c.hidden_size)
        rows = slice(c.low_position, c.low_position + c.low_tokens)
        model.base_position_embedding.weight.data[rows] = EMBEDDING_SCALE * low
        model.extra_position_embedding.weight.data.copy_(EMBEDDING_SCALE * high)
        if codebook is not None:
            model.word_embedding.weight.data[: c.image_tokens] = codebook_embedding(
                codebook, c.hidden_size, seed
            )
        return model

    @without_cudnn_attention()
    def hidden_states(
        self,
        text_ids: Tensor,
        low_res: Tensor,
        high_res: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """[B,9n,D] of the enlarged map before the final norm; high_res None: begin-of-image everywhere."""
        c = self.config
        if text_ids.ndim != 2 or text_ids.shape[1] >= c.text_slots:
            raise CogVideoError(
                f"text_ids should be [B,L] with at most {c.text_slots - 1} tokens, not "
                f"{list(text_ids.shape)}; shorten the prompt."
            )
        batch = len(text_ids)
        check_shape("low_res", low_res, batch, c.low_tokens)
        if high_res is None:
            high_res = low_res.new_full((batch, c.high_tokens), c.begin_of_image)
        check_shape("high_res", high_res, batch, c.high_tokens)
        real = text_visible(text_ids, text_mask)
        low_positions = self.base_position_embedding.weight[c.low_position :][: c.low_tokens]
        low = self.word_embedding(low_res) + low_positions
        given = torch.cat([self.embed_text(text_ids, real), low], 1)
        drawn = self.word_embedding(high_res) + self.extra_position_embedding.weight
        bias = given_bias(real, c.low_tokens, given.dtype)
        high = c.scale * c.low_height, c.scale * c.low_width
        windows = (
            Window(c.scale, c.low_window, c.low_window),
            Window(1, c.high_window_rows, c.high_window_columns),
        )
        tiles = tiles_on(given.device, given.dtype, *high, windows)
        for block in self.blocks:
            given, drawn = block(given, drawn, bias, tiles, c.low_tokens)
        return drawn

    def logits(
        self,
        text_ids: Tensor,
        low_res: Tensor,
        high_res: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [B,9n,V] fp32 of the token at each position of the enlarged map; high_res: its inputs."""
        return self.head(self.hidden_states(text_ids, low_res, high_res, text_mask))

    def loss(
        self, text_ids: Tensor, low_res: Tensor, high_res: Tensor, text_mask: Tensor | None = None
    ) -> Tensor:
        """Mean cross entropy (nats) of the enlarged tokens high_res [B,9n], all predicted at once."""
        check_shape("high_res", high_res, len(text_ids), self.config.high_tokens)
        logits = self.logits(text_ids, low_res, text_mask=text_mask)
        return F.cross_entropy(rearrange(logits, "b n v -> (b n) v"), high_res.reshape(-1))

    @torch.no_grad()
    def forward(
        self,
        text_ids: Tensor,
        low_res: Tensor,
        *,
        strategy: Strategy,
        generator: Generators = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Draw the enlarged tokens [B,9n], independently of each other, by strategy(logits [9n,V], step 0).

        The release's strategy: ClusterStrategy(labels, temperature=1.0, top_k=6, temperature2=0.6).
        `generator` may be a list, one for each sample.
        """
        hidden = self.hidden_states(text_ids, low_res, text_mask=text_mask)
        return torch.stack(self.draw_each(list(hidden), strategy, generator))
