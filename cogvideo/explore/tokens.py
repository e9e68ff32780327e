"""What the model nearly drew: its likeliest tokens at every position, how sure it was, and how surprised.

Two distributions can be asked for. `teacher_forced` is the model's own over the finished clip, as in
training. `sampled` is the one that the sampler draws from, with the weights' text bonus, guidance,
temperature and choice of candidates: a token may be likely in the first and impossible in the second.
"""

from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from cogvideo.model import masks
from cogvideo.model.attention import additive_bias
from cogvideo.model.strategies import ClusterStrategy, TopKStrategy
from cogvideo.model.transformer import CogVideoTransformer
from cogvideo.sampling.pipeline import Pipeline

LIKELIEST = 10
# Patches this far apart (in tokens) are exchanged and decoded together. The demo's decoder sees less than
# three patches to each side, so its pictures are exact; in one that sees farther, neighbours differ a little.
APART = 4


class Likeliest(NamedTuple):
    """The K likeliest tokens of every position, and where the token that stands there is among all."""

    tokens: np.ndarray  # int [T,N,K], the likeliest first
    probabilities: np.ndarray  # float32 [T,N,K]
    entropy: np.ndarray  # float32 [T,N] nats: how undecided the model was
    surprise: np.ndarray  # float32 [T,N] nats: minus the logarithm of the token's probability
    rank: np.ndarray  # int [T,N]: 1 for the likeliest token


def likeliest(probabilities: Tensor, frames: Tensor, count: int = LIKELIEST) -> Likeliest:
    """What distributions [T,N,V] say about the tokens [T,N] of a clip; equal ones count as less likely."""
    p = probabilities.double()
    own = p.gather(-1, frames[..., None])
    most, tokens = p.topk(min(count, p.shape[-1]))
    entropy = torch.special.entr(p).sum(-1)
    rank = (p > own).sum(-1) + 1
    found = tokens, most.float(), entropy.float(), -own[..., 0].log().float(), rank
    return Likeliest(*(part.cpu().numpy() for part in found))


@torch.inference_mode()
def teacher_forced(
    model: CogVideoTransformer, text_ids: Tensor, frames: Tensor, conditioning: Tensor | None = None
) -> Tensor:
    """Distributions [T,N,V] of a finished clip, as in training; text_ids [L], frames [T,N] as in `record`."""
    return _logits(model, text_ids, frames, conditioning, 0.0).softmax(-1)


@torch.inference_mode()
def sampled(
    pipe: Pipeline, model: CogVideoTransformer, text_ids: Tensor, frames: Tensor, span: float,
    conditioning: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The distributions [T,N,V] that the pipeline's sampler draws each token of a clip from.

    model: of stage 1 or stage 2; span: seconds between the first and the last frame. Those of given frames
    are not drawn from.
    """
    s, first = pipe.sampling, model.config.order == "sequential"
    scale = s.key_guidance if first else s.fill_guidance
    bonus = s.key_text_bonus if first else s.fill_text_bonus
    if first and scale == 1 and s.unguided_text_bonus is not None:
        bonus = s.unguided_text_bonus
    quirks = s.release_quirks and not first
    logits = _logits(model, text_ids, frames, conditioning, bonus, quirks)
    if scale != 1:
        guide = _logits(model, pipe._guide([span])["guidance_ids"][0], frames, conditioning, bonus, quirks)
        logits = guide + (logits - guide) * scale
    strategy = pipe._strategy(s.temperature, s.top_k)
    assert isinstance(strategy, TopKStrategy | ClusterStrategy)  # what pipelines draw by
    return strategy.probabilities(logits.flatten(0, 1)).view_as(logits)


def _logits(
    model: CogVideoTransformer, text_ids: Tensor, frames: Tensor, conditioning: Tensor | None,
    bonus: float, quirks: bool = False,
) -> Tensor:  # fmt: skip
    """[T,N,V]; bonus is added to all scores towards text, quirks as in `interpolate_frames`."""
    x, text, spatial, temporal = model.prepare(text_ids[None], frames[None], None, conditioning)
    length = text.bias.shape[-1]
    if bonus:
        spatial = spatial.clone()
        spatial[..., :length] += bonus
    if temporal is not None and (bonus or quirks):
        t, positions = len(frames), frames.numel()
        given = masks.is_given(model.config)[:t].repeat_interleave(frames.shape[1]) if quirks else None
        biases = []
        for parity in range(len(temporal)):
            seen = model.mask(f"temporal_{parity}" + "_quirks" * quirks, x.device)[:positions, :positions]
            bias = additive_bias(seen, text.bias, bonus)
            if given is not None:
                bias[:, :, given, :length] -= bonus
            biases.append(bias)
        temporal = biases
    return model.head(model.run(x, text.layers, spatial, temporal))[0]


def pictures(
    pipe: Pipeline, frames: Tensor, time: int, patches: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
    """What tokens would draw in a frame: uint8 [P,K,h,w,3], the patch's own pixels.

    frames [T,N]: the clip; patches [P]: numbers of patches in frame `time`; tokens [P,K]: what stands there
    instead. All else of the frame stays as it is.
    """
    c = pipe.stage1.config
    own, count = frames[time], tokens.shape[1]
    rows, columns = np.divmod(patches, c.frame_width)
    phase = rows % APART * APART + columns % APART
    out: np.ndarray | None = None
    for together in (np.flatnonzero(phase == number) for number in np.unique(phase)):
        changed = own.repeat(count, 1)
        changed[:, torch.from_numpy(patches[together])] = torch.from_numpy(tokens[together]).T.to(own)
        drawn = pipe.pixels(changed[None])[0]
        cut = rearrange(
            drawn, "k (h a) (w b) c -> (h w) k a b c", h=c.frame_height, w=c.frame_width
        )[patches[together]]  # fmt: skip
        out = np.empty((len(patches), *cut.shape[1:]), np.uint8) if out is None else out
        out[together] = cut
    assert out is not None
    return out
