"""Questions to a model with numbers for answers: where it reads a word, what follows a moving object, what gates do.

They are asked of finished clips whose ground is one token and whose object is everything else, as in the demo world. Weights
of the attention come beside what they are good for (knockout.py) and beside controls that could prove them wrong.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from tqdm import tqdm

from cogvideo.errors import CogVideoError
from cogvideo.explore.analysis import gate_table, object_patches
from cogvideo.explore.capture import Recording, record
from cogvideo.explore.knockout import token_losses
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
    """n clips of the demo world's test split whose digit moves left, right, up or down and takes `seconds` for it.

    Raises CogVideoError for seconds that no action takes.
    """
    if seconds not in DURATIONS:
        raise CogVideoError(
            f"No action of the demo world takes {seconds:g} s: choose of {', '.join(f'{one:g}' for one in DURATIONS)}."
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

    The digit is swapped for the one that is four larger. Raises CogVideoError for a model without the demo's words.
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
    """What a study says, with its numbers and controls, in Markdown; the model decides what is said."""
    said = []
    for stage, table in found.reading.items():
        heads, words = table[table["head"] >= 0], found.words[stage].set_index(["word", "change"])["rise"]
        first, second = (heads.sort_values("rise", ascending=False).iloc[place] for place in (0, 1))
        most = heads.sort_values("weight", ascending=False).iloc[0]
        said.append(
            f"**Where the digit is read, {stage}**: most in the {first['channel']} channel, layer {first['layer']}, head {first['head']}. "
            f"When it alone cannot see the word, a token of the object costs {first['rise']:+.3f} nats (ground "
            f"{first['ground rise']:+.3f}); the next head, {second['channel']} {second['layer']}.{second['head']}, {second['rise']:+.3f}. "
            f"Hidden from all heads: {words['digit', 'hidden']:+.3f}; another digit in its place: {words['digit', 'swapped']:+.3f}; "
            f"controls: colour hidden {words['colour', 'hidden']:+.3f}, direction hidden {words['direction', 'hidden']:+.3f}. "
            f"The head that looks at the digit most is {most['channel']} {most['layer']}.{most['head']} "
            f"({most['weight']:.0%} of its attention, worth {most['rise']:+.3f})."
        )
    for stage, table in found.following.items():
        table = table.assign(control=table[["stay", "opposite", "even"]].max(axis=1))
        best = table.loc[(table["follow"] - table["control"]).idxmax()]
        layers = table.groupby("layer")[
            ["follow", "stay", "opposite", "even", "object", "even object"]
        ].mean()
        follows = [
            str(layer)
            for layer, row in layers.iterrows()
            if row["follow"] > row[["stay", "opposite", "even"]].max()
        ]
        said.append(
            f"**What follows the moving digit, {stage}** ({best['pairs']:.0f} pairs of patches and frames): as a whole layers {', '.join(follows) or 'none'} look more at the patch "
            f"where the object's piece was than at the same place, as far the other way, and evenly. Most layer {best['layer']:.0f}, "
            f"head {best['head']:.0f}: {best['follow']:.1%} on that one patch (same place {best['stay']:.1%}, other way "
            f"{best['opposite']:.1%}, evenly {best['even']:.1%}). Of the attention to other frames' patches, "
            f"{', '.join(f'{row.object:.0%} (layer {layer})' for layer, row in layers.iterrows())} goes to objects; evenly it would be "
            f"{layers['even object'].mean():.0%}."
        )
    for stage, table in found.silencing.items():
        every, layers = table[table["layer"] == -1].iloc[0], table[table["layer"] >= 0]
        worst, bare = layers.loc[layers["rise"].idxmax()], layers.loc[layers["ground rise"].idxmax()]
        shares = ", ".join(f"{value:.0%}" for value in layers["temporal share"])
        said.append(
            f"**What gates do, {stage}**: they give the temporal channel {shares} by layer, and it makes {every['temporal part']:.0%} "
            f"of what is mixed. Without it a token of the object costs {every['rise']:+.3f} nats (ground {every['ground rise']:+.3f}); "
            f"without that of one layer alone, the object suffers most in layer {worst['layer']:.0f} ({worst['rise']:+.3f}) and the "
            f"ground in layer {bare['layer']:.0f} ({bare['ground rise']:+.3f})."
        )
    return said


@torch.inference_mode()
def recordings(
    pipe: Pipeline,
    prompts: Sequence[str],
    *,
    seconds: float = 4.0,
    seed: int = 0,
    stages: Sequence[str] = STAGES,
) -> dict[str, list[Recording]]:
    """Generate a clip of every prompt and run the models over it again: for each stage one recording a prompt.

    "first frame" is the image model inside stage 1 over the frame that it drew; "stage 1" the key frames; "stage 2" the first
    sequence of its first round. Raises CogVideoError as the pipeline does.
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
    """The text slot of a word that is one piece; raises CogVideoError where the text has none such."""
    pieces = pipe.text.pieces(recording.text_ids.tolist())
    if word not in pieces:
        raise CogVideoError(f"The text has no piece {word!r}: its pieces are {', '.join(pieces)}.")
    return pieces.index(word)


def reading(clips: Sequence[Recording], slots: Sequence[int]) -> Any:
    """Where a word is read: DataFrame with a row for every channel, layer and head, and one for all heads of a layer (head -1).

    slots: the word's slot in every clip. "weight" and "on ground": mean attention to it of the object's patches and of the
    ground's. "rise": how many nats a token of the object costs more when these heads cannot see the word. "ground rise":
    the same of the ground. Of generated frames, mean over clips; "deviation" of the rise between clips.
    """
    import pandas as pd

    c, rows = clips[0].model.config, {}
    channels = ("spatial", "temporal") if c.temporal else ("spatial",)
    for clip, slot in zip(clips, slots, strict=True):
        there, ground = _patches(clip)
        own, captured = token_losses(clip).cpu().numpy(), clip.capture()
        for channel in channels:
            weights = captured.maps(channel)[..., slot]
            weights = rearrange(weights, "l h (t n) -> l h t n", n=c.frame_tokens)
            for layer in range(c.num_layers):
                for head in (-1, *range(c.num_heads)):
                    chosen = None if head == -1 else [head]
                    cut = token_losses(clip, hide=[slot], channels=[channel], layers=[layer], heads=chosen)
                    rise = cut.cpu().numpy() - own
                    looks = weights[layer].mean(0) if head == -1 else weights[layer, head]
                    values = [
                        looks[there].mean(),
                        looks[ground].mean(),
                        rise[there].mean(),
                        rise[ground].mean(),
                    ]
                    rows.setdefault((channel, layer, head), []).append(values)
    table = []
    for (channel, layer, head), values in rows.items():
        weight, on_ground, rise, ground_rise = np.mean(values, 0)
        place = {"channel": channel, "layer": layer, "head": head, "weight": weight, "on ground": on_ground}
        table.append(place | {"rise": rise, "ground rise": ground_rise, "deviation": np.std(values, 0)[2]})
    return pd.DataFrame(table)


def word_controls(
    clips: Sequence[Recording], slots: Mapping[str, Sequence[int]], swaps: Mapping[str, Sequence[int]]
) -> Any:
    """How much words matter: DataFrame of the nats that a token of the object, and of the ground, costs more.

    slots: name -> the slot of a word in every clip; the word is hidden from every place in all layers, and only the other
    words may still tell of it. swaps: name -> the id of another word that takes its place.
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
                rise, parts = (after - token_losses(clip)).cpu().numpy(), _patches(clip)
                rises.append([rise[part].mean() for part in parts])
            there, ground = np.mean(rises, 0)
            rows.append({"word": name, "change": change, "rise": there, "ground rise": ground})
    return pd.DataFrame(rows)


def following(clips: Sequence[Recording]) -> Any:
    """What follows a moving object: DataFrame with a row for every layer and head of the temporal channel.

    From the object's patches, to every other frame that may be seen. "follow": mean attention to the patch where that same
    piece of the object was; controls: "stay", the same place of the frame; "opposite", as far away in the other direction;
    "even", what each would get if all visible keys were seen alike. "object": share of the attention to patches that goes to
    objects, and "even object" its control. "pairs": of patches and frames that count, those between which the object moved by
    whole patches and all controls can be seen.
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
            time, place = captured.queries[q]
            spot = np.array(divmod(int(place), c.frame_width))
            for other in range(len(frames)):
                if other == time or np.isnan(centres[[other, time]]).any():
                    continue
                exact = centres[time] - centres[other]
                moved = np.rint(exact).astype(int)
                places = {"follow": spot - moved, "stay": spot, "opposite": spot + moved}
                if (
                    not moved.any()
                    or abs(exact - moved).max() > WHOLE
                    or not all(
                        _inside(p, there[0].shape) and seen[:, q, other, p[0], p[1]].all()
                        for p in places.values()
                    )
                ):
                    continue  # all of them or none, so that they can be compared
                for name, (row, column) in places.items():
                    sums.setdefault(name, []).append(grids[:, :, q, other, row, column])
                sums.setdefault("even", []).append(np.repeat(1 / counts[:, q, None], grids.shape[1], 1))
            others = np.arange(len(frames)) != time
            on = grids[:, :, q, others].sum((-1, -2, -3))
            share = (grids[:, :, q, others] * there[others]).sum((-1, -2, -3)) / np.where(on > 0, on, np.nan)
            sums.setdefault("object", []).append(share)
            visible = seen[:, q, others]
            share = (visible & there[others]).sum((-1, -2, -3)) / visible.sum((-1, -2, -3))
            sums.setdefault("even object", []).append(np.repeat(share[:, None], grids.shape[1], 1))
    if "follow" not in sums:
        raise CogVideoError(
            "No object moves by whole patches in these clips: give prompts such as 'a red 3 moves left'."
        )
    means = {name: np.nanmean(values, 0) for name, values in sums.items()}
    rows = []
    for layer, head in np.ndindex(c.num_layers, c.num_heads):
        row = {"layer": layer, "head": head} | {
            name: float(mean[layer, head]) for name, mean in means.items()
        }
        rows.append(row | {"pairs": len(sums["follow"])})
    return pd.DataFrame(rows)


def silencing(clips: Sequence[Recording]) -> Any:
    """What gates let through: DataFrame with a row a layer, and one for all layers (layer -1).

    "temporal share": 1 - sigmoid(gate), mean over dimensions; "temporal part": of the mixed output (gate_table). "rise": nats
    that a token of the object costs more with the layer's temporal channel silent, in generated frames; "ground rise".
    """
    import pandas as pd

    c = clips[0].model.config
    gates = [gate_table(clip.capture()) for clip in clips]
    rows = []
    for layer in (*range(c.num_layers), -1):
        rises = []
        for clip in clips:
            off = range(c.num_layers) if layer == -1 else [layer]
            rise = (token_losses(clip, silent=list(off)) - token_losses(clip)).cpu().numpy()
            rises.append([rise[part].mean() for part in _patches(clip)])
        there, ground = np.mean(rises, 0)
        mean = {
            "temporal share": 1 - gates[0]["mean"],
            "temporal part": sum(g["temporal part"] for g in gates) / len(gates),
        }
        told = {name: values.mean() if layer == -1 else values[layer] for name, values in mean.items()}
        rows.append({"layer": layer} | told | {"rise": there, "ground rise": ground})
    return pd.DataFrame(rows)


def _patches(clip: Recording) -> tuple[np.ndarray, np.ndarray]:
    """[T,N] bool: the object's patches, and the ground's, of generated frames."""
    times = masks.trained_frames(clip.model.config)
    made = np.zeros((len(clip.frames), 1), bool)
    made[[time for time in times if time < len(made)]] = True
    there = object_patches(clip.frames.cpu().numpy())
    return made & there, made & ~there


def _inside(place: np.ndarray, shape: tuple[int, ...]) -> bool:
    return bool(((place >= 0) & (place < shape)).all())
