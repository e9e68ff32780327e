"""A slow, independent computation of what `capture` returns, query by query."""

from functools import lru_cache

import numpy as np
import torch
from einops import rearrange

from cogvideo.explore.recording import CHANNELS, query_groups


def sees(c, kind: str, layer: int, query: tuple[int, int], key: tuple[int, int]) -> bool:
    """The rule in words of the paper: may the frame position `query` (time, position) attend to `key`?"""
    (time, position), (other_time, other) = query, key
    given = {t for t in range(c.num_frames) if c.order == "interpolation" and t % 2 == 0}
    if kind == "spatial":
        return time == other_time and (time in given or other <= position)
    if c.window:
        shift = c.window // 2 if layer % 2 else 0
        cells = [
            ((p // c.frame_width - shift) // c.window, (p % c.frame_width - shift) // c.window)
            for p in (position, other)
        ]
        if cells[0] != cells[1]:
            return False
    if other_time in given:
        return True
    return time not in given and (other_time, other) <= (time, position)


@lru_cache
def frame_mask(c, kind: str, parity: int, frames: int) -> torch.Tensor:
    positions = [(time, position) for time in range(frames) for position in range(c.frame_tokens)]
    return torch.tensor([[sees(c, kind, parity, query, key) for key in positions] for query in positions])


def dense(model, text_ids, frames, text_mask, hidden=lambda layer, channel, head: (), silent=()):
    """For every layer the "mixed" output [P,D] and by channel: maps [H,P,L+P], visible [P,L+P], out [P,D].
    P = T * N positions. Then the logits.

    hidden: text slots that a head cannot see from frames; silent: layers without a temporal channel.
    """
    c = model.config
    length, (t, n) = len(text_ids), frames.shape
    begin = torch.full((t, 1), c.begin_of_image)
    ids = torch.cat([text_ids, torch.cat([begin, frames[:, :-1]], 1).flatten()])
    positions, real = [], 0
    for slot in range(length):
        positions.append(model.base_position_embedding.weight[max(0, real)])
        real += int(text_mask[slot])
    positions += list(
        model.base_position_embedding.weight[c.first_frame_position : c.first_frame_position + n]
    )
    if t > 1:
        positions += list(model.extra_position_embedding.weight[: (t - 1) * n])
    x = model.word_embedding.weight[ids] + torch.stack(positions)
    result = []
    for index, block in enumerate(model.blocks):
        h = block.attention_norm(x)
        layer, mixed = {}, torch.empty(0)
        for kind in ("spatial", "temporal") if c.temporal else ("spatial",):
            channel = getattr(block, kind)
            visible = torch.zeros(len(x), len(x), dtype=torch.bool)
            visible[:, :length] = text_mask
            visible[length:, length:] = frame_mask(c, kind, index % 2, t)
            q, k, v = (part.view(len(x), c.num_heads, -1) for part in channel.qkv(h).chunk(3, -1))
            scores = torch.einsum("phd,khd->hpk", q, k) / q.shape[-1] ** 0.5
            for head in range(c.num_heads):
                scores[head, length:, list(hidden(index, kind, head))] = float("-inf")
            maps = torch.where(visible, scores, torch.tensor(float("-inf"))).softmax(-1)
            out = channel.dense(torch.einsum("hpk,khd->phd", maps, v).flatten(1))
            layer[kind] = {"maps": maps[:, length:], "visible": visible[length:], "out": out[length:]}
            if kind == "spatial":
                mixed = out
            else:
                weight = torch.ones_like(block.gate) if index in silent else block.gate.sigmoid()
                mixed = torch.cat([mixed[:length], (weight * mixed + (1 - weight) * out)[length:]])
        layer["mixed"] = mixed[length:]
        result.append(layer)
        x = x + block.attention_out_norm(mixed)
        x = x + block.mlp_out_norm(block.mlp(block.mlp_norm(x)))
    result.append(model.head(x[length:]))
    return result


@torch.inference_mode()
def mix(recording, captured) -> np.ndarray:
    """[layers,Q,D]: each layer's attention output, computed from captured maps of all heads and channels."""
    c = recording.model.config
    out = np.empty((len(captured.layers), len(captured.queries), c.hidden_size), np.float32)
    for number, index in enumerate(captured.layers):
        block, read = recording.model.blocks[index], []
        for kind in CHANNELS if c.temporal else CHANNELS[:1]:
            rows = torch.empty(len(captured.queries), c.hidden_size)
            _, _, v, _ = recording.project(block, index, kind)
            for some, time in query_groups(captured.queries, kind):
                weights = torch.from_numpy(captured.maps(kind)[number][:, some])
                rows[some] = rearrange(weights @ v[time], "h q d -> q (h d)")
            read.append(rows)
        out[number] = block.merge(*read) if c.temporal else block.spatial.dense(read[0])
    return out
