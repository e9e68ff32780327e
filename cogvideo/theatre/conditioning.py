"""How the demo's image model is conditioned on the action's phase, and why a frozen base needs it.

Stages 1 and 2 cannot change the image model that they inherit. Which phase of the action a frame shows
depends on where in the clip it stands, on the clip's span and on the adverb together: a frame at the part p
of a clip of S seconds shows the part p * S / D of an action of D seconds. A small image model that has to
find this out from its text does not; it draws any phase, and a temporal channel above it would have to
replace the whole picture.

So the image model is given both factors while it is trained. The frame's place, a vector of its own for
each moment of a clip, is added to the frame's inputs, where stage 1 has its positions and stage 2 its
places (masks.place). The octaves of S / D, in which span and adverb add up, go along one direction, which
joins the stream with the attention output of the first layer: there a temporal channel, which reads the two
words, can add it. Where the clip spans the whole action, as it should, the octaves are 0 and the place is
the part of the action; what becomes of both together, the image model learns from pictures. Stage 1 then
has one whole number to say instead of a picture to paint. Its loss alone teaches it that number late: two
bits in 256 tokens, and later frames copy them from earlier ones. So the first layer of each stage is
trained first, to add the vector that the image model was given.

Some pictures are given the part as a logarithm alone, octaves of place, span and adverb along the same
direction (`of_frames`): this teaches what an octave is. No stage begins with it: key frames are 0.4 octaves
apart, and a first layer that is 0.3 beside the truth then draws another state (4.2 nats a frame instead of
1.6), while beside a place it draws the right one (1.6). Pictures without either come from any phase, or are
first frames.
"""

import torch
from torch import Tensor, nn

from cogvideo.model import masks
from cogvideo.model.initialization import EMBEDDING_SCALE, grid_positions
from cogvideo.model.transformer import Block, CogVideoTransformer
from cogvideo.theatre.batches import ROUNDS, PhaseBatch, PictureBatch

LAST = 4  # number of a clip's last key frame
MOMENTS = LAST * 2**ROUNDS  # a clip's last frame's number when all rounds are done


class PhaseConditioning(nn.Module):
    """Vectors [2,D] of the stream: that a phase is given, and two octaves of the action's part; and moments
    [MOMENTS+1,D]: where in the clip a frame stands.
    """

    def __init__(self, hidden_size: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.vectors = nn.Parameter(2 * EMBEDDING_SCALE * torch.randn(2, hidden_size, generator=generator))
        waves = grid_positions(MOMENTS + 1, 1, hidden_size, step=0.25)  # neighbours begin alike
        self.moments = nn.Parameter(2 * EMBEDDING_SCALE * waves)

    def of_frames(self, numbers: Tensor) -> Tensor:
        """Frame numbers [B] in 0..4 -> the vectors [B,D] added to these frames' inputs: 0 for frame 0."""
        octaves = torch.log2(numbers.clamp(min=1) / LAST)
        given = self.vectors[0] + (octaves[:, None] + 1) / 2 * self.vectors[1]
        return given * (numbers > 0)[:, None]

    def of_places(self, rounds: Tensor, places: Tensor) -> Tensor:
        """Frames' numbers [*] in clips after so many rounds [*] -> the vectors [*,D] added to their inputs.

        A round halves the span that the text tells; the octave is given back here.
        """
        return self.moments[places * 2 ** (ROUNDS - rounds)] + rounds[..., None] / 2 * self.vectors[1]

    def of_texts(self, octaves: Tensor) -> Tensor:
        """log2(span / duration) [B] -> what joins the stream after the first layer's attention [B,D]."""
        return octaves[:, None] / 2 * self.vectors[1]

    def loss(self, model: CogVideoTransformer, batch: PictureBatch) -> Tensor:
        """Mean cross entropy (nats) of an image model on pictures [B,1,N] conditioned on their phase."""
        given, told = self.of_frames(batch.numbers), batch.numbers[:, None] > 0
        if batch.rounds is not None and batch.places is not None:
            placed = batch.rounds > 0
            here = self.of_places(batch.rounds.clamp(min=1), batch.places[:, 0] * placed)
            given, told = torch.where(placed[:, None], here, given), told | placed[:, None]
        conditioning = given[:, None, None]
        added = (self.of_texts(batch.octaves) * told)[:, None, None]

        def add(_module: nn.Module, _inputs: object, out: Tensor) -> Tensor:
            return out + added if out.ndim == added.ndim else out  # the text's has fewer dimensions

        with model.blocks[0].get_submodule("attention_out_norm").register_forward_hook(add):
            return model.frame_losses(*batch.inputs, conditioning=conditioning).mean()

    def first_layer_error(self, model: CogVideoTransformer, batch: PhaseBatch) -> Tensor:
        """Squared error of what a stage adds in its first layer, relative to a step of two octaves.

        It should add `of_texts`: stage 1 to every frame after the first, of which the first two are computed;
        stage 2 to all frames.
        """
        stage1 = batch.rounds is None
        frames, conditioning = batch.frames[:, :2] if stage1 else batch.frames, placed_inputs(model, batch)
        x, text, spatial, temporal = model.prepare(batch.text_ids, frames, batch.text_mask, conditioning)
        block, memory, found = model.blocks[0], text.layers[0], []
        assert isinstance(block, Block) and temporal is not None

        def keep(_module: nn.Module, _inputs: object, out: Tensor) -> None:
            found.append(out)

        with block.attention_out_norm.register_forward_hook(keep):
            with torch.no_grad():
                block(x, memory, spatial)
            block(x, memory, spatial, temporal[0])
        wanted = found[0] + self.of_texts(batch.octaves)[:, None, None]
        error = (found[1] - wanted)[:, int(stage1) :].square().sum(-1).mean()
        return error / self.vectors[1].square().sum()

    @torch.no_grad()
    def start_stage(self, model: CogVideoTransformer) -> None:
        """Give a stage that is about to be trained the places of its frames: stage 1 as part of their
        positions, for its five stand always there; stage 2 in a table.
        """
        assert model.extra_position_embedding is not None
        if model.place_embedding is not None:
            for round_ in range(1, ROUNDS + 1):
                numbers = torch.arange(LAST * 2**round_ + 1)
                rows = masks.place(model.config, round_, numbers)
                model.place_embedding.weight[rows] = self.of_places(torch.full_like(numbers, round_), numbers)
            return
        table, n = model.extra_position_embedding.weight, model.config.frame_tokens
        numbers = torch.arange(1, model.config.num_frames)
        for row, vector in enumerate(self.of_places(torch.zeros_like(numbers), numbers)):
            table[row * n : (row + 1) * n] += vector


def placed_inputs(model: CogVideoTransformer, batch: PhaseBatch) -> Tensor | None:
    """`conditioning` [B,T,1,D] of a batch for stage 2; None for others, and models that are not told."""
    if batch.rounds is None or batch.places is None:
        return None
    return model.place_vectors(batch.rounds[:, None], batch.places)
