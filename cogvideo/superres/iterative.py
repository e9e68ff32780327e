"""Iterative super-resolution: redraws parts of a frame in six steps (reference SR_VQ_I3D, section 4).

Part of the release, though CogVideo's pipeline stops after direct super-resolution; CogView2 runs it next.
Text sees text; the map sees the text and a window around itself. The logits at a position are those of its
own token.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import repeat
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.model.attention import hidden_bias, without_cudnn_attention
from cogvideo.model.strategies import Generators, Strategy, TopKStrategy
from cogvideo.superres.layers import MapConfig, SuperResolution, check_shape, given_bias, text_visible
from cogvideo.superres.local_attention import Window, tiles_on

# In how many of the steps 1..6 a position is drawn again (below 1: never); the table is tiled over the map.
REDRAWS = torch.tensor(
    [
        [-1, 0, 1, 2, 3, 4],
        [0, -1, 2, -1, -2, 5],
        [1, -2, 3, 4, 5, 6],
        [2, 3, 4, 5, -1, 1],
        [3, -1, -2, 0, -1, 2],
        [4, 5, 6, 1, 3, -2],
    ]
)
STEP_TOP_K = (40, 40, 40, 20, 20, 10)


@dataclass(frozen=True)
class IterativeConfig(MapConfig):
    """Geometry of an IterativeSuperResolution; the values given here are the release's."""

    height: int = 60  # tokens
    width: int = 60
    text_slots: int = 16  # longer texts are cut
    base_positions: int = 1024  # rows of the text's position table
    window_rows: int = 9
    window_columns: int = 5

    def __post_init__(self):
        self.check(self.text_slots, self.base_positions)

    @property
    def high_tokens(self) -> int:
        return self.height * self.width


class IterativeSuperResolution(SuperResolution):
    """Text [B,L] and a map of tokens [B,N] -> the map with parts drawn again.

    text_mask [B,L] is true at real tokens; padding is hidden wherever it stands.
    """

    config: IterativeConfig
    config_class = IterativeConfig
    separate = False

    def head(self, x: Tensor) -> Tensor:
        """[*,D] -> logits [*,V], multiplied in the model's type as in the release, then fp32."""
        return F.linear(self.final_norm(x), self.word_embedding.weight[: self.config.image_tokens]).float()

    @without_cudnn_attention()
    def hidden_states(self, text_ids: Tensor, tokens: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """[B,N,D] of the map before the final norm."""
        c = self.config
        if text_ids.ndim != 2:
            raise CogVideoError(f"text_ids should be [B,L], not {list(text_ids.shape)}.")
        check_shape("tokens", tokens, len(text_ids), c.high_tokens)
        real = text_visible(text_ids, text_mask)
        first = (~real).long().argsort(dim=1, stable=True)[:, : c.text_slots]  # real tokens first
        text_ids, real = text_ids.gather(1, first), real.gather(1, first)
        given = self.embed_text(text_ids, real)
        drawn = self.word_embedding(tokens) + self.extra_position_embedding.weight
        length, windows = text_ids.shape[1], (Window(1, c.window_rows, c.window_columns),)
        tiles = tiles_on(given.device, given.dtype, c.height, c.width, windows, length)
        if text_mask is not None:
            bias = repeat(tiles.bias, "t one q k -> b t one q k", b=len(given)).clone()
            bias[..., :length] += hidden_bias(real, given.dtype)[:, None, None, None]
            tiles = replace(tiles, bias=bias.flatten(0, 1))
        bias = given_bias(real, 0, given.dtype)
        for block in self.blocks:
            given, drawn = block(given, drawn, bias, tiles, length)
        return drawn

    def logits(self, text_ids: Tensor, tokens: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Logits [B,N,V] fp32 at each position of the map; tokens [B,N] hold begin-of-image where to draw."""
        return self.head(self.hidden_states(text_ids, tokens, text_mask))

    @torch.no_grad()
    def fill(
        self,
        text_ids: Tensor,
        tokens: Tensor,
        *,
        strategy: Strategy,
        step: int = 0,
        generator: Generators = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """One pass: each begin-of-image in tokens [B,N] becomes a draw from its own logits."""
        positions = [row.nonzero()[:, 0] for row in tokens == self.config.begin_of_image]
        return self._fill(text_ids, tokens, positions, strategy, step, generator, text_mask)

    def _fill(
        self,
        text_ids: Tensor,
        tokens: Tensor,
        positions: list[Tensor],
        strategy: Strategy,
        step: int,
        generator: Generators,
        text_mask: Tensor | None,
    ) -> Tensor:
        """Draw at the `positions` of each sample. The host knows how many, so it need not wait."""
        hidden = self.hidden_states(text_ids, tokens, text_mask)
        chosen = [row.index_select(0, own) for row, own in zip(hidden, positions, strict=True)]
        drawn = self.draw_each(chosen, strategy, generator, step)
        rows = [row.index_copy(0, *new) for row, *new in zip(tokens, positions, drawn, strict=True)]
        return torch.stack(rows)

    def forward(
        self,
        text_ids: Tensor,
        tokens: Tensor,
        *,
        strategy: Strategy | None = None,
        generator: Generators = None,
        text_mask: Tensor | None = None,
        redraw: Tensor | None = None,
    ) -> Tensor:
        """The six steps of the release's fixed pattern -> [B,N]; the input map is not changed.

        strategy(logits [n,V], step 0..5) draws; None: plain top-k with the release's k for each step.
        generator: may be a list, one for each sample. redraw, [N] or [B,N] bool: only these positions may
        change.
        """
        c = self.config
        down, across = -(-c.height // len(REDRAWS)), -(-c.width // len(REDRAWS))
        redraws = REDRAWS.repeat(down, across)[: c.height, : c.width].flatten().expand(tokens.shape)
        if redraw is not None:
            redraws = redraws.masked_fill(~redraw.bool().cpu(), 0)
        steps = [redraws > step for step in range(len(STEP_TOP_K))]
        steps[0] = steps[0] | (tokens == c.begin_of_image).cpu()
        # All of them now: no step copies anything to the device.
        masks = torch.stack(steps).to(tokens.device)
        positions = [[row.nonzero()[:, 0].to(tokens.device) for row in step] for step in steps]
        for step, top_k in enumerate(STEP_TOP_K):
            tokens = tokens.masked_fill(masks[step], c.begin_of_image)
            own = strategy or TopKStrategy(top_k=top_k)
            tokens = self._fill(text_ids, tokens, positions[step], own, step, generator, text_mask)
        return tokens
