"""Losses of changed models against a dense computation that makes the same changes."""

import pytest
import torch
import torch.nn.functional as F
from explore.oracle import dense
from explore.small import CONFIGS, MASK, TEXT, clip, small_model

from cogvideo.errors import CogVideoError
from cogvideo.explore import record
from cogvideo.explore.knockout import token_losses

CHANGES = {
    "nothing": {},
    "one head's view of a word": {"hide": [3], "layers": [1], "heads": [1], "channels": ["temporal"]},
    "a channel's view of two words": {"hide": [2, 4], "channels": ["spatial"]},
    "a word everywhere": {"hide": [3]},
    "a silent layer": {"silent": [0]},
    "a frame and a word": {"hide": [2], "frames": [0], "layers": [1], "heads": [0]},
    "both": {"hide": [4], "layers": [0], "heads": [0], "silent": [1]},
}


@pytest.mark.parametrize(
    "name, change",
    [(name, change) for name in ("windowed stage 1", "stage 2") for change in CHANGES]
    + [("image model", "a word everywhere")],
)
@torch.no_grad()
def test_losses_equal_a_dense_computation_with_the_same_change(name, change):
    config = CONFIGS[name]
    model, frames = small_model(config), clip(config)
    wanted = {"hide": (), "layers": (0, 1), "heads": (0, 1), "channels": ("spatial", "temporal")} | CHANGES[
        change
    ]

    def hidden(layer, channel, head):
        asked = layer in wanted["layers"] and head in wanted["heads"] and channel in wanted["channels"]
        if not asked:
            return ()
        n = config.frame_tokens
        in_frames = [len(TEXT) + time * n + j for time in wanted.get("frames", ()) for j in range(n)]
        return [*wanted["hide"], *(in_frames if channel == "temporal" else ())]

    *_, logits = dense(model, TEXT, frames, MASK, hidden, wanted.get("silent", ()))
    expected = F.cross_entropy(logits, frames.flatten(), reduction="none").view(frames.shape)
    found = token_losses(record(model, TEXT, frames, text_mask=MASK), **CHANGES[change])
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    if change == "nothing":
        torch.testing.assert_close(
            found, model.token_losses(TEXT[None], frames[None], MASK[None])[0], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"hide": [5]}, r"There is no text slot 5: this text has slots 0\.\.4"),
        ({"frames": [5]}, r"There is no frame 5: this clip has frames 0\.\.4"),
        ({"hide": [3], "heads": [2]}, "There is no head 2"),
        ({"silent": [2]}, "There is no layer 2"),
        ({"silent": [0]}, r"Layers \[0\] were not recorded: record all of them"),
    ],
)
def test_changes_that_cannot_be_made_are_one_sentence(changes, sentence):
    config = CONFIGS["stage 1"]
    recording = record(small_model(config), TEXT, clip(config), layers=[1])
    with pytest.raises(CogVideoError, match=sentence):
        token_losses(recording, **changes)
