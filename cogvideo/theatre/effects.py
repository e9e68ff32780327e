"""What attention of clips does: where words are read, from which frames, and what a loss costs without it.

Of finished clips of a model and patches of them (`there`, [T,N] bool for every clip); all other patches are
the control. The questions that are put to a model of the theatre stand in facts.py.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange

from cogvideo.explore.analysis import gate_table
from cogvideo.explore.knockout import token_losses
from cogvideo.explore.recording import CHANNELS, Recording, record
from cogvideo.model import masks

Regions = np.ndarray | Sequence[np.ndarray]  # a mask [T,N] for every clip


def reading(clips: Sequence[Recording], slots: Sequence[Sequence[int]], there: Regions) -> Any:
    """Where words are read: DataFrame by channel, layer and head, with all heads together as head -1.

    slots: the words' slots in every clip; there [T,N] bool of every clip: the patches that show what they
    say. "weight", "weight elsewhere": mean attention to them from these patches and from all others. "rise",
    "rise elsewhere": how many nats more such a token costs when these heads cannot see the words. Of
    generated frames, mean over clips; "deviation" of the rise between clips.
    """
    import pandas as pd

    c, rows = clips[0].model.config, {}
    for clip, own_slots, shown in zip(clips, slots, there, strict=True):
        inside, outside = _split(clip, shown)
        own, captured = token_losses(clip).cpu().numpy(), clip.capture()
        for channel in CHANNELS if c.temporal else CHANNELS[:1]:
            weights = captured.maps(channel)[..., list(own_slots)].sum(-1)
            weights = rearrange(weights, "l h (t n) -> l h t n", n=c.frame_tokens)
            for layer, head in itertools.product(range(c.num_layers), (-1, *range(c.num_heads))):
                heads = None if head == -1 else [head]
                cut = token_losses(clip, hide=own_slots, channels=[channel], layers=[layer], heads=heads)
                rise = cut.cpu().numpy() - own
                looks = weights[layer].mean(0) if head == -1 else weights[layer, head]
                values = [_mean(part, where) for part in (looks, rise) for where in (inside, outside)]
                rows.setdefault((channel, layer, head), []).append(values)
    measures = ("weight", "weight elsewhere", "rise", "rise elsewhere")
    return pd.DataFrame(
        dict(zip(("channel", "layer", "head"), key, strict=True))
        | dict(zip(measures, np.mean(values, 0), strict=True))
        | {"deviation": np.std(values, 0)[2]}
        for key, values in rows.items()
    )


def costs(
    clips: Sequence[Recording],
    hidden: Mapping[str, Sequence[dict]],
    swapped: Mapping[str, Sequence[dict[int, int]]],
    there: Mapping[str, Regions],
) -> Any:
    """What changes cost: DataFrame of the nats more that a token of the patches `there`, or elsewhere, costs.

    hidden: by name, what `token_losses` hides in every clip, from all positions, heads and layers.
    swapped: by name, the ids of other words in the slots of every clip. there: by name ("of"), every clip's
    patches.
    """
    import pandas as pd

    own, rises = [token_losses(clip) for clip in clips], {}
    for name, changes in {**hidden, **swapped}.items():
        for i, (clip, change) in enumerate(zip(clips, changes, strict=True)):
            if name in swapped:
                ids = clip.text_ids.clone()
                ids[list(change)] = torch.tensor(list(change.values()), device=ids.device)
                after = token_losses(record(clip.model, ids, clip.frames, conditioning=clip.conditioning))
            else:
                after = token_losses(clip, **change)
            for of, shown in there.items():
                rises.setdefault((of, name), []).append(_rise(clip, after - own[i], shown[i]))
    rows = sorted(rises, key=lambda row: list(there).index(row[0]))  # otherwise in the order of the changes
    return pd.DataFrame(
        dict(zip(("of", "change", "rise", "rise elsewhere"), (*row, *np.mean(rises[row], 0)), strict=True))
        for row in rows
    )


def sources(clips: Sequence[Recording], slots: Sequence[Sequence[int]], there: Regions) -> Any:
    """Where patches get from what they show: DataFrame by layer and head of the temporal channel.

    From the patches `there` [T,N] of generated frames. "word": attention on `slots`. Of the attention to
    patches of other frames: "own patches", the part on those that are `there` as well; "back", how many
    frames back it goes; "earlier", the part on earlier frames; each beside its control of "even" attention.
    Mean over patches and clips; "deviation of back" and "of earlier" between clips.
    """
    import pandas as pd

    c, found = clips[0].model.config, []
    for clip, own_slots, shown in zip(clips, slots, there, strict=True):
        captured = clip.capture(channels=["temporal"])
        asking = _split(clip, shown)[0].flatten()
        maps, seen = captured.maps("temporal")[:, :, asking], captured.visible("temporal")[:, None, asking]
        times = captured.queries[asking, 0]
        lag = times[:, None] - np.arange(len(clip.frames))  # [Q,F]
        values = {"word": maps[..., list(own_slots)].sum(-1)}
        for even, keys in (("", maps), ("even ", seen.astype(np.float32))):
            grid = rearrange(captured.patches(keys).grid, "l h q f a b -> l h q f (a b)")
            grid = grid * (lag != 0)[..., None]
            total = grid.sum((-1, -2))
            total = np.where(total > 0, total, np.nan)
            by_frame = grid.sum(-1)
            values |= {
                f"{even}own patches": (grid * shown).sum((-1, -2)) / total,
                f"{even}back": (by_frame * lag).sum(-1) / total,
                f"{even}earlier": (by_frame * (lag > 0)).sum(-1) / total,
            }
        shape = (c.num_layers, c.num_heads)
        found.append({name: np.broadcast_to(_nanmean(value), shape) for name, value in values.items()})
    means = {name: np.mean([one[name] for one in found], 0) for name in found[0]}
    for name in ("back", "earlier"):
        means[f"deviation of {name}"] = np.std([one[name] for one in found], 0)
    return pd.DataFrame(
        {"layer": layer, "head": head} | {name: float(mean[layer, head]) for name, mean in means.items()}
        for layer, head in np.ndindex(c.num_layers, c.num_heads)
    )


def mirrored(clips: Sequence[Recording], there: Regions) -> Any:
    """One row: how far back moving patches look (`sources`), and what the outermost frames are worth.

    "without first", "without last": nats a moving token costs more when the first, or last, frame is hidden.
    """
    import pandas as pd

    table = sources(clips, [[]] * len(clips), there).mean(numeric_only=True).drop(["layer", "head", "word"])
    last = clips[0].model.config.num_frames - 1
    hidden = {
        "without first": [{"frames": [0]}] * len(clips),
        "without last": [{"frames": [last]}] * len(clips),
    }
    worth = costs(clips, hidden, {}, {"moving": there}).set_index("change")["rise"]
    return pd.DataFrame([{**table, **worth}])


def silencing(clips: Sequence[Recording], there: Regions) -> Any:
    """What gates let through: DataFrame with a row a layer, and one for all layers (layer -1).

    "temporal share": the gate weight 1 - sigmoid(gate), mean over dimensions; "temporal part": of the mixed
    output (gate_table). "rise" and "rise elsewhere": how many nats more a token of the patches `there` [T,N],
    and of others, costs in generated frames with the layer's temporal channel silent.
    """
    import pandas as pd

    gates, own = [gate_table(clip.capture()) for clip in clips], [token_losses(clip) for clip in clips]
    means = {
        "temporal share": 1 - gates[0]["mean"],
        "temporal part": sum(gate["temporal part"] for gate in gates) / len(gates),
    }
    rows, layers = [], range(clips[0].model.config.num_layers)
    for layer in (*layers, -1):
        silent = list(layers) if layer == -1 else [layer]
        rises = [
            _rise(clip, token_losses(clip, silent=silent) - before, shown)
            for clip, before, shown in zip(clips, own, there, strict=True)
        ]
        inside, outside = np.mean(rises, 0)
        values = {name: mean.mean() if layer == -1 else mean[layer] for name, mean in means.items()}
        rows.append({"layer": layer} | values | {"rise": inside, "rise elsewhere": outside})
    return pd.DataFrame(rows)


def _rise(clip: Recording, rise: torch.Tensor, there: Regions) -> list[float]:
    """Means of losses' rise [T,N] at the patches `there` and at all others."""
    return [_mean(rise.cpu().numpy(), part) for part in _split(clip, there)]


def _split(clip: Recording, there: Regions) -> tuple[np.ndarray, np.ndarray]:
    """[T,N] bool: the patches `there`, and all others, of generated frames."""
    times = masks.trained_frames(clip.model.config)
    made = np.zeros((len(clip.frames), 1), bool)
    made[[time for time in times if time < len(made)]] = True
    chosen = np.asarray(there, bool)
    return made & chosen, made & ~chosen


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    return float(values[where].mean()) if where.any() else 0.0


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Over the last axis; 0 where nothing is known."""
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(-1) / np.maximum(known.sum(-1), 1)
