"""The schedules that are drawn beside what the variants' own functions do."""

import numpy as np
import pytest
import torch

from cogvideo.theatre.scenes import FPS
from cogvideo.theatre.schedules import Window, shown_in_training, windows
from cogvideo.theatre.variants import VARIANTS, Request


class Tracer:
    """A pipeline whose tokens are times: a frame's one token is its number among frames at FPS."""

    def __init__(self):
        self.found: list[Window] = []
        self.text = self.sampling = self

    temperature, top_k, stage1 = 1.0, 1, None

    def encode_prompt(self, prompt, span):
        return [0]

    def left_pad(self, ids):
        return torch.zeros(len(ids), 1, dtype=torch.long), torch.ones(len(ids), 1, dtype=torch.bool)

    def note(self, stage, given, made):
        self.found.append(Window(stage, *(tuple((t[0, :, 0] / FPS).tolist()) for t in (given, made))))

    def later_key_frame_tokens(self, first, prompts, seconds, seeds):
        steps = torch.arange(5) * int(seconds[0] * FPS) // 4
        made = first[:, None] + steps[None, :, None]
        self.note(1, made[:, :1], made[:, 1:])
        return made

    def interpolate(self, tokens, prompts, seconds, seeds):
        while tokens[0, 1, 0] - tokens[0, 0, 0] > 1:
            between = (tokens[:, 1:] + tokens[:, :-1]) // 2
            for i in range(0, tokens.shape[1] - 2, 2):
                self.note(2, tokens[:, i : i + 3], between[:, i : i + 2])
            last = tokens[:, -1:]
            tokens = torch.cat([torch.stack([tokens[:, :-1], between], 2).flatten(1, 2), last], 1)
        return tokens


@pytest.mark.parametrize("seconds", [1.0, 4.0])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_schedule_is_what_the_variant_does(name, seconds, monkeypatch):
    tracer = Tracer()

    def next_frames(model, ids, given, **options):
        later = given[:, -1:] + torch.arange(1, options["num_frames"] - given.shape[1] + 1)[None, :, None]
        tracer.note(1, given, later)
        return torch.cat([given, later], 1)

    monkeypatch.setattr("cogvideo.theatre.variants.generate_key_frames", next_frames)
    asked = Request(torch.zeros(1, 1, dtype=torch.long), [""], [0], np.array([seconds]), np.array([True]))
    (clip,) = VARIANTS[name].make(tracer, asked)  # type: ignore[arg-type]  # a stand-in
    assert clip[:, 0].tolist() == list(range(round(seconds * FPS) + 1))
    assert tracer.found == windows(name, seconds)
    made = [time for window in windows(name, seconds) for time in window.made if time <= seconds]
    assert sorted(made) == [i / FPS for i in range(1, round(seconds * FPS) + 1)]  # each frame once


def test_what_training_shows():
    rule = shown_in_training("cogvideo", 400, 4.0)
    assert (rule[:, 0] == 0).all() and 0.7 < (rule[:, -1] == 4).mean() < 0.9 and rule.max() == 4
    fixed = shown_in_training("fixed-rate", 400, 4.0)
    assert set(fixed[:, -1] - fixed[:, 0]) == {1.0} and set(fixed[:, 0]) == {0.0, 1.0, 2.0, 3.0}
    window = shown_in_training("overlap-2", 400, 4.0)
    assert np.allclose(np.diff(window), 1 / FPS) and len(set(window[:, 0])) == 33
