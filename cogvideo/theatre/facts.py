"""Questions to a model: where it reads a word, what follows a moving object, what gates do.

They are asked of finished clips whose ground is one token and whose object is everything else, as in the demo
world. Attention weights stand beside what they are good for (knockout.py) and beside controls that could
prove them wrong.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from tqdm import tqdm

from cogvideo.errors import CogVideoError
from cogvideo.explore.analysis import gate_table, object_patches
from cogvideo.explore.knockout import token_losses
from cogvideo.explore.recording import CHANNELS, Recording, record
from cogvideo.model import masks
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre.digits import ACTION_NAMES, COLOR_NAMES, DURATIONS, Clips, sample_clips
from cogvideo.theatre.inheritance import image_model_of

WHOLE = 0.2  # of a patch: how far from whole patches a movement may be to count as such
STAGES = ("first frame", "stage 1", "stage 2")


class Study(NamedTuple):
    """Tables by stage; those of the temporal channel are without the first frame."""

    reading: dict[str, Any]
    words: dict[str, Any]
    following: dict[str, Any]
    silencing: dict[str, Any]


def moving_clips(n: int, seed: int = 0, seconds: float = 4.0) -> Clips:
    """n clips of the demo world's test split whose digit moves to one side for `seconds`.

    Raises CogVideoError for seconds that no action takes.
    """
    if seconds not in DURATIONS:
        raise CogVideoError(
            f"No action of the demo world takes {seconds:g} s: choose of "
            f"{', '.join(f'{one:g}' for one in DURATIONS)}."
        )
    pool = sample_clips(200 + 100 * n, np.random.default_rng(seed), split="test")
    moves = np.array([name.startswith("moves") for name in ACTION_NAMES])
    fit = np.flatnonzero(moves[pool.action[:, 0]] & (pool.duration[:, 0] == seconds))[:n]
    fields = ("kind", "color", "action", "duration", "x", "y", "scan")
    return replace(pool, **{name: getattr(pool, name)[fit] for name in fields})


def study(
    pipe: Pipeline, n: int = 2, *, seed: int = 0, seconds: float = 4.0, progress: bool = False
) -> Study:
    """Ask a model of the demo world everything of this file, about n clips that it generates itself.

    The digit is swapped for the one that is four larger. Raises CogVideoError for a model without the demo's
    words.
    """
    asked = moving_clips(n, seed, seconds)
    kinds, colors = asked.kind[:, 0], [COLOR_NAMES[color] for color in asked.color[:, 0]]
    directions = [ACTION_NAMES[action].split()[-1] for action in asked.action[:, 0]]
    found, digits, others = Study({}, {}, {}, {}), asked.world.names, [(int(kind) + 4) % 10 for kind in kinds]
    made = recordings(pipe, [asked.caption(index) for index in range(n)], seconds=seconds, seed=seed)
    for stage, clips in tqdm(made.items(), desc="facts", unit="stage", disable=not progress):
        words = {"digit": [digits[kind] for kind in kinds], "colour": colors, "direction": directions}
        slots = {
            name: [slot_of(pipe, clip, word) for clip, word in zip(clips, chosen, strict=True)]
            for name, chosen in words.items()
        }
        swaps = {"digit": [pipe.text.encode(digits[other])[-1] for other in others]}
        found.reading[stage] = reading(clips, slots["digit"])
        found.words[stage] = word_controls(clips, slots, swaps)
        if stage != "first frame":
            found.following[stage], found.silencing[stage] = following(clips), silencing(clips)
    return found


def sentences(found: Study) -> list[str]:
    """What a study found, with its numbers and controls, in Markdown."""
    said = [_reading(stage, table, found.words[stage]) for stage, table in found.reading.items()]
    said += [_following(stage, table) for stage, table in found.following.items()]
    return said + [_silencing(stage, table) for stage, table in found.silencing.items()]


def _reading(stage: str, table: Any, words: Any) -> str:
    heads, words = table[table["head"] >= 0], words.set_index(["word", "change"])["rise"]
    first, second = (heads.sort_values("rise", ascending=False).iloc[i] for i in (0, 1))
    most = heads.sort_values("weight", ascending=False).iloc[0]
    return (
        f"**Where the digit is read, {stage}**: most in the {first['channel']} channel, layer "
        f"{first['layer']}, head {first['head']}. When it alone cannot see the word, a token of the object "
        f"costs {first['rise']:+.3f} nats (ground {first['ground rise']:+.3f}); the next head, "
        f"{second['channel']} {second['layer']}.{second['head']}, {second['rise']:+.3f}. Hidden from all "
        f"heads: {words['digit', 'hidden']:+.3f}; another digit instead: "
        f"{words['digit', 'swapped']:+.3f}; controls: colour hidden {words['colour', 'hidden']:+.3f}, "
        f"direction hidden {words['direction', 'hidden']:+.3f}. The head that looks at the digit most is "
        f"{most['channel']} {most['layer']}.{most['head']} ({most['weight']:.0%} of its attention, worth "
        f"{most['rise']:+.3f})."
    )


def _following(stage: str, table: Any) -> str:
    controls = ["stay", "opposite", "even"]
    best = table.loc[(table["follow"] - table[controls].max(axis=1)).idxmax()]
    layers = table.groupby("layer")[["follow", *controls, "object", "even object"]].mean()
    follows = [str(layer) for layer, row in layers.iterrows() if row["follow"] > row[controls].max()]
    objects = ", ".join(f"{row.object:.0%} (layer {layer})" for layer, row in layers.iterrows())
    return (
        f"**What follows the moving digit, {stage}** ({best['pairs']:.0f} pairs of patches and frames): as a "
        f"whole layers {', '.join(follows) or 'none'} look more at the patch where the object's patch was "
        f"than at the same position, as far the other way, and evenly. Most layer {best['layer']:.0f}, head "
        f"{best['head']:.0f}: {best['follow']:.1%} on that one patch (same position {best['stay']:.1%}, "
        f"other way {best['opposite']:.1%}, evenly {best['even']:.1%}). Of the attention to other frames' "
        f"patches, {objects} goes to objects; evenly it would be {layers['even object'].mean():.0%}."
    )


def _silencing(stage: str, table: Any) -> str:
    every, layers = table[table["layer"] == -1].iloc[0], table[table["layer"] >= 0]
    worst, bare = layers.loc[layers["rise"].idxmax()], layers.loc[layers["ground rise"].idxmax()]
    weights = ", ".join(f"{value:.0%}" for value in layers["temporal share"])
    return (
        f"**What gates do, {stage}**: they give the temporal channel {weights} by layer, and it makes "
        f"{every['temporal part']:.0%} of what is mixed. Without it a token of the object costs "
        f"{every['rise']:+.3f} nats (ground {every['ground rise']:+.3f}); without that of one layer alone, "
        f"the object suffers most in layer {worst['layer']:.0f} ({worst['rise']:+.3f}) and the ground in "
        f"layer {bare['layer']:.0f} ({bare['ground rise']:+.3f})."
    )


@torch.inference_mode()
def recordings(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    seconds: float = 4.0,
    seed: int = 0,
    stages: Sequence[str] = STAGES,
) -> dict[str, list[Recording]]:
    """Generate a clip of every prompt and run the models over it again: recordings by stage.

    "first frame" is the image model inside stage 1 over the frame that it drew; "stage 1" the key frames;
    "stage 2" the first sequence of its first round. Raises CogVideoError as the pipeline does.
    """
    s, spans = pipe.sampling, {"first frame": None, "stage 1": seconds, "stage 2": seconds / 2}
    suffixes = {"first frame": s.first_frame_suffix}
    models = {"first frame": image_model_of(pipe.stage1), "stage 1": pipe.stage1, "stage 2": pipe.stage2}
    key = pipe.key_frame_tokens(prompts, seconds, seed)
    clips = {"first frame": key[:, :1], "stage 1": key}
    if "stage 2" in stages:
        clips["stage 2"] = pipe.interpolate_once(key, prompts, seconds, 1, seed)[:, :5]
    made = {}
    for stage in stages:
        texts = [prompt + suffixes.get(stage, s.key_frame_suffix) for prompt in prompts]
        ids = [
            torch.tensor(pipe.text.encode_prompt(text, spans[stage]), device=pipe.device) for text in texts
        ]
        made[stage] = [record(models[stage], row, clip) for row, clip in zip(ids, clips[stage], strict=True)]
    return made


def slot_of(pipe: Pipeline, recording: Recording, word: str) -> int:
    """The text slot of a word that is one piece of the text tokenizer."""
    pieces = pipe.text.pieces(recording.text_ids.tolist())
    if word not in pieces:
        raise CogVideoError(f"The text has no piece {word!r}: its pieces are {', '.join(pieces)}.")
    return pieces.index(word)


def reading(clips: Sequence[Recording], slots: Sequence[int]) -> Any:
    """Where a word is read: DataFrame by channel, layer and head, with all heads together as head -1.

    slots: the word's slot in every clip. "weight" and "on ground": mean attention to it from the object's
    patches and from the ground's. "rise" and "ground rise": how many nats more a token of the object, of the
    ground costs when these heads cannot see the word. Of generated frames, mean over clips; "deviation" of
    the rise between clips.
    """
    import pandas as pd

    c, rows = clips[0].model.config, {}
    for clip, slot in zip(clips, slots, strict=True):
        there, ground = _patches(clip)
        own, captured = token_losses(clip).cpu().numpy(), clip.capture()
        for channel in CHANNELS if c.temporal else CHANNELS[:1]:
            weights = captured.maps(channel)[..., slot]
            weights = rearrange(weights, "l h (t n) -> l h t n", n=c.frame_tokens)
            for layer, head in itertools.product(range(c.num_layers), (-1, *range(c.num_heads))):
                heads = None if head == -1 else [head]
                cut = token_losses(clip, hide=[slot], channels=[channel], layers=[layer], heads=heads)
                rise = cut.cpu().numpy() - own
                looks = weights[layer].mean(0) if head == -1 else weights[layer, head]
                values = [part[where].mean() for part in (looks, rise) for where in (there, ground)]
                rows.setdefault((channel, layer, head), []).append(values)
    measures = ("weight", "on ground", "rise", "ground rise")
    return pd.DataFrame(
        dict(zip(("channel", "layer", "head"), key, strict=True))
        | dict(zip(measures, np.mean(values, 0), strict=True))
        | {"deviation": np.std(values, 0)[2]}
        for key, values in rows.items()
    )


def word_controls(
    clips: Sequence[Recording], slots: Mapping[str, Sequence[int]], swaps: Mapping[str, Sequence[int]]
) -> Any:
    """How much words matter: DataFrame of the nats that a token of the object, and of the ground, costs more.

    slots: name -> the slot of a word in every clip; it is hidden from all positions in all layers, so that
    only the other words can still carry it. swaps: name -> the id of another word instead of it.
    """
    import pandas as pd

    rows = []
    for name in slots:
        for change in ("hidden", "swapped") if name in swaps else ("hidden",):
            rises = []
            for index, clip in enumerate(clips):
                slot = slots[name][index]
                if change == "hidden":
                    after = token_losses(clip, hide=[slot])
                else:
                    ids = clip.text_ids.clone()
                    ids[slot] = swaps[name][index]
                    after = token_losses(record(clip.model, ids, clip.frames))
                rises.append(_rise(clip, after))
            there, ground = np.mean(rises, 0)
            rows.append({"word": name, "change": change, "rise": there, "ground rise": ground})
    return pd.DataFrame(rows)


def following(clips: Sequence[Recording]) -> Any:
    """What follows a moving object: DataFrame with a row for every layer and head of the temporal channel.

    From the object's patches to every other frame that may be seen. "follow": mean weight on the patch where
    the same part of the object was; its controls: "stay", the same position; "opposite", as far the other
    way; "even", equal weights on all visible keys. "object": the part of the attention to patches that goes
    to objects, with its control "even object". "pairs": of patches and frames that count, those between which
    the object moved by whole patches and all controls can be seen.
    """
    import pandas as pd

    c, sums = clips[0].model.config, {}
    for clip in clips:
        captured = clip.capture(channels=["temporal"])
        frames = captured.frames
        there = object_patches(frames).reshape(-1, c.frame_height, c.frame_width)
        made, _ = _patches(clip)
        centres = np.array([np.argwhere(frame).mean(0) if frame.any() else [np.nan] * 2 for frame in there])
        grids = captured.patches(captured.maps("temporal")).grid  # [layers, heads, Q, F, rows, columns]
        seen = captured.patches(captured.visible("temporal")).grid  # [layers, Q, F, rows, columns]
        counts = captured.visible("temporal").sum(-1)
        for q in np.flatnonzero(made.flatten()):
            time, position = captured.queries[q]
            spot = np.array(divmod(int(position), c.frame_width))
            for other in range(len(frames)):
                if other == time or np.isnan(centres[[other, time]]).any():
                    continue
                exact = centres[time] - centres[other]
                moved = np.rint(exact).astype(int)
                spots = {"follow": spot - moved, "stay": spot, "opposite": spot + moved}
                visible = all(
                    _inside(s, there[0].shape) and seen[:, q, other, s[0], s[1]].all() for s in spots.values()
                )
                if not moved.any() or abs(exact - moved).max() > WHOLE or not visible:
                    continue  # all of them or none, so that they can be compared
                for name, (row, column) in spots.items():
                    sums.setdefault(name, []).append(grids[:, :, q, other, row, column])
                sums.setdefault("even", []).append(np.repeat(1 / counts[:, q, None], grids.shape[1], 1))
            others = np.arange(len(frames)) != time
            on = grids[:, :, q, others].sum((-1, -2, -3))
            part = (grids[:, :, q, others] * there[others]).sum((-1, -2, -3)) / np.where(on > 0, on, np.nan)
            sums.setdefault("object", []).append(part)
            visible = seen[:, q, others]
            part = (visible & there[others]).sum((-1, -2, -3)) / visible.sum((-1, -2, -3))
            sums.setdefault("even object", []).append(np.repeat(part[:, None], grids.shape[1], 1))
    if "follow" not in sums:
        raise CogVideoError(
            "No object moves by whole patches in these clips: give prompts such as 'a red 3 moves left'."
        )
    means = {name: np.nanmean(values, 0) for name, values in sums.items()}
    return pd.DataFrame(
        {"layer": layer, "head": head}
        | {name: float(mean[layer, head]) for name, mean in means.items()}
        | {"pairs": len(sums["follow"])}
        for layer, head in np.ndindex(c.num_layers, c.num_heads)
    )


def silencing(clips: Sequence[Recording]) -> Any:
    """What gates let through: DataFrame with a row a layer, and one for all layers (layer -1).

    "temporal share": the gate weight 1 - sigmoid(gate), mean over dimensions; "temporal part": of the mixed
    output (gate_table). "rise" and "ground rise": how many nats more a token of the object, of the ground
    costs in generated frames with the layer's temporal channel silent.
    """
    import pandas as pd

    gates = [gate_table(clip.capture()) for clip in clips]
    means = {
        "temporal share": 1 - gates[0]["mean"],
        "temporal part": sum(gate["temporal part"] for gate in gates) / len(gates),
    }
    rows, layers = [], range(clips[0].model.config.num_layers)
    for layer in (*layers, -1):
        silent = list(layers) if layer == -1 else [layer]
        there, ground = np.mean([_rise(clip, token_losses(clip, silent=silent)) for clip in clips], 0)
        values = {name: mean.mean() if layer == -1 else mean[layer] for name, mean in means.items()}
        rows.append({"layer": layer} | values | {"rise": there, "ground rise": ground})
    return pd.DataFrame(rows)


def _rise(clip: Recording, losses: torch.Tensor) -> list[float]:
    """How much larger losses [T,N] are than the model's own, at the object's patches and the ground's."""
    rise = (losses - token_losses(clip)).cpu().numpy()
    return [rise[part].mean() for part in _patches(clip)]


def _patches(clip: Recording) -> tuple[np.ndarray, np.ndarray]:
    """[T,N] bool: the object's patches, and the ground's, of generated frames."""
    times = masks.trained_frames(clip.model.config)
    made = np.zeros((len(clip.frames), 1), bool)
    made[[time for time in times if time < len(made)]] = True
    there = object_patches(clip.frames.cpu().numpy())
    return made & there, made & ~there


def _inside(spot: np.ndarray, shape: tuple[int, ...]) -> bool:
    return bool(((spot >= 0) & (spot < shape)).all())
