"""Questions to a model with numbers for answers: where it reads a word, what follows a moving object, what gates do.

They are asked of finished clips whose ground is one token and whose object is everything else, as in the demo world. Weights
of the attention come beside what they are good for (knockout.py) and beside controls that could prove them wrong.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange

from cogvideo import sequence
from cogvideo.errors import CogVideoError
from cogvideo.explore.analysis import gate_table, object_patches
from cogvideo.explore.capture import Recording, record
from cogvideo.explore.knockout import token_losses
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.training.inheritance import image_model_of

STAGES = ("first frame", "stage 1", "stage 2")


@torch.inference_mode()
def recordings(
    pipe: Pipeline, prompts: Sequence[str], *, seconds: float = 4.0, seed: int = 0, stages: Sequence[str] = STAGES
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
        clips["stage 2"] = pipe.fill_once(key, prompts, seconds, 1, seed)[:, :5]
    made = {}
    for stage in stages:
        texts = [prompt + suffixes.get(stage, s.key_frame_suffix) for prompt in prompts]
        ids = [torch.tensor(pipe.text.encode_prompt(text, spans[stage]), device=pipe.device) for text in texts]
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
                    values = [looks[there].mean(), looks[ground].mean(), rise[there].mean(), rise[ground].mean()]
                    rows.setdefault((channel, layer, head), []).append(values)
    table = []
    for (channel, layer, head), values in rows.items():
        weight, on_ground, rise, ground_rise = np.mean(values, 0)
        place = {"channel": channel, "layer": layer, "head": head, "weight": weight, "on ground": on_ground}
        table.append(place | {"rise": rise, "ground rise": ground_rise, "deviation": np.std(values, 0)[2]})
    return pd.DataFrame(table)


def word_controls(clips: Sequence[Recording], slots: dict[str, Sequence[int]], swaps: dict[str, Sequence[int]]) -> Any:
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
    objects, and "even object" its control. Only clips whose object moves by whole patches tell something: give such.
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
                moved = np.rint(centres[time] - centres[other]).astype(int)
                places = {"follow": spot - moved, "stay": spot, "opposite": spot + moved}
                if not moved.any() or not all(
                    _inside(p, there[0].shape) and seen[:, q, other, p[0], p[1]].all() for p in places.values()
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
        rows.append({"layer": layer, "head": head} | {name: float(mean[layer, head]) for name, mean in means.items()})
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
    times = sequence.trained_frames(clip.model.config)
    made = np.zeros((len(clip.frames), 1), bool)
    made[[time for time in times if time < len(made)]] = True
    there = object_patches(clip.frames.cpu().numpy())
    return made & there, made & ~there


def _inside(place: np.ndarray, shape: tuple[int, ...]) -> bool:
    return bool(((place >= 0) & (place < shape)).all())
