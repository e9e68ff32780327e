"""Which heads of stage 1 carry the order of phases: found by silencing them, one after the other.

"Puts on" and "takes off" show the same pictures in opposite order. So the true key frames of one, under the
sentence of the other, are wrong in their order alone; how many nats more they cost there is what the model
knows about order. A head that carries it takes a part of those nats away when it is silent, and harms nothing
else.
"""

import itertools
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cogvideo.explore.knockout import token_losses
from cogvideo.explore.recording import CHANNELS, record
from cogvideo.explore.silence import Silent, silenced
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre.dataset import pixels
from cogvideo.theatre.facts import MIRRORED, draw_clips, regions
from cogvideo.theatre.scenes import caption
from cogvideo.theatre.scores import score_key_frames


def margins(
    pipe: Pipeline, n: int = 2, *, seed: int = 0, seconds: float = 4.0, progress: bool = False
) -> Any:
    """DataFrame by channel, layer and head of stage 1 ("none" first), over n true clips of mirrored actions.

    "margin": nats that a token of the patches that move costs more under the mirrored sentence, without this
    head. "lost": by how much the margin is smaller than the whole model's. "elsewhere": nats that a token of
    all other patches costs more without the head, under its own sentence: what it does besides order.
    """
    import pandas as pd

    c = pipe.stage1.config
    heads = [Silent(*one) for one in itertools.product(CHANNELS, range(c.num_layers), range(c.num_heads))]
    clips = [clip for pair in MIRRORED for action in pair for clip in _clips(pipe, action, n, seed, seconds)]
    found: dict[Silent | None, list[tuple[float, float]]] = {}
    for head in tqdm([None, *heads], desc="heads", unit="head", disable=not progress):
        parts = [] if head is None else [head]
        for own, mirrored, moving in clips:
            here, there = (token_losses(one, parts=parts) for one in (own, mirrored))
            made = torch.zeros_like(moving)
            made[1:] = True
            margin = (there - here)[moving & made].mean()
            found.setdefault(head, []).append((float(margin), float(here[~moving & made].mean())))
    whole = np.mean(found[None], 0)
    rows = [(head or ("none", -1, -1), np.mean(values, 0)) for head, values in found.items()]
    return pd.DataFrame(
        {"channel": head[0], "layer": head[1], "head": head[2]}
        | {"margin": margin, "lost": whole[0] - margin, "elsewhere": rest - whole[1]}
        for head, (margin, rest) in rows
    )


def carriers(table: Any, count: int) -> list[Silent]:
    """The heads that take most of the margin away, first the one that takes most."""
    heads = table[table["head"] >= 0].sort_values("lost", ascending=False)
    return [Silent(row.channel, row.layer, row.head) for row in heads.head(count).itertuples()]


def drawn_without(
    pipe: Pipeline,
    silences: Mapping[str, Sequence[Silent]],
    n: int = 4,
    *,
    seed: int = 0,
    seconds: float = 4.0,
) -> Any:
    """DataFrame: key frames of n clips of each mirrored action, drawn anew in each silence, and judged.

    "order": clips whose key frames show the action in its order; "same": clips that show one animal, one
    object and one wall throughout, in whatever order: what a head that carries order alone leaves as it is.
    """
    import pandas as pd

    asked = [draw_clips(n, seed, seconds, action=action) for action in itertools.chain(*MIRRORED)]
    prompts = [clips.caption(i) for clips in asked for i in range(n)]
    rows = []
    for name, parts in silences.items():
        changed = copy(pipe)
        changed.stage1 = silenced(pipe.stage1, parts)
        frames = changed.key_frames(prompts, seconds, list(range(seed, seed + len(prompts))))
        scores = [
            score_key_frames(frames[i * n : (i + 1) * n], clips, seconds) for i, clips in enumerate(asked)
        ]
        means = {key: float(np.concatenate([one[key] for one in scores]).mean()) for key in ("order", "same")}
        rows.append({"silent": name, "heads": len(parts)} | means | {"clips": len(prompts)})
    return pd.DataFrame(rows)


def _clips(
    pipe: Pipeline, action: str, n: int, seed: int, seconds: float
) -> list[tuple[Any, Any, torch.Tensor]]:
    """True clips: recordings under their own and the mirrored sentence, and which patches move [T,N]."""
    opposite = {one: other for pair in MIRRORED for one, other in (pair, pair[::-1])}
    asked = draw_clips(n, seed, seconds, action=action)
    times = np.linspace(0, seconds, pipe.stage1.config.num_frames)
    moving = torch.from_numpy(regions(asked, np.tile(times, (n, 1)))["moving"])
    made = []
    for i in range(n):
        actor, _, thing = asked.names(i)
        frames = pipe.tokens(pixels(asked[i : i + 1], times)[None])[0]
        texts = (caption(actor, verb, thing, seconds) for verb in (action, opposite[action]))
        ids = [torch.tensor(pipe.text.encode_prompt(text, seconds), device=pipe.device) for text in texts]
        made.append((*(record(pipe.stage1, one, frames) for one in ids), moving[i].to(pipe.device)))
    return made
