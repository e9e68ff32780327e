"""Teacher-forced beside free-running: models that are known to be right, or wrong from some time on."""

import numpy as np
import pytest
import torch

from cogvideo import Pipeline
from cogvideo.theatre import drift as drift_of
from cogvideo.theatre.drift import PARTS, WAYS, drift, plot_drift
from cogvideo.theatre.questions import draw_questions
from cogvideo.theatre.variants import Variant


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_pretrained("demo")


def test_a_model_that_fails_late_is_right_after_true_frames(pipe, monkeypatch):
    """Free running it holds its frame from the middle on; after true frames it is the truth itself."""
    asked = draw_questions(6, 1, parts=False)
    truth = {}

    def make(pipe, request):
        if request.truth is not None:
            truth[request.seconds[0]] = request.truth
            return list(request.truth)
        tokens = truth[request.seconds[0]].clone()
        half = tokens.shape[1] // 2
        tokens[:, half + 1 :] = tokens[:, half : half + 1]
        assert torch.equal(tokens[:, 0], request.first)
        return list(tokens)

    monkeypatch.setattr(drift_of, "find_variant", lambda name: Variant(name, "", make=make))
    found = drift(pipe, asked)
    assert found.right.keys() == {"truth", *WAYS} and found.agreement.keys() == WAYS.keys()
    assert np.array_equal(found.agreement["forced"], np.ones(PARTS))
    assert np.array_equal(found.right["forced"], found.right["truth"])
    assert found.right["truth"].min() > 0.9  # the judge reads what the tokenizer keeps
    assert np.array_equal(found.right["free"][: PARTS // 2], found.right["truth"][: PARTS // 2])
    assert found.right["free"][-1] < 0.8 and found.agreement["free"][-1] < 1
    for i, span in enumerate(asked.spans):
        made = [found.truth[i], *(found.clips[way][i] for way in WAYS)]
        assert {clip.shape for clip in made} == {(round(8 * span) + 1, 64, 64, 3)}
        assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


def test_the_demo_drifts_no_less_than_it_errs(pipe):
    """Both ways begin with the same frame; after true frames more tokens are those of the clip."""
    asked = draw_questions(24, 0, parts=False)
    found = drift(pipe, asked[asked.spans == 1][np.arange(4)])
    forced, free = (found.agreement[way].mean() for way in WAYS)
    assert forced > 0.9 and forced >= free - 0.01
    for clips in found.clips.values():
        assert all(np.array_equal(clip[0], true[0]) for clip, true in zip(clips, found.truth, strict=True))
    figure = plot_drift(found)
    lines = [line.get_ydata() for axis in figure.axes for line in axis.lines]
    curves = [values[way] for values in (found.right, found.agreement) for way in WAYS]
    assert all(np.array_equal(line, curve) for line, curve in zip(lines, curves, strict=True))
