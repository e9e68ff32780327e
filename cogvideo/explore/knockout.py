"""What a head's attention is good for: the clip's loss when heads cannot see a word, or a channel is silent.

The model is run again from the first layer that changes, with the forbidden keys hidden before the softmax
(attention knockout, Geva et al. 2023).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cogvideo.errors import CogVideoError
from cogvideo.explore.recording import Recording
from cogvideo.explore.requests import CHANNELS, numbers
from cogvideo.explore.silence import Silent, silenced


@torch.inference_mode()
def token_losses(
    recording: Recording,
    *,
    hide: Sequence[int] = (),
    channels: Sequence[str] = CHANNELS,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    frames: Sequence[int] = (),
    silent: Sequence[int] = (),
    parts: Sequence[Silent] = (),
) -> Tensor:
    """Cross entropy [T,N] in nats of every token of the clip in a changed, or by default the same, model.

    hide: text slots that `heads` of `channels` in `layers` (None: all) cannot see; the words themselves still
    read each other. Where not all heads are changed, each takes a bias of its own in memory.
    frames: frames that the same heads cannot see in the temporal channel.
    silent: layers whose temporal channel counts nothing, as if their gate were 1.
    parts: heads and channels that are silenced (silence.py).
    """
    model, c, length = silenced(recording.model, parts), recording.model.config, len(recording.text_ids)
    silent = numbers("layers", silent, c.num_layers) if len(silent) else []
    changed = numbers("layers", layers, c.num_layers)
    heads = numbers("heads", heads, c.num_heads)
    if bad := [slot for slot in hide if not 0 <= slot < length]:
        raise CogVideoError(f"There is no text slot {bad[0]}: this text has slots 0..{length - 1}.")
    if bad := [time for time in frames if not 0 <= time < len(recording.frames)]:
        raise CogVideoError(
            f"There is no frame {bad[0]}: this clip has frames 0..{len(recording.frames) - 1}."
        )
    n = recording.frames.shape[1]
    keys = [*hide, *(length + time * n + j for time in frames for j in range(n))]  # of the temporal channel
    touched = (changed if keys else []) + silent + [part.layer for part in parts]
    first = min(touched) if touched else c.num_layers - 1
    if missing := [layer for layer in range(first, c.num_layers) if layer not in recording.inputs]:
        raise CogVideoError(f"Layers {missing} were not recorded: record all of them.")
    x = recording.inputs[first]
    for index, block in enumerate(model.blocks):
        if index < first:
            continue
        spatial, biases = recording.spatial_bias, recording.temporal_bias
        temporal = None if biases is None else biases[index % len(biases)]
        if index in changed:
            if "spatial" in channels and len(hide):
                spatial = _hidden(spatial, hide, heads, c.num_heads)
            if "temporal" in channels and keys and temporal is not None:
                temporal = _hidden(temporal, keys, heads, c.num_heads)
        x = block(x, recording.text[index], spatial, None if index in silent else temporal)
    logits, tokens = model.head(x[0]), recording.frames
    losses = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none")
    return losses.view(tokens.shape)


def _hidden(bias: Tensor, slots: Sequence[int], heads: Sequence[int], num_heads: int) -> Tensor:
    """bias [..,1,Q,K] -> [..,H,Q,K] (or as it was, for all heads) with -inf at the slots of those heads."""
    if len(heads) == num_heads:
        bias = bias.clone()
        bias[..., list(slots)] = float("-inf")
        return bias
    bias = bias.expand(*bias.shape[:-3], num_heads, -1, -1).clone()
    cut = torch.zeros(num_heads, bias.shape[-1], dtype=torch.bool, device=bias.device)
    cut[torch.tensor(heads)[:, None], torch.tensor(list(slots))] = True
    return bias.masked_fill_(cut[:, None], float("-inf"))
