"""Questions to a model of the theatre: where it reads who acts, with what, and in which phase the action is.

They are asked of clips that the model itself generates. Attention weights stand beside what they are good for
(knockout.py: how many nats a token costs more without them) and beside controls that could prove them wrong:
other patches, other words, even attention, and the action that shows the same pictures in opposite order.
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
from cogvideo.explore.analysis import gate_table
from cogvideo.explore.knockout import token_losses
from cogvideo.explore.recording import CHANNELS, Recording, record
from cogvideo.model import masks
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre.drawing import render
from cogvideo.theatre.inheritance import image_model_of
from cogvideo.theatre.scenes import (
    ACTION_NAMES,
    ACTIONS,
    ACTOR_NAMES,
    ADVERBS,
    DURATIONS,
    OBJECT_NAMES,
    PAIRS,
    Clips,
    sample_clips,
)
from cogvideo.tokenizers.patches import SIDE

STAGES = ("first frame", "stage 1", "stage 2")
MIRRORED = (("puts on", "takes off"), ("pushes away", "pulls near"))  # the same pictures in opposite order
WORDS = {"actor": "actor", "object": "object", "phase": "moving"}  # what is asked: the patches that show it
LONE = "bell"  # no other object of its action: nothing can be exchanged for it


class Study(NamedTuple):
    """Tables by stage; those of the temporal channel are without the first frame."""

    reading: dict[str, Any]
    costs: dict[str, Any]
    sources: dict[str, Any]
    mirrored: dict[str, Any]
    silencing: dict[str, Any]


def draw_clips(n: int, seed: int = 0, seconds: float = 4.0, *, action: str | None = None) -> Clips:
    """n clips of the theatre's seen combinations (not the bell), whose action takes `seconds`.

    action: only this one. The same seed gives mirrored actions the same actors, objects and backgrounds.

    Raises: CogVideoError for seconds that no action takes.
    """
    if seconds not in DURATIONS:
        raise CogVideoError(
            f"No action of the theatre takes {seconds:g} s: choose of {', '.join(f'{d:g}' for d in DURATIONS)}."
        )
    opposite = {second: first for first, second in MIRRORED}
    pool = sample_clips(200 + 100 * n, np.random.default_rng(seed), split="seen")
    drawn = np.array(ACTION_NAMES)[pool.action]
    fit = drawn == opposite.get(action, action) if action else np.array(OBJECT_NAMES)[pool.object] != LONE
    found = replace(pool[fit][:n], duration=np.full(n, seconds))
    if action in opposite:
        found = replace(found, pair=np.array([PAIRS.index((action, PAIRS[p][1])) for p in found.pair]))
    return found


def regions(clips: Clips, times: np.ndarray) -> dict[str, np.ndarray]:
    """Which patches of n clips at `times` [n,T] seconds show what, bool [n,T,N], from the true pictures.

    "actor", "object": those that look different with another animal, or another object of the same action.
    "moving": those that look different at another of the times.
    """
    others = [[p for p, pair in enumerate(PAIRS) if pair[0] == action] for action, _ in PAIRS]
    pair = np.array([others[p][(others[p].index(p) + 1) % len(others[p])] for p in clips.pair])
    own = _cut(clips, times)
    return {
        "actor": (own != _cut(replace(clips, actor=(clips.actor + 1) % len(ACTOR_NAMES)), times)).any(-1),
        "object": (own != _cut(replace(clips, pair=pair), times)).any(-1),
        "moving": (own[:, :, None] != own[:, None]).any((2, -1)),
    }


def _cut(clips: Clips, times: np.ndarray) -> np.ndarray:
    """True pictures as patches [n,T,N,values]."""
    return rearrange(render(clips, times), "n t c (h a) (w b) -> n t (h w) (c a b)", a=SIDE, b=SIDE).numpy()


def study(
    pipe: Pipeline, n: int = 2, *, seed: int = 0, seconds: float = 4.0, progress: bool = False
) -> Study:
    """Ask a model of the theatre everything of this file, about n clips of each kind that it generates itself.

    Raises: CogVideoError for a model without the theatre's words.
    """
    found = Study({}, {}, {}, {}, {})
    asked = draw_clips(n, seed, seconds)
    made = recordings(pipe, [asked.caption(i) for i in range(n)], seconds=seconds, seed=seed)
    for stage, clips in tqdm(made.items(), desc="facts", unit="stage", disable=not progress):
        there = regions(asked, _times(n, stage, clips, seconds))
        slots, hidden, swapped = _words(pipe, asked, clips)
        temporal = stage != "first frame"
        asked_of = {word: there[where] for word, where in WORDS.items() if temporal or word != "phase"}
        if temporal:
            hidden |= {
                "first frame hidden": [{"frames": [0]}] * n,
                "last frame hidden": [{"frames": [clips[0].model.config.num_frames - 1]}] * n,
            }
        if stage == "stage 1":
            hidden.pop("last frame hidden")  # it is generated: nothing but itself sees it
        found.reading[stage] = _stack({w: reading(clips, slots[w], a) for w, a in asked_of.items()}, "word")
        found.costs[stage] = _stack({w: costs(clips, hidden, swapped, a) for w, a in asked_of.items()}, "of")
        if temporal:
            found.sources[stage] = _stack({w: sources(clips, slots[w], a) for w, a in asked_of.items()}, "of")
            found.silencing[stage] = silencing(clips, there["moving"])
    tables: dict[str, dict[str, Any]] = {}
    for action in itertools.chain(*MIRRORED):
        asked = draw_clips(n, seed, seconds, action=action)
        stages = STAGES[1:]
        made = recordings(
            pipe, [asked.caption(i) for i in range(n)], seconds=seconds, seed=seed, stages=stages
        )
        for stage, clips in made.items():
            there = regions(asked, _times(n, stage, clips, seconds))["moving"]
            tables.setdefault(stage, {})[action] = mirrored(clips, there)
    found.mirrored.update({stage: _stack(table, "action") for stage, table in tables.items()})
    return found


def _times(n: int, stage: str, clips: Sequence[Recording], seconds: float) -> np.ndarray:
    """Seconds [n,T] of a stage's frames; those of a first frame's clip are of the whole action, cut to one."""
    last = seconds / 2 if stage == "stage 2" else seconds if stage == "stage 1" else 0.0
    return np.tile(np.linspace(0, last, len(clips[0].frames)), (n, 1))


def _words(
    pipe: Pipeline, asked: Clips, clips: Sequence[Recording]
) -> tuple[dict[str, list[list[int]]], dict[str, list[dict]], dict[str, list[dict[int, int]]]]:
    """Slots of the words that are asked about, and what is hidden and swapped as their controls, by clip."""
    slots: dict[str, list[list[int]]] = {
        "actor": [],
        "action": [],
        "object": [],
        "adverb": [],
        "frame rate": [],
    }
    swapped: dict[str, list[dict[int, int]]] = {"actor swapped": [], "object swapped": []}
    for index, clip in enumerate(clips):
        actor, action, thing = asked.names(index)
        adverb = ADVERBS[float(asked.duration[index])][0]
        for name, words in zip(slots, (actor, action, thing, adverb), strict=False):
            slots[name].append(slots_of(pipe, clip, words))
        slots["frame rate"].append([0] if clip.model.config.temporal else [])
        things = ACTIONS[action][1]
        others = {
            "actor swapped": (actor, ACTOR_NAMES[(ACTOR_NAMES.index(actor) + 1) % len(ACTOR_NAMES)]),
            "object swapped": (thing, things[(things.index(thing) + 1) % len(things)]),
        }
        for name, (word, other) in others.items():
            swapped[name].append({slots_of(pipe, clip, word)[0]: pipe.text.encode(other)[-1]})
    hidden = {
        f"{name} hidden": [{"hide": some} for some in found] for name, found in slots.items() if all(found)
    }
    phase = [
        sum(some, []) for some in zip(slots["action"], slots["adverb"], slots["frame rate"], strict=True)
    ]
    return slots | {"phase": phase}, hidden, swapped


def _stack(tables: Mapping[str, Any], label: str) -> Any:
    """Tables below each other, with a first column that names each."""
    import pandas as pd

    return pd.concat(tables, names=[label]).reset_index(level=0).reset_index(drop=True)


def sentences(found: Study) -> list[str]:
    """What a study found, with its numbers and controls, in Markdown."""
    said = [
        _reading(stage, word, table[table["word"] == word], found.costs[stage])
        for stage, table in found.reading.items()
        for word in table["word"].unique()
    ]
    said += [_sources(stage, table, found.costs[stage]) for stage, table in found.sources.items()]
    said += [_mirrored(stage, table) for stage, table in found.mirrored.items()]
    return said + [_silencing(stage, table) for stage, table in found.silencing.items()]


def _reading(stage: str, word: str, table: Any, costs: Any) -> str:
    heads = table[table["head"] >= 0]
    first, second = (heads.sort_values("rise", ascending=False).iloc[i] for i in (0, 1))
    most = heads.sort_values("weight", ascending=False).iloc[0]
    rise = costs[costs["of"] == word].set_index("change")["rise"]
    title = {"phase": "Which heads carry the phase"}.get(word, f"Where the {word} is read")
    patches = {"actor": "of the animal", "object": "of the object", "phase": "that changes"}[word]
    controls = ", ".join(f"{change} {value:+.3f}" for change, value in rise.items())
    return (
        f"**{title}, {stage}**: most in the {first['channel']} channel, layer {first['layer']}, head "
        f"{first['head']}. When it alone cannot see {'these words' if word == 'phase' else 'the word'}, a token "
        f"{patches} costs {first['rise']:+.3f} nats (elsewhere {first['rise elsewhere']:+.3f}, deviation between "
        f"clips {first['deviation']:.3f}); the next head, {second['channel']} {second['layer']}."
        f"{second['head']}, {second['rise']:+.3f}. All heads at once, and controls: {controls}. The head that "
        f"looks there most is {most['channel']} {most['layer']}.{most['head']} ({most['weight']:.0%} of its "
        f"attention, worth {most['rise']:+.3f})."
    )


def _sources(stage: str, table: Any, costs: Any) -> str:
    means = table.groupby("of", sort=False)[["word", "own patches", "even own patches"]].mean()
    looks = "; ".join(
        f"{of}: {row['word']:.1%} on its words, {row['own patches']:.0%} of what goes to other frames on "
        f"patches that show it there, too (evenly {row['even own patches']:.0%})"
        for of, row in means.iterrows()
    )
    frames = costs[costs["change"].str.contains("frame hidden")]
    without = ", ".join(f"{row.of} {row.change} {row.rise:+.3f}" for row in frames.itertuples())
    return (
        f"**From which frames, {stage}**: the temporal channel, mean over layers and heads, by what a patch "
        f"shows: {looks}. Nats a token more without a frame: {without}."
    )


def _mirrored(stage: str, table: Any) -> str:
    every = table.groupby("action", sort=False).mean(numeric_only=True)
    measure, what = ("back", "frames back") if stage == "stage 1" else ("earlier", "of it to earlier frames")
    said = []
    for first, second in MIRRORED:
        values = [
            f"'{action}' {every[measure][action]:.2f} (evenly {every['even ' + measure][action]:.2f}; first "
            f"frame hidden {every['without first'][action]:+.3f}"
            + (f", last {every['without last'][action]:+.3f})" if stage != "stage 1" else ")")
            for action in (second, first)
        ]
        said.append(" against ".join(values))
    return (
        f"**Does 'takes off' look backwards in time, {stage}?** Attention of moving patches to other frames, "
        f"{what}: {said[0]}. The same of the other mirrored pair: {said[1]}. The deviation between clips is "
        f"{table['deviation'].mean():.2f}: a difference that is not larger is none."
    )


def _silencing(stage: str, table: Any) -> str:
    every, layers = table[table["layer"] == -1].iloc[0], table[table["layer"] >= 0]
    worst, rest = layers.loc[layers["rise"].idxmax()], layers.loc[layers["rise elsewhere"].idxmax()]
    weights = ", ".join(f"{value:.0%}" for value in layers["temporal share"])
    return (
        f"**What gates do, {stage}**: they give the temporal channel {weights} by layer, and it makes "
        f"{every['temporal part']:.0%} of what is mixed. Without it a token that changes costs "
        f"{every['rise']:+.3f} nats (elsewhere {every['rise elsewhere']:+.3f}); without that of one layer "
        f"alone, what changes suffers most in layer {worst['layer']:.0f} ({worst['rise']:+.3f}) and the rest "
        f"in layer {rest['layer']:.0f} ({rest['rise elsewhere']:+.3f})."
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
        clips["stage 2"] = pipe.fill_once(key, prompts, seconds, 1, seed)[:, :5]
    made = {}
    for stage in stages:
        texts = [prompt + suffixes.get(stage, s.key_frame_suffix) for prompt in prompts]
        ids = [
            torch.tensor(pipe.text.encode_prompt(text, spans[stage]), device=pipe.device) for text in texts
        ]
        made[stage] = [record(models[stage], row, clip) for row, clip in zip(ids, clips[stage], strict=True)]
    return made


def slots_of(pipe: Pipeline, recording: Recording, words: str) -> list[int]:
    """The text slots of words that follow each other, each one piece of the text tokenizer."""
    pieces, wanted = pipe.text.pieces(recording.text_ids.tolist()), words.split()
    for start in range(len(pieces)):
        if pieces[start : start + len(wanted)] == wanted:
            return list(range(start, start + len(wanted)))
    raise CogVideoError(f"The text has no piece {words!r}: its pieces are {', '.join(pieces)}.")


def reading(clips: Sequence[Recording], slots: Sequence[Sequence[int]], there: Sequence[np.ndarray]) -> Any:
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
    there: Sequence[np.ndarray],
) -> Any:
    """What changes cost: DataFrame of the nats that a token of the patches `there` [T,N], and elsewhere, costs more.

    hidden: by name, what `token_losses` hides in every clip, from all positions, heads and layers.
    swapped: by name, the ids of other words in the slots of every clip.
    """
    import pandas as pd

    rows = []
    for name, changes in {**hidden, **swapped}.items():
        rises = []
        for clip, change, shown in zip(clips, changes, there, strict=True):
            if name in swapped:
                ids = clip.text_ids.clone()
                ids[list(change)] = torch.tensor(list(change.values()), device=ids.device)
                after = token_losses(record(clip.model, ids, clip.frames))
            else:
                after = token_losses(clip, **change)
            rises.append(_rise(clip, after, shown))
        inside, outside = np.mean(rises, 0)
        rows.append({"change": name, "rise": inside, "rise elsewhere": outside})
    return pd.DataFrame(rows)


def sources(clips: Sequence[Recording], slots: Sequence[Sequence[int]], there: Sequence[np.ndarray]) -> Any:
    """Where patches get from what they show: DataFrame by layer and head of the temporal channel.

    From the patches `there` [T,N] of generated frames. "word": attention on `slots`. Of the attention to
    patches of other frames: "own patches", the part on those that are `there` as well; "back", how many
    frames back it goes; "earlier", the part on earlier frames; each beside its control of "even" attention.
    Mean over patches and clips; "deviation" of "back" between clips.
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
    means["deviation"] = np.std([one["back"] for one in found], 0)
    return pd.DataFrame(
        {"layer": layer, "head": head} | {name: float(mean[layer, head]) for name, mean in means.items()}
        for layer, head in np.ndindex(c.num_layers, c.num_heads)
    )


def mirrored(clips: Sequence[Recording], there: Sequence[np.ndarray]) -> Any:
    """One row that says how far back moving patches look (`sources`), and what the outermost frames are worth.

    "without first", "without last": nats a moving token costs more when the clip's first, or last, frame is hidden.
    """
    import pandas as pd

    table = sources(clips, [[]] * len(clips), there).mean(numeric_only=True).drop(["layer", "head", "word"])
    last = clips[0].model.config.num_frames - 1
    hidden = {
        "without first": [{"frames": [0]}] * len(clips),
        "without last": [{"frames": [last]}] * len(clips),
    }
    worth = costs(clips, hidden, {}, there).set_index("change")["rise"]
    return pd.DataFrame([{**table, **worth}])


def silencing(clips: Sequence[Recording], there: Sequence[np.ndarray]) -> Any:
    """What gates let through: DataFrame with a row a layer, and one for all layers (layer -1).

    "temporal share": the gate weight 1 - sigmoid(gate), mean over dimensions; "temporal part": of the mixed
    output (gate_table). "rise" and "rise elsewhere": how many nats more a token of the patches `there` [T,N],
    and of others, costs in generated frames with the layer's temporal channel silent.
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
        rises = [
            _rise(clip, token_losses(clip, silent=silent), shown)
            for clip, shown in zip(clips, there, strict=True)
        ]
        inside, outside = np.mean(rises, 0)
        values = {name: mean.mean() if layer == -1 else mean[layer] for name, mean in means.items()}
        rows.append({"layer": layer} | values | {"rise": inside, "rise elsewhere": outside})
    return pd.DataFrame(rows)


def _rise(clip: Recording, losses: torch.Tensor, there: np.ndarray) -> list[float]:
    """How much larger losses [T,N] are than the model's own, at the patches `there` and at all others."""
    rise = (losses - token_losses(clip)).cpu().numpy()
    return [_mean(rise, part) for part in _split(clip, there)]


def _split(clip: Recording, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[T,N] bool: the patches `there`, and all others, of generated frames."""
    times = masks.trained_frames(clip.model.config)
    made = np.zeros((len(clip.frames), 1), bool)
    made[[time for time in times if time < len(made)]] = True
    return made & there, made & ~there


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    return float(values[where].mean()) if where.any() else 0.0


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Over the last axis; 0 where nothing is known."""
    known = np.isfinite(values)
    return np.where(known, values, 0).sum(-1) / np.maximum(known.sum(-1), 1)
