"""Questions to a model of the theatre: where it reads who acts, with what, and in which phase the action is.

They are asked of clips that the model itself generates. Attention weights stand beside what they are good for
(effects.py: how many nats a token costs more without them) and beside controls that could prove them wrong:
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
from cogvideo.explore.recording import Recording, record
from cogvideo.sampling.decode import places
from cogvideo.sampling.pipeline import Pipeline
from cogvideo.theatre.drawing import render
from cogvideo.theatre.effects import costs, mirrored, reading, silencing, sources
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
            f"No action of the theatre takes {seconds:g} s: choose of "
            f"{', '.join(f'{one:g}' for one in DURATIONS)}."
        )
    opposite = {second: first for first, second in MIRRORED}
    pool = sample_clips(200 + 100 * n, np.random.default_rng(seed), split="seen")
    drawn = np.array(ACTION_NAMES)[pool.action]
    fit = drawn == opposite.get(action, action) if action else np.array(OBJECT_NAMES)[pool.object] != LONE
    found = replace(pool[fit][:n], duration=np.full(n, seconds))
    if action and action in opposite:
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
    """Ask a model of the theatre everything of this file, about n clips a question that it generates itself.

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
        found.costs[stage] = costs(clips, hidden, swapped, asked_of)
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
    """Seconds [n,T] of a stage's frames."""
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
        [*verb, *adverb, *rate]
        for verb, adverb, rate in zip(slots["action"], slots["adverb"], slots["frame rate"], strict=True)
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
        f"{first['head']}. When it alone cannot see {'these words' if word == 'phase' else 'the word'}, a "
        f"token {patches} costs {first['rise']:+.3f} nats (elsewhere {first['rise elsewhere']:+.3f}, "
        f"deviation between clips {first['deviation']:.3f}); the next head, "
        f"{second['channel']} {second['layer']}.{second['head']}, {second['rise']:+.3f}. All heads at once, "
        f"and controls: {controls}. The head "
        f"that looks there most is {most['channel']} {most['layer']}.{most['head']} ({most['weight']:.0%} of "
        f"its attention, worth {most['rise']:+.3f})."
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
        f"{what}: {said[0]}. The same of the other mirrored pair: {said[1]}. Deviation between clips: "
        f"{table[f'deviation of {measure}'].mean():.2f} (none of a single clip); what is not larger than it "
        "is no difference."
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
        clips["stage 2"] = pipe.interpolate_once(key, prompts, seconds, 1, seed)[:, :5]
    made = {}
    for stage in stages:
        texts = [prompt + suffixes.get(stage, s.key_frame_suffix) for prompt in prompts]
        ids = [
            torch.tensor(pipe.text.encode_prompt(text, spans[stage]), device=pipe.device) for text in texts
        ]
        told = places(pipe.stage2, 1, 2) if stage == "stage 2" else None
        told = None if told is None else told[:1]
        shown = zip(ids, clips[stage], strict=True)
        made[stage] = [record(models[stage], row, clip, conditioning=told) for row, clip in shown]
    return made


def slots_of(pipe: Pipeline, recording: Recording, words: str) -> list[int]:
    """The text slots of words that follow each other, each one piece of the text tokenizer."""
    pieces, wanted = pipe.text.pieces(recording.text_ids.tolist()), words.split()
    for start in range(len(pieces)):
        if pieces[start : start + len(wanted)] == wanted:
            return list(range(start, start + len(wanted)))
    raise CogVideoError(f"The text has no piece {words!r}: its pieces are {', '.join(pieces)}.")
