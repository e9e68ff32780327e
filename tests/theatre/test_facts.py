"""Facts against sums made by hand, on small models over a clip with an object that moves."""

import math

import numpy as np
import pytest
import torch
from explore.small import CONFIGS, TEXT, small_model

from cogvideo.errors import CogVideoError
from cogvideo.explore import record
from cogvideo.explore.knockout import token_losses
from cogvideo.theatre import effects, facts
from cogvideo.theatre.drawing import draw
from cogvideo.theatre.scenes import ACTION_NAMES, ACTOR_NAMES, BACKGROUNDS, OBJECT_NAMES

OBJECT = [3, 7]  # tokens of an object of two patches, one above the other, that moves right


def moving(frames: int) -> torch.Tensor:
    grid = torch.zeros(frames, 3, 4, dtype=torch.long)
    for time in range(frames):
        grid[time, 0, time % 4], grid[time, 1, time % 4] = OBJECT
    return grid.flatten(1)


def clips_of(name: str, count: int = 2):
    """Recordings, and the patches [T,N] of the object."""
    config = CONFIGS[name]
    model, frames = small_model(config), moving(config.num_frames)
    return [record(model, TEXT + index, frames) for index in range(count)], [frames.numpy() != 0] * count


@pytest.mark.parametrize("name, made", [("stage 1", [1, 2, 3, 4]), ("image model", [0])])
def test_reading_is_weight_and_rise_on_the_patches_that_show_it(name, made):
    clips, there = clips_of(name)
    slots = [[3], [2, 4]]
    table = effects.reading(clips, slots, there)
    channels = 1 if name == "image model" else 2
    assert len(table) == channels * 2 * 3
    made = np.isin(np.arange(len(clips[0].frames)), made)[:, None]
    inside, outside = there[0] & made, ~there[0] & made
    for channel, layer, head in {("spatial", 1, 0), ("spatial", 0, -1), (table["channel"].iloc[-1], 1, 1)}:
        weights, rises, other_rises = [], [], []
        for clip, hidden in zip(clips, slots, strict=True):
            found = clip.capture().maps(channel)[layer][..., hidden].sum(-1).reshape(2, *inside.shape)
            weights.append((found.mean(0) if head == -1 else found[head])[inside].mean())
            heads = [0, 1] if head == -1 else [head]
            cut = token_losses(clip, hide=hidden, channels=[channel], layers=[layer], heads=heads)
            rise = (cut - token_losses(clip)).numpy()
            rises.append(rise[inside].mean())
            other_rises.append(rise[outside].mean())
        row = table.query("channel == @channel and layer == @layer and head == @head").iloc[0]
        assert row["weight"] == pytest.approx(np.mean(weights), abs=1e-6)
        assert row["rise"] == pytest.approx(np.mean(rises), abs=1e-5)
        assert row["rise elsewhere"] == pytest.approx(np.mean(other_rises), abs=1e-5)
        assert row["deviation"] == pytest.approx(np.std(rises), abs=1e-5)


@pytest.mark.parametrize("name, made", [("stage 1", [1, 2, 3, 4]), ("stage 2", [1, 3])])
def test_sources_are_parts_of_the_attention_to_other_frames(name, made):
    (clip,), (there,) = clips_of(name, 1)
    captured = clip.capture(channels=["temporal"])
    assert captured.temporal is not None and captured.temporal_visible is not None
    table = effects.sources([clip], [[3]], np.stack([there]))
    layer, head, sums = 1, 1, {}
    for even, keys in (("", captured.temporal[layer, head]), ("even ", captured.temporal_visible[layer])):
        for time, patch in np.argwhere(there):
            if time not in made:
                continue
            row = keys[captured.row(time, patch)].astype(float)
            grid = np.zeros((5, 12))  # patch i is the key at position i + 1
            for other in set(range(5)) - {time}:
                grid[other, :11] = row[len(TEXT) + 12 * other + 1 : len(TEXT) + 12 * (other + 1)]
            lag = time - np.arange(5)
            values = {
                "own patches": grid[there].sum(),
                "back": (grid.sum(1) * lag).sum(),
                "earlier": grid[lag > 0].sum(),
            }
            for measure, value in values.items():
                sums.setdefault(even + measure, []).append(value / grid.sum())
            if not even:
                sums.setdefault("word", []).append(row[3])
    found = table.query("layer == @layer and head == @head").iloc[0]
    for measure, values in sums.items():
        assert found[measure] == pytest.approx(np.mean(values), abs=1e-5), measure
    assert (table["earlier"] == 1).all() or name == "stage 2"


def test_silencing_is_the_rise_without_the_temporal_channel():
    clips, there = clips_of("stage 2")
    table = effects.silencing(clips, there)
    assert table["layer"].tolist() == [0, 1, -1]
    place = (clips[0].frames != 0) & torch.tensor([0, 1, 0, 1, 0]).bool()[:, None]
    for off, row in zip(([0], [1], [0, 1]), table.itertuples(), strict=True):
        rises = [(token_losses(clip, silent=off) - token_losses(clip))[place].mean() for clip in clips]
        assert row.rise == pytest.approx(float(np.mean(rises)), abs=1e-5) and not math.isclose(
            row.rise, 0, abs_tol=1e-4
        )
    weight = clips[0].model.blocks[1].gate
    assert weight is not None
    gate = weight.sigmoid().mean().item()
    assert table["temporal share"][1] == pytest.approx(1 - gate, abs=1e-5)


def test_costs_hide_words_and_frames_and_swap_words():
    clips, there = clips_of("stage 1")
    hidden = {"actor hidden": [{"hide": [2]}] * 2, "first frame hidden": [{"frames": [0]}] * 2}
    table = effects.costs(clips, hidden, {"actor swapped": [{3: 15}, {3: 16}]}, {"it": there})
    assert set(table["of"]) == {"it"}
    assert table["change"].tolist() == ["actor hidden", "first frame hidden", "actor swapped"]
    rises = {change: [] for change in table["change"]}
    place = (clips[0].frames != 0) & (torch.arange(5) > 0)[:, None]
    for clip, word in zip(clips, [15, 16], strict=True):
        text, own = clip.text_ids.clone(), token_losses(clip)
        text[3] = word
        with torch.no_grad():
            other = clip.model.token_losses(text[None], clip.frames[None])[0]
        changed = token_losses(clip, hide=[2]), token_losses(clip, frames=[0]), other
        for change, losses in zip(rises, changed, strict=True):
            rises[change].append((losses - own)[place].mean().item())
    for change, row in zip(rises, table.itertuples(), strict=True):
        assert row.rise == pytest.approx(np.mean(rises[change]), abs=1e-5)


def test_regions_are_where_true_pictures_differ():
    clips = facts.draw_clips(3, seed=1)
    times = np.tile(np.linspace(0, 4, 5), (3, 1))
    found = facts.regions(clips, times)
    names, background = clips.names(1), BACKGROUNDS[clips.background[1]]
    pictures = [draw(*names, state, background) for state in (0, 4, 8, 12, 16)]
    other = draw(ACTOR_NAMES[(clips.actor[1] + 1) % len(ACTOR_NAMES)], *names[1:], 8, background)
    for patch in range(64):
        part = np.s_[patch // 8 * 8 : patch // 8 * 8 + 8, patch % 8 * 8 : patch % 8 * 8 + 8]
        assert found["actor"][1, 2, patch] == (pictures[2][part] != other[part]).any()
        differs = any((picture[part] != pictures[2][part]).any() for picture in pictures)
        assert found["moving"][1, 2, patch] == differs
    assert found["object"][:, 0].any(1).all() and (found["object"].mean() < 0.2)


def test_mirrored_actions_are_asked_of_the_same_clips():
    on, off = (facts.draw_clips(4, 3, 2.0, action=action) for action in ("puts on", "takes off"))
    assert {ACTION_NAMES[a] for a in on.action} == {"puts on"} and (on.duration == 2).all()
    assert {ACTION_NAMES[a] for a in off.action} == {"takes off"}
    for field in ("actor", "object", "background"):
        assert (getattr(on, field) == getattr(off, field)).all()
    assert OBJECT_NAMES.index("bell") not in facts.draw_clips(50, seed=2).object
    with pytest.raises(CogVideoError, match="No action of the theatre takes 3 s: choose of 1, 2, 4, 8"):
        facts.draw_clips(5, seconds=3.0)


def test_a_study_of_the_demo_and_its_sentences():
    from cogvideo.sampling.pipeline import Pipeline

    pipe = Pipeline.from_pretrained("demo", device="cpu")
    found = facts.study(pipe, 1, seed=1)
    assert list(found.reading) == list(facts.STAGES) and list(found.mirrored) == list(facts.STAGES[1:])
    assert set(found.reading["first frame"]["word"]) == {"actor", "object"}
    said = facts.sentences(found)
    assert len(said) == 2 + 3 + 3 + 2 + 2 + 2
    best = found.reading["stage 1"].query("word == 'phase' and head >= 0").sort_values("rise").iloc[-1]
    phase = next(one for one in said if "Which heads carry the phase, stage 1" in one)
    assert f"layer {best['layer']}, head {best['head']}" in phase and f"{best['rise']:+.3f} nats" in phase
    takes = found.mirrored["stage 1"].set_index("action").loc["takes off"]
    back = next(one for one in said if "'takes off' look backwards in time, stage 1" in one)
    assert f"'takes off' {takes['back']:.2f} (evenly {takes['even back']:.2f}" in back
    assert f"{found.silencing['stage 1']['rise'].iloc[-1]:+.3f} nats" in said[-2]


def test_recordings_of_the_demo_are_what_its_models_saw():
    from cogvideo.sampling.pipeline import Pipeline

    pipe = Pipeline.from_pretrained("demo", device="cpu")
    prompt = "a lion takes off a hat"
    made = facts.recordings(pipe, [prompt], seconds=2.0, seed=1, stages=["first frame", "stage 1"])
    (image,), (stage1,) = made["first frame"], made["stage 1"]
    assert torch.equal(stage1.frames, pipe.key_frame_tokens([prompt], 2.0, 1)[0])
    assert torch.equal(image.frames, stage1.frames[:1]) and image.model.config.num_frames == 1
    pieces = pipe.text.pieces(stage1.text_ids.tolist())
    slots = facts.slots_of(pipe, stage1, "takes off")
    assert [pieces[slot] for slot in slots] == ["takes", "off"] and slots[1] == slots[0] + 1
    assert len(stage1.text_ids) == len(image.text_ids) + 2  # the frame-rate text and the new line
    with pytest.raises(CogVideoError, match="The text has no piece 'bear': its pieces are a, lion, takes"):
        facts.slots_of(pipe, image, "bear")
