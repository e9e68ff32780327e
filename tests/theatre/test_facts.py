"""Facts against sums made by hand, on small models over a clip with an object that moves."""

import math

import numpy as np
import pytest
import torch
from explore.small import CONFIGS, TEXT, small_model

from cogvideo.errors import CogVideoError
from cogvideo.explore import record
from cogvideo.explore.knockout import token_losses
from cogvideo.theatre import facts
from cogvideo.theatre.digits import ACTION_NAMES

OBJECT = [3, 7]  # tokens of an object of two patches, one above the other, that moves right


def moving(frames: int, step: int = 1) -> torch.Tensor:
    grid = torch.zeros(frames, 3, 4, dtype=torch.long)
    for time in range(frames):
        grid[time, 0, (time * step) % 4], grid[time, 1, (time * step) % 4] = OBJECT
    return grid.flatten(1)


def clips_of(name: str, count: int = 2, step: int = 1):
    config = CONFIGS[name]
    model, frames = small_model(config), moving(config.num_frames, step)
    return [record(model, TEXT + index, frames) for index in range(count)]


@pytest.mark.parametrize("name, made", [("stage 1", [1, 2, 3, 4]), ("image model", [0])])
def test_reading_is_weight_and_rise_on_the_objects_patches(name, made):
    clips = clips_of(name)
    table = facts.reading(clips, [3, 4])
    channels = 1 if name == "image model" else 2
    assert len(table) == channels * 2 * 3
    place = (clips[0].frames != 0).numpy() & np.isin(np.arange(len(clips[0].frames)), made)[:, None]
    ground = (clips[0].frames == 0).numpy() & np.isin(np.arange(len(clips[0].frames)), made)[:, None]
    for channel, layer, head in {("spatial", 1, 0), ("spatial", 0, -1), (table["channel"].iloc[-1], 1, 1)}:
        weights, rises, ground_rises = [], [], []
        for clip, slot in zip(clips, [3, 4], strict=True):
            found = clip.capture().maps(channel)[layer, :, :, slot].reshape(2, *place.shape)
            weights.append((found.mean(0) if head == -1 else found[head])[place].mean())
            heads = [0, 1] if head == -1 else [head]
            cut = token_losses(clip, hide=[slot], channels=[channel], layers=[layer], heads=heads)
            rise = (cut - token_losses(clip)).numpy()
            rises.append(rise[place].mean())
            ground_rises.append(rise[ground].mean())
        row = table.query("channel == @channel and layer == @layer and head == @head").iloc[0]
        assert row["weight"] == pytest.approx(np.mean(weights), abs=1e-6)
        assert row["rise"] == pytest.approx(np.mean(rises), abs=1e-5)
        assert row["ground rise"] == pytest.approx(np.mean(ground_rises), abs=1e-5)
        assert row["deviation"] == pytest.approx(np.std(rises), abs=1e-5)


def test_following_compares_one_patch_with_its_controls():
    (clip,) = clips_of("stage 1", 1)
    captured = clip.capture()
    table = facts.following([clip])
    sums = {"follow": [], "stay": [], "opposite": [], "even": []}
    for time in (1, 2, 3):
        for row in (0, 1):
            q = captured.row(time, row * 4 + time)
            for other in range(time):
                places = {"follow": other, "stay": time, "opposite": 2 * time - other}
                if places["opposite"] > 3:
                    continue  # outside of the frame: no control, not counted
                for name, column in places.items():
                    key = len(TEXT) + other * 12 + row * 4 + column + 1  # patch i enters at place i + 1
                    sums[name].append(captured.maps("temporal")[:, :, q, key])
                sums["even"].append(np.full((2, 2), 1 / captured.visible("temporal")[0, q].sum()))
    # In frame 4 it stands in column 0, where the other way lies outside of the frame: nothing is counted.
    for name, values in sums.items():
        np.testing.assert_allclose(table[name], np.mean(values, 0).flatten(), atol=1e-6)
    assert (table["pairs"] == len(sums["follow"])).all()
    assert (table["object"] <= 1).all() and table["even object"].between(0.1, 0.25).all()


def test_what_does_not_move_cannot_be_followed():
    with pytest.raises(CogVideoError, match="No object moves by whole patches"):
        facts.following(clips_of("stage 1", 1, step=0))


def test_silencing_is_the_rise_without_the_temporal_channel():
    clips = clips_of("stage 2")
    table = facts.silencing(clips)
    assert table["layer"].tolist() == [0, 1, -1]
    place = (clips[0].frames != 0) & torch.tensor([0, 1, 0, 1, 0]).bool()[:, None]
    for off, row in zip(([0], [1], [0, 1]), table.itertuples(), strict=True):
        rises = [(token_losses(clip, silent=off) - token_losses(clip))[place].mean() for clip in clips]
        assert row.rise == pytest.approx(float(np.mean(rises)), abs=1e-5) and not math.isclose(
            row.rise, 0, abs_tol=1e-4
        )
    gate = clips[0].model.blocks[1].gate
    assert gate is not None
    assert table["temporal share"][1] == pytest.approx(1 - gate.sigmoid().mean().item(), abs=1e-5)


def test_controls_hide_and_swap_words():
    clips = clips_of("image model")
    table = facts.word_controls(clips, {"digit": [3, 3], "colour": [2, 2]}, {"digit": [15, 16]})
    assert list(zip(table["word"], table["change"], strict=True)) == [
        ("digit", "hidden"), ("digit", "swapped"), ("colour", "hidden")
    ]  # fmt: skip
    rises = []
    for clip, word in zip(clips, [15, 16], strict=True):
        text = clip.text_ids.clone()
        text[3] = word
        with torch.no_grad():
            own, other = (
                clip.model.token_losses(ids[None], clip.frames[None])[0] for ids in (clip.text_ids, text)
            )
        rises.append((other - own)[clip.frames != 0].mean().item())
    assert table["rise"][1] == pytest.approx(np.mean(rises), abs=1e-5)


def test_sentences_carry_the_numbers_of_the_tables():
    stage1, image = clips_of("stage 1"), clips_of("image model")
    slots, study = [3, 3], facts.Study({}, {}, {}, {})
    for stage, clips in {"first frame": image, "stage 1": stage1}.items():
        study.reading[stage] = facts.reading(clips, slots)
        names = {"digit": slots, "colour": [2, 2], "direction": [4, 4]}
        study.words[stage] = facts.word_controls(clips, names, {"digit": [15, 16]})
    study.following["stage 1"], study.silencing["stage 1"] = facts.following(stage1), facts.silencing(stage1)
    first, second, follows, gates = facts.sentences(study)
    best = study.reading["first frame"].query("head >= 0").sort_values("rise").iloc[-1]
    assert f"layer {best['layer']}, head {best['head']}" in first and f"{best['rise']:+.3f} nats" in first
    assert "stage 1" in second and "What follows the moving digit, stage 1" in follows
    assert f"{study.silencing['stage 1']['rise'].iloc[-1]:+.3f} nats" in gates


def test_clips_that_are_asked_for_move():
    clips = facts.moving_clips(5, seed=3)
    assert len(clips) == 5 and (clips.duration == 4).all()
    assert all(ACTION_NAMES[action].startswith("moves") for action in clips.action[:, 0])
    assert (facts.moving_clips(5, seed=3).kind == clips.kind).all()
    with pytest.raises(CogVideoError, match="No action of the demo world takes 3 s: choose of 1, 2, 4, 8"):
        facts.moving_clips(5, seconds=3.0)


def test_recordings_of_the_demo_are_what_its_models_saw():
    from cogvideo.sampling.pipeline import Pipeline

    pipe = Pipeline.from_pretrained("demo", device="cpu")
    made = facts.recordings(
        pipe, ["a red 3 moves left"], seconds=2.0, seed=1, stages=["first frame", "stage 1"]
    )
    (image,), (stage1,) = made["first frame"], made["stage 1"]
    assert torch.equal(stage1.frames, pipe.key_frame_tokens(["a red 3 moves left"], 2.0, 1)[0])
    assert torch.equal(image.frames, stage1.frames[:1]) and image.model.config.num_frames == 1
    assert pipe.text.pieces(stage1.text_ids.tolist())[facts.slot_of(pipe, stage1, "3")] == "3"
    assert len(stage1.text_ids) == len(image.text_ids) + 2  # the frame-rate text and the new line
    with pytest.raises(CogVideoError, match="The text has no piece '9': its pieces are a, red, 3"):
        facts.slot_of(pipe, image, "9")
