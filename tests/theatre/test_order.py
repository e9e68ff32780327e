"""What heads know about the order of phases, against losses taken one by one."""

import numpy as np
import pytest
import torch

import cogvideo
from cogvideo.explore import record
from cogvideo.explore.knockout import token_losses
from cogvideo.explore.silence import Silent
from cogvideo.theatre import order
from cogvideo.theatre.dataset import pixels
from cogvideo.theatre.facts import draw_clips, regions


@pytest.fixture(scope="module")
def pipe() -> cogvideo.Pipeline:
    return cogvideo.Pipeline.from_pretrained("demo", device="cpu")


def test_margins_are_differences_of_losses(pipe, monkeypatch):
    monkeypatch.setattr(order, "MIRRORED", (("puts on", "takes off"),))
    table = order.margins(pipe, 1)
    assert len(table) == 33 and table.iloc[0][["channel", "lost", "elsewhere"]].tolist() == ["none", 0, 0]
    silent, times, values = Silent("temporal", 1, 2), np.linspace(0, 4, 5), []
    for action in ("puts on", "takes off"):
        clip = draw_clips(1, 0, 4.0, action=action)
        moving = regions(clip, times[None])["moving"][0][1:]
        own = clip.caption(0)
        swap = {"puts on": "takes off", "takes off": "puts on"}
        losses = []
        for text in (own, own.replace(action, swap[action])):
            ids = torch.tensor(pipe.text.encode_prompt(text, 4.0))
            recording = record(pipe.stage1, ids, pipe.tokens(pixels(clip, times)[None])[0])
            losses.append(token_losses(recording, parts=[silent]).numpy()[1:])
        values.append((losses[1] - losses[0])[moving].mean())
    row = table.query("channel == 'temporal' and layer == 1 and head == 2").iloc[0]
    assert row["margin"] == pytest.approx(np.mean(values), abs=1e-4)
    assert row["lost"] == pytest.approx(table.iloc[0]["margin"] - row["margin"], abs=1e-6)
    first = order.carriers(table, 3)[0]
    assert table.query(f"channel == '{first.channel}' and layer == {first.layer} and head == {first.head}")[
        "lost"
    ].iloc[0] == pytest.approx(table["lost"].max())


def test_clips_are_drawn_by_the_silenced_model(pipe, monkeypatch):
    monkeypatch.setattr(order, "MIRRORED", (("puts on", "takes off"),))
    seen = []
    whole = type(pipe).key_frames
    monkeypatch.setattr(type(pipe), "key_frames", lambda *a, **k: seen.append(whole(*a, **k)) or seen[-1])
    every = [Silent("temporal", layer) for layer in range(4)]
    table = order.drawn_without(pipe, {"nothing": [], "all frames before": every}, 1)
    assert table["silent"].tolist() == ["nothing", "all frames before"] and table["clips"].tolist() == [2, 2]
    prompts = [draw_clips(1, 0, 4.0, action=action).caption(0) for action in ("puts on", "takes off")]
    np.testing.assert_array_equal(seen[0], whole(pipe, prompts, 4.0, [0, 1]))
    assert (seen[0][:, 0] == seen[1][:, 0]).all() and (
        seen[0] != seen[1]
    ).any()  # first frames have one channel
    assert table["same"].between(0, 1).all()
